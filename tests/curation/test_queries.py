"""The list of queries: counts and scores by hand, the order of its sources, its files, and what it refuses."""

import bz2
import gzip
import json
import math
import random
from collections import Counter

import pytest

from keras_clip.curation.queries import (
    build_queries,
    given_queries,
    read_queries,
    read_titles,
    read_wordnet,
    write_queries,
)
from keras_clip.curation.queries import corpus as corpora
from keras_clip.curation.queries.corpus import SpillingCounter, read_texts

pytestmark = pytest.mark.backend_free

# 20 words: dog 6, cat 4, hong 2, kong 2, The 2, the 1, x 1, of 2.
CORPUS = ["The dog, the cat!", "dog cat dog of", "hong kong dog 7", "cat hong kong of", "dog x; The dog", "cat"]
WORDNET = (
    "  1 This software\n  2 and database\nbig_cat n 1 2 @ ~ 1 0 02127808  \ncat n 8 5 @ ~ #m %p + 8 1 02121620  \n"
)


def rows(queries):
    return [tuple(row.values()) for row in queries.table.to_pylist()]


def entries_of(queries, source):
    return [row[0] for row in rows(queries) if row[1] == source]


def test_by_hand():
    queries = build_queries(
        CORPUS,
        titles={"Hong Kong": 90, "cat": 900, "Talk: cat": 800, "U.S. Army": 100, "Rare": 69, "A": 70, "The Who": 90},
        wordnet=["cat", "he", "b", "big cat", "7"],
        digits=True,
        min_count=2,
        min_pmi=2.0,
        min_views=70,
    )
    kong = pytest.approx(math.log2(2 * 20 / (2 * 2)))
    assert rows(queries)[:6] == [
        ("dog", "word", 6, None),
        ("cat", "word", 4, None),
        ("hong", "word", 2, None),
        ("kong", "word", 2, None),
        ("hong kong", "bigram", 2, kong),
        ("U.S. Army", "title", 100, None),
    ]
    assert rows(queries)[6:9] == [
        ("Hong Kong", "title", 90, None),
        ("The Who", "title", 90, None),
        ("0", "digits", None, None),
    ]
    assert entries_of(queries, "digits") == [str(number) for number in range(100)]
    # "7" is one of the digits, "cat" a word, "he" a stop word, "b" a letter.
    assert entries_of(queries, "wordnet") == ["big cat"]
    assert queries.facts["sources"]["title"] == {"kept": 3, "letter or stop word": 1, "colon": 1, "known": 1}
    assert queries.facts["sources"]["wordnet"] == {"kept": 1, "letter or stop word": 2, "known": 2}


@pytest.mark.parametrize("max_entries", [1, 3, 4, 5, 7, 500])
def test_sources_fill_the_list_in_order(max_entries):
    options = {
        "titles": {"Big Ben": 80, "Eiffel Tower": 90},
        "wordnet": ["zebra", "ant"],
        "min_count": 2,
        "min_pmi": 2.0,
    }
    full = ["dog", "cat", "hong", "kong", "hong kong", "Eiffel Tower", "Big Ben", "zebra", "ant"]
    assert build_queries(CORPUS, max_entries=max_entries, **options).entries == full[:max_entries]


def test_case():
    corpus = ["Big cat", "big Cat", "BIG cat"]
    assert build_queries(corpus, min_count=2, min_pmi=math.inf).entries == ["cat"]
    ignoring = build_queries(corpus, titles={"CAT": 70, "Tower": 70}, min_count=3, min_pmi=math.inf, ignore_case=True)
    assert ignoring.entries == ["big", "cat", "Tower"] and ignoring.ignore_case


@pytest.mark.parametrize("min_count, expected", [(1, {"ab", "cd"}), (2, {"ab"}), (3, set())])
def test_smallest_count_is_inclusive(min_count, expected):
    assert (
        set(build_queries(["ab cd ab"], digits=True, min_count=min_count, min_pmi=math.inf).entries)
        - {str(i) for i in range(100)}
        == expected
    )


def test_a_bigram_needs_neighbours_within_a_sentence():
    # Neither over punctuation nor over the end of a text, and with no stop word.
    corpus = ["red, car", "red", "car", "out of Africa", "vitamin C"]
    assert entries_of(build_queries(corpus, min_count=1, min_pmi=-99.0), "bigram") == ["vitamin C"]


def test_scripts_without_spaces_have_no_words():
    queries = build_queries(
        ["我爱猫 cat", "แมว dog"], titles={"猫": 70, "東京タワー": 99, "ก": 99}, min_count=1, min_pmi=math.inf
    )
    assert queries.entries == ["cat", "dog", "東京タワー", "猫"]


