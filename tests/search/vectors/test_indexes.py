"""The same tests on all indexes of vectors: results of exact search, filters, more rows, files, refusals."""

import threading
import warnings

import numpy as np
import pytest

from keras_clip.search.vectors import ExactIndex, Index, QdrantIndex, UsearchIndex, exact
from keras_clip.search.vectors.index import ranked

pytestmark = pytest.mark.backend_free

DIMENSIONS = 24


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype("float32")


def clustered(rows, seed=0):
    """Vectors around few centres, as embeddings of pictures are."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(20, DIMENSIONS))
    return unit(centres[rng.integers(0, 20, rows)] + 0.6 * rng.normal(size=(rows, DIMENSIONS)))


class Qdrant(QdrantIndex):
    """On the local mode of the client, which a process keeps in memory: no Qdrant server can be installed by packages.

    It warns that filters are applied one by one, and of more than 20,000 points.
    """

    clients = {}

    def __init__(self, url="memory", collection="keras_clip", api_key=None, client=None):
        import qdrant_client

        client = client or self.clients.setdefault(url, qdrant_client.QdrantClient(":memory:"))
        super().__init__(url, collection, api_key, client)


@pytest.fixture(params=[ExactIndex, UsearchIndex, Qdrant], ids=lambda kind: kind.__name__)
def kind(request):
    Qdrant.clients.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="qdrant_client")
        yield request.param


@pytest.fixture
def index(kind):
    index = kind()
    index.build(VECTORS)
    return index


VECTORS, QUERIES = clustered(3000), clustered(12, seed=1)


def brute_force(vectors, queries, k, allowed=None):
    """Rows and scores by sorting all of them, in float64."""
    scores = queries.astype("float64") @ vectors.T.astype("float64")
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(scores, rows, axis=1)


def recall(found, wanted):
    return np.mean([len(set(f) & set(w)) / len(w) for f, w in zip(found.tolist(), wanted.tolist(), strict=True)])


def require_close(found, wanted, least_recall=0.98):
    (rows, scores), (true_rows, true_scores) = found, wanted
    assert rows.shape == true_rows.shape and rows.dtype == np.int64 and scores.dtype == np.float32
    assert recall(rows, true_rows) >= least_recall
    assert (np.diff(scores, axis=1) <= 0).all()
    # The scores belong to the rows.
    same = rows == true_rows
    np.testing.assert_allclose(scores[same], true_scores[same], atol=1e-5)


def test_protocol(index):
    assert isinstance(index, Index)


@pytest.mark.parametrize("k", [1, 10, 100])
def test_nearest_rows(index, k):
    require_close(index.search(QUERIES, k), brute_force(VECTORS, QUERIES, k))


@pytest.mark.parametrize("fraction", [0.9, 0.5, 0.2, 0.06, 0.02, 0.001])
def test_filter(index, fraction):
    allowed = np.random.default_rng(2).random(len(VECTORS)) < fraction
    k = min(10, allowed.sum())
    rows, scores = index.search(QUERIES, k, allowed)
    assert allowed[rows].all()
    require_close((rows, scores), brute_force(VECTORS, QUERIES, k, allowed))


def test_filter_of_the_first_rows(index):
    # Rows behind the filter are not found, so that an older state can be searched while rows are added.
    require_close(index.search(QUERIES, 10, np.ones(2000, bool)), brute_force(VECTORS[:2000], QUERIES, 10))


def test_filter_that_keeps_none_of_the_neighbours(index):
    # The 300 nearest rows of the first query are left out: over-fetching has to go on.
    nearest, _ = brute_force(VECTORS, QUERIES[:1], 300)
    allowed = np.ones(len(VECTORS), bool)
    allowed[nearest[0]] = False
    found = index.search(QUERIES[:1], 10, allowed)
    require_close(found, brute_force(VECTORS, QUERIES[:1], 10, allowed), 0.9)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_fewer_than_k(index, count):
    allowed = np.zeros(len(VECTORS), bool)
    allowed[[5, 17, 2999][:count]] = True
    rows, scores = index.search(QUERIES[:2], 5, allowed)
    assert set(rows[0, :count]) == set(np.flatnonzero(allowed))
    assert (rows[:, count:] == -1).all() and (scores[:, count:] == -np.inf).all()
    assert np.isfinite(scores[:, :count]).all()


def test_more_than_all(index):
    rows, scores = index.search(QUERIES[:1], 3005)
    assert sorted(rows[0, :3000]) == list(range(3000)) and (rows[0, 3000:] == -1).all()
    np.testing.assert_array_equal(rows[0, :50], brute_force(VECTORS, QUERIES[:1], 50)[0][0])


def test_no_queries(index):
    rows, scores = index.search(np.zeros((0, DIMENSIONS)), 4)
    assert rows.shape == scores.shape == (0, 4)


def test_no_rows(kind):
    index = kind()
    index.build(np.zeros((0, DIMENSIONS), np.float32))
    assert index.search(QUERIES, 3)[0].tolist() == [[-1] * 3] * len(QUERIES)


def test_equal_scores_are_ordered_by_row(kind):
    # One vector many times: sums of small integers are exact.
    vectors = np.tile(np.float32([[1, 0, 0, 0], [0, 1, 0, 0]]), (30, 1))
    index = kind()
    index.build(vectors)
    allowed = np.ones(60, bool)
    allowed[:4] = False
    rows, scores = index.search(np.float32([[2, 1, 0, 0]]), 40, allowed)
    assert rows[0, :28].tolist() == list(range(4, 60, 2))
    assert scores[0].tolist() == [2] * 28 + [1] * 12
    # Which of the equal ones behind k are left out is the choice of a Qdrant server.
    expected = sorted(rows[0, 28:]) if kind is Qdrant else list(range(5, 28, 2))
    assert rows[0, 28:].tolist() == expected


def test_more_rows(kind):
    index = kind()
    index.build(VECTORS[:2000])
    before = index.search(QUERIES, 10)
    require_close(before, brute_force(VECTORS[:2000], QUERIES, 10))
    index.build(VECTORS)
    require_close(index.search(QUERIES, 10), brute_force(VECTORS, QUERIES, 10))


def test_other_rows(kind):
    index, others = kind(), clustered(2500, seed=5)
    index.build(VECTORS)
    index.build(others)
    require_close(index.search(QUERIES, 10), brute_force(others, QUERIES, 10))


def test_save_and_open_with_more_rows(kind, tmp_path):
    index = kind()
    index.build(VECTORS[:2000])
    index.save(tmp_path / "vectors.index")
    opened = kind.open(tmp_path / "vectors.index", VECTORS[:2000])
    require_close(opened.search(QUERIES, 10), index.search(QUERIES, 10))
    opened = kind.open(tmp_path / "vectors.index", VECTORS)
    allowed = np.arange(3000) % 3 > 0
    # Rows behind those that were saved are found, with and without a filter.
    require_close(opened.search(VECTORS[[2400, 2999]], 5), brute_force(VECTORS, VECTORS[[2400, 2999]], 5))
    require_close(opened.search(QUERIES, 10, allowed), brute_force(VECTORS, QUERIES, 10, allowed))
    opened.build(VECTORS)
    require_close(opened.search(QUERIES, 10), brute_force(VECTORS, QUERIES, 10))
    opened.save(tmp_path / "vectors.index")
    require_close(kind.open(tmp_path / "vectors.index", VECTORS).search(QUERIES, 10), opened.search(QUERIES, 10))


@pytest.mark.parametrize("others", ["other rows", "fewer rows", "other dimensions"])
def test_open_refuses_other_embeddings(index, tmp_path, others):
    index.save(tmp_path / "vectors.index")
    wrong = {"other rows": clustered(3000, 9), "fewer rows": VECTORS[:1000], "other dimensions": VECTORS[:, :8].copy()}
    with pytest.raises(ValueError, match="differ. Build the index again"):
        type(index).open(tmp_path / "vectors.index", wrong[others])


REFUSED = {
    "one query without an axis": (QUERIES[0], 5, None, "`queries` must be finite"),
    "other dimensions": (QUERIES[:, :5], 5, None, "`queries` must be finite"),
    "NaN": (QUERIES * np.nan, 5, None, "with NaN or infinity"),
    "k of 0": (QUERIES, 0, None, "`k` must be"),
    "k is a bool": (QUERIES, True, None, "`k` must be"),
    "k is a float": (QUERIES, 2.5, None, "`k` must be"),
    "a filter that is too long": (QUERIES, 5, np.ones(3001, bool), "`allowed` must be bool"),
    "a filter of ids": (QUERIES, 5, np.arange(3000), "`allowed` must be bool"),
}


@pytest.mark.parametrize("queries, k, allowed, message", REFUSED.values(), ids=REFUSED)
def test_search_refuses(index, queries, k, allowed, message):
    with pytest.raises(ValueError, match=message):
        index.search(queries, k, allowed)


@pytest.mark.parametrize("embeddings", [VECTORS.astype("float64"), VECTORS[0], VECTORS.tolist()])
def test_build_refuses(kind, embeddings):
    with pytest.raises(ValueError, match="`embeddings` must be float32"):
        kind().build(embeddings)


def test_exact_search_in_blocks_of_a_memory_map(tmp_path, monkeypatch):
    monkeypatch.setattr(exact, "_ROWS", 97)
    monkeypatch.setattr(exact, "_SCORES", 5000)
    VECTORS.tofile(tmp_path / "embeddings.f32")
    mapped = np.memmap(tmp_path / "embeddings.f32", np.float32, "r", shape=VECTORS.shape)
    index = ExactIndex()
    index.build(mapped)
    for allowed in (None, np.arange(3000) % 2 > 0, np.arange(3000) % 50 == 0):
        rows, scores = index.search(QUERIES, 20, allowed)
        true_rows, true_scores = brute_force(VECTORS, QUERIES, 20, allowed)
        np.testing.assert_array_equal(rows, true_rows)
        np.testing.assert_allclose(scores, true_scores, atol=1e-6)


ORDERS = {
    "both zeros are equal": ([0.0, -0.0, 0.0, 1.0], [3, 0, 1, 2]),
    "negative numbers": ([-1.0, -3.0, -2.0], [0, 2, 1]),
    "NaN and -inf last": ([np.nan, -1.0, -np.inf, 2.0], [3, 1, 0, 2]),
    "denormals": ([1e-45, -1e-45, 0.0], [0, 2, 1]),
    "none": ([], []),
}


@pytest.mark.parametrize("scores, expected", ORDERS.values(), ids=ORDERS)
def test_order(scores, expected):
    scores = np.array(scores, np.float32)
    assert ranked(scores).tolist() == expected
    for k in range(1, len(scores) + 1):
        assert ranked(scores, k).tolist() == expected[:k]


def test_usearch_keeps_its_graph_when_rows_are_added(tmp_path):
    index = UsearchIndex()
    index.build(VECTORS[:2000])
    index.save(tmp_path / "graph")
    opened = UsearchIndex.open(tmp_path / "graph", VECTORS)
    opened.build(VECTORS)
    assert len(opened._state[1]) == 3000
    graph = index._state[1]
    index.build(VECTORS)
    assert index._state[1] is graph


def test_search_while_rows_are_added(kind):
    if kind is Qdrant:
        return  # Its server does that; the local mode is for one thread.
    index = kind()
    index.build(VECTORS[:200])
    faults, found = [], 0

    def add():
        for stop in range(400, 3001, 200):
            index.build(VECTORS[:stop])

    thread = threading.Thread(target=add)
    thread.start()
    while thread.is_alive() or not found:
        rows, scores = index.search(QUERIES, 10, np.ones(200, bool))
        expected = brute_force(VECTORS[:200], QUERIES, 10)
        faults += [] if recall(rows, expected[0]) > 0.9 and (rows < 200).all() else [rows]
        found += 1
    thread.join()
    assert not faults
    require_close(index.search(QUERIES, 10), brute_force(VECTORS, QUERIES, 10))


def test_qdrant_keeps_collections_of_others():
    import qdrant_client

    client = qdrant_client.QdrantClient(":memory:")
    parameters = qdrant_client.models.VectorParams(size=4, distance=qdrant_client.models.Distance.DOT)
    client.create_collection("documents", vectors_config=parameters)
    client.upsert("documents", [qdrant_client.models.PointStruct(id=0, vector=[1, 0, 0, 0], payload={"title": "a"})])
    with pytest.raises(ValueError, match="points of another origin. Choose another name"):
        QdrantIndex(collection="documents", client=client).build(VECTORS)
    assert client.count("documents").count == 1


def test_qdrant_resumes_an_upload(monkeypatch):
    import qdrant_client

    from keras_clip.search.vectors import qdrant_index

    monkeypatch.setattr(qdrant_index, "_BLOCK", 500)
    client = qdrant_client.QdrantClient(":memory:")
    upsert, sent = client.upsert, []

    def fails(*args, **options):
        if len(sent) == 3:
            raise ConnectionError
        sent.append(0)
        return upsert(*args, **options)

    monkeypatch.setattr(client, "upsert", fails)
    with pytest.raises(ConnectionError):
        QdrantIndex(client=client).build(VECTORS)
    monkeypatch.setattr(client, "upsert", lambda *args, **options: sent.append(0) or upsert(*args, **options))
    index = QdrantIndex(client=client)
    index.build(VECTORS)
    assert len(sent) == 6
    require_close(index.search(QUERIES, 10), brute_force(VECTORS, QUERIES, 10))


def test_qdrant_filters_with_too_many_ids(monkeypatch):
    from keras_clip.search.vectors import qdrant_index

    monkeypatch.setattr(qdrant_index, "_MOST_IDS", 50)
    Qdrant.clients.clear()
    index = Qdrant()
    index.build(VECTORS)
    for fraction in (0.9, 0.3, 0.03):
        allowed = np.random.default_rng(2).random(len(VECTORS)) < fraction
        require_close(index.search(QUERIES, 10, allowed), brute_force(VECTORS, QUERIES, 10, allowed))


@pytest.mark.parametrize(
    "kind, module, extra", [(UsearchIndex, "usearch.index", "usearch"), (QdrantIndex, "qdrant_client", "qdrant")]
)
def test_missing_extra(monkeypatch, kind, module, extra):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match=rf'pip install "keras_clip\[{extra}\]"'):
        kind()
