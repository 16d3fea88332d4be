"""Where the parts of the samples of one shard are, and how that is packed into a few bytes a sample.

The parts of a sample mostly follow one another. A sample is therefore described by the place of its first part, the
size of each part, and what lies between a part and the one before it. Each of these columns takes as many bytes as its
range in the shard needs. The few samples that do not fit are stored in full beside the others.
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from keras_clip.data.skipped import SkippedSamples

# The most parts that a sample may have.
PARTS = 4
# Place of the first part; size of each part and 1, 0 if it is absent; distance of each part from the end of the
# previous one.
COLUMNS = 1 + 2 * PARTS
# Keys are stored one after the other; the place of every 64th is known.
KEYS_IN_BLOCK = 64
# One shard in an index file. `start` is where its rows begin, which its exceptions and keys follow. `size` and
# `changed` are those of the shard when it was indexed, `present` the samples that have each part. Offsets are multiples
# of `unit`, and the parts of a sample follow one another in `order`.
SECTION = np.dtype(
    [
        ("start", "<i8"),
        ("samples", "<i8"),
        ("exceptions", "<i8"),
        ("key_bytes", "<i8"),
        ("size", "<i8"),
        ("changed", "<i8"),
        ("unit", "<i8"),
        ("lows", "<i8", COLUMNS),
        ("present", "<i8", PARTS),
        ("widths", "u1", COLUMNS),
        ("order", "u1", PARTS),
        ("check", "<u4"),
    ]
)
_LARGEST_PART = 2**32 - 1
_EXCEPTION_BYTES = 8 * (1 + COLUMNS)


class ShardIndex(NamedTuple):
    """The samples of one shard.

    Attributes:
        offsets: int64 (samples, parts). Where each part of a sample begins.
        sizes: int64 (samples, parts). Bytes of each part. Offset and size are 0 if the sample has no such part.
        keys: the keys of the samples; none if they are identified by their row.
        passed_over: the other content of the shard.
    """

    offsets: np.ndarray
    sizes: np.ndarray
    keys: Sequence[bytes]
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
            parts: how many parts a sample may have, at most 4.
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
        return cls(spans[..., 0], spans[..., 1], keys, passed_over or SkippedSamples(path))


class PackedShard(NamedTuple):
    """An index that is packed.

    Attributes:
        section: `SECTION` (). Its `start` is 0.
        data: bytes of the rows, the exceptions and the keys.
        passed_over: the other content of the shard.
    """

    section: np.ndarray
    data: bytes
    passed_over: SkippedSamples


def pack(index: ShardIndex, size: int, changed: int) -> PackedShard:
    """Packs the index of a shard.

    Args:
        index: the index.
        size: bytes of the shard.
        changed: when the shard was changed, in nanoseconds.

    Returns:
        The packed index.
    """
    section = np.zeros((), SECTION)
    offsets, sizes = (_with_all_parts(part) for part in (index.offsets, index.sizes))
    has = (offsets > 0) | (sizes > 0)
    values, section["unit"], section["order"] = _columns(offsets, sizes, has)
    if len(values):
        section["lows"] = values.min(axis=0)
        values -= section["lows"]
    widths = _widths(values)
    limits = np.array([2 ** min(8 * width, 62) for width in widths])
    rows = np.flatnonzero((values >= limits).any(axis=1))
    exceptions = np.column_stack([rows, values[rows]]).astype("<i8")
    table = np.ascontiguousarray(values, "<i8").view(np.uint8).reshape(-1, COLUMNS, 8)
    table = np.concatenate([table[:, column, :width] for column, width in enumerate(widths)], axis=1)
    keys = _pack_keys(index.keys)
    section["samples"], section["exceptions"], section["key_bytes"] = len(values), len(rows), len(keys[1])
    section["size"], section["changed"] = size, changed
    section["present"], section["widths"] = has.sum(axis=0), widths
    data = table.tobytes() + exceptions.tobytes() + b"".join(keys)
    section["check"] = zlib.crc32(data)
    return PackedShard(section, data, index.passed_over)


def _with_all_parts(part: np.ndarray) -> np.ndarray:
    return np.pad(np.asarray(part, np.int64), ((0, 0), (0, PARTS - part.shape[1])))


def _columns(offsets: np.ndarray, sizes: np.ndarray, has: np.ndarray) -> tuple[np.ndarray, int, np.ndarray]:
    """Returns the columns, int64 (samples, COLUMNS), the unit of offsets and the order of the parts."""
    unit = int(np.gcd.reduce(offsets[has])) or 1
    units, lengths = offsets // unit, -(-sizes // unit)
    first = np.where(has, units, np.iinfo(np.int64).max).min(axis=1, initial=np.iinfo(np.int64).max)
    first[~has.any(axis=1)] = 0
    away = np.where(has, units - first[:, None], 0).sum(axis=0) / np.maximum(has.sum(axis=0), 1)
    order = np.argsort(np.where(has.any(axis=0), away, np.inf), kind="stable")
    gaps, end = np.zeros_like(units), first.copy()
    for part in order.tolist():
        here = has[:, part]
        distance = units[here, part] - end[here]
        gaps[:, part] = distance.min(initial=0) if not len(distance) else distance.min()
        gaps[here, part] = distance
        end = np.where(here, units[:, part] + lengths[:, part], end)
    return np.column_stack([first, np.where(has, sizes + 1, 0), gaps]), unit, order


def _widths(values: np.ndarray) -> list[int]:
    """Returns the bytes of each column with which the rows and the samples that do not fit take the least space."""

    def cost(column: np.ndarray, width: int) -> int:
        too_large = int((column >= 2 ** (8 * width)).sum()) if width < 8 else 0
        return len(column) * width + too_large * _EXCEPTION_BYTES

    return [min(range(9), key=lambda width, column=column: cost(column, width)) for column in values.T]


def _pack_keys(keys: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Returns the places of the blocks of keys, and the keys, each ended by a zero byte."""
    ended = [key.replace(b"\0", b"\\0") + b"\0" for key in keys]
    places = np.cumsum([0, *map(len, ended)], dtype="<i8")[: len(ended) : KEYS_IN_BLOCK]
    return places.tobytes(), b"".join(ended)


