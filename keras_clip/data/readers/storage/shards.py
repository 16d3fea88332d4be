"""Files with many samples each: an index of the parts of all samples allows random access.

Indexing passes over a file once and also verifies that the file is complete (see `indexing`).
"""

import functools
import io
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_clip.data.readers.reader import Reader
from keras_clip.data.readers.storage.copies import compression
from keras_clip.data.readers.storage.index_file import SampleIndex
from keras_clip.data.readers.storage.paths import names_among
from keras_clip.data.readers.storage.remote import RemoteShards, stamp
from keras_clip.data.readers.storage.urls import is_remote
from keras_clip.data.skipped import SkippedSamples

_OPEN_FILES = 256
# Blocks of samples that are read ahead of training from remote files.
_BLOCKS_AHEAD = 8
# Rows of an index that are read at a time where all are needed.
_ROWS = 1 << 14


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

    The index is mapped into memory and shared by the processes of a machine.

    Args:
        paths: paths of the files, as the user gave them.
        index: the index of their samples.
        files: the files that are read: `paths`, or copies of them that support random access.
        needed: number of a part that a sample must have; others are left out. None: there are no others.
    """

    def __init__(self, paths: Sequence[str], index: SampleIndex, files: Sequence[str], needed: int | None = None):
        self._index = index
        lengths = index.sections["samples"] if needed is None else index.sections["present"][:, needed]
        super().__init__(paths, lengths)
        # The samples that have the part, if others have not.
        self._chosen = None
        if len(self) < len(index):
            self._chosen = np.concatenate([ids[self._has_part(ids, needed)] for ids in _in_blocks(len(index))])
        for number, passed_over in index.passed_over.items():
            self.skipped.merge(passed_over, f"{paths[number]}: ")
        self._local, self._remote = list(files), None
        if any(map(is_remote, files)):
            self._remote = RemoteShards(files, index.sections["size"], index.sections["changed"])
            self.blocks_ahead = _BLOCKS_AHEAD
        self._files: OrderedDict[int, io.FileIO] = OrderedDict()

    def expect_neighbours(self) -> None:
        """States that samples that are stored near to one another are needed soon after one another."""
        if self._remote is not None:
            self._remote.expect_neighbours()

    def __getstate__(self) -> dict[str, Any]:
        # Open files cannot be sent to another process, which opens its own.
        return self.__dict__ | {"_files": OrderedDict()}

    def _indexed(self, ids: np.ndarray) -> np.ndarray:
        """The numbers of samples in the index."""
        return ids if self._chosen is None else self._chosen[ids]

    def _has_part(self, numbers: np.ndarray, part: int) -> np.ndarray:
        offsets, sizes = self._index.spans(numbers)
        return (offsets[:, part] > 0) | (sizes[:, part] > 0)

    def _has(self, ids: np.ndarray, part: int) -> np.ndarray:
        """Whether each sample has that part: bool (B,)."""
        return self._has_part(self._indexed(ids), part)

    def _bytes(self, ids: np.ndarray, part: int) -> list[bytes]:
        """That part of each sample."""
        return self._read_parts(ids, (part,))[0]

    def _read_parts(self, ids: np.ndarray, parts: Sequence[int]) -> list[list[bytes]]:
        """Some parts of each sample, part by part; `b""` if a sample has no such part."""
        offsets, sizes = (columns[:, list(parts)] for columns in self._index.spans(self._indexed(ids)))
        shards = self._shards(ids)
        if self._remote is not None:
            return self._remote.read(shards, offsets, sizes)
        files = {shard: self._file(shard) for shard in np.unique(shards).tolist()}
        descriptors = [files[shard].fileno() for shard in shards.tolist()]
        # The loops run in C, and release the interpreter's lock to read.
        found = [
            list(map(os.pread, descriptors, sizes[:, part].tolist(), offsets[:, part].tolist()))
            for part in range(len(parts))
        ]
        lengths = np.array([list(map(len, column)) for column in found], np.int64).reshape(len(parts), -1).T
        if not np.array_equal(lengths, sizes):
            row, part = np.argwhere(lengths != sizes)[0].tolist()
            self._raise_changed(ids[row], f"{lengths[row, part]} of {sizes[row, part]} bytes")
        return found

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


def _in_blocks(count: int) -> Iterator[np.ndarray]:
    for start in range(0, count, _ROWS):
        yield np.arange(start, min(count, start + _ROWS))


def describe_damage(path: str, what: str) -> str:
    """Returns the end of an error message about a damaged shard: path, fault and size."""
    packed = compression(path)
    what = f"a {packed} file. Decompress it" if packed else what
    return f"Received: {path}: {what} ({stamp(path)[0]} bytes)."
