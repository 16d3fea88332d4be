"""Copies of files in the user's cache folder, which support random access: decompressed, or in another format."""

import bz2
import contextlib
import glob
import gzip
import logging
import lzma
import os
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from keras_clip.data.readers.storage.remote import open_binary, stamp
from keras_clip.data.readers.storage.urls import is_remote
from keras_clip.data.readers.storage.user_cache import in_cache, write_whole

_COMPRESSIONS = {
    "gzip": (b"\x1f\x8b", gzip.open),
    "bzip2": (b"BZh", bz2.open),
    "xz": (b"\xfd7zXZ\0", lzma.open),
    "zstd": (b"\x28\xb5\x2f\xfd", None),
}
_ENDINGS = {"gzip": r"\.t?gz$", "bzip2": r"\.(bz2|tbz2?)$", "xz": r"\.t?xz$", "zstd": r"\.t?zst$"}
# A decompressed file may be 200 times as large as the compressed one, or a gigabyte; more is taken for an attack.
_MAX_RATIO, _FREE_BYTES = 200, 2**30


def compression(path: str) -> str | None:
    """Returns the name of the compression of a file, by its first bytes; None if it is not compressed.

    Of remote files the name says it, so that a file that is not needed yet is not opened.
    """
    if is_remote(path):
        whole = path.partition("?")[0]
        return next((name for name, ending in _ENDINGS.items() if re.search(ending, whole, re.IGNORECASE)), None)
    with open(path, "rb") as file:
        head = file.read(8)
    return next((name for name, (magic, _) in _COMPRESSIONS.items() if head.startswith(magic)), None)


def decompressed(path: str) -> str:
    """Returns the path, or for a compressed file that of its decompressed copy, which is made at the first use.

    Args:
        path: path of the file.

    Returns:
        The path of a file that is not compressed.

    Raises:
        ValueError: a compressed file that is damaged, of an unknown compression, or expands to more than the limit.
    """
    name = compression(path)
    if name is None:
        return path
    opener = _COMPRESSIONS[name][1]
    if opener is None:
        raise ValueError(f"A source must not be compressed by {name}. Received: {path}. Decompress it.")

    def expand(file: BinaryIO) -> None:
        limit = size_limit(path)
        try:
            with open_binary(path) as source, opener(source, "rb") as packed:
                while chunk := packed.read(1 << 20):
                    file.write(chunk)
                    if file.tell() > limit:
                        raise ValueError(f"it expands to more than {limit:,} bytes. Decompress it yourself")
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ValueError(f"A {name} file must be whole. Received: {path}: {error}.") from error

    return copy_of(path, ".decompressed", expand)


def size_limit(path: str) -> int:
    """The most bytes that a copy of a file may have. More is taken for an attack on the disk."""
    return max(_FREE_BYTES, _MAX_RATIO * stamp(path)[0])


def copy_of(path: str, suffix: str, write: Callable[[BinaryIO], None]) -> str:
    """Returns the path of an up-to-date cached copy and creates it by `write` if it is missing.

    Args:
        path: path of the file.
        suffix: end of the name of the copy.
        write: function of an open file, which it fills.

    Returns:
        The path of the copy, in the user's cache folder.
    """
    size, changed = stamp(path)
    name = re.sub(r"[^\w.-]", "_", os.path.basename(path))[-40:] if is_remote(path) else os.path.basename(path)[-40:]
    place = in_cache("copies", path, f"-{size}-{changed}-{name}{suffix}")
    if not os.path.exists(place):
        for old in glob.glob(glob.escape(in_cache("copies", path, "-")) + "*"):
            with contextlib.suppress(OSError):
                os.unlink(old)
        logging.getLogger("keras_clip").info("copying %s to %s, to read it at any place", path, place)
        free = shutil.disk_usage(_existing_folder(place)).free
        if free < size:
            raise OSError(
                f"{path} must be copied to be read at any place, and the copy does not fit. Received: {free:,} free "
                f"bytes in {os.path.dirname(place)}. Convert it to .tar, or set XDG_CACHE_HOME to a larger disk."
            )
        with write_whole(place) as file:
            write(file)
    return place


def _existing_folder(path: str) -> Path:
    return next(folder for folder in Path(path).parents if folder.exists())
