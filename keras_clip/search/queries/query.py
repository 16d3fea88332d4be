"""Queries: terms of text and pictures with weights, and the syntax in which a person writes them."""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

MAX_TERMS = 64
MAX_CHARACTERS = 2000

# The operators, also in the wide forms of East Asian keyboards, and the mathematical minus.
_PLUS, _MINUS = "+＋", "-−－"
_QUOTES = {'"': '"', "“": "”", "„": "“”", "«": "»", "「": "」", "＂": "＂"}
_NUMBER = r"\d+(?:[.,]\d+)?|[.,]\d+"
_WEIGHT = re.compile(rf"\s*({_NUMBER})\s*[*＊]\s*")
_PICTURE = re.compile(r"picture[:：](\S*)", re.IGNORECASE)


@dataclass(frozen=True)
class Term:
    """One part of a query: a text, a picture of the index, or a picture from elsewhere.

    Args:
        text: str, or None.
        picture: int, the id of a picture of the index, or None.
        upload: bytes of an image file, PIL image or uint8 array, or None.
        weight: float. A negative one searches for pictures that do not resemble the term.

    Raises:
        ValueError: not exactly one of `text`, `picture` and `upload`, a text that is empty, too long or not Unicode, or
            a weight that is 0 or not finite.
    """

    text: str | None = None
    picture: int | None = None
    upload: Any = None
    weight: float = 1.0

    def __post_init__(self):
        given = [name for name in ("text", "picture", "upload") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"A term is one of `text`, `picture` and `upload`. Received: {given or 'none of them'}.")
        if self.text is not None:
            _check_text(self.text)
        picture = self.picture
        if picture is not None and (isinstance(picture, bool) or not isinstance(picture, int) or picture < 0):
            raise ValueError(f"`picture` must be the id of a picture, an integer of at least 0. Received: {picture!r}.")
        number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        if not number or not math.isfinite(self.weight) or self.weight == 0:
            raise ValueError(
                f"The weight of a term must be a number other than 0. Received: weight={self.weight!r}. Leave out a "
                "term that has no effect."
            )
        object.__setattr__(self, "weight", float(self.weight))

    @property
    def is_text(self) -> bool:
        """Whether the term is a text."""
        return self.text is not None


@dataclass(frozen=True)
class Query:
    """A weighted sum of terms; a query without terms lists all pictures by date.

    `str(query)` writes the query as `parse` reads it. A picture from elsewhere has no such form.

    Args:
        terms: `Term`s, at most 64.

    Raises:
        ValueError: something else, or too many.
    """

    terms: Sequence[Term] = ()

    def __post_init__(self):
        object.__setattr__(self, "terms", tuple(self.terms))
        if not all(isinstance(term, Term) for term in self.terms) or len(self.terms) > MAX_TERMS:
            raise ValueError(
                f"A query has at most {MAX_TERMS} terms, each a `Term`. Received: {len(self.terms)} of types "
                f"{sorted({type(term).__name__ for term in self.terms})}."
            )

    def __str__(self) -> str:
        parts = []
        for term in self.terms:
            sign = "- " if term.weight < 0 else "+ " if parts else ""
            weight = "" if abs(term.weight) == 1 else f"{_plain(abs(term.weight))}*"
            parts.append(f"{sign}{weight}{_written(term)}")
        return " ".join(parts)

    def digest(self) -> str:
        """Returns 64 hexadecimal digits that differ for different queries."""
        digest = hashlib.sha256()
        for term in self.terms:
            kind = "text" if term.is_text else "picture" if term.picture is not None else "upload"
            value = upload_digest(term.upload) if kind == "upload" else str(getattr(term, kind))
            digest.update(repr((kind, value, term.weight)).encode())
        return digest.hexdigest()


def upload_digest(upload: Any) -> str:
    """Returns a digest of a picture: of its bytes, or of its pixels if it is decoded.

    Args:
        upload: as of `Term`.

    Returns:
        64 hexadecimal digits.
    """
    from keras_clip.similarity.fingerprints import pixel_digest

    return hashlib.sha256(upload).hexdigest() if isinstance(upload, bytes) else pixel_digest(upload)


def parse(text: str) -> Query:
    """Reads a query as a person writes it: terms that are joined by + and -.

        red car at night                     one text
        red car - night + picture:17         texts and a picture of the index
        2*"red car" + dog -snow              weights, quotes, a minus before a word

    A plus or minus is an operator where a space or the beginning of the query is before it; before a digit it needs a
    space after it too. Any other one is part of the text, as in "t-shirt", "C++" and "at -5 degrees". Quotes protect
    operators: "Paris - the city". Inside quotes, \\" is a quote and \\\\ a backslash. A weight is a number and an
    asterisk at the beginning of a term. A query of spaces only has no terms.

    Args:
        text: str, in any script.

    Returns:
        `Query`.

    Raises:
        ValueError: an operator without a term, a quote that is not closed, a wrong picture or weight, or a text that is
            too long; the message names the place and the cure.
    """
    if not isinstance(text, str):
        raise ValueError(f"A query is a text. Received: {type(text).__name__}.")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"A query has at most {MAX_CHARACTERS} characters. Received: {len(text)}. Shorten it.")
    terms = []
    for sign, part in _split(text):
        terms.append(_term(sign, part))
    return Query(terms)


