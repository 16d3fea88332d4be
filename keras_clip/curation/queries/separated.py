"""The form of a text in which queries are counted and matched: words and marks separated by single spaces."""

import re
import unicodedata

# The blocks of the scripts that are written without spaces between words: Chinese, Japanese, Thai, Lao, Tibetan,
# Burmese and Khmer. Ranges and not a property, so that a newer Unicode does not change which queries match.
_UNSEGMENTED = (
    "\u0e00-\u0fff"  # Thai, Lao, Tibetan
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17ff\u19e0-\u19ff"  # Khmer
    "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c"  # ideographic marks and numerals
    "\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f"  # kana, Bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
)
_has_unsegmented = re.compile(f"[{_UNSEGMENTED}]").search
_CHANGE_OF_SCRIPT = re.compile(
    rf"(?<=[{_UNSEGMENTED}])(?=[^\s{_UNSEGMENTED}])|(?<=[^\s{_UNSEGMENTED}])(?=[{_UNSEGMENTED}])"
)
# The zero-width space separates words. The two joiners are letters' parts in Persian and in scripts of India.
_ZERO_WIDTH_SPACE, _JOINERS = "\u200b", "\u200c\u200d"


class _Replacements(dict):
    """Maps a code point to its replacement, for `str.translate`; filled as characters occur."""

    def __missing__(self, code):
        character = chr(code)
        category = unicodedata.category(character)
        if category[0] in "PS":
            replacement = f" {character} "
        elif category[0] == "Z" or category in ("Cc", "Cs") or character == _ZERO_WIDTH_SPACE:
            replacement = " "
        elif (category == "Cf" and character not in _JOINERS) or _is_variation_selector(code):
            replacement = ""
        else:
            replacement = character
        self[code] = replacement
        return replacement


_REPLACEMENTS = _Replacements()


def _is_variation_selector(code):
    return 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF


def separated(text: str, ignore_case: bool = False) -> str:
    """Returns a text with its words and marks separated by single spaces, none at the ends.

    Each character of punctuation and each symbol (Unicode categories P and S) stands by itself: `"a cat's bed."`
    becomes `"a cat ' s bed ."`. White space and control characters become spaces; invisible ones (soft hyphens, marks
    of direction, variation selectors) are removed. Composed and decomposed characters are equal (NFC). A change between
    a script that is written without spaces and another one separates too.

    Args:
        text: str.
        ignore_case: bool. Whether to fold upper and lower case.

    Returns:
        str. The function applied to its own result returns it unchanged.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if ignore_case:
        text = unicodedata.normalize("NFC", text.casefold())
    text = " ".join(text.translate(_REPLACEMENTS).split())
    if not text.isascii():
        # Characters may have become neighbours that compose.
        text = unicodedata.normalize("NFC", text)
        if _has_unsegmented(text):
            text = _CHANGE_OF_SCRIPT.sub(" ", text)
    return text


def pattern_of(entry: str, ignore_case: bool = False) -> str:
    """Returns the string that occurs in `f" {separated(text)} "` if and only if the entry occurs in the text.

    It is the separated entry with a space at each end, by which it begins and ends with a word. An end whose character
    belongs to a script that is written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) has no
    space: there an entry may occur anywhere.

    Args:
        entry: str.
        ignore_case: bool. See `separated`.

    Returns:
        str. Empty if the entry is blank.
    """
    pattern = separated(entry, ignore_case)
    if not pattern:
        return ""
    before = "" if _has_unsegmented(pattern[0]) else " "
    return before + pattern + ("" if _has_unsegmented(pattern[-1]) else " ")


def is_word(token: str) -> bool:
    """Returns whether a part of a separated text is a word: it has a letter and is of a script that has spaces."""
    return any(map(str.isalpha, token)) and not _has_unsegmented(token)


def is_single_letter(text: str) -> bool:
    """Returns whether a text is one letter of an alphabet; a Chinese character is a word."""
    return len(text) == 1 and text.isalpha() and not unicodedata.name(text, "").startswith("CJK")
