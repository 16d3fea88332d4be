"""Cursors: the place in a ranking at which the next page begins, as an opaque text."""

import base64
import binascii
import struct
from typing import NamedTuple

_FORM = struct.Struct(">BQQ16s8s")
_FORMAT = 1


class CursorError(ValueError):
    """A cursor that no page returned, or one of another query."""


class StaleCursor(CursorError):
    """A cursor of a version of the index that is no longer known: the search must begin again."""


class Cursor(NamedTuple):
    """A place in a ranking.

    Args:
        version: int. The version of the index.
        offset: int. The number of results on the pages before.
        key: 16 bytes of a digest of query, filters and collapse.
        labels: 8 bytes of a digest of the labels that the filters used.
    """

    version: int
    offset: int
    key: bytes
    labels: bytes

    def __str__(self) -> str:
        packed = _FORM.pack(_FORMAT, self.version, self.offset, self.key, self.labels)
        return base64.urlsafe_b64encode(packed).decode().rstrip("=")

    @classmethod
    def read(cls, text: str) -> "Cursor":
        """Returns the cursor of a text that `str(cursor)` made; another one raises a `CursorError`."""
        try:
            form, *values = _FORM.unpack(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        except (TypeError, AttributeError, ValueError, UnicodeError, binascii.Error, struct.error):
            form = None
        if form != _FORMAT or str(cls(*values)) != text:
            raise CursorError(
                f"A cursor is a text that a page of results returned. Received: {str(text)[:80]!r}. Search without a "
                "cursor to begin at the first page."
            )
        return cls(*values)
