"""`separated`: words and marks stand apart, once and for all."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keras_clip.curation.queries.separated import is_single_letter, is_word, pattern_of, separated

pytestmark = pytest.mark.backend_free

# text: its form, by hand.
FORMS = {
    "": "",
    " \t\r\n\x00\u3000": "",
    "a  cat\nand\ta dog ": "a cat and a dog",
    "a cat's bed.": "a cat ' s bed .",
    "T-shirt (U.S.), $5+": "T - shirt ( U . S . ) , $ 5 +",
    "cat\U0001f431\u2764\ufe0fdog": "cat \U0001f431 \u2764 dog",
    "“wow”…": "“ wow ” …",
    "cafe\u0301": "caf\u00e9",
    "so\u00adft \ufeffmark\u200f": "soft mark",
    "two\u200bwords": "two words",
    "می\u200cخواهم": "می\u200cخواهم",
    "我爱iPhone手机。好": "我爱 iPhone 手机 。 好",
    "東京タワー 2024年": "東京タワー 2024 年",
    "แมวcat": "แมว cat",
    "བོད་ཡིག": "བོད ་ ཡིག",
    "한국어 텍스트": "한국어 텍스트",
    "हिन्दी, पाठ": "हिन्दी , पाठ",
    "a\ud800b": "a b",
}


@pytest.mark.parametrize("text", FORMS)
def test_form(text):
    assert separated(text) == FORMS[text]


@pytest.mark.parametrize(
    "text, form",
    [("A Dog", "a dog"), ("STRASSE Straße", "strasse strasse"), ("É E\u0301", "é é"), ("ΣΊΣΥΦΟΣ", "σίσυφοσ")],
)
def test_case_is_folded(text, form):
    assert separated(text, ignore_case=True) == form
    assert separated(text) == unicodedata.normalize("NFC", text)


@given(st.text(), st.booleans())
@example("=\u00ad\u0338", False)
@example("e\u00ad\u0301", False)
@example("か\u200e\u3099a", False)
@example("İ\u0345\u0301", True)
def test_form_has_one_space_between_and_stays_as_it_is(text, ignore_case):
    form = separated(text, ignore_case)
    assert form == " ".join(form.split())
    assert separated(form, ignore_case) == form


PATTERNS = {"cat": " cat ", " U.S.": " U . S . ", "猫": "猫", "iPhone手机": " iPhone 手机", "แมว!": "แมว ! ", " \n": ""}


@pytest.mark.parametrize("entry", PATTERNS)
def test_pattern(entry):
    assert pattern_of(entry) == PATTERNS[entry]


@pytest.mark.parametrize(
    "token, expected",
    [("cat", True), ("1990s", True), ("2019", False), ("'", False), ("", False), ("猫", False), ("हिन्दी", True)],
)
def test_word(token, expected):
    assert is_word(token) is expected


@pytest.mark.parametrize(
    "text, expected", [("a", True), ("é", True), ("ก", True), ("猫", False), ("5", False), ("ab", False)]
)
def test_single_letter(text, expected):
    assert is_single_letter(text) is expected
