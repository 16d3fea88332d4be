"""Brings an index of pictures up to date with its folders; an interrupted update goes on where it stopped."""

import contextlib
import copy
import errno
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from keras_clip.data.decoding import Broken
from keras_clip.data.image_files import PixelBudget
from keras_clip.engines import Engine, Processes, Serial, engine_named
from keras_clip.engines.processes import num_cores
from keras_clip.lock import Lock
from keras_clip.model import CLIPModel, ImageEmbedder
from keras_clip.search.pictures import comparing, database, rows
from keras_clip.search.pictures.compaction import compact, remove_old_files
from keras_clip.search.pictures.encoding import Encoded, EncodePictures, Wanted, encode
from keras_clip.search.pictures.facts import NO_CAPTION, PASSING, UNKNOWN_TIME, UNSETTLED, Facts
from keras_clip.search.pictures.indexed_model import IndexedModel
from keras_clip.search.pictures.roots import check_roots, enter_roots, require_folder

# What is encoded is committed after this number of pictures, or of seconds. A worker encodes as many at once.
_PICTURES, _SECONDS = 256, 10
_LOCK = "writer.lock"


@dataclass(frozen=True)
class Changes:
    """What an update changed.

    Args:
        added: int, pictures at new places.
        changed: int, pictures whose content is another one.
        renamed: int, pictures that were found at another place.
        removed: int, pictures that are gone.
        captions: int, pictures that stayed and whose text beside them changed.
        unchanged: int, pictures that are the same, those included that were only touched.
        broken: int, files and folders that cannot be read, from earlier updates too: `PictureIndex.broken` names them.
        passed_over: the number of files that are no pictures, by extension.
        encoded: int, pictures that the model encoded.
        seconds: float.
    """

    added: int = 0
    changed: int = 0
    renamed: int = 0
    removed: int = 0
    captions: int = 0
    unchanged: int = 0
    broken: int = 0
    passed_over: Mapping[str, int] = field(default_factory=dict)
    encoded: int = 0
    seconds: float = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether the index stayed as it was."""
        return not (self.added or self.changed or self.renamed or self.removed or self.captions)


def update_index(
    folder: str | os.PathLike,
    roots: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    clip: CLIPModel | ImageEmbedder | str | os.PathLike | None = None,
    *,
    engine: str | Engine | None = None,
    batch_size: int = 32,
    max_pixels_in_flight: int | None = None,
    fast_jpeg: bool = False,
    progress: bool = True,
) -> Changes:
    """Creates an index of pictures, or brings it up to date.

    A file of the same size and time of change is unchanged; otherwise its digest decides whether it is changed, renamed
    or only touched. Only content that the index does not have is decoded and encoded. What is done is committed every
    256 pictures or 10 seconds, so that a killed update loses no more, and readers never see half of it.

    One process writes at a time: the next one waits, with a warning that names the first. Pictures are only read.

    Args:
        folder: folder of the index; created if it does not exist. It may lie below a root, but be none.
        roots: folders of pictures, which join those of earlier updates; only these are scanned. One that lies inside
            another is a part of it. None: all that the index has.
        clip: `CLIPModel` or `ImageEmbedder`, or a model as `presets.load` takes it. None: that of the index.
        engine: where pictures are encoded, see `FeatureStore.build`. None or "auto": in this process, whose
            encoder uses all cores or the GPU.
        batch_size: int. Images per step; all batches have this size, so that the encoder compiles once.
        max_pixels_in_flight: int, see `FeatureStore.build`.
        fast_jpeg: whether a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, where it stays twice as large as the
            encoder's input. Photographs of a camera take half the time, and their embeddings differ slightly.
        progress: whether to show progress in the terminal.

    Returns:
        What changed.

    Raises:
        ValueError: another model than that of the index, a damaged index, one of another format, or no roots.
        FileNotFoundError: a new root that does not exist.
        OSError: the disk is full. What is committed stays.
        TypeError: a model that cannot be sent to other processes.
    """
    folder = Path(folder)
    model = IndexedModel(clip)
    return Updater(folder, model, engine, batch_size, max_pixels_in_flight, fast_jpeg, progress).update(roots)


class Updater:
    """Updates one index, with a model that is loaded when there is something to encode, and then kept.

    Args:
        folder: folder of the index.
        model: the model.
        engine: see `update_index`.
        batch_size: see `update_index`.
        max_pixels_in_flight: see `update_index`.
        fast_jpeg: see `update_index`.
        progress: see `update_index`.
    """

    def __init__(
        self,
        folder: Path,
        model: IndexedModel,
        engine: str | Engine | None = None,
        batch_size: int = 32,
        max_pixels_in_flight: int | None = None,
        fast_jpeg: bool = False,
        progress: bool = True,
    ):
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` must be an integer of at least 1. Received: batch_size={batch_size!r}.")
        # An encoder uses all cores, or the accelerator, by itself.
        self._engine = None if engine in (None, "auto") else engine_named(engine)
        self._folder, self._model, self._batch_size = folder, model, batch_size
        self._max_pixels, self._budget = max_pixels_in_flight, PixelBudget(max_pixels_in_flight)
        self._fast_jpeg, self._progress = fast_jpeg, progress

    def update(self, roots: str | os.PathLike | Sequence[str | os.PathLike] | None = None) -> Changes:
        """Brings the index up to date: see `update_index`."""
        began = time.monotonic()
        roots = [roots] if isinstance(roots, (str, os.PathLike)) else roots
        given = None if roots is None else [os.path.abspath(os.fsencode(root)) for root in roots]
        if not database.path_of(self._folder).exists():
            if not given:
                raise ValueError(
                    f"A new index needs at least one folder of pictures. Received: roots={roots!r} for {self._folder}, "
                    "which has no index."
                )
            # Before the model is loaded, which may take minutes.
            self._model.require_given(self._folder)
            for path in given:
                require_folder(path)
        check_roots(given or [], self._folder)
        with _full_disk_explained(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            with Lock(self._folder / _LOCK, f"the index {self._folder}") as lock:
                connection = database.open_to_write(self._folder, self._facts_of_new)
                try:
                    with database.explained(self._folder):
                        changes = _Update(self, connection, lock).run(given)
                finally:
                    connection.close()
        return Changes(**changes, seconds=time.monotonic() - began)

    def _facts_of_new(self) -> dict[str, Any]:
        self._model.require_given(self._folder)
        return self._model.facts()


class _Update:
    """One update, under the lock."""

    def __init__(self, updater: Updater, connection: sqlite3.Connection, lock: Lock):
        self._folder, self._model, self._lock = updater._folder, updater._model, lock
        self._engine, self._batch_size, self._budget = updater._engine, updater._batch_size, updater._budget
        self._max_pixels, self._fast_jpeg, self._progress = updater._max_pixels, updater._fast_jpeg, updater._progress
        self._connection = connection
        self._facts = database.read_meta(connection)
        self._model.check(self._facts, self._folder)
        self._changes: Counter[str] = Counter()

    def run(self, given: list[bytes] | None) -> dict[str, Any]:
        connection = self._connection
        remove_old_files(self._folder, self._facts["generation"])
        known = dict(connection.execute("SELECT id, path FROM roots"))
        with database.transaction(connection):
            roots, to_scan = enter_roots(connection, known, given, self._folder)
        comparing.begin(connection)
        left_out = frozenset(map(os.path.realpath, [os.fsencode(self._folder), *roots.values()]))
        with self._bar("Scanning") as bar, database.transaction(connection):
            scanned = comparing.scan(connection, to_scan, left_out, bar.update)
        with database.transaction(connection):
            self._changes["unchanged"] = comparing.compare(connection)
        with self._bar("Comparing") as bar, database.transaction(connection):

            def reach(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            comparing.digest(connection, roots, reach)
        self._commit(lambda: self._settle(scanned.unreadable), always=roots != known)
        self._changes["captions"] = comparing.update_captions(connection, roots)
        if self._changes["captions"]:
            self._commit(lambda: None, always=True)
        self._encode(roots)
        compact(connection, self._folder, self._facts, self._lock)
        self._changes["broken"] = connection.execute("SELECT COUNT(*) FROM broken").fetchone()[0]
        return {**self._changes, "passed_over": dict(scanned.passed_over.most_common())}

    def _settle(self, unreadable: list[tuple[int, bytes, str]]) -> None:
        comparing.settle(self._connection, self._folder, self._changes, self._facts)
        self._changes["removed"] += comparing.remove_missing(self._connection)
        comparing.enter_unreadable(self._connection, unreadable)

    def _commit(self, change: Callable[[], None], always: bool = False) -> None:
        """Makes a change of the database, with a new version if it changed any picture."""
        self._lock.require_held()
        with database.transaction(self._connection):
            before = self._changes.total() - self._changes["unchanged"]
            change()
            if always or self._changes.total() - self._changes["unchanged"] != before:
                self._facts["version"] += 1
            names = ("version", "rows", "next_id", "widths")
            database.write_meta(self._connection, {name: self._facts[name] for name in names})

    def _encode(self, roots: dict[int, bytes]) -> None:
        """Encodes what is to be done, and commits it block by block."""
        count = self._connection.execute("SELECT COUNT(*) FROM todo").fetchone()[0]
        if not count:
            return
        pending: list[Encoded] = []
        committed = time.monotonic()
        with self._bar("Encoding", count) as bar:
            for results in self._results(roots):
                pending += results
                bar.update(len(results))
                if len(pending) >= _PICTURES or time.monotonic() - committed >= _SECONDS:
                    self._enter(pending)
                    pending, committed = [], time.monotonic()
            self._enter(pending)

    def _results(self, roots: dict[int, bytes]) -> Iterator[list[Encoded]]:
        engine, block = self._engine, max(1, _PICTURES // self._batch_size) * self._batch_size
        if engine is None or isinstance(engine, Serial):
            return encode(
                self._model.embedder(),
                self._wanted(roots),
                self._folder,
                self._batch_size,
                self._budget,
                self._fast_jpeg,
            )
        self._model.require_name()
        pixels = self._max_pixels
        if isinstance(engine, Processes):
            # The workers of one machine share its memory.
            pixels = max(1, self._budget.pixels // (engine.workers or num_cores()))
        task = EncodePictures(
            self._model.name, self._folder, self._batch_size, pixels, self._facts["model_parts"], self._fast_jpeg
        )
        blocks = _Blocks(self._connection, {root: os.path.realpath(path) for root, path in roots.items()}, block)
        return (results for _, results in engine.map(task, blocks))

    def _wanted(self, roots: dict[int, bytes]) -> Iterator[Wanted]:
        for block in _Blocks(self._connection, {id: os.path.realpath(path) for id, path in roots.items()}, _PICTURES):
            yield from block

    def _enter(self, results: list[Encoded]) -> None:
        """Commits what became of pictures: first the rows are on the disk, then the database says how many count."""
        good = [each for each in results if isinstance(each.facts, Facts)]
        start = self._facts["rows"]
        for name in rows.COLUMNS if good else ():
            values = np.stack([each.columns[name] for each in good])
            self._facts["widths"][name] = values.shape[1]
            rows.append(rows.path_of(self._folder, name, self._facts["generation"]), start, values)
        self._commit(lambda: [self._enter_one(each) for each in results])

    def _enter_one(self, result: Encoded) -> None:
        connection, facts = self._connection, result.facts
        root, path, caption_stamp, size, mtime_ns = connection.execute(
            "SELECT root, path, caption_stamp, size, mtime_ns FROM todo WHERE number = ?", (result.number,)
        ).fetchone()
        if isinstance(facts, Broken):
            is_settled = facts.reason not in PASSING and time.time_ns() - mtime_ns > UNSETTLED
            time_of_change = mtime_ns if is_settled else UNKNOWN_TIME
            self._changes["removed"] += comparing.enter_broken(connection, root, path, size, time_of_change, facts)
        elif facts is not None:
            was_there = connection.execute(
                "UPDATE pictures SET removed = 1 WHERE root = ? AND path = ? AND removed = 0", (root, path)
            ).rowcount
            connection.execute("DELETE FROM broken WHERE root = ? AND path = ?", (root, path))
            values = facts._asdict()
            # SQLite has signed integers only.
            values["perceptual_hash"] -= 2**64 if facts.perceptual_hash >= 2**63 else 0
            values |= {"id": self._facts["next_id"], "row": self._facts["rows"], "root": root, "path": path}
            values["caption_stamp"] = caption_stamp
            marks = ", ".join(f":{name}" for name in values)
            connection.execute(f"INSERT INTO pictures ({', '.join(values)}) VALUES ({marks})", values)
            self._facts["next_id"] += 1
            self._facts["rows"] += 1
            self._changes["changed" if was_there else "added"] += 1
            self._changes["encoded"] += 1

    def _bar(self, name: str, total: int | None = None) -> tqdm:
        return tqdm(
            total=total, desc=name, unit=" pictures", disable=not self._progress, delay=0.5, leave=total is not None
        )


class _Blocks(Sequence):
    """The pictures that are to be encoded, in blocks that are read from the database one by one.

    Args:
        connection: the writer's connection.
        roots: real path of each root.
        size: int, pictures of a block.
    """

    def __init__(self, connection: sqlite3.Connection, roots: dict[int, bytes], size: int):
        self._connection, self._roots, self._size = connection, roots, size
        # The pictures that are settled were deleted from the table, so that its numbers have gaps.
        numbers = connection.execute("SELECT number FROM todo ORDER BY number")
        self._starts = [number for place, (number,) in enumerate(numbers) if place % size == 0]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, place: int | slice) -> "list[Wanted] | _Blocks":
        if isinstance(place, slice):
            part = copy.copy(self)
            part._starts = self._starts[place]
            return part
        found = self._connection.execute(
            "SELECT number, root, path, caption_stamp FROM todo WHERE number >= ? ORDER BY number LIMIT ?",
            (self._starts[place], self._size),
        ).fetchall()
        return [
            Wanted(number, os.path.join(self._roots[root], path), caption_stamp != NO_CAPTION)
            for number, root, path, caption_stamp in found
        ]


@contextlib.contextmanager
def _full_disk_explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno,
            f"The disk must have room for the index. Received: {folder}: {error.strerror}. What was committed stays: "
            "free some space and start the update again",
        ) from error