def zipf_corpus(lines=300):
    generator = random.Random(0)
    words = [f"{a}{b}" for a in "bcdfgh" for b in "aeiouy"] + ["Ünder", "l'eau", "the"]
    return [
        " ".join(generator.choices(words, k=12, weights=[1 / (i + 1) for i in range(len(words))])) for _ in range(lines)
    ]


@pytest.mark.parametrize("max_counts", [1, 7, 40, 300])
def test_spilled_counts_are_exact(max_counts, monkeypatch):
    monkeypatch.setattr(corpora, "_FAN_IN", 3)
    lines = zipf_corpus()
    options = {"min_count": 5, "min_pmi": 0.5}
    assert rows(build_queries(lines, max_counts=max_counts, **options)) == rows(build_queries(lines, **options))


def test_order_of_the_corpus_does_not_matter():
    lines = zipf_corpus()
    assert build_queries(lines, min_count=5).digest == build_queries(lines[::-1], min_count=5).digest


@pytest.mark.parametrize("max_size", [1, 2, 5, 100])
def test_counter_counts_and_leaves_no_file(max_size, tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "_FAN_IN", 2)
    strings = [random.Random(i).choice("äbcdefgh \u2028") * 2 for i in range(60)]
    with SpillingCounter(max_size, tmp_path) as counter:
        for start in range(0, 60, 3):
            counter.update(strings[start : start + 3])
        assert list(counter.items()) == sorted(Counter(strings).items())
        assert len(list(tmp_path.rglob("*.tsv"))) <= 2
    assert not list(tmp_path.iterdir())


FILES = {
    "c.txt": lambda text: text.encode(),
    "c": lambda text: text.encode(),
    "c.txt.gz": lambda text: gzip.compress(text.encode()),
    "c.v2.bz2": lambda text: bz2.compress(text.encode()),
    "c.jsonl": lambda text: "\n".join(json.dumps({"text": line, "n": 1}) for line in text.split("\n")).encode(),
    "c.jsonl.gz": lambda text: gzip.compress(b"\n\n".join(json.dumps({"text": x}).encode() for x in text.split("\n"))),
}


@pytest.mark.parametrize("name", FILES)
def test_files(name, tmp_path):
    (tmp_path / name).write_bytes(FILES[name]("a cat\nunder é\nlast line"))
    assert list(read_texts(tmp_path / name)) == ["a cat", "under é", "last line"]


