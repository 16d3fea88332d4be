"""The user's cache folder, and files that are written there or beside the shards."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from keras_clip import files
from keras_clip.data.readers.storage.urls import is_remote


def cache_folder(name: str) -> Path:
    """Returns a folder in the user's cache folder, which need not exist.

    Args:
        name: its name.

    Returns:
        The path.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "keras_clip" / name


def in_cache(folder: str, path: str, suffix: str) -> str:
    """Returns the path in the user's cache folder for a file.

    Args:
        folder: name of the folder in the cache.
        path: path or URL of the file.
        suffix: end of the file name.

    Returns:
        The path. It contains no part of the file's own name.
    """
    whole = path if is_remote(path) else os.path.realpath(path)
    name = hashlib.sha256(whole.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return str(cache_folder(folder) / (name + suffix))


@contextlib.contextmanager
def write_whole(path: str) -> Iterator[BinaryIO]:
    """Gives an open file that replaces `path` when it is complete, since another process may be reading `path`."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        yield file
