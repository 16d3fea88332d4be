"""Rules: each kind of expression row by row, DataComp's filters, absent values, shares, and what is refused."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_clip.curation import rules
from keras_clip.curation.rules import Rule

pytestmark = pytest.mark.backend_free
pa = pytest.importorskip("pyarrow")


def table(**columns):
    return pa.table(columns)


PAIRS = table(
    clip_score=pa.array([0.31, 0.28, 0.1, math.nan, None], pa.float32()),
    language=["en", "de", "en", None, "fr"],
    words=[3, 2, 12, 5, 1],
    width=[640, 200, 100, None, 300],
    height=[480, 700, 400, 400, 100],
    blank=[False, False, True, False, None],
    format=["JPEG", "PNG", "WEBP", None, "JPEG"],
    caption=["A Red fox", "redfox, runs", "über-ROT", None, "a fox-hound"],
    cluster=[4, 7, 9, 4, None],
)
EXPECTED = {
    "clip_score >= 0.28": [1, 1, 0, 0, 0],
    "not clip_score >= 0.28": [0, 0, 1, 0, 0],
    "0.28 <= clip_score < 0.3": [0, 1, 0, 0, 0],
    "known(clip_score)": [1, 1, 1, 0, 0],
    "not known(clip_score)": [0, 0, 0, 1, 1],
    "clip_score >= 0.3 or words == 5": [1, 0, 0, 1, 0],
    "clip_score >= 0.3 and words > 2": [1, 0, 0, 0, 0],
    "language == 'en'": [1, 0, 1, 0, 0],
    "language != 'en'": [0, 1, 0, 0, 1],
    "language in ('en', 'fr')": [1, 0, 1, 0, 1],
    "language not in ['en', 'fr']": [0, 1, 0, 0, 0],
    "words in (2, 12)": [0, 1, 1, 0, 0],
    "clip_score in (0.5,)": [0, 0, 0, 0, 0],
    "min(width, height) >= 200": [1, 1, 0, 0, 0],
    "max(width, height) / min(width, height) <= 3": [1, 0, 0, 0, 1],
    "max(width, height) > 3 * min(width, height)": [0, 1, 1, 0, 0],
    "width * height - 2 >= 307198": [1, 0, 0, 0, 0],
    "width > -1": [1, 1, 1, 0, 1],
    "not blank": [1, 1, 0, 1, 0],
    "blank or words < 3": [0, 1, 1, 0, 1],
    "format in ('JPEG',) and not blank": [1, 0, 0, 0, 0],
    "contains(caption, 'fox')": [1, 0, 0, 0, 1],
    "contains(caption, 'red fox', 'rot')": [1, 0, 1, 0, 0],
    "matches(caption, '(?i)red')": [1, 1, 0, 0, 0],
    "listed(cluster, 'chosen')": [1, 0, 1, 1, 0],
    "listed(language, 'codes')": [0, 1, 0, 0, 0],
    "not listed(cluster, 'chosen')": [0, 1, 0, 0, 0],
    "mentions(caption, 'names')": [1, 0, 1, 0, 1],
    "top(clip_score, 0.5)": [1, 1, 0, 0, 0],
    "words / (words - 2) > 0": [1, 0, 1, 1, 0],
    "2 < 3 and words == 3": [1, 0, 0, 0, 0],
}
LISTS = {"chosen": [4, 9], "codes": ["de", "it"], "names": ["FOX", "Über rot", "red fox"]}
THRESHOLDS = {("clip_score", 0.5): float(np.float32(0.28))}


@pytest.mark.parametrize("expression", EXPECTED)
def test_expression(expression):
    rule = Rule(expression)
    assert rule.keeps(PAIRS, THRESHOLDS, LISTS).tolist() == [bool(x) for x in EXPECTED[expression]]
    again = Rule.from_json(json.loads(json.dumps(rule.as_json())))
    assert (
        again == rule
        and again.keeps(PAIRS, THRESHOLDS, LISTS).tolist() == rule.keeps(PAIRS, THRESHOLDS, LISTS).tolist()
    )
    assert Rule(rule.expression).expression == rule.expression


def test_what_a_rule_reads():
    rule = Rule("top(clip_score, 0.3) and (listed(cluster, 'a') or min(width, height) > 2)", "why", "mine")
    assert rule.columns == ("clip_score", "cluster", "width", "height")
    assert (rule.shares, rule.lists) == ((("clip_score", 0.3),), ("a",))
    assert rule.as_json() == {"expression": rule.expression, "reason": "why", "name": "mine"}
    assert Rule("words>2").name == "words > 2" and Rule("words>2").reason == "not: words > 2"


def test_composition():
    few, large = Rule("words <= 3"), Rule("width >= 200 or height >= 500")
    is_few, is_large = few.keeps(PAIRS), large.keeps(PAIRS)
    np.testing.assert_array_equal(rules.all_of([few, large]).keeps(PAIRS), is_few & is_large)
    np.testing.assert_array_equal(rules.any_of([few, large]).keeps(PAIRS), is_few | is_large)
    np.testing.assert_array_equal(rules.not_(few).keeps(PAIRS), ~is_few)
    # `or` inside must not take apart what `not` and `and` hold.
    assert rules.not_(large).keeps(PAIRS).tolist() == [False, False, True, False, False]
    assert rules.all_of([large, few], "small", "s").as_json()["reason"] == "small"


REFUSED = {
    "nothing": "",
    "no text": 3,
    "a syntax error": "words >",
    "an assignment": "words = 3",
    "two statements": "words > 1; words > 2",
    "a call of another function": "open('x')",
    "an attribute": "words.real > 1",
    "an import": "__import__('os').system('true') == 0",
    "a method": "caption.lower() == 'a'",
    "a comprehension": "[x for x in (1,)] == 1",
    "a lambda": "(lambda: 1)() == 1",
    "a subscript": "caption[0] == 'a'",
    "a power": "2 ** 999999999 > words",
    "a formatted text": "caption == f'{words}'",
    "a number as a condition": "3",
    "a value as a condition": "width + height",
    "min as a condition": "min(width, height)",
    "identity": "words is None",
    "a comparison with None": "words == None",
    "an infinite number": "clip_score < 1e999",
    "a number of 70 bits": "words < 2 ** 70",
    "a huge constant": "words < 1180591620717411303424",
    "a complex number": "words == 1j",
    "bytes": "caption == b'a'",
    "in a column": "3 in words",
    "an empty list": "words in ()",
    "a list of two types": "words in (1, 'a')",
    "a column in a list": "words in (width, 3)",
    "a share of 0": "top(clip_score, 0)",
    "a share above 1": "top(clip_score, 1.5)",
    "a share that is a text": "top(clip_score, '0.3')",
    "top of a sum": "top(width + height, 0.3)",
    "a missing argument": "top(clip_score)",
    "an argument too many": "known(words, width)",
    "a named argument": "top(clip_score, share=0.3)",
    "starred arguments": "min(*words) > 1",
    "a pattern that is none": "matches(caption, '(')",
    "a pattern with lookahead": "matches(caption, 'a(?=b)')",
    "a pattern from a column": "matches(caption, language)",
    "deep nesting": "not " * 80 + "blank",
    "deeper nesting than Python parses": "(" * 5000 + "words" + ")" * 5000,
    "a very long one": "words > 1 and " * 2000 + "words > 1",
}


@pytest.mark.parametrize("expression", REFUSED.values(), ids=REFUSED)
def test_refused_expressions(expression):
    with pytest.raises(ValueError, match="Received: "):
        Rule(expression)


UNFIT = {
    "an absent column": "sharpness > 3",
    "a number compared with a text": "words > 'a'",
    "a text compared with a number": "language == 3",
    "texts in a column of numbers": "words in ('a', 'b')",
    "a column of numbers alone": "words",
    "not of a column of texts": "not language",
    "contains in a column of numbers": "contains(words, '3')",
    "a share without its threshold": "top(words, 0.5)",
    "a list that is not given": "listed(words, 'other')",
    "arithmetic with a text": "language + 1 > 2",
}


@pytest.mark.parametrize("expression", UNFIT.values(), ids=UNFIT)
def test_rules_that_do_not_fit_the_table(expression):
    with pytest.raises(ValueError, match="Received: "):
        Rule(expression).keeps(PAIRS, THRESHOLDS, LISTS)


DATACOMP = {
    # decode_ok, language, words, characters, width, height: reason.
    "all right": (True, "en", 3, 6, 200, 600, None),
    "broken": (False, "en", 3, 6, None, None, "image cannot be used"),
    "another language": (True, "de", 3, 6, 200, 200, "caption not in en"),
    "blank": (True, None, 0, 0, 200, 200, "caption not in en"),
    "two words": (True, "en", 2, 60, 200, 200, "caption of two words or fewer"),
    "five characters": (True, "en", 3, 5, 200, 200, "caption of five characters or fewer"),
    "a small image": (True, "en", 3, 6, 199, 200, "shorter side below 200 pixels"),
    "a narrow image": (True, "en", 3, 6, 601, 200, "aspect above 3"),
    "two faults": (True, "en", 1, 6, 100, 1000, "caption of two words or fewer"),
}


def test_datacomp_basic_row_by_row():
    ok, language, words, characters, width, height, expected = zip(*DATACOMP.values(), strict=True)
    aspect = [w and max(w, h) / min(w, h) for w, h in zip(width, height, strict=True)]
    columns = {"decode_ok": ok, "language": language, "words": words, "characters": characters}
    pairs = pa.table(columns | {"width": width, "height": height, "aspect": pa.array(aspect, pa.float32())})
    assert rules.first_reasons(rules.datacomp_basic(), pairs).to_pylist() == list(expected)
    assert rules.datacomp_basic("de")[1].keeps(pairs).tolist() == [language == "de" for language in language]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(width=32) | st.integers(-3, 3).map(float), min_size=1, max_size=60),
    st.sampled_from([0.01, 0.1, 0.3, 0.5, 1.0]),
    st.integers(1, 5),
)
def test_share_threshold_is_the_sorted_value(values, share, parts):
    values = np.array(values, np.float32)
    known = np.sort(values[~np.isnan(values)])[::-1]
    for order in (values, values[::-1]):
        threshold = rules.share_threshold(lambda order=order: iter(np.array_split(order, parts)), share)
        if len(known):
            assert threshold == known[max(0, math.ceil(share * len(known) - 1e-9) - 1)]
        else:
            assert threshold == math.inf


def test_thirty_percent_of_ten_is_three():
    # As a float, 0.3 * 10 would be slightly above 3 for some shares and numbers.
    for total in (10, 100, 1000, 30, 70):
        values = np.arange(total, dtype=np.float32)
        for share in (0.1, 0.2, 0.3, 0.7):
            threshold = rules.share_threshold(lambda values=values: [values], share)
            assert (values >= threshold).sum() == round(share * total)


@pytest.mark.parametrize("share", [0, 1.01, math.nan])
def test_impossible_shares(share):
    with pytest.raises(ValueError, match="Received: share="):
        rules.share_threshold(lambda: [np.ones(2)], share)


HASHES = table(
    hash=pa.array([2**63 + 5, 2**63 + 6, 3, None], pa.uint64()),
    signed=pa.array([3, 2**53 + 1, 3, 4], pa.int64()),
    text=["3", None, "x", "y"],
    score=pa.array([2.5, 3.0, 1e30, None], pa.float64()),
)
OF_HASHES = {
    "hash > 0": [1, 1, 1, 0],
    "hash == 9223372036854775813": [1, 0, 0, 0],
    "hash in (9223372036854775814, 3)": [0, 1, 1, 0],
    "hash > -1": [1, 1, 1, 0],
    "hash == signed": [0, 0, 1, 0],
    "signed == 9007199254740993": [0, 1, 0, 0],
    "signed in (9007199254740993, 2.5)": [0, 1, 0, 0],
    "min(hash, signed) == 3": [1, 0, 1, 0],
    "hash / 2 > 1e18": [1, 1, 0, 0],
    "hash > 2.5": [1, 1, 1, 0],
    "score > 1e29": [0, 0, 1, 0],
    "score in (2.5, 3)": [1, 1, 0, 0],
    "listed(hash, 'lines')": [1, 0, 1, 0],
}


@pytest.mark.parametrize("expression, kept", OF_HASHES.items(), ids=OF_HASHES)
def test_numbers_of_64_bits_are_exact(expression, kept):
    lists = {"lines": ["9223372036854775813", "3"]}
    assert Rule(expression).keeps(HASHES, lists=lists).tolist() == list(map(bool, kept))


@pytest.mark.parametrize("expression", ["mentions(hash, 'lines')", "contains(score, 'x')", "matches(signed, 'x')"])
def test_functions_of_texts_refuse_numbers(expression):
    with pytest.raises(ValueError, match="needs a column of texts. Received: '(hash|score|signed)' of type"):
        Rule(expression).keeps(HASHES, lists={"lines": ["x"]})


def test_top_refuses_texts():
    with pytest.raises(ValueError, match="`top` needs a column of numbers. Received: 'text' of type string"):
        Rule("top(text, 0.5)").keeps(HASHES, {("text", 0.5): 1.0})


FILES = {
    "no JSON": ("{", "must be in a JSON file. Received: .*rules.json"),
    "not UTF-8": (b"\xff\xfe[", "must be in a JSON file. Received: .*rules.json"),
    "no list": ('{"expression": "words > 2"}', "must be a list.*rules.json', with a value of type dict"),
    "texts": ('["words > 2"]', "A rule must be .*Received: words > 2. In the file"),
    "a misspelt name": ('[{"expression": "words > 2", "because": "x"}]', "A rule must be .*because"),
    "no expression": ('[{"reason": "x"}]', "A rule must be"),
    "a number": ('[{"expression": 3}]', "A rule must be"),
    "a wrong expression": ('[{"expression": "words >"}]', "cannot be parsed.* In the file"),
}


@pytest.mark.parametrize("content, message", FILES.values(), ids=FILES)
def test_a_file_of_something_else_is_refused(tmp_path, content, message):
    path = tmp_path / "rules.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        rules.read_rules(path)


def test_a_file_of_rules(tmp_path):
    written = [Rule("words > 2", "short", "words"), Rule("not blank")]
    (tmp_path / "rules.json").write_text(json.dumps([rule.as_json() for rule in written]))
    assert rules.read_rules(tmp_path / "rules.json") == tuple(written)
