"""Strings of users (names, captions, keys of archives) as terminals, logs, figures and tables may show them."""

import re
from typing import Any

# Control characters, line separators, marks that reverse the direction of writing, and halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# With one of these a spreadsheet takes a cell for a formula, and may run it.
_FORMULA = re.compile(r"[=+\-@\t\r\n\uff0b\uff0d\uff1d\uff20]")


def printable(text: Any) -> str:
    """The text in one line, with what could control a terminal, a log or a page as an escape such as \\x1b.

    Args:
        text: str, or what is converted to one.

    Returns:
        str. Letters of all scripts, spaces and emoji stay as they are.
    """
    return _UNPRINTABLE.sub(lambda match: match.group().encode("unicode_escape").decode(), str(text))


def cell(value: Any) -> Any:
    """A value as a cell of a CSV file, for spreadsheets and terminals: its text as of `printable`.

    What a spreadsheet would take for a formula begins with an apostrophe.

    Args:
        value: str, or any other value, which is returned as it is.

    Returns:
        The cell.
    """
    if not isinstance(value, str):
        return value
    shown = printable(value)
    return f"'{shown}" if _FORMULA.match(value) else shown