def row_bytes(section: np.ndarray) -> int:
    """The bytes of a row of a section; of several sections, an array."""
    return section["widths"].sum(axis=-1, dtype=np.int64)


def data_bytes(section: np.ndarray) -> int:
    """The bytes of the data of a section; of several sections, an array."""
    places = np.where(section["key_bytes"] > 0, 8 * -(-section["samples"] // KEYS_IN_BLOCK), 0)
    fixed = section["samples"] * row_bytes(section) + section["exceptions"] * _EXCEPTION_BYTES
    return fixed + places + section["key_bytes"]


def exceptions_of(section: np.ndarray, buffer: np.ndarray) -> np.ndarray:
    """Returns the samples of a section that do not fit into its rows: int64 (E, 1 + COLUMNS), row and columns."""
    start = int(section["start"] + section["samples"] * row_bytes(section))
    stop = start + int(section["exceptions"]) * _EXCEPTION_BYTES
    return buffer[start:stop].view("<i8").reshape(-1, 1 + COLUMNS)


def keys_between(section: np.ndarray, buffer: np.ndarray, first: int, last: int) -> list[bytes]:
    """Returns the keys of blocks of `KEYS_IN_BLOCK` samples.

    Args:
        section: the section, which has keys.
        buffer: the file.
        first: number of the first block.
        last: number of the last block, which is included.

    Returns:
        The keys.
    """
    blocks = -(-int(section["samples"]) // KEYS_IN_BLOCK)
    end = int(section["start"] + data_bytes(section))
    keys = buffer[end - int(section["key_bytes"]) : end]
    places = buffer[end - len(keys) - 8 * blocks : end - len(keys)].view("<i8")
    stop = int(places[last + 1]) if last + 1 < blocks else len(keys)
    return keys[int(places[first]) : stop].tobytes().split(b"\0")[:-1]


def unpack(rows: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """Returns the columns of rows as they are stored.

    Args:
        rows: uint8 (B, bytes).
        widths: bytes of each column.

    Returns:
        int64 (B, COLUMNS).
    """
    values = np.zeros((len(rows), COLUMNS, 8), np.uint8)
    start = 0
    for column, width in enumerate(widths):
        values[:, column, :width] = rows[:, start : start + width]
        start += width
    return values.view("<i8")[..., 0]


def spans_of(columns: np.ndarray, sections: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the offsets and sizes that columns stand for.

    Args:
        columns: int64 (B, COLUMNS), as `unpack` returns them.
        sections: `SECTION` (B,). The section of each sample.

    Returns:
        Offsets and sizes, int64 (B, PARTS); both 0 if a sample has no such part.
    """
    columns = columns + sections["lows"]
    sizes, gaps = columns[:, 1 : 1 + PARTS] - 1, columns[:, 1 + PARTS :]
    unit, order, everything = sections["unit"], sections["order"], np.arange(len(columns))
    offsets, end = np.zeros_like(sizes), columns[:, 0].copy()
    for place in range(PARTS):
        part = order[:, place]
        size = sizes[everything, part]
        here = end + gaps[everything, part]
        is_present = size >= 0
        offsets[everything, part] = np.where(is_present, here * unit, 0)
        end = np.where(is_present, here - (-size // unit), end)
    return offsets, np.maximum(sizes, 0)