def _split(text):
    """Yields (sign, text of the term) of each part between operators."""
    sign, start, place, is_first = 1, 0, 0, True
    close = None
    while place < len(text):
        character = text[place]
        if close:
            if _is_escape(text, place, close):
                place += 1
            elif character in close:
                close = None
        elif character in _QUOTES and _opens(text, start, place):
            close = _QUOTES[character]
        elif _is_operator(text, place):
            part = text[start:place]
            if part.strip():
                yield sign, part
            elif not is_first:
                raise ValueError(
                    f"There must be a term between two operators. Received: {text!r}, with none before "
                    f"{text[place:]!r}. Write a text or picture:ID there, or put quotes around a plus or minus that is "
                    "part of the text."
                )
            sign, start, is_first = (1 if character in _PLUS else -1), place + 1, False
        place += 1
    if text[start:].strip():
        yield sign, text[start:]
    elif not is_first:
        raise ValueError(
            f"There must be a term after the last operator. Received: {text!r}. Write a text or picture:ID there, or "
            "put quotes around a plus or minus that is part of the text."
        )


def _opens(text, start, place):
    """Whether the quote at a place opens: at the beginning of a term always, in its midst if it is closed later."""
    before = text[start:place]
    if not before.strip() or _WEIGHT.fullmatch(before):
        return True
    closing = next((i for i in range(place + 1, len(text)) if text[i] in _QUOTES[text[place]]), None)
    return before[-1:].isspace() and closing is not None


def _is_operator(text, place):
    if text[place] not in _PLUS + _MINUS or (place and not text[place - 1].isspace()):
        return False
    after = text[place + 1 : place + 2]
    # "-5 degrees" and "--" are text, "-0.5*night" is not.
    is_text = after.isdecimal() or (after and after in f".,{_PLUS}{_MINUS}")
    return not is_text or bool(_WEIGHT.match(text, place + 1))


def _term(sign, part):
    weight = _WEIGHT.match(part)
    value = part[weight.end() :].strip() if weight else part.strip()
    factor = float(weight[1].replace(",", ".")) if weight else 1.0
    if not value:
        raise ValueError(
            f'A weight needs a term after the asterisk, as in 2*"red car". Received: {part.strip()!r}. Put quotes '
            "around it to search for these characters."
        )
    if not factor or not math.isfinite(factor):
        raise ValueError(
            f"A weight must be a number above 0, with a minus before it to search for the opposite. Received: "
            f"{part.strip()!r}."
        )
    quoted = _unquoted(value, part)
    if quoted is not None:
        return Term(text=quoted, weight=sign * factor)
    picture = _PICTURE.match(value)
    if picture and picture[1]:
        if not picture[1].isdecimal() or picture.end() != len(value):
            raise ValueError(
                f"A picture of the index is picture: and its number, as in picture:17, and + or - joins it with other "
                f'terms. Received: {value!r}. To search for these words, put quotes around them: "{value}".'
            )
        return Term(picture=int(picture[1]), weight=sign * factor)
    return Term(text=value, weight=sign * factor)


def _unquoted(value, part):
    """Returns the text inside the quotes if all of a term is quoted, else None."""
    if value[0] not in _QUOTES:
        return None
    close, place = _QUOTES[value[0]], 1
    while place < len(value) and value[place] not in close:
        place += 2 if _is_escape(value, place, close) else 1
    if place >= len(value):
        raise ValueError(
            f"A term that begins with a quote must end with one. Received: {part.strip()!r}. Add the closing quote "
            f"{close[-1]}, or leave out the first one."
        )
    if place != len(value) - 1:
        return None
    text = re.sub(rf"\\([{re.escape(close)}\\])", r"\1", value[1:-1])
    if not text.strip():
        raise ValueError(f"There must be a text inside quotes. Received: {part.strip()!r}. Leave the quotes out.")
    return text


def _is_escape(text, place, close):
    """Whether a backslash at a place protects the closing quote, or another backslash, after it."""
    after = text[place + 1 : place + 2]
    return text[place] == "\\" and after != "" and after in f"{close}\\"


def _written(term):
    if term.picture is not None:
        return f"picture:{term.picture}"
    if not term.is_text:
        raise ValueError(
            "A picture from elsewhere has no written form. Received: a query with an upload. Write its other terms by "
            "themselves."
        )
    try:
        is_plain = parse(term.text) == Query([Term(text=term.text)])
    except ValueError:
        is_plain = False
    # A quote that stands alone here could belong to one of another term.
    is_plain = is_plain and not any(quote in term.text for quote in _QUOTES)
    return term.text if is_plain else '"{}"'.format(re.sub(r'(["\\])', r"\\\1", term.text))


def _plain(number):
    """A number without an exponent, which reads back as the same."""
    return format(Decimal(repr(number)), "f").removesuffix(".0")


def _check_text(text):
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_CHARACTERS:
        got = text if not isinstance(text, str) or len(text) < 50 else f"{len(text)} characters"
        raise ValueError(
            f"The text of a term must have 1 to {MAX_CHARACTERS} characters that are not all spaces. Received: {got!r}."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"The text of a term must be valid Unicode. Received: {text[:50]!r}.") from error
