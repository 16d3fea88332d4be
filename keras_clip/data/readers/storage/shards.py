"""Files with many samples each: an index of the parts of all samples allows random access.

Indexing passes over a file once and also verifies that the file is complete. The index is stored in a `.npz` file
beside the shard, or in the user's cache folder where that cannot be written, and is made again when the shard changes.
"""

import functools
import io
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from keras_clip.data.readers.reader import Reader
from keras_clip.data.readers.storage.byte_strings import ByteStrings
from keras_clip.data.readers.storage.copies import compression, in_cache, write_whole
from keras_clip.data.readers.storage.paths import INDEX_SUFFIX, names_among
from keras_clip.data.skipped import SkippedSamples

# Increase it when the arrays of an index, or their meaning, change: stored indexes are then made again.
_VERSION = 3
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
        passed_over: the other content of the shard.
    """

    offsets: np.ndarray
    sizes: np.ndarray
    keys: ByteStrings
    passed_over: SkippedSamples

    @classmethod
    def of_spans(
        cls,
        path: str,
        spans: Sequence,
        parts: int,
        keys: Sequence[bytes] = (),
        passed_over: SkippedSamples | None = None,
    ) -> "ShardIndex":
        """The index of (offset, size) of each part of each sample.

        Args:
            path: path of the shard.
            spans: (samples, parts, 2); (0, 0) if a sample has no such part.
            parts: how many parts a sample may have.
            keys: keys of the samples.
            passed_over: the other content of the shard. None: nothing.

        Returns:
            The index.

        Raises:
            ValueError: a part of 4 GiB or more.
        """
        spans = np.array(spans, np.int64).reshape(-1, parts, 2)
        if spans[..., 1].max(initial=0) > _LARGEST_PART:
            raise ValueError(f"Each part of a sample must be smaller than 4 GiB. Received: {path} with a larger one.")
        offsets, sizes = np.ascontiguousarray(spans[..., 0]), spans[..., 1].astype(np.uint32)
        return cls(offsets, sizes, ByteStrings.pack(keys), passed_over or SkippedSamples(path))

    def with_part(self, part: int) -> "ShardIndex":
        """Returns the index of the samples that have a part."""
        rows = np.flatnonzero(self.offsets[:, part])
        if len(rows) == len(self.offsets):
            return self
        keys = ByteStrings.pack(self.keys[row] for row in rows.tolist())
        return ShardIndex(self.offsets[rows], self.sizes[rows], keys, self.passed_over)


class SamplesOfSeveral(Reader):
    """Concatenates the samples of several sources, such as shards, whose keys need not differ between sources.

    Args:
        paths: paths of the sources, as the user gave them.
        lengths: how many samples each of them has.
    """

    def __init__(self, paths: Sequence[str], lengths: Sequence[int]):
        self.paths = list(paths)
        self.ends = np.cumsum(lengths)
        self.skipped = SkippedSamples(self.paths[0] if len(self.paths) == 1 else f"{len(self.paths)} sources")

    def __len__(self) -> int:
        return int(self.ends[-1])

    def name(self, index: int) -> str:
        """The path of the shard, and the key."""
        (key,) = self.keys_in_shard(np.array([index]))
        return f"{self.paths[self._shards(index)]}: {key}"

    def keys_in_shard(self, ids: np.ndarray) -> list[str]:
        """The rows of the samples in their shards."""
        return list(map(str, self._rows_in_shard(ids).tolist()))

    def keys(self, ids: np.ndarray) -> list[str]:
        """The keys in the shards, after the name of the shard if a key occurs in several shards."""
        keys = self.keys_in_shard(ids)
        if not self._keys_restart:
            return keys
        names = self._names
        return [f"{names[shard]}/{key}" for shard, key in zip(self._shards(ids).tolist(), keys, strict=True)]

    @functools.cached_property
    def _names(self) -> list[str]:
        return names_among(self.paths)

    @functools.cached_property
    def _keys_restart(self) -> bool:
        """Whether a key occurs in several shards."""
        if len(self.paths) < 2:
            return False
        before: set[str] = set()
        for keys in self._keys_of_shards():
            if not before.isdisjoint(keys):
                return True
            before.update(keys)
        return False

    def _keys_of_shards(self) -> Iterator[list[str]]:
        """The keys of each shard."""
        for start, end in zip([0, *self.ends[:-1].tolist()], self.ends.tolist(), strict=True):
            yield self.keys_in_shard(np.arange(start, end))

    def _shards(self, ids: np.ndarray | int) -> np.ndarray:
        """Returns the number of the shard of each sample."""
        return np.searchsorted(self.ends, ids, side="right")

    def _rows_in_shard(self, ids: np.ndarray) -> np.ndarray:
        """The number of each sample in its shard."""
        return ids - np.concatenate([[0], self.ends])[self._shards(ids)]


class Shards(SamplesOfSeveral):
    """Base of the readers of shards: reads parts of samples by their offset in an open file.

    Memory holds 12 bytes for each part of a sample that occurs, and the keys.

    Args:
        paths: paths of the files, as the user gave them.
        indexes: the index of each.
        files: the files that are read: `paths`, or copies of them that support random access.
    """

    def __init__(self, paths: Sequence[str], indexes: Sequence[ShardIndex], files: Sequence[str]):
        super().__init__(paths, [len(index.offsets) for index in indexes])
        offsets = np.concatenate([index.offsets for index in indexes])
        sizes = np.concatenate([index.sizes for index in indexes])
        # Column of each part in the two arrays; -1 if no sample has the part.
        occurs = offsets.any(axis=0) | sizes.any(axis=0)
        self._columns = np.where(occurs, np.cumsum(occurs) - 1, -1).tolist()
        self.offsets, self.sizes = (part if occurs.all() else part[:, occurs] for part in (offsets, sizes))
        for path, index in zip(paths, indexes, strict=True):
            self.skipped.merge(index.passed_over, f"{path}: ")
        self._local = list(files)
        self._files: OrderedDict[int, io.FileIO] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        # Open files cannot be sent to another process, which opens its own.
        return self.__dict__ | {"_files": OrderedDict()}

    def _has(self, ids: np.ndarray, part: int) -> np.ndarray:
        """Whether each sample has that part: bool (B,)."""
        column = self._columns[part]
        return np.zeros(len(ids), bool) if column < 0 else self.offsets[ids, column] > 0

    def _bytes(self, ids: np.ndarray, part: int) -> list[bytes]:
        """That part of each sample. The loop over them runs in C, and releases the interpreter's lock to read."""
        column = self._columns[part]
        if column < 0:
            return [b""] * len(ids)
        shards = self._shards(ids).tolist()
        files = {shard: self._file(shard) for shard in set(shards)}
        descriptors = [files[shard].fileno() for shard in shards]
        offsets, sizes = self.offsets[ids, column].tolist(), self.sizes[ids, column].tolist()
        parts = list(map(os.pread, descriptors, sizes, offsets))
        if list(map(len, parts)) != sizes:
            short = next(k for k, part in enumerate(parts) if len(part) != sizes[k])
            self._raise_changed(ids[short], f"{len(parts[short])} of {sizes[short]} bytes")
        return parts

    def _raise_changed(self, index: int, what: str) -> None:
        """Raises the error of a file that has changed since it was indexed."""
        raise OSError(
            "A shard must stay as it is while it is read. "
            f"Received: {self.paths[self._shards(index)]}, sample {index}: {what}. Start again."
        )

    def _file(self, shard: int) -> io.FileIO:
        """Returns an open file. A file dropped from the pool is closed when the last thread that reads it is done."""
        file = self._files.pop(shard, None) or open(self._local[shard], "rb", buffering=0)
        self._files[shard] = file
        if len(self._files) > _OPEN_FILES:
            self._files.popitem(last=False)
        return file


