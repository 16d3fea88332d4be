"""Finds the stored index of shards, or makes it: one process of a job does, in several processes if it takes long.

The index of one shard is stored beside it, that of several in the folder that they have in common, or in the user's
cache folder if these cannot be written. What other index files of the same folder have of unchanged shards is used.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from keras_clip.data.readers.storage.index_file import IndexFile, SampleIndex, write_index
from keras_clip.data.readers.storage.paths import INDEX_SUFFIX, OLD_INDEX_SUFFIX
from keras_clip.data.readers.storage.remote import stamp, stamps
from keras_clip.data.readers.storage.shard_index import PackedShard, ShardIndex, pack
from keras_clip.data.readers.storage.urls import is_remote
from keras_clip.data.readers.storage.user_cache import in_cache, write_whole
from keras_clip.data.skipped import SkippedSamples
from keras_clip.engines import Processes
from keras_clip.engines.processes import num_cores
from keras_clip.lock import Lock

# The version of the `.index.npz` files, one for each shard, that can still be read.
_OLD_VERSION = 3
# A progress bar is shown if at least this many shards must be indexed.
_MANY_SHARDS = 5
# Index files of other sets of shards in the same folder that are looked at, the newest first.
_OTHER_FILES = 8
# Other processes are started if all of the work would take longer in one: each needs some seconds to start.
_SECONDS_ALONE = 30.0
# Shards of a folder, or of folders below it, have their index there; of folders that are farther apart in the cache.
_DEPTH = 2


class _Shard(NamedTuple):
    """A shard to be indexed: its path, its size in bytes, and when it was changed."""

    path: str
    size: int
    changed: int


class _Place(NamedTuple):
    """A folder for index files, the name of this one, and the name of each shard in it."""

    folder: Path
    file: str
    names: list[str]


def open_index(paths: Sequence[str], make: Callable[[str], ShardIndex], variant: str = "") -> SampleIndex:
    """Returns the index of shards, the stored one if it is up to date.

    One process makes it while others wait.

    Args:
        paths: paths of the shards.
        make: function of a path that makes its index, which can be pickled.
        variant: what the index depends on beside the shards.

    Returns:
        The index.

    Raises:
        ValueError: `make` refuses a shard.
    """
    shards = [_Shard(path, *stamped) for path, stamped in zip(paths, stamps(paths), strict=True)]
    places = _places(paths, variant)
    for place in places:
        if index := _stored(place, shards, variant):
            return index
    for place in places:
        with ExitStack() as held:
            try:
                place.folder.mkdir(parents=True, exist_ok=True)
                # Its name is hidden, so that no glob takes it for a shard.
                lock = place.folder / f".{place.file.lstrip('.')}.lock"
                held.enter_context(Lock(lock, f"the index of {_described(paths)}"))
            except OSError:
                continue
            if index := _stored(place, shards, variant):
                return index
            made = _Made(shards, places, make, variant)
            try:
                _write(place, made, variant)
                return _stored(place, shards, variant) or _in_memory(made)
            except OSError:
                # The disk is full, perhaps.
                if made.has_failed:
                    raise
    return _in_memory(_Made(shards, places, make, variant))


def index_in_memory(indexes: Sequence[ShardIndex], files: Sequence[str]) -> SampleIndex:
    """Returns the index of shards that is not stored.

    Args:
        indexes: the index of each shard.
        files: their paths.

    Returns:
        The index.
    """
    return _in_memory([pack(index, *stamp(file)) for index, file in zip(indexes, files, strict=True)])


def _described(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{len(paths)} shards in {os.path.dirname(os.path.abspath(paths[0]))}"


def _in_memory(shards: Any) -> SampleIndex:
    shards, file = list(shards), BytesIO()
    write_index(file, [str(number) for number in range(len(shards))], shards)
    return IndexFile(None, file.getvalue()).select(range(len(shards)))


def _write(place: _Place, made: "_Made", variant: str) -> None:
    with write_whole(str(place.folder / place.file)) as file:
        write_index(file, place.names, made, variant)


def _places(paths: Sequence[str], variant: str) -> list[_Place]:
    """Returns where the index may be stored: beside the shards, and in the user's cache folder."""
    has_remote = any(map(is_remote, paths))
    if has_remote:
        folder = os.path.dirname(paths[0])
        names = [path if is_remote(path) else os.path.abspath(path) for path in paths]
    else:
        whole = [os.path.abspath(path) for path in paths]
        folder = os.path.commonpath(list(map(os.path.dirname, whole)))
        names = [os.path.relpath(path, folder) for path in whole]
    about = f".{variant}" if variant else ""
    if len(names) == 1 and not has_remote:
        file = f"{names[0]}{about}{INDEX_SUFFIX}"
    else:
        digest = hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        file = f".keras_clip-{digest}{about}{INDEX_SUFFIX}"
    beside = _Place(Path(folder), file, names)
    cached = _Place(Path(in_cache("index", folder, "")), file, names)
    is_near = not has_remote and folder != os.path.sep and all(name.count(os.sep) <= _DEPTH for name in names)
    return [beside, cached] if is_near else [cached]


def _stored(place: _Place, shards: Sequence[_Shard], variant: str) -> SampleIndex | None:
    """Returns an index that has all these shards as they are now; None if there is none."""
    for path in _files_at(place, variant):
        if (file := _open(path, variant)) is None:
            continue
        numbers = [file.numbers.get(name, -1) for name in place.names]
        if min(numbers) < 0:
            continue
        found = file.sections[numbers]
        stamps = np.array([shard[1:] for shard in shards], np.int64)
        if np.array_equal(np.column_stack([found["size"], found["changed"]]), stamps):
            return file.select(numbers)
    return None


