"""Shortens the representation of sources in error messages."""

import reprlib
from typing import Any

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 160
_REPR.maxlist = _REPR.maxtuple = _REPR.maxset = _REPR.maxdict = 4
_MAX_CHARACTERS = 400


def brief(value: Any) -> str:
    """The `repr` of a source, a mapping or a list of columns, cut to a few hundred characters.

    Args:
        value: any object.

    Returns:
        str, in one line.
    """
    text = " ".join(_REPR.repr(value).split())
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."
