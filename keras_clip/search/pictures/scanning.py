"""Finds the pictures below a folder, with their sizes and times of change; it opens none of them.

Hidden files and folders are left out. A link stands for its target: a target inside the folder is found once, under its
own path, and a target outside is not followed. The folder itself may be a link.
"""

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from keras_clip.data.readers.elements.image_formats import IMAGE_EXTENSIONS

PICTURE, TEXT, UNREADABLE, PASSED_OVER = "picture", "text", "unreadable", "passed over"
_PICTURES, _TEXT = frozenset(IMAGE_EXTENSIONS), "txt"


class Found(NamedTuple):
    """A file or folder.

    Attributes:
        kind: `PICTURE`; `TEXT`, whose path is without extension; `UNREADABLE`, a folder; `PASSED_OVER`, another file.
        path: path relative to the root, with slashes.
        size: int, bytes.
        mtime_ns: int.
        detail: why a folder cannot be read; the extension of a file that is passed over.
    """

    kind: str
    path: bytes
    size: int = 0
    mtime_ns: int = 0
    detail: str = ""


def scan(root: bytes, left_out: frozenset[bytes]) -> Iterator[Found]:
    """Walks a folder.

    Args:
        root: absolute path of the folder.
        left_out: real paths of folders that are not entered: the index, and roots of their own.

    Returns:
        Iterator over what was found. A picture that links lead to may be repeated.

    Raises:
        OSError: the root itself cannot be read.
    """
    yield from _Walk(os.path.realpath(root), left_out).run()


class _Walk:
    def __init__(self, root: bytes, left_out: frozenset[bytes]):
        self._root, self._left_out = root, left_out
        self._seen: set[tuple[int, int]] = set()
        self._links: list[bytes] = []

    def run(self) -> Iterator[Found]:
        # Raises if the root cannot be read.
        os.scandir(self._root).close()
        yield from self._folders(b"")
        # Last, so that what can be reached without a link is found at its own place.
        while self._links:
            yield from self._target(self._links.pop(0))

    def _folders(self, first: bytes) -> Iterator[Found]:
        waiting = [first]
        while waiting:
            folder = waiting.pop()
            try:
                if not self._enters(folder):
                    continue
                with os.scandir(self._absolute(folder)) as entries:
                    for entry in entries:
                        path = folder + b"/" + entry.name if folder else entry.name
                        if entry.name.startswith(b"."):
                            continue
                        if entry.is_symlink():
                            self._links.append(path)
                        elif entry.is_dir(follow_symlinks=False):
                            waiting.append(path)
                        else:
                            yield from self._file(path)
            except OSError as error:
                yield Found(UNREADABLE, folder, detail=error.strerror or str(error))

    def _enters(self, folder: bytes) -> bool:
        path = self._absolute(folder)
        # The thumbnails of an index are no pictures of the user.
        if path in self._left_out or os.path.exists(os.path.join(path, b"index.sqlite")):
            return False
        facts = os.stat(path)
        is_new = (facts.st_dev, facts.st_ino) not in self._seen
        self._seen.add((facts.st_dev, facts.st_ino))
        return is_new

    def _file(self, path: bytes) -> Iterator[Found]:
        stem, extension = os.path.splitext(path)
        extension = os.fsdecode(extension).lower().lstrip(".")
        if extension not in _PICTURES and extension != _TEXT:
            yield Found(PASSED_OVER, path, detail=extension)
            return
        try:
            facts = os.lstat(self._absolute(path))
        except FileNotFoundError:
            return
        except OSError as error:
            yield Found(UNREADABLE, path, detail=error.strerror or str(error))
            return
        if not stat.S_ISREG(facts.st_mode):
            yield Found(PASSED_OVER, path, detail=extension)
        elif extension == _TEXT:
            yield Found(TEXT, stem, facts.st_size, facts.st_mtime_ns)
        else:
            yield Found(PICTURE, path, facts.st_size, facts.st_mtime_ns)

    def _target(self, link: bytes) -> Iterator[Found]:
        target = os.path.realpath(self._absolute(link))
        prefix = self._root.rstrip(b"/") + b"/"
        if not target.startswith(prefix) or any(_is_within(target, folder) for folder in self._left_out):
            if not _is_within(self._root, target):
                yield Found(PASSED_OVER, link, detail="link out of the folder")
            return
        path = target[len(prefix) :]
        if os.path.isdir(target):
            yield from self._folders(path)
        elif os.path.isfile(target):
            yield from self._file(path)

    def _absolute(self, path: bytes) -> bytes:
        return os.path.join(self._root, path) if path else self._root


def _is_within(path: bytes, folder: bytes) -> bool:
    return path == folder or path.startswith(folder.rstrip(b"/") + b"/")
