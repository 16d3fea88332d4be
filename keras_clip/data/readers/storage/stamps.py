"""Stamps: the sizes and times by which a changed file is recognised without reading it."""

import hashlib
import json
import os
from collections.abc import Iterable
from typing import Any


def file_stamp(path: str | bytes | os.PathLike) -> tuple[int, ...]:
    """Returns the size and the time of change, in nanoseconds, of a file; () if there is none."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return ()
    return stat.st_size, stat.st_mtime_ns


def change_stamp(path: str) -> tuple[int, ...]:
    """Returns size, number, and times of change of a file and of what the file system knows of it; () if there is none.

    Unlike `file_stamp`, it also differs for another file to which somebody gave the time of this one. Files of other
    machines have no such stamp.
    """
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return ()
    return stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns


def digest_of(parts: Iterable[Any]) -> str:
    """Returns a digest of JSON data; of bytes and of texts that are no UTF-8 too, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        data = b"bytes " + part if isinstance(part, bytes) else json.dumps(part).encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()