def test_several_files_and_long_lines(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes(b"one two three four\r\nbroken \xff byte")
    (tmp_path / "b.txt").write_text("five\n\nabcdefghijklmnop q")
    assert list(read_texts([tmp_path / "a.txt", str(tmp_path / "b.txt")])) == [
        "one two three four", "broken \ufffd byte", "five", "", "abcdefghijklmnop q",
    ]  # fmt: skip
    monkeypatch.setattr(corpora, "_LINE_BYTES", 6)
    texts = list(read_texts(tmp_path / "a.txt"))
    assert " ".join(texts).split() == ["one", "two", "three", "four", "broken", "\ufffd", "byte"] and len(texts) > 3


@pytest.mark.parametrize("line", ['{"txt": "a"}', '["a"]', '{"text": 5}', "a cat", '{"text": null}'])
def test_line_that_is_not_such_an_object(line, tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": "good"}\n' + line)
    with pytest.raises(ValueError, match=r"with a text as its 'text'\. Received: .*c\.jsonl, line 2"):
        list(read_texts(tmp_path / "c.jsonl"))


def test_titles(tmp_path):
    path = tmp_path / "titles.tsv"
    path.write_text("title\tviews\nNew_York\t50\nParis\t70\n\nNew York\t30\nTab\tin title\t5\n")
    assert read_titles(path) == {"New York": 80, "Paris": 70, "Tab\tin title": 5}
    compressed = tmp_path / "titles.tsv.gz"
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_titles(compressed) == read_titles(path)


@pytest.mark.parametrize("text", ["a\t1\nb 2\n", "a\t1\nb\tmany\n", "title views\na\t1\n", "a\t1.5\nb\t2.5\n"])
def test_titles_of_another_form(text, tmp_path):
    (tmp_path / "titles.tsv").write_text(text)
    with pytest.raises(ValueError, match=r"a title, a tab and the number of its views\. Received: .* line [12]"):
        read_titles(tmp_path / "titles.tsv")


def test_wordnet(tmp_path):
    (tmp_path / "index.noun").write_text(WORDNET)
    assert list(read_wordnet(tmp_path / "index.noun")) == list(read_wordnet(tmp_path)) == ["big cat", "cat"]
    (tmp_path / "data.noun").write_text("00001740 03 n 01 entity 0 003 ~ 00001930\n")
    with pytest.raises(ValueError, match="index file of WordNet.*line 1"):
        list(read_wordnet(tmp_path / "data.noun"))


def test_file_of_queries(tmp_path):
    queries = build_queries(CORPUS, wordnet=["猫"], min_count=2, min_pmi=2.0, ignore_case=True)
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path in paths:
        write_queries(queries, path)
    assert read_queries(paths[0]) == queries and read_queries(paths[0]).digest == queries.digest
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with pytest.raises(ValueError, match="ignore_case=False for .*, built with ignore_case=True"):
        read_queries(paths[0], ignore_case=False)


def test_digest_depends_on_entries_order_and_case():
    digests = {given_queries(*each).digest for each in [(["a", "b"],), (["b", "a"],), (["a", "b"], True), (["a b"],)]}
    assert len(digests) == 4


def test_text_file_of_queries(tmp_path):
    (tmp_path / "list.txt").write_text("a cat\n\nthe\nU.S.\n")
    assert rows(read_queries(tmp_path / "list.txt")) == [(e, "given", None, None) for e in ("a cat", "the", "U.S.")]
    assert read_queries(tmp_path / "list.txt", ignore_case=True).ignore_case


def test_changed_or_foreign_file(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    write_queries(given_queries(["cat", "dog"]), tmp_path / "q.parquet")
    table = parquet.read_table(tmp_path / "q.parquet")
    parquet.write_table(table.set_column(0, "entry", pa.array(["cat", "dot"])), tmp_path / "changed.parquet")
    with pytest.raises(ValueError, match="must be as it was written.*changed.parquet"):
        read_queries(tmp_path / "changed.parquet")
    parquet.write_table(pa.table({"entry": ["cat"]}), tmp_path / "foreign.parquet")
    (tmp_path / "text.parquet").write_text("cat\n")
    for name in ("foreign", "text"):
        with pytest.raises(ValueError, match=f"Expected a list of queries.*{name}.parquet"):
            read_queries(tmp_path / f"{name}.parquet")
    with pytest.raises(FileNotFoundError):
        read_queries(tmp_path / "absent.parquet")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"min_count": 0}, "`min_count` must be a positive integer. Received: min_count=0"),
        ({"min_count": 1.5}, "Received: min_count=1.5"),
        ({"max_entries": True}, "Received: max_entries=True"),
        ({"max_counts": -1}, "Received: max_size=-1"),
        ({"min_count": 99}, "must not be empty"),
    ],
)
def test_invalid_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        build_queries(CORPUS, **options)


def test_a_path_is_no_corpus(tmp_path):
    with pytest.raises(TypeError, match="iterable of texts.*read_texts"):
        build_queries(str(tmp_path / "wiki.txt"))


def test_blank_given_entry():
    with pytest.raises(ValueError, match="must not be blank. Received: ' ' as entry 1"):
        given_queries(["a", " "])


def test_parts_of_the_published_list():
    """The counts that MetaCLIP gives for its sources leave 86,654 entries for the last one, scaled here by 1/1000."""
    words = " ".join(f"w{i}" for i in range(251))
    corpus = [words, words] + [f"w{i} w{i + 1}" for i in range(0, 200, 2) for _ in range(3)]
    titles = {f"title {i}": 70 + i for i in range(61)}
    queries = build_queries(
        corpus, titles=titles, wordnet=(f"n{i}" for i in range(118)), min_count=4, max_entries=500, min_pmi=3
    )
    assert Counter(source for _, source, *_ in rows(queries)) == {
        "word": 200,
        "bigram": 100,
        "title": 61,
        "wordnet": 118,
    }


@pytest.mark.parametrize("content", [b"dog\ncaf\xe9\n", "dog\nczłowiek".encode("utf-16"), b"dog\x00\n"])
def test_a_list_that_is_not_utf8_is_refused(tmp_path, content):
    (tmp_path / "queries.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"must be UTF-8, with an entry in each line. Received: .*queries.txt', line"):
        read_queries(tmp_path / "queries.txt")


def test_a_mark_of_the_byte_order_is_no_part_of_an_entry(tmp_path):
    (tmp_path / "queries.txt").write_text("dog\ncat\n", encoding="utf-8-sig")
    assert read_queries(tmp_path / "queries.txt").entries == ["dog", "cat"]


@pytest.mark.parametrize("name", ["min_pmi", "min_views"])
@pytest.mark.parametrize("value", [math.nan, "3", None, True])
def test_thresholds_are_numbers(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a number. Received: {name}="):
        build_queries(["a dog"], min_count=1, **{name: value})
