"""Where the samples of each new shard lie: an external sort of the indexes of all shards of the pool by their hashes.

Each index is opened once, and its samples are distributed to files for groups of new shards, which fit into memory and
are sorted one after the other. So the time is proportional to the samples and the shards of the pool, not to the number
of its shards times that of the new ones.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_clip.curation.shards import Shard
from keras_clip.curation.writing.partition import stored_path

# A stored sample: its hash, the number of its shard in the order of their names, its number in the source, and where
# its bytes are in the file of stored samples.
PLACE = np.dtype([("order", "<u8"), ("shard", "<i4"), ("sample", "<i4"), ("offset", "<i8"), ("size", "<i8")])
# Samples of a group, of 32 bytes each; sorting holds them twice.
_GROUP = 2**23
_OPEN_FILES = 200


class Range(NamedTuple):
    """A new shard.

    Attributes:
        name: str, name of its file.
        prefix: str, begin of its keys.
        digits: int, digits of the numbers that follow in its keys.
        first: int, its lowest hash.
        last: int, its highest hash.
        samples: int, its number of samples.
    """

    name: str
    prefix: str
    digits: int
    first: int
    last: int
    samples: int


class Located(NamedTuple):
    """A new shard and the rows of the file that has the places of its samples."""

    range: Range
    file: str
    start: int


def locate(
    folder: Path, shards: Sequence[Shard], ranges: Sequence[Range], places: Path, group: int = _GROUP
) -> list[Located]:
    """Writes files with the places of the samples of all new shards, in their order.

    Args:
        folder: folder of the pool.
        shards: the shards of the pool, in the order of their names.
        ranges: the new shards, in the order of their hashes.
        places: folder of these files, which is made.
        group: int. Samples that are sorted at a time; a new shard of more is sorted by itself.

    Returns:
        The new shards with their rows in these files.
    """
    places.mkdir(exist_ok=True)
    groups = list(_groups(ranges, group))
    located = []
    for start in range(0, len(groups), _OPEN_FILES):
        chunk = groups[start : start + _OPEN_FILES]
        paths = [places / f"{start + number:06d}.places" for number in range(len(chunk))]
        _distribute(folder, shards, chunk, paths)
        for path, members in zip(paths, chunk, strict=True):
            entries = np.fromfile(path, PLACE)
            entries[np.lexsort([entries["sample"], entries["shard"], entries["order"]])].tofile(path)
            starts = np.cumsum([0, *(member.samples for member in members)]).tolist()
            located += [Located(member, path.name, row) for member, row in zip(members, starts, strict=False)]
    return located


def read_places(places: Path, located: Located) -> np.ndarray:
    """Returns the places of the samples of a new shard, in their order.

    Args:
        places: folder of the files.
        located: the new shard.

    Returns:
        Array of `PLACE` (N,).
    """
    offset = located.start * PLACE.itemsize
    return np.fromfile(places / located.file, PLACE, located.range.samples, offset=offset)


def _groups(ranges: Sequence[Range], group: int) -> Iterator[list[Range]]:
    members: list[Range] = []
    held = 0
    for each in ranges:
        if members and held + each.samples > group:
            yield members
            members, held = [], 0
        members.append(each)
        held += each.samples
    if members:
        yield members


def _distribute(folder: Path, shards: Sequence[Shard], groups: Sequence[list[Range]], paths: Sequence[Path]) -> None:
    edges = np.array([[members[0].first, members[-1].last] for members in groups], np.uint64)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(path, "wb")) for path in paths]
        for number, shard in enumerate(shards):
            index = np.load(stored_path(folder, shard).with_suffix(".npy"))
            starts = np.searchsorted(index["order"], edges[:, 0], "left")
            stops = np.searchsorted(index["order"], edges[:, 1], "right")
            for which in np.flatnonzero(starts < stops).tolist():
                rows = index[starts[which] : stops[which]]
                entries = np.zeros(len(rows), PLACE)
                entries["shard"] = number
                for name in ("order", "sample", "offset", "size"):
                    entries[name] = rows[name]
                entries.tofile(files[which])
