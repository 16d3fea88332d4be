"""Files that are whole or absent: written under a temporary name beside their place, then renamed.

A process that is interrupted, killed or out of disk space while it writes leaves the previous file unchanged.
"""

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Part of the temporary names, by which leftovers of killed processes are recognised.
PART = ".part"
# Bytes of the stem and of the extension in temporary names, of the 255 that file systems allow for all.
_MOST_BYTES = 100


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path; the file that the block writes there replaces `path` atomically if the block succeeds.

    The temporary file lies in the folder of `path`, has the same extension, and is removed if the block raises. The
    target of a symbolic link is replaced, not the link. A path that is not a regular file, such as a pipe, is written
    to directly.

    Args:
        path: the file to write. Its folder must exist.

    Returns:
        A context manager, which gives the Path of the temporary file; it does not exist yet.
    """
    path = Path(os.path.realpath(path))
    mode = path.stat().st_mode if path.exists() else None
    if mode is not None and not stat.S_ISREG(mode):
        yield path
        return
    temporary = path.with_name(_temporary_name(path))
    try:
        yield temporary
        if mode is not None:
            os.chmod(temporary, stat.S_IMODE(mode))
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _temporary_name(path: Path) -> str:
    """The name of a temporary file for a path; not longer than file systems allow, whatever the name of the path."""
    # Writers choose a format by the extension; what is longer than this is none.
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= _MOST_BYTES else ""
    stem = os.fsencode(path.stem)[:_MOST_BYTES].decode("utf-8", "ignore")
    # Random, because process ids may repeat across hosts.
    return f".{stem}.{secrets.token_hex(4)}{PART}{suffix}"


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text as UTF-8; the file is complete at any time.

    Args:
        path: the file. Its folder must exist.
        text: its new content.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes JSON data; the file is complete at any time.

    Args:
        path: the file. Its folder must exist.
        value: an object that `json.dumps` can encode.
    """
    write_text(path, json.dumps(value, indent=1) + "\n")


class WholeFileMixin:
    """Mixin before `keras.Model`, with which `save` replaces the file only when the new one is complete."""

    def save(self, filepath: str | os.PathLike, overwrite: bool = True, zipped: bool | None = None, **kwargs) -> None:
        """Saves the model as a .keras file: see `keras.Model.save`.

        An interrupted call leaves the previous file unchanged.

        Args:
            filepath: path of the .keras file.
            overwrite: whether to replace an existing file without asking.
            zipped: see `keras.Model.save`.
            **kwargs: see `keras.Model.save`.
        """
        save = super().save
        is_local = not isinstance(filepath, str) or "://" not in filepath
        # With overwrite=False, Keras prompts the user.
        is_free = overwrite or not os.path.exists(filepath)
        if not (is_local and is_free and zipped is not False and str(filepath).endswith(".keras")):
            save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)
            return
        with replacing(filepath) as temporary:
            save(str(temporary), zipped=zipped, **kwargs)


def _sync_folder(folder: Path) -> None:
    """Flushes a folder, so that the new name of a file is on the disk; neither possible nor needed on Windows."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