def _files_at(place: _Place, variant: str) -> list[Path]:
    """The index files of a place that may have the shards: its own, then others."""
    own = place.folder / place.file
    others = [path for path in place.folder.glob(f".keras_clip-*{INDEX_SUFFIX}") if path != own]
    times = {path: time_of for path in others if (time_of := _changed(path)) is not None}
    return [own, *sorted(times, key=times.__getitem__, reverse=True)[:_OTHER_FILES]]


def _changed(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _open(path: Path, variant: str) -> IndexFile | None:
    try:
        file = IndexFile(str(path))
    except (OSError, ValueError, KeyError):
        return None  # absent, of another version, or damaged: it is made again
    return file if file.variant == variant else None


class _Made:
    """The packed index of each shard, in order: from other index files, or made.

    Attributes:
        has_failed: whether a shard could not be read.
    """

    def __init__(self, shards: Sequence[_Shard], places: Sequence[_Place], make: Callable, variant: str):
        self._shards, self._places, self._make, self._variant = shards, places, make, variant
        self.has_failed = False

    def __iter__(self) -> Iterator[PackedShard]:
        known = self._known()
        missing = [number for number, found in enumerate(known) if found is None]
        made = self._make_all([self._shards[number] for number in missing])
        try:
            for found in known:
                yield next(made) if found is None else found()
        except OSError:
            self.has_failed = True
            raise
        finally:
            made.close()

    def _known(self) -> list[Callable[[], PackedShard] | None]:
        """For each shard a function that returns its packed index from another index file, or None."""
        known: list[Callable[[], PackedShard] | None] = [None] * len(self._shards)
        for place in self._places:
            files = [file for path in _files_at(place, self._variant) if (file := _open(path, self._variant))]
            indexes = [(file, file.select(range(len(file.sections)))) for file in files]
            for number, (shard, name) in enumerate(zip(self._shards, place.names, strict=True)):
                if known[number] is None:
                    known[number] = _of_file(shard, name, indexes) or self._of_shard(shard, place.folder / name)
        return known

    def _of_shard(self, shard: _Shard, path: Path) -> Callable[[], PackedShard] | None:
        """The index that is stored for this shard alone, also by an earlier version."""
        about = f".{self._variant}" if self._variant else ""
        one = Path(f"{path}{about}{INDEX_SUFFIX}")
        if one.exists() and (file := _open(one, self._variant)):
            if found := _of_file(shard, path.name, [(file, file.select([0]))]):
                return found
        for old in (f"{path}{about}{OLD_INDEX_SUFFIX}", in_cache("index", shard.path, f"{about}{OLD_INDEX_SUFFIX}")):
            if os.path.exists(old) and (index := _read_old(old, shard)):
                return lambda index=index: pack(index, *shard[1:])
        return None

    def _make_all(self, shards: Sequence[_Shard]) -> Iterator[PackedShard]:
        """Makes indexes, in this process; if it takes long, in several."""
        from tqdm import tqdm

        start = time.monotonic()
        task = _Indexing(self._make)
        with tqdm(total=len(shards), desc="indexing shards", unit="shard", disable=len(shards) < _MANY_SHARDS) as bar:
            for number, shard in enumerate(shards):
                left = len(shards) - number
                if number and left * (time.monotonic() - start) / number > _SECONDS_ALONE and num_cores() > 1:
                    yield from _in_order(Processes(main=False).map(task, shards[number:]), bar)
                    return
                yield task.run(None, shard)
                bar.update()


def _in_order(results: Iterator[tuple[int, PackedShard]], bar: Any) -> Iterator[PackedShard]:
    waiting, following = {}, 0
    for number, result in results:
        waiting[number] = result
        bar.update()
        while following in waiting:
            yield waiting.pop(following)
            following += 1


class _Indexing:
    """The task of indexing a shard."""

    uses_accelerator = False

    def __init__(self, make: Callable[[str], ShardIndex]):
        self._make = make

    def start(self) -> None:
        """There is nothing to load."""

    def run(self, state: None, shard: _Shard) -> PackedShard:
        """Returns the packed index of the shard."""
        return pack(self._make(shard.path), shard.size, shard.changed)


def _of_file(
    shard: _Shard, name: str, indexes: Sequence[tuple[IndexFile, SampleIndex]]
) -> Callable[[], PackedShard] | None:
    for file, index in indexes:
        number = file.numbers.get(name)
        if number is None or tuple(file.sections[["size", "changed"]][number].tolist()) != shard[1:]:
            continue
        if index.packed(number) is not None:
            return lambda index=index, number=number: index.packed(number)
    return None


def _read_old(path: str, shard: _Shard) -> ShardIndex | None:
    """Reads the index file of one shard that an earlier version has written."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if not np.array_equal(stored["stamp"], [_OLD_VERSION, shard.size, shard.changed]):
                return None
            passed_over = SkippedSamples(path)
            found = json.loads(stored["passed_over"].tobytes())
            passed_over.counts.update(found["counts"])
            passed_over.examples += found["examples"]
            blob, ends = stored["blob"].tobytes(), [0, *stored["ends"].tolist()]
            keys = [blob[first:last] for first, last in zip(ends[:-1], ends[1:], strict=True)]
            return ShardIndex(stored["offsets"].astype(np.int64), stored["sizes"].astype(np.int64), keys, passed_over)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
