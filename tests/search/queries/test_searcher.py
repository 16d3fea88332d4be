"""`Searcher`: pages equal one exact search, near-duplicates, filters, relevance, versions of the index, refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search.queries.standins import DIMENSIONS, Clip, Pictures, direction, unit

from keras_clip.search.queries import CursorError, Filters, Query, Searcher, StaleCursor, Term, find_copies, searcher
from keras_clip.search.queries.copies import nearest_before
from keras_clip.search.vectors import UsearchIndex

pytestmark = pytest.mark.backend_free


def pictures(count, seed=0, copies=0.3, **options):
    """Pictures of which some are near-duplicates or equal to one before."""
    rng = np.random.default_rng(seed)
    embeddings = rng.integers(-2, 3, size=(count, DIMENSIONS)).astype(float)
    embeddings[np.abs(embeddings).sum(axis=1) == 0] = 1
    embeddings = unit(embeddings)
    for row in range(1, count):
        if rng.random() < copies:
            noise = rng.choice([0, 0.05]) * rng.normal(size=DIMENSIONS) / np.sqrt(DIMENSIONS)
            embeddings[row] = unit(embeddings[rng.integers(row)] + noise)
    return Pictures(embeddings, seed, **options)


def all_pages(searcher, query, limit, between=lambda: None, **options):
    pages = [searcher.search(query, limit=limit, **options)]
    while pages[-1].cursor:
        between()
        pages.append(searcher.search(query, limit=limit, cursor=pages[-1].cursor, **options))
        assert len(pages) < 1000
    assert {(page.total, page.version, page.cutoff) for page in pages} == {
        (pages[0].total, pages[0].version, pages[0].cutoff)
    }
    assert all(len(page.results) == limit for page in pages[:-1]) and len(pages[-1].results) <= limit
    return [result for page in pages for result in page.results]


def slow_search(index, vector, allowed=lambda facts: True, collapse=None):
    """(id, score, copies) of all results by loops, from the definition of the search."""
    columns = index.columns(("width", "height", "size", "taken", "folder", "caption", "name"))
    facts = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    # Each row by itself: equal rows have equal scores.
    scores = None if vector is None else [float(np.vecdot(row, vector)) for row in index.embeddings]
    least = None if collapse is None else collapse - 1e-6
    leaders = {}
    for row in range(len(index.embeddings)):
        # The most similar row before, then its leader if that is similar too.
        cosines = [float(index.embeddings[row] @ index.embeddings[other]) for other in range(row)]
        parent = int(np.argmax(cosines)) if cosines else None
        leader = leaders.get(parent, parent)
        near = collapse is not None and cosines and max(cosines) >= least and cosines[leader] >= least
        leaders[row] = leader if near else row
    groups = {}
    for id, row, fact in zip(index.ids.tolist(), index.rows.tolist(), facts, strict=True):
        if allowed(fact):
            groups.setdefault(leaders[row] if collapse is not None else row, []).append((id, row, fact))
    found = []
    for members in groups.values():
        best = min(members, key=lambda m: (-m[2]["width"] * m[2]["height"], -m[2]["size"], m[0]))
        found.append((best[0], None if scores is None else scores[best[1]], len(members), best[2]["taken"]))
    if vector is None:
        found.sort(key=lambda item: (-item[3].astype(int), item[0]))
    else:
        found.sort(key=lambda item: (-item[1], item[0]))
    return [item[:3] for item in found]


def tuples(results):
    return [(result.id, result.score, result.copies) for result in results]


FILTERS = {
    "none": (None, lambda facts: True),
    "words": (Filters(words="RED boat"), lambda facts: "red" in facts["caption"] and "boat" in facts["caption"]),
    "folder": (Filters(folder="0:2024/a"), lambda facts: facts["folder"] == "2024/a"),
    "size": (
        Filters(min_width=200, min_height=300),
        lambda facts: facts["width"] >= 200 and facts["height"] >= 300,
    ),
    "none match": (Filters(words="zeppelin"), lambda facts: False),
}


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 60),
    seed=st.integers(0, 10**6),
    limit=st.integers(1, 20),
    collapse=st.sampled_from([None, 0.9, 0.97, 1.0]),
    filters=st.sampled_from(sorted(FILTERS)),
    terms=st.sampled_from(["boat", "boat - sea", "picture", ""]),
    is_changed=st.booleans(),
    is_forgotten=st.booleans(),
)
def test_all_pages_equal_one_search(count, seed, limit, collapse, filters, terms, is_changed, is_forgotten):
    index = pictures(count, seed)
    index.change(remove=np.random.default_rng(seed).choice(index.ids, count // 4, replace=False))
    index.refresh()
    query = f"picture:{index.ids[0]}" if terms == "picture" else terms
    vector = {
        "boat": direction("boat"),
        "boat - sea": unit(direction("boat").astype(float) - direction("sea")),
        "picture": unit(index.embeddings[index.rows[0]].astype(float)),
        "": None,
    }[terms]
    given_filters, allowed = FILTERS[filters]
    expected = slow_search(index, vector, allowed, collapse)
    searched = Searcher(index, Clip())

    def between():
        # Pictures come and go between two pages, and rankings may be forgotten.
        if is_changed and searched.version < 4:
            index.change(add=unit(np.random.default_rng(seed).normal(size=(3, DIMENSIONS))), remove=index.ids[:1])
            assert searched.refresh()
        if is_forgotten:
            searched._rankings._kept.clear()

    results = all_pages(searched, query, limit, between, filters=given_filters, collapse=collapse)
    assert [(id, copies) for id, _, copies in tuples(results)] == [(id, copies) for id, _, copies in expected]
    if vector is not None:
        np.testing.assert_allclose([r.score for r in results], [score for _, score, _ in expected], atol=1e-6)


def test_equal_pictures_are_ordered_by_id_also_where_rows_are_not():
    index = Pictures(np.eye(DIMENSIONS)[[0, 1, 0, 1, 0]])
    # The picture of id 2 was changed: its embedding is in a new row.
    index.change(add=np.eye(DIMENSIONS)[[0]])
    version, embeddings, ids, _, generation = index._next
    index._next = (version, embeddings, ids[:5], np.array([0, 5, 2, 3, 4]), generation)
    index.refresh()
    results = Searcher(index, Clip()).search(Query([Term(picture=1)])).results
    assert [result.id for result in results] == [1, 2, 3, 5, 4]


def test_collapse_keeps_the_largest_resolution_then_the_largest_file():
    base = np.eye(DIMENSIONS)[[0, 0, 0, 0, 1]]
    facts = {"width": [100, 400, 200, 400, 50], "height": [100, 200, 400, 200, 50], "size": [9000, 2000, 2000, 3000, 1]}
    searched = Searcher(Pictures(base, **facts), Clip())
    found = searched.search("", collapse=0.95)
    assert {result.id: result.copies for result in found.results} == {4: 4, 5: 1}
    # The best one that the filters allow is shown, with the number of those that they allow.
    found = searched.search("picture:1", Filters(min_height=400), collapse=0.95)
    assert [(result.id, result.copies) for result in found.results] == [(3, 1)]
    assert searched.copies(1) == [4, 2, 3, 1]
    assert searched.copies(5) == [5]
    assert [result.copies for result in searched.search("").results] == [1] * 5


def test_a_chain_of_similar_pictures_is_not_one_group():
    angles = np.arange(12) * 0.2
    chain = np.zeros((12, DIMENSIONS))
    chain[:, 0], chain[:, 1] = np.cos(angles), np.sin(angles)
    searched = Searcher(Pictures(chain), Clip())
    # cos(0.2) is 0.98 and cos(0.4) is 0.92: with 0.95, a group is two neighbours.
    assert searched.search("", collapse=0.95).total == 6
    assert searched.copies(1, 0.95) == sorted(searched.copies(2, 0.95), key=searched.copies(1, 0.95).index)
    assert max(result.copies for result in searched.search("", collapse=0.95).results) == 2


@pytest.mark.parametrize("count, spread", [(1, 1.0), (700, 0.02), (700, 0.3), (1500, 1.0)])
def test_nearest_before(count, spread, monkeypatch):
    from keras_clip.search.queries import copies

    monkeypatch.setattr(copies, "_ROWS", 64)
    monkeypatch.setattr(copies, "_COLUMNS", 256)
    monkeypatch.setattr(copies, "_DIMENSIONS", (4, 16))
    rng = np.random.default_rng(3)
    vectors = unit(rng.normal(size=(12, 32))[rng.integers(0, 12, count)] + spread * rng.normal(size=(count, 32)))
    cosines = np.tril(vectors.astype(float) @ vectors.T, -1)
    cosines[np.triu_indices(count)] = -1
    best = cosines.max(axis=1)
    for start in (0, count // 3):
        parents, values = nearest_before(vectors, start)
        has_parent = best[start:] >= 0.9
        rows = np.arange(start, count)
        np.testing.assert_allclose(values, np.where(has_parent, best[start:], 0), atol=1e-5)
        assert (parents[~has_parent] == rows[~has_parent]).all()
        np.testing.assert_allclose(cosines[rows, parents][has_parent], best[start:][has_parent], atol=1e-5)


def test_copies_are_kept_in_the_folder_and_compared_once(tmp_path, monkeypatch):
    from keras_clip.search.queries import copies

    index = pictures(50)
    index.folder = tmp_path
    compared, original = [], copies.nearest_before
    monkeypatch.setattr(
        copies, "nearest_before", lambda e, *options: compared.append((options[0], len(e))) or original(e, *options)
    )
    first = Searcher(index, Clip()).search("boat", collapse=0.95)
    assert tuples(Searcher(index, Clip()).search("boat", collapse=0.95).results) == tuples(first.results)
    searched = Searcher(index, Clip())
    index.change(add=np.eye(DIMENSIONS), remove=[3])
    searched.refresh()
    searched.search("boat", collapse=0.99)
    assert searched.search("boat", collapse=0.95, cursor=None).total
    assert compared == [(0, 50), (50, 58)]
    # Outside of a search, too.
    index.change(add=np.eye(DIMENSIONS)[:2])
    index.refresh()
    find_copies(index)
    searched.refresh()
    assert searched.search("boat", collapse=0.95).total
    assert compared[2:] == [(58, 60)]
    # A damaged file is computed again.
    (tmp_path / "copies.npz").write_bytes(b"PK damaged")
    assert Searcher(index, Clip()).search("boat", collapse=0.95).total
    assert compared[3:] == [(0, 60)]


def test_compaction_renumbers_rows():
    index = pictures(40)
    searched = Searcher(index, Clip())
    searched.search("", collapse=0.9)
    index.change(remove=index.ids[::2], compact=True)
    searched.refresh()
    expected = slow_search(index, direction("boat"), collapse=0.9)
    found = tuples(searched.search("boat", collapse=0.9).results)
    assert [(id, copies) for id, _, copies in found] == [(id, copies) for id, _, copies in expected]


DATES = {
    "from a day": (dict(taken_after="2024-01-03"), [3, 4, 5, 6]),
    "to a day, to its end": (dict(taken_before="2024-01-03"), [1, 2, 3]),
    "one day": (dict(taken_after="2024-01-03", taken_before="2024-01-03"), [3]),
    "from a time": (dict(taken_after="2024-01-03T12:00:01"), [4, 5, 6]),
    "to a time": (dict(taken_before="2024-01-03 12:00"), [1, 2, 3]),
}


@pytest.mark.parametrize("dates, ids", DATES.values(), ids=DATES)
def test_dates(dates, ids):
    taken = [np.datetime64(f"2024-01-0{day}T12:00:00") for day in range(1, 7)]
    searched = Searcher(Pictures(np.eye(DIMENSIONS)[:6], taken=taken), Clip())
    assert [result.id for result in searched.search("", Filters(**dates)).results] == ids[::-1]


WORDS = {
    "any case": ("RED", [1]),
    "part of a word": ("boa", [1]),
    "all words, in any order": ("boat red", [1]),
    "sharp s": ("STRASSE", [2]),
    "no spaces between words": ("写真", [3]),
    "name": ("img_4", [4]),
    "folder": ("ferien", [4]),
    "wide letters": ("ＲＥＤ", [1]),
    "decomposed letters": ("cafe\u0301", [5]),
    "one word is missing": ("red car", []),
    "only spaces": ("  ", [1, 2, 3, 4, 5]),
}


@pytest.mark.parametrize("words, ids", WORDS.values(), ids=WORDS)
def test_words(words, ids):
    captions = ["A red boat", "Straße am Meer", "海の写真", "", "Caf\u00e9"]
    folders = ["", "", "", "2024/Ferien", ""]
    index = Pictures(np.eye(DIMENSIONS)[:5], caption=captions, folder=folders, name=["a", "b", "c", "IMG_4.jpg", "e"])
    found = Searcher(index, Clip()).search("", Filters(words=words)).results
    assert sorted(result.id for result in found) == ids


FOLDERS = {
    "0:": [1, 2, 3],
    "0:2024": [2, 3],
    "0:2024/sea": [3],
    "0:/2024/sea/": [3],
    "0:2024/se": [],
    "1:": [4],
    "1:2024": [],
    "2:": [],
}


@pytest.mark.parametrize("folder, ids", FOLDERS.items())
def test_folders(folder, ids):
    index = Pictures(np.eye(DIMENSIONS)[:4], folder=["", "2024", "2024/sea", "20"], root=[0, 0, 0, 1])
    found = Searcher(index, Clip()).search("", Filters(folder=folder)).results
    assert sorted(result.id for result in found) == ids


def test_labels_and_cursors():
    labels = {"cat": {1, 3, 5, 99}, "dog": {2}}
    searched = Searcher(pictures(6), Clip(), labelled=labels.__getitem__)
    assert {r.id for r in searched.search("boat", Filters(label="cat")).results} == {1, 3, 5}
    assert {r.id for r in searched.search("boat", Filters(label="cat", not_label="dog")).results} == {1, 3, 5}
    assert {r.id for r in searched.search("boat", Filters(not_label="cat")).results} == {2, 4, 6}
    first = searched.search("boat", Filters(label="cat"), limit=1)
    labels["cat"] = {2}
    # The pages go on as they began; a new search has the new labels.
    more = searched.search("boat", Filters(label="cat"), limit=5, cursor=first.cursor)
    assert {r.id for r in first.results + more.results} == {1, 3, 5}
    assert [r.id for r in searched.search("boat", Filters(label="cat")).results] == [2]
    searched._rankings._kept.clear()
    with pytest.raises(StaleCursor, match="earlier state of the labels"):
        searched.search("boat", Filters(label="cat"), cursor=first.cursor)
    with pytest.raises(ValueError, match="a Searcher without `labelled`"):
        Searcher(pictures(6), Clip()).search("boat", Filters(label="cat"))


def test_smallest_score_and_relevance():
    searched = Searcher(pictures(80), Clip())
    everything = searched.search("boat", limit=1000).results
    bound = everything[30].score
    assert [r.id for r in searched.search("boat", Filters(min_score=bound), limit=1000).results] == [
        r.id for r in everything if r.score >= bound
    ]
    page = searched.search("boat", Filters(min_relevance=0.5), limit=1000)
    assert page.total == page.cutoff == sum(r.relevance >= 0.5 for r in everything) and 0 < page.total < 80


def test_relevance_is_relative_to_neutral_texts(monkeypatch):
    monkeypatch.setattr(searcher, "NEUTRAL_TEXTS", ("a photo.", "an image."))
    index = pictures(60)
    page = Searcher(index, Clip()).search("boat", limit=60)
    neutral = unit(direction("a photo.").astype(float) + direction("an image."))
    level = (index.embeddings @ neutral).mean()
    expected = 1 / (1 + np.exp(-20 * (np.array([r.score for r in page.results]) - level)))
    np.testing.assert_allclose([r.relevance for r in page.results], expected, atol=1e-5)
    assert page.cutoff == (np.array([r.score for r in page.results]) > level).sum()
    # A weight changes the level in the same way as the score.
    weighted = Searcher(index, Clip()).search("2*boat", limit=60)
    assert weighted.cutoff == page.cutoff
    np.testing.assert_allclose([r.relevance for r in weighted.results], expected, atol=1e-5)


def test_relevance_of_pictures_is_relative_to_pairs_of_pictures():
    index = pictures(400, copies=0)
    page = Searcher(index, Clip()).search("picture:7", limit=400)
    assert page.results[0].id == 7 and page.results[0].relevance > 0.9
    assert 0 < page.cutoff < 40


@pytest.mark.parametrize(
    "query, is_probability",
    [("boat", True), ("2*boat", True), ("boat + sea", False), ("- boat", False), ("picture:1", False)],
)
def test_probability_of_the_sigmoid_loss(query, is_probability):
    searched = Searcher(pictures(30), Clip(logit_bias=np.float32(-10)))
    assert searched.is_probability and not Searcher(pictures(3), Clip()).is_probability
    page = searched.search(query)
    results = page.results
    assert page.is_probability == is_probability
    expected = 1 / (1 + np.exp(-(20 * np.array([r.score for r in results]) - 10)))
    assert np.allclose([r.relevance for r in results], expected, atol=1e-6) == is_probability


def test_upload():
    index = Pictures(np.eye(DIMENSIONS))
    page = Searcher(index, Clip()).search(Query([Term(upload=np.full((2, 2, 3), 9, np.uint8))]))
    assert page.results[0].id == 1 and page.results[0].score == pytest.approx(1)


def test_no_pictures():
    searched = Searcher(Pictures(np.zeros((0, DIMENSIONS))), Clip())
    for query in ("", "boat"):
        page = searched.search(query, collapse=0.95)
        assert (page.results, page.total, page.cursor, page.cutoff) == ((), 0, None, 0)
    searched.prepare()
    assert searched.clusters(3) == []


def test_clusters():
    centres = {
        "sea": direction("a photo of sea"),
        "forest": direction("a photo of forest"),
        "city": direction("a photo of city"),
    }
    rng = np.random.default_rng(1)
    embeddings = unit(
        np.repeat(list(centres.values()), [30, 20, 10], axis=0) + 0.05 * rng.normal(size=(60, DIMENSIONS))
    )
    index = Pictures(embeddings[rng.permutation(60)])
    found = Searcher(index, Clip()).clusters(3, ["city", "forest", "sea", "cake"])
    assert [(cluster.name, cluster.pictures) for cluster in found] == [("sea", 30), ("forest", 20), ("city", 10)]
    for cluster in found:
        assert index.embeddings[cluster.cover - 1] @ centres[cluster.name] > 0.9
        assert cluster.query == Query([Term(picture=cluster.cover)])
    many = Searcher(index, Clip()).clusters(100, ["a", "b"])
    assert sum(cluster.pictures for cluster in many) == 60


def test_approximate_index_finds_the_same(monkeypatch):
    index = pictures(500, copies=0)
    exact, approximate = Searcher(index, Clip()), Searcher(index, Clip(), UsearchIndex())
    for query, filters in [("boat", None), ("boat - sea", Filters(folder="0:2024/a")), ("sea", Filters(words="boat"))]:
        expected = tuples(exact.search(query, filters, limit=300).results)
        assert [r[0] for r in tuples(approximate.search(query, filters, limit=300).results)] == [r[0] for r in expected]
    monkeypatch.setattr(searcher, "APPROXIMATE_RESULTS", 40)
    approximate._rankings._kept.clear()
    found = all_pages(approximate, "boat", 7)
    assert len(found) == 40
    expected = {result.id for result in exact.search("boat", limit=40).results}
    assert len(expected & {result.id for result in found}) >= 38
    # New pictures are found after `refresh`.
    index.change(add=[direction("boat")])
    approximate.refresh()
    assert approximate.search("boat").results[0].id == 501
    # Pages of an old version go on, also when the rows are renumbered.
    cursor = approximate.search("boat", limit=20).cursor
    index.change(remove=index.ids[::2], compact=True)
    approximate.refresh()
    expected = all_pages(Searcher(index, Clip()), "boat", 20)[:40]
    assert len({r.id for r in expected} & {r.id for r in approximate.search("boat", limit=40).results}) >= 38
    approximate._rankings._kept.clear()
    assert approximate.search("boat", limit=20, cursor=cursor).total in (40, 501)


def test_cursor_of_another_search():
    searched = Searcher(pictures(30), Clip())
    cursor = searched.search("boat", limit=5).cursor
    for query, options in [
        ("sea", {}),
        ("2*boat", {}),
        ("boat", {"collapse": 0.9}),
        ("boat", {"filters": Filters(words="a")}),
    ]:
        with pytest.raises(CursorError, match="another query"):
            searched.search(query, cursor=cursor, **options)


@pytest.mark.parametrize("cursor", ["", "x", "AAAA", "ü", "A" * 200, 7, b"abc", "../../etc/passwd"])
def test_cursor_that_is_none(cursor):
    with pytest.raises(CursorError, match="a text that a page of results returned"):
        Searcher(pictures(3), Clip()).search("boat", cursor=cursor)


def test_cursor_of_a_version_of_long_ago():
    index = pictures(30)
    searched = Searcher(index, Clip())
    cursor = searched.search("boat", limit=5).cursor
    for _ in range(searcher._VERSIONS):
        index.change(add=[direction("boat")])
        searched.refresh()
    assert searched.search("boat", limit=5, cursor=cursor).version == 1
    searched._rankings._kept.clear()
    with pytest.raises(StaleCursor, match="of version 1, which is no longer known; the index is at 5"):
        searched.search("boat", limit=5, cursor=cursor)


def test_rankings_are_bounded():
    searched = Searcher(pictures(100), Clip())
    searched._rankings.max_bytes = 5000
    for number in range(30):
        searched.search(f"boat {number}")
    assert sum(ranking.nbytes for ranking in searched._rankings._kept.values()) <= 5000
    assert ("boat 29", len(searched._rankings._kept)) == ("boat 29", 4)


def test_a_later_page_does_not_search_again(monkeypatch):
    searched = Searcher(pictures(100), Clip())
    first = searched.search("boat", limit=10)
    monkeypatch.setattr(searched, "_rank", None)
    second = searched.search("boat", limit=10, cursor=first.cursor)
    assert not {r.id for r in first.results} & {r.id for r in second.results}


REFUSED = {
    "limit of 0": (dict(query="a", limit=0), "`limit` must be"),
    "limit above 1000": (dict(query="a", limit=1001), "`limit` must be"),
    "limit as text": (dict(query="a", limit="10"), "`limit` must be"),
    "collapse below 0.9": (dict(query="a", collapse=0.5), "`collapse` must be"),
    "collapse above 1": (dict(query="a", collapse=1.1), "`collapse` must be"),
    "NaN as collapse": (dict(query="a", collapse=float("nan")), "`collapse` must be"),
    "a picture that is not there": (dict(query="picture:999"), "There must be a picture of this id"),
    "a huge id": (dict(query="picture:" + "9" * 30), "There must be a picture of this id"),
    "a picture that was removed": (dict(query="boat + picture:4"), "There must be a picture of this id"),
    "terms that cancel out": (dict(query="boat - boat"), "must not cancel each other out"),
    "weights that cancel out": (dict(query="boat + sea - 1*boat - sea"), "must not cancel each other out"),
}


@pytest.mark.parametrize("arguments, message", REFUSED.values(), ids=REFUSED)
def test_search_refuses(arguments, message):
    index = pictures(6)
    index.change(remove=[4])
    index.refresh()
    with pytest.raises(ValueError, match=message):
        Searcher(index, Clip()).search(**arguments)


WRONG_FILTERS = [
    dict(folder="2024"),
    dict(folder="x:2024"),
    dict(folder=3),
    dict(taken_after="yesterday"),
    dict(taken_before="2024-13-01"),
    dict(taken_after=5),
    dict(taken_after="2024-01-01T00:00:00Z"),
    dict(taken_before="2024-01-01T00:00:00+02:00"),
    dict(min_width=-1),
    dict(min_width=2.5),
    dict(min_height=True),
    dict(words=["a"]),
    dict(label=1),
    dict(min_score="high"),
    dict(min_score=float("nan")),
    dict(min_relevance=1.5),
]


@pytest.mark.parametrize("arguments", WRONG_FILTERS, ids=str)
def test_filters_refuse(arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be .*Received: "):
        Filters(**arguments)


def test_searcher_refuses_another_model():
    clip = Clip()
    clip.embed_dim = 16
    with pytest.raises(ValueError, match="`clip` must be the model of the index"):
        Searcher(pictures(3), clip)


def test_texts_are_embedded_once():
    clip = Clip()
    searched = Searcher(pictures(5), clip)
    searched.prepare()
    searched.search("boat + sea")
    before = len(clip.batches)
    searched.search("sea - 2*boat")
    assert len(clip.batches) == before
    # All batches have one of two sizes, so that a compiled encoder compiles twice.
    searched.clusters(2)
    assert set(clip.batches) == {1, 32}
