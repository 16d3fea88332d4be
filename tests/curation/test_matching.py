"""`Matcher`: matches by hand, and those of a regular expression for each entry and of pyahocorasick."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_clip.curation import matching
from keras_clip.curation.matching import Matcher
from keras_clip.curation.queries.separated import pattern_of, separated

pytestmark = pytest.mark.backend_free


def found(entries, texts, **options):
    """Returns the entries found in each text, as sets of strings."""
    offsets, numbers = Matcher(entries, **options).find(texts)
    assert offsets.dtype == np.int64 and numbers.dtype == np.int32 and len(offsets) == len(texts) + 1
    return [[entries[i] for i in numbers[a:b]] for a, b in zip(offsets, offsets[1:], strict=False)]


NEW_YORK = ["new york", "york", "city hall", "new york city", "york city hall", "hall"]
# name: (entries, text, entries found).
CASES = {
    "neighbours share a space": (["a", "b"], "a b", ["a", "b"]),
    "overlapping and nested": (NEW_YORK, "new york city hall", NEW_YORK),
    "whole text": (["cat"], "cat", ["cat"]),
    "not within a word": (["cat", "at"], "concatenate cats", []),
    "once for several occurrences": (["cat"], "cat, cat. cat cat", ["cat"]),
    "apostrophe": (["dog", "dog's", "don't"], "the dog's bowl", ["dog", "dog's"]),
    "punctuation of the entry": (["U.S.", "C++", "t-shirt"], "(U.S.) C++/t-shirt", ["U.S.", "C++", "t-shirt"]),
    "punctuation between the words": (["red car"], "red, car", []),
    "line break and tab": (["red car"], "a red\n\tcar", ["red car"]),
    "case": (["Apple", "apple"], "an Apple", ["Apple"]),
    "composed characters": (["café"], "cafe\u0301s cafe\u0301", ["café"]),
    "empty": (["cat"], "", []),
    "Chinese": (["猫", "狗", "小猫咪"], "一只小猫咪", ["猫", "小猫咪"]),
    "Chinese with a space": (["北京大学"], "北京 大学", []),
    "Japanese": (["タワー", "東京"], "東京タワーの夜景", ["タワー", "東京"]),
    "Thai, Lao, Khmer": (["แมว", "ແມວ", "ឆ្មា"], "รูปแมวสวย ຮູບແມວງາມ រូបឆ្មាស្អាត", ["แมว", "ແມວ", "ឆ្មា"]),
    "Burmese, Tibetan": (["ကြောင်", "བོད"], "ဒီကြောင်လေး བོད་ཡིག", ["ကြောင်", "བོད"]),
    "Korean has spaces": (["고양이", "양이"], "고양이 사진", ["고양이"]),
    "two scripts": (["iPhone", "iPhone手机", "Phone"], "我的iPhone手机壳", ["iPhone", "iPhone手机"]),
    "emoji": (["cat", "🐱"], "cat🐱", ["cat", "🐱"]),
    "numbers": (["5", "15"], "15 of 2015", ["15"]),
}


@pytest.mark.parametrize("entries, text, expected", CASES.values(), ids=CASES)
def test_by_hand(entries, text, expected):
    assert found(entries, [text]) == [expected]


def test_case_can_be_ignored():
    # Both entries become equal, so the first one stands for both.
    assert found(["apple", "Apple", "IPHONE"], ["An APPLE iPhone"], ignore_case=True) == [["apple", "IPHONE"]]


def test_entries_that_become_equal():
    assert found(["T-shirt", "T - shirt", "T"], ["a T-shirt"]) == [["T-shirt", "T"]]


def test_no_match_across_texts():
    assert found(["a b", "b a", "猫狗"], ["a", "b", "a", "猫", "狗"]) == [[]] * 5


@pytest.mark.parametrize("count", [0, 1, 2, 5, 7])
def test_batches(count, monkeypatch):
    monkeypatch.setattr(matching, "_BATCH", 2)
    texts = ["cat", "", "dog cat", "bird", "cat dog", "dog"] * 2
    expected = [[each for each in ("cat", "dog") if each in text] for text in texts[:count]]
    assert found(["cat", "dog"], texts[:count]) == expected


@pytest.mark.parametrize("blank", ["", "  ", "\n", "\u00ad"])
def test_blank_entry(blank):
    with pytest.raises(ValueError, match=r"must not be blank\. Received: .* as entry 1 of 2"):
        Matcher(["cat", blank])


def by_regular_expressions(entries, text):
    """One regular expression for each entry, with borders at the ends that are not of a script without spaces."""
    text, hits = separated(text), []
    for entry in entries:
        form = separated(entry)
        before = "" if re.match("[\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff]", form) else r"(?<!\S)"
        after = "" if re.search("[\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff]$", form) else r"(?!\S)"
        if re.search(before + re.escape(form) + after, text):
            hits.append(entry)
    return hits


def by_pyahocorasick(entries, text):
    import ahocorasick

    automaton = ahocorasick.Automaton()
    for entry in entries:
        automaton.add_word(pattern_of(entry), entry)
    automaton.make_automaton()
    hits = {entry for _, entry in automaton.iter(f" {separated(text)} ")}
    return [entry for entry in entries if entry in hits]


# Few characters, so that matches are frequent.
HARD = st.text(st.sampled_from("ab  \n.'-é猫狗カกา5"), max_size=24)
ENTRY = st.text(st.sampled_from("ab  .'é猫狗カก"), min_size=1, max_size=5)
ANY = st.text(max_size=20)


@settings(deadline=None)
@given(st.lists(ENTRY | ANY, min_size=1, max_size=12), st.lists(HARD | ANY, max_size=4), st.data())
def test_equals_the_oracles(entries, texts, data):
    entries = list({separated(entry): entry for entry in entries if separated(entry)}.values()) or ["a"]
    # A text made of entries, adjacent ones too.
    parts = data.draw(st.lists(st.sampled_from(entries) | st.sampled_from([" ", "", ",", "\n"]), max_size=8))
    texts = [*texts, "".join(parts), " ".join(parts)]
    results = found(entries, texts)
    assert results == [by_pyahocorasick(entries, text) for text in texts]
    if all(entry.isascii() or set(entry) <= set("ab .'é猫狗カก") for entry in entries):
        assert results == [by_regular_expressions(entries, text) for text in texts]


@settings(deadline=None)
@given(
    st.lists(st.text("abc", min_size=1, max_size=2), min_size=1, max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=2)),
)
def test_equals_the_pairs_and_words_of_a_text(words, text):
    """Without any of our normal forms: the words and bigrams of a text are what it has between spaces."""
    entries = list(dict.fromkeys([*words, *map(" ".join, zip(words, words[1:], strict=False))]))
    in_text = {*text, *map(" ".join, zip(text, text[1:], strict=False))}
    assert found(entries, [" ".join(text)]) == [[entry for entry in entries if entry in in_text]]