def load_indexes(paths: Sequence[str], make: Callable[[str], ShardIndex], variant: str = "") -> list[ShardIndex]:
    """The index of each shard, with a progress bar if many have to be made.

    Args:
        paths: paths of the shards.
        make: function of a path that makes its index.
        variant: str. What the index depends on beside the shard; it becomes a part of a file's name.

    Returns:
        The indexes.
    """
    if sum(not any(map(os.path.exists, _places(path, variant))) for path in paths) >= _MANY_SHARDS:
        from tqdm import tqdm

        paths = tqdm(paths, desc="indexing shards", unit="shard")
    return [load_index(path, make, variant) for path in paths]


def load_index(path: str, make: Callable[[str], ShardIndex], variant: str = "") -> ShardIndex:
    """Returns the stored index of a shard if it is up to date, else `make(path)`."""
    stat = os.stat(path)
    stamp = np.array([_VERSION, stat.st_size, stat.st_mtime_ns], np.int64)
    places = _places(path, variant)
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


def _places(path: str, variant: str) -> list[Path]:
    """Returns the possible paths of the index of a shard: beside it, and in the user's cache folder."""
    suffix = f".{variant}{INDEX_SUFFIX}" if variant else INDEX_SUFFIX
    return [Path(path + suffix), Path(in_cache("index", path, suffix))]


def _read(place: Path, stamp: np.ndarray) -> ShardIndex | None:
    try:
        with np.load(place, allow_pickle=False) as stored:
            if not np.array_equal(stored["stamp"], stamp):
                return None
            passed_over = SkippedSamples(str(place))
            found = json.loads(stored["passed_over"].tobytes())
            passed_over.counts.update(found["counts"])
            passed_over.examples += found["examples"]
            keys = ByteStrings(stored["blob"], stored["ends"])
            return ShardIndex(stored["offsets"], stored["sizes"], keys, passed_over)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None  # absent, or damaged: it is made again


def _write(place: Path, stamp: np.ndarray, index: ShardIndex) -> None:
    passed_over = {"counts": index.passed_over.counts, "examples": index.passed_over.examples}
    with write_whole(str(place)) as file:
        np.savez(
            file,
            stamp=stamp,
            offsets=index.offsets,
            sizes=index.sizes,
            blob=index.keys.blob,
            ends=index.keys.ends,
            passed_over=np.frombuffer(json.dumps(passed_over).encode(), np.uint8),
        )


def describe_damage(path: str, what: str) -> str:
    """Returns the end of an error message about a damaged shard: path, fault and size."""
    packed = compression(path)
    what = f"a {packed} file. Decompress it" if packed else what
    return f"Received: {path}: {what} ({os.path.getsize(path)} bytes)."
