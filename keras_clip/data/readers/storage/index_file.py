"""A file with the packed indexes of shards, which the processes of a machine map into memory and share.

The file has the data of each shard, one after the other, then a directory, and its end says where the directory is.
The directory is checked by its SHA-256 when the file is opened. The data are only read where samples are needed.
"""

import hashlib
import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from keras_clip.data.readers.storage.shard_index import (
    COLUMNS,
    KEYS_IN_BLOCK,
    SECTION,
    PackedShard,
    data_bytes,
    exceptions_of,
    keys_between,
    row_bytes,
    spans_of,
    unpack,
)
from keras_clip.data.skipped import SkippedSamples

_MAGIC = b"keras_clip index 4\n"
# Where the directory begins, its sections, the bytes of its JSON, the SHA-256 of the directory.
_END = struct.Struct("<qqq32s")
# After this number of samples, the pages of the file are no longer counted as memory of the process. They stay in the
# cache of the system. A page fault at one sample can map 2 MB, so that this is at most 512 MB.
_SAMPLES_MAPPED = 256


class SampleIndex:
    """Where the parts of all samples of several shards are.

    Args:
        buffer: uint8 (bytes,). The content of an index file.
        sections: `SECTION` (shards,).
        passed_over: the other content of the shards that have some, by the number of the shard.
        path: the index file. None: it is in memory.
    """

    def __init__(
        self,
        buffer: np.ndarray,
        sections: np.ndarray,
        passed_over: dict[int, SkippedSamples],
        path: str | None = None,
    ):
        self._buffer, self.sections, self.passed_over, self._path = buffer, sections, passed_over, path
        self.ends = np.cumsum(sections["samples"])
        self._starts = self.ends - sections["samples"]
        # Shards whose rows have the same columns are unpacked together.
        widths, self._layouts = np.unique(sections["widths"], axis=0, return_inverse=True)
        self._widths, self._layouts = [tuple(map(int, row)) for row in widths], self._layouts.reshape(-1)
        self._mapped = 0

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self._path is not None:
            state["_buffer"] = _end_of(self._buffer)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._path is not None:
            self._buffer = _mapped(self._path)
            if _end_of(self._buffer) != state["_buffer"]:
                raise OSError(f"An index must stay as it is while it is used. Received: {self._path}. Start again.")

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def shards(self, ids: np.ndarray) -> np.ndarray:
        """Returns the number of the shard of each sample, int64 (B,)."""
        return np.searchsorted(self.ends, ids, side="right")

    def spans(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns where the parts of samples are in their shards.

        Args:
            ids: int64 (B,).

        Returns:
            Offsets and sizes, int64 (B, parts); both 0 if a sample has no such part.

        Raises:
            OSError: the index is damaged.
        """
        shards = self.shards(ids)
        rows, sections = ids - self._starts[shards], self.sections[shards]
        columns = np.empty((len(ids), COLUMNS), np.int64)
        layouts = self._layouts[shards]
        places = sections["start"] + rows * row_bytes(sections)
        for layout in np.unique(layouts).tolist():
            chosen, widths = np.flatnonzero(layouts == layout), self._widths[layout]
            columns[chosen] = unpack(self._buffer[places[chosen, None] + np.arange(sum(widths))], widths)
        for shard in np.unique(shards[sections["exceptions"] > 0]).tolist():
            exceptions, here = exceptions_of(self.sections[shard], self._buffer), np.flatnonzero(shards == shard)
            found = np.searchsorted(exceptions[:, 0], rows[here])
            is_found = exceptions[np.minimum(found, len(exceptions) - 1), 0] == rows[here]
            columns[here[is_found]] = exceptions[found[is_found], 1:]
        self._release(len(ids))
        offsets, sizes = spans_of(columns, sections)
        if ((offsets < 0) | (offsets + sizes > sections["size"][:, None])).any():
            raise OSError(f"The index of a shard must fit it. Received: {self._path}, which is damaged. Remove it.")
        return offsets, sizes

    def keys(self, ids: np.ndarray) -> list[bytes]:
        """Returns the keys of samples, or their rows in their shards if these have no keys."""
        keys: list[bytes] = []
        latest, block = (-1, -1), []
        shards = self.shards(ids)
        for shard, row in zip(shards.tolist(), (ids - self._starts[shards]).tolist(), strict=True):
            if not self.sections["key_bytes"][shard]:
                keys.append(str(row).encode())
                continue
            if latest != (shard, row // KEYS_IN_BLOCK):
                latest = shard, row // KEYS_IN_BLOCK
                block = keys_between(self.sections[shard], self._buffer, latest[1], latest[1])
            keys.append(block[row % KEYS_IN_BLOCK])
        self._release(len(ids))
        return keys

    def keys_by_shard(self) -> Iterator[list[bytes]]:
        """Yields the keys of all samples of each shard."""
        for section in self.sections:
            samples = int(section["samples"])
            last = (samples - 1) // KEYS_IN_BLOCK
            if samples and section["key_bytes"]:
                yield keys_between(section, self._buffer, 0, last)
            else:
                yield [str(row).encode() for row in range(samples)]
            self._release(samples)

    def _release(self, samples: int) -> None:
        self._mapped += samples
        if self._mapped >= _SAMPLES_MAPPED and self._path is not None:
            self._mapped = 0
            if hasattr(mmap, "MADV_DONTNEED"):
                self._buffer.base.obj.madvise(mmap.MADV_DONTNEED)

    def packed(self, shard: int) -> PackedShard | None:
        """Returns the packed index of a shard, to copy it to another file; None if it is damaged."""
        section = self.sections[shard].copy()
        start = int(section["start"])
        data = self._buffer[start : start + int(data_bytes(section))].tobytes()
        section["start"] = 0
        passed_over = self.passed_over.get(shard) or SkippedSamples("")
        return PackedShard(section, data, passed_over) if zlib.crc32(data) == section["check"] else None


def write_index(file: BinaryIO, names: Sequence[str], shards: Iterable[PackedShard], variant: str = "") -> None:
    """Writes an index file.

    Args:
        file: an open file.
        names: the name of each shard.
        shards: the packed index of each.
        variant: what the indexes depend on beside the shards.
    """
    file.write(_MAGIC)
    place, sections, passed_over = len(_MAGIC), [], {}
    for number, shard in enumerate(shards):
        section = shard.section.copy()
        section["start"] = place
        file.write(shard.data)
        place += len(shard.data)
        sections.append(section)
        if shard.passed_over.total:
            passed_over[number] = {"counts": shard.passed_over.counts, "examples": shard.passed_over.examples}
    directory = np.array(sections, SECTION).tobytes()
    text = json.dumps({"variant": variant, "names": list(names), "passed_over": passed_over}).encode()
    file.write(directory + text)
    file.write(_END.pack(place, len(sections), len(text), hashlib.sha256(directory + text).digest()))


class IndexFile:
    """An index file that is open.

    Args:
        path: the file.

    Attributes:
        numbers: the number of each shard by its name.
        sections: `SECTION` (shards,).
        variant: what the indexes depend on beside the shards.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no index file of this version, or damaged.
    """

    def __init__(self, path: str | None, content: bytes | None = None):
        self._path = path
        self._buffer = _mapped(path) if content is None else np.frombuffer(content, np.uint8)
        start, count, length, digest = _END.unpack(_end_of(self._buffer))
        directory = self._buffer[start : len(self._buffer) - _END.size].tobytes() if start >= len(_MAGIC) else b""
        if self._buffer[: len(_MAGIC)].tobytes() != _MAGIC or hashlib.sha256(directory).digest() != digest:
            raise ValueError(f"An index must be whole. Received: {path}.")
        self.sections = np.frombuffer(directory[: len(directory) - length], SECTION)
        about = json.loads(directory[len(directory) - length :])
        ends = self.sections["start"] + data_bytes(self.sections)
        sizes = self.sections["samples"], self.sections["exceptions"], self.sections["key_bytes"]
        fit = min(map(np.min, (*sizes, self.sections["start"])), default=0) >= 0 if count else True
        if not fit or count != len(self.sections) or ends.max(initial=0) > start or len(about["names"]) != count:
            raise ValueError(f"An index must be whole. Received: {path}.")
        self.numbers = {name: number for number, name in enumerate(about["names"])}
        self.variant, self._passed_over = about["variant"], about["passed_over"]

    def select(self, numbers: Sequence[int]) -> SampleIndex:
        """Returns the index of the samples of some shards, in this order."""
        passed_over = {}
        for place, number in enumerate(numbers):
            if found := self._passed_over.get(str(number)):
                passed_over[place] = SkippedSamples(str(self._path))
                passed_over[place].counts.update(found["counts"])
                passed_over[place].examples += found["examples"]
        return SampleIndex(self._buffer, self.sections[np.asarray(numbers, np.int64)], passed_over, self._path)


def _mapped(path: str) -> np.ndarray:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < len(_MAGIC) + _END.size:
            raise ValueError(f"An index must be whole. Received: {path} with {size} bytes.")
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def _end_of(buffer: np.ndarray) -> bytes:
    return buffer[-_END.size :].tobytes()
