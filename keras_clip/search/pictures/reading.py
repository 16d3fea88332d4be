"""Opens the files of pictures, which must lie inside their root at the moment when they are read."""

import os
import stat
from pathlib import Path
from typing import BinaryIO


class OutsideOfRoot(PermissionError):
    """A picture that is no longer inside its root: its file or a folder above it was replaced by a link."""


def open_inside(root: str | os.PathLike, path: str | os.PathLike) -> BinaryIO:
    """Opens the file of a picture for reading.

    The index knows which files are pictures, but since it was made one may have been replaced by a link to any file of
    the machine. What is opened is checked, not the name: it may change between a check and the opening.

    Args:
        root: the folder that the picture must be in.
        path: path of the picture.

    Returns:
        The open file.

    Raises:
        FileNotFoundError: the file is gone.
        OutsideOfRoot: it is another file outside of the root now.
        OSError: it cannot be read, or is no regular file.
    """
    # A pipe in its place would block until somebody writes to it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        opened = os.fstat(descriptor)
        real = os.path.realpath(path)
        inside = os.path.join(os.path.realpath(root), "")
        there = os.lstat(real)
        is_same = (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)
        if not (real.startswith(inside) and is_same):
            raise OutsideOfRoot(
                f"A picture must be inside its folder. Received: {Path(path).name!r}, a link elsewhere."
            )
        if not stat.S_ISREG(opened.st_mode):
            raise OSError(f"A picture must be a regular file. Received: {Path(path).name!r}.")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
