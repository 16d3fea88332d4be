"""The blocks of remote files that are kept on the local disk, up to a number of bytes.

All processes of a user share the folder. Each block is a file with its SHA-256, which is compared when a process first
reads the block. The blocks that have not been read for the longest time are removed.
"""

import contextlib
import functools
import hashlib
import os
import shutil
import threading
from pathlib import Path

from keras_clip import files
from keras_clip.data.readers.storage.user_cache import cache_folder

BLOCK_BYTES = 1 << 20
# The bytes of the cache: those of this variable, or else these, but at most a quarter of the free space.
VARIABLE = "KERAS_CLIP_CACHE_BYTES"
_DEFAULT_BYTES = 16 << 30
# When the cache is full, it is emptied to this share.
_KEPT = 0.9
_DIGEST_BYTES = 32


class BlockCache:
    """Blocks in files of a folder.

    Args:
        folder: the folder, which need not exist.
        limit: the most bytes of all blocks.
    """

    def __init__(self, folder: Path, limit: int):
        self._folder, self.limit = folder, limit
        self._lock = threading.Lock()
        self._bytes: int | None = None
        # Blocks whose digest was right.
        self._verified: set[str] = set()

    @staticmethod
    def default() -> "BlockCache":
        """Returns the user's cache.

        Raises:
            ValueError: the variable KERAS_CLIP_CACHE_BYTES is no number of bytes.
        """
        return _cache_of(cache_folder("blocks"), os.environ.get(VARIABLE))

    def has(self, name: str) -> bool:
        """Returns whether a block is stored."""
        return (self._folder / name).exists()

    def write(self, name: str, content: bytes) -> None:
        """Stores a block; nothing happens if it cannot be stored."""
        size = len(content) + _DIGEST_BYTES
        with self._lock:
            self._make_room(size)
            if self._bytes + size > self.limit:
                return
            self._bytes += size
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            with files.replacing(self._folder / name) as temporary, temporary.open("wb") as file:
                file.write(content + hashlib.sha256(content).digest())
            self._verified.add(name)

    def read(self, name: str, start: int, stop: int) -> bytes | None:
        """Returns bytes of a block, or None if it is not stored or damaged."""
        path = self._folder / name
        try:
            with open(path, "rb", buffering=0) as file:
                if name not in self._verified:
                    content = file.read()
                    if hashlib.sha256(content[:-_DIGEST_BYTES]).digest() != content[-_DIGEST_BYTES:]:
                        path.unlink(missing_ok=True)
                        return None
                    self._verified.add(name)
                    # It was used: the oldest blocks are removed first.
                    os.utime(path)
                stop = min(stop, os.fstat(file.fileno()).st_size - _DIGEST_BYTES)
                return os.pread(file.fileno(), max(0, stop - start), start)
        except OSError:
            return None

    def _make_room(self, size: int) -> None:
        if self._bytes is None or self._bytes + size > self.limit:
            # Other processes may have stored or removed blocks.
            found = []
            with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):
                        about = entry.stat()
                        found.append((about.st_mtime_ns, about.st_size, entry.path))
            self._bytes = sum(each[1] for each in found)
            if self._bytes + size > self.limit:
                for _, bytes_of, path in sorted(found):
                    if self._bytes + size <= _KEPT * self.limit:
                        break
                    with contextlib.suppress(OSError):
                        os.unlink(path)
                    self._verified.discard(os.path.basename(path))
                    self._bytes -= bytes_of


@functools.lru_cache(maxsize=4)
def _cache_of(folder: Path, limit: str | None) -> BlockCache:
    if limit is not None:
        if not limit.strip().isdecimal():
            raise ValueError(f"{VARIABLE} must be a number of bytes. Received: {limit!r}.")
        return BlockCache(folder, int(limit))
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    return BlockCache(folder, min(_DEFAULT_BYTES, shutil.disk_usage(existing).free // 4))
