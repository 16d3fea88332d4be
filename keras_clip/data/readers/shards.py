"""Files that hold many samples each: where the parts of a sample lie, so that any can be read without those before it.

Indexing passes over a file once and also verifies that the file is complete. The index is stored in a `.npz` file
beside the shard, or in the user's cache folder where that cannot be written, and is made again when the shard changes.
"""

import hashlib
import io
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from keras_clip.data.readers.byte_strings import ByteStrings
from keras_clip.data.readers.paths import INDEX_SUFFIX
from keras_clip.data.readers.reader import Reader

# Increase it when the arrays of an index, or their meaning, change: stored indexes are then made again.
_VERSION = 2
_LARGEST_PART = 2**32 - 1
_OPEN_FILES = 256
# A progress bar is shown if at least this many shards must be indexed.
_MANY_SHARDS = 5


class ShardIndex(NamedTuple):
    """The samples of one shard.

    Attributes:
        offsets: int64 (samples, parts). Where each part of a sample begins; 0 if the sample has no such part.
        sizes: uint32 (samples, parts). Bytes of each part.
        keys: the keys of the samples; none if they are identified by their row.
    """

    offsets: np.ndarray
    sizes: np.ndarray
    keys: ByteStrings

    @classmethod
    def of_spans(cls, path: str, spans: Sequence, parts: int, keys: Sequence[bytes] = ()) -> "ShardIndex":
        """The index of (offset, size) of each part of each sample.

        Args:
            path: of the shard.
            spans: (samples, parts, 2); (0, 0) if a sample has no such part.
            parts: how many parts a sample may have.
            keys: of the samples.

        Returns:
            The index.

        Raises:
            ValueError: a part of 4 GiB or more.
        """
        spans = np.array(spans, np.int64).reshape(-1, parts, 2)
        if spans[..., 1].max(initial=0) > _LARGEST_PART:
            raise ValueError(f"Each part of a sample must be smaller than 4 GiB. Received: {path} with a larger one.")
        return cls(np.ascontiguousarray(spans[..., 0]), spans[..., 1].astype(np.uint32), ByteStrings.pack(keys))

    def with_part(self, part: int) -> "ShardIndex":
        """The samples that have a part."""
        rows = np.flatnonzero(self.offsets[:, part])
        if len(rows) == len(self.offsets):
            return self
        keys = ByteStrings.pack(self.keys[row] for row in rows.tolist())
        return ShardIndex(self.offsets[rows], self.sizes[rows], keys)


class Shards(Reader):
    """What readers of shards have in common: parts of samples are read by their place in an open file.

    Memory holds 12 bytes for each part of a sample, and the keys.

    Args:
        paths: of the files.
        indexes: the index of each.
    """

    def __init__(self, paths: Sequence[str], indexes: Sequence[ShardIndex]):
        self.paths = list(paths)
        self.ends = np.cumsum([len(index.offsets) for index in indexes])
        self.offsets = np.concatenate([index.offsets for index in indexes])
        self.sizes = np.concatenate([index.sizes for index in indexes])
        self._files: OrderedDict[int, io.FileIO] = OrderedDict()

    def __len__(self) -> int:
        return len(self.offsets)

    def name(self, index: int) -> str:
        """The path of the shard, and the key."""
        (key,) = self.keys(np.array([index]))
        return f"{self.paths[self._shards(index)]}: {key}"

    def keys(self, ids: np.ndarray) -> list[str]:
        """The rows of the samples in their shards."""
        shards = self._shards(ids)
        starts = np.concatenate([[0], self.ends])[shards]
        return list(map(str, (ids - starts).tolist()))

    def _shards(self, ids: np.ndarray | int) -> np.ndarray:
        """The number of each sample's shard."""
        return np.searchsorted(self.ends, ids, side="right")

    def _bytes(self, ids: np.ndarray, part: int) -> list[bytes]:
        """That part of each sample. The loop over them runs in C, and releases the interpreter's lock to read."""
        shards = self._shards(ids).tolist()
        files = {shard: self._file(shard) for shard in set(shards)}
        descriptors = [files[shard].fileno() for shard in shards]
        offsets, sizes = self.offsets[ids, part].tolist(), self.sizes[ids, part].tolist()
        parts = list(map(os.pread, descriptors, sizes, offsets))
        if list(map(len, parts)) != sizes:
            short = next(k for k, part in enumerate(parts) if len(part) != sizes[k])
            self._raise_changed(ids[short], f"{len(parts[short])} of {sizes[short]} bytes")
        return parts

    def _raise_changed(self, index: int, what: str) -> None:
        """Raises the error of a file that is not as it was when it was indexed."""
        raise OSError(
            "A shard must stay as it is while it is read. "
            f"Received: {self.paths[self._shards(index)]}, sample {index}: {what}. Start again."
        )

    def _file(self, shard: int) -> io.FileIO:
        """An open file. One that is dropped from the store is closed when the last thread that reads it is done."""
        file = self._files.pop(shard, None) or open(self.paths[shard], "rb", buffering=0)
        self._files[shard] = file
        if len(self._files) > _OPEN_FILES:
            self._files.popitem(last=False)
        return file


def load_indexes(paths: Sequence[str], make: Callable[[str], ShardIndex]) -> list[ShardIndex]:
    """The index of each shard, with a progress bar if many have to be made."""
    if sum(not _is_indexed(path) for path in paths) >= _MANY_SHARDS:
        from tqdm import tqdm

        paths = tqdm(paths, desc="indexing shards", unit="shard")
    return [load_index(path, make) for path in paths]


def load_index(path: str, make: Callable[[str], ShardIndex]) -> ShardIndex:
    """The index of a shard: the stored one if it is of the file as it is now, else `make(path)`."""
    stat = os.stat(path)
    stamp = np.array([_VERSION, stat.st_size, stat.st_mtime_ns], np.int64)
    places = [Path(path + INDEX_SUFFIX), _user_cache(path)]
    for place in places:
        index = _read(place, stamp)
        if index is not None:
            return index
    index = make(path)
    for place in places:
        try:
            _write(place, stamp, index)
            break
        except OSError:
            continue
    return index


def _is_indexed(path: str) -> bool:
    """Whether an index of the shard is stored, fresh or stale: enough to foresee how long loading takes."""
    return Path(path + INDEX_SUFFIX).exists() or _user_cache(path).exists()


def _user_cache(path: str) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "keras_clip" / "index" / f"{hashlib.sha256(os.path.realpath(path).encode()).hexdigest()[:32]}.npz"


def _read(place: Path, stamp: np.ndarray) -> ShardIndex | None:
    try:
        with np.load(place, allow_pickle=False) as stored:
            if not np.array_equal(stored["stamp"], stamp):
                return None
            return ShardIndex(stored["offsets"], stored["sizes"], ByteStrings(stored["blob"], stored["ends"]))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None  # absent, or damaged: it is made again


def _write(place: Path, stamp: np.ndarray, index: ShardIndex) -> None:
    """Writes the file whole or not at all: another process may be reading it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=place.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(
                file,
                stamp=stamp,
                offsets=index.offsets,
                sizes=index.sizes,
                blob=index.keys.blob,
                ends=index.keys.ends,
            )
        os.replace(draft, place)
    except BaseException:
        os.unlink(draft)
        raise


def describe_damage(path: str, what: str) -> str:
    """The second half of an error about a damaged shard: its path, what is wrong, and its size."""
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            what = "a gzip file. Decompress it"
    return f"Received: {path}: {what} ({os.path.getsize(path)} bytes)."
