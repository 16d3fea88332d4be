"""A feature store under construction: it survives a killed process and becomes a store in one atomic step."""

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras_clip import files
from keras_clip.data.image_files import PixelBudget
from keras_clip.data.skipped import MAX_BROKEN, SkippedSamples
from keras_clip.engines import Engine
from keras_clip.evaluation.datasets.labelled_images import LabelledImages, require_images_of_all
from keras_clip.evaluation.features.encoding import COLUMNS, EncodeBlock, Encoded, encode, read_block
from keras_clip.evaluation.features.key import Key
from keras_clip.model import ImageEmbedder
from keras_clip.printable import printable

MANIFEST = "store.json"
DRAFT_SUFFIX = ".building"
# Exists in a draft only: the number of encoded images.
_PROGRESS = "progress.json"
# At most this much work is lost when the process is killed.
_SECONDS_BETWEEN_NOTES = 5
# Rows per copy.
_ROWS = 65536


class Draft:
    """The folder `<folder>.building`: one row per image of the source, and the number of finished rows.

    Args:
        folder: folder of the finished store.
        key: key of the finished store.
        images: the images to encode.
        require_held: called before anything is noted; it raises an error if another process builds the draft.
        max_broken: float in [0, 1]. The fraction of the images that may be unreadable.

    Attributes:
        place: its path.

    Raises:
        ValueError: the draft belongs to another model or dataset.
    """

    def __init__(
        self, folder: Path, key: Key, images: LabelledImages, require_held: Callable[[], None], max_broken: float
    ):
        self._folder, self.place = folder, Path(f"{folder}{DRAFT_SUFFIX}")
        self._key, self._images, self._require_held = key, images, require_held
        self._done, self._is_broken = 0, np.zeros(len(images), bool)
        self._skipped = SkippedSamples(f"{images.name}/{images.split}", max_broken)
        self._columns: dict[str, np.ndarray] = {}
        self.place.mkdir(parents=True, exist_ok=True)
        if (self.place / _PROGRESS).exists():
            self._resume()

    def _resume(self) -> None:
        try:
            note = json.loads((self.place / _PROGRESS).read_text(encoding="utf-8"))
        except ValueError:
            # Of a disk that was full or not written to the end: what it was of is not known.
            logging.getLogger("keras_clip").warning("%s is damaged; all images are encoded again.", self.place)
            return
        Key(note["key_parts"]).require_equal(self._key, self.place)
        self._is_broken[note["broken"]] = True
        for name in COLUMNS:
            if (self.place / f"{name}.npy").exists():
                self._columns[name] = np.lib.format.open_memmap(self.place / f"{name}.npy", mode="r+")
        if self._has_empty_row(note["done"]):
            # A disk that was not written to the end, or two processes of an earlier version.
            logging.getLogger("keras_clip").warning("%s has empty rows; all images are encoded again.", self.place)
            self._is_broken[:] = False
            return
        self._done = note["done"]
        self._skipped.counts.update(note["skipped"]["counts"])
        self._skipped.examples.extend(note["skipped"]["examples"])

    def _has_empty_row(self, done: int) -> bool:
        kept = np.flatnonzero(~self._is_broken[:done])
        # If an earlier call was killed after the columns were made compact, their rows are those of `kept`.
        rows = [None if len(column) == len(kept) else kept for column in self._columns.values()]
        return any(empty_row(*pair) is not None for pair in zip(self._columns.values(), rows, strict=True))

    def _note(self) -> None:
        self._require_held()
        for column in self._columns.values():
            column.flush()
        note = {"key_parts": self._key.parts, "done": self._done, "broken": np.flatnonzero(self._is_broken).tolist()}
        files.write_json(self.place / _PROGRESS, note | {"skipped": self._record()})

    def _record(self) -> dict:
        return {"counts": dict(self._skipped.counts), "examples": self._skipped.examples}

    def encode(self, embedder: ImageEmbedder, batch_size: int, budget: PixelBudget) -> None:
        """Encodes the images that are not encoded yet.

        Args:
            embedder: `ImageEmbedder`.
            batch_size: int.
            budget: `PixelBudget` of all threads that decode.

        Raises:
            ValueError: NaN among the features; too many broken images.
        """
        noted = time.monotonic()
        with self._bar(self._done) as bar:
            for batch in encode(embedder, self._images, self._done, None, batch_size, budget):
                self._add(batch)
                bar.update(batch.size)
                if time.monotonic() - noted >= _SECONDS_BETWEEN_NOTES:
                    self._note()
                    noted = time.monotonic()
        self._complete()

    def encode_by(self, engine: Engine, task: EncodeBlock, block_size: int) -> None:
        """Has the images encoded that are not encoded yet, in blocks; those that an earlier call finished are kept.

        Args:
            engine: the engine.
            task: its task, which writes into the folder of the draft.
            block_size: int, images of a block.

        Raises:
            ValueError: NaN among the features; too many broken images; a worker with another model.
            FileNotFoundError: a worker does not see the folder of the draft.
        """
        # The draft must be known to be of this key before it has files of it.
        self._note()
        total = len(self._images)
        blocks = [(start, min(total, start + block_size)) for start in range(self._done, total, block_size)]
        left = [block for block in blocks if not task.path(block).exists()]
        waiting = deque(blocks)
        with self._bar(total - sum(stop - start for start, stop in left)) as bar:
            self._add_blocks(waiting, task)
            for number, _ in engine.map(task, left):
                start, stop = left[number]
                if self._done <= start and not task.path(left[number]).exists():
                    raise FileNotFoundError(
                        f"All workers must write into the same folder. Received: {self.place}, without "
                        f"{task.path(left[number]).name}, which a worker wrote. Use a folder that all machines share."
                    )
                bar.update(stop - start)
                self._add_blocks(waiting, task)
        self._complete()

    def _add_blocks(self, waiting: deque[tuple[int, int]], task: EncodeBlock) -> None:
        """Adds the blocks that are finished, in order, so that the draft is always that of the first images."""
        # A source that ends too early leaves a gap.
        while waiting and waiting[0][0] == self._done and (path := task.path(waiting[0])).exists():
            self._add(read_block(path))
            self._note()
            path.unlink()
            waiting.popleft()

    def _bar(self, initial: int) -> Any:
        from tqdm import tqdm

        name = printable(f"Encoding {self._images.name}/{self._images.split}")
        return tqdm(total=len(self._images), initial=initial, desc=name)

    def _complete(self) -> None:
        total = len(self._images)
        if self._done != total:
            raise ValueError(
                f"The source must yield the {total} images that it has labels for. Received: {self._done} of "
                f"{self._images.name}/{self._images.split}."
            )
        self._skipped.check(total, total, ended=True)
        self._skipped.finish(total)
        self._note()

    def _add(self, encoded: Encoded) -> None:
        """Adds the next images."""
        first = self._done
        for place, image in encoded.broken:
            self._is_broken[first + place] = True
            self._skipped.add(self._images.ids[first + place], *image)
            self._skipped.check(first + place + 1, len(self._images), ended=False)
        for name, values in encoded.columns.items():
            if name not in self._columns:
                shape = (len(self._images), values.shape[1])
                path = self.place / f"{name}.npy"
                self._columns[name] = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            self._columns[name][first + encoded.rows] = values
        self._done += encoded.size

    def finish(self, logit_scale: float | None) -> None:
        """Turns the draft into the store, without the rows of broken images.

        Args:
            logit_scale: logit scale of the model.

        Raises:
            ValueError: all images of a class are broken, or an image has no features.
            RuntimeError: another process builds the draft.
        """
        self._require_held()
        images, kept = self._images, np.flatnonzero(~self._is_broken)
        self._require_all_classes(kept)
        for name, column in self._columns.items():
            # If an earlier call was killed after this step, the column is compact already.
            if len(column) > len(kept):
                column = self._compact(name, column, kept)
            if (row := empty_row(column)) is not None:
                raise ValueError(
                    f"Every image must have {name}. Received: {self.place}, where those of image "
                    f"{images.ids[kept[row]]!r} are all zero. Delete this folder and build the store again; if the "
                    "same image is named, the model returns zeros for it."
                )
        self._columns.clear()
        _save(self.place / "labels.npy", images.labels[kept])
        _save(self.place / "ids.npy", np.array(images.ids, str)[kept])
        _save(self.place / "groups.npy", np.array(images.groups, str)[kept])
        manifest = {
            "key_parts": self._key.parts,
            "name": images.name,
            "split": images.split,
            "class_names": images.class_names,
            "logit_scale": logit_scale,
            "skipped": self._record(),
            "passed_over": {"counts": dict(images.skipped.counts), "examples": images.skipped.examples},
            "is_verified": True,
        }
        files.write_json(self.place / MANIFEST, manifest)
        for leftover in [*self.place.glob("block-*.npz"), *self.place.glob(f".*{files.PART}*")]:
            leftover.unlink(missing_ok=True)
        os.replace(self.place, self._folder)
        (self._folder / _PROGRESS).unlink()

    def _require_all_classes(self, kept: np.ndarray) -> None:
        labels, names = self._images.labels, self._images.class_names
        if names is None:
            return
        counts = np.bincount(labels, minlength=len(names)) if labels.ndim == 1 else (labels == 1).sum(axis=0)
        has_images = counts > 0
        labels = labels[kept][:, has_images] if labels.ndim == 2 else (np.cumsum(has_images) - 1)[labels[kept]]
        names = [name for name, has in zip(names, has_images, strict=True) if has]
        require_images_of_all(labels, names, f"{self._images.name}/{self._images.split}, as decoded")

    def _compact(self, name: str, column: np.ndarray, kept: np.ndarray) -> np.ndarray:
        path, part = self.place / f"{name}.npy", self.place / f"{name}.npy.part"
        shape = (len(kept), column.shape[1])
        compact = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
        for start in range(0, len(kept), _ROWS):
            compact[start : start + _ROWS] = column[kept[start : start + _ROWS]]
        compact.flush()
        os.replace(part, path)
        return compact


def recorded(
    source: str, record: dict, passed_over: SkippedSamples | None = None, max_broken: float = MAX_BROKEN
) -> SkippedSamples:
    """What was skipped, as it was written down.

    Args:
        source: what errors call the source.
        record: {"counts": {reason: number}, "examples": texts}.
        passed_over: what the source passed over. None: nothing.
        max_broken: float in [0, 1], the limit.

    Returns:
        `SkippedSamples`.
    """
    skipped = SkippedSamples(source, max_broken, passed_over)
    skipped.counts.update(record.get("counts", {}))
    skipped.examples.extend(record.get("examples", ()))
    return skipped


def empty_row(column: np.ndarray, rows: np.ndarray | None = None) -> int | None:
    """The first row of a column (N, D) that is all zero, as a file is before it is written; None if there is none.

    Args:
        column: floats (N, D).
        rows: the rows to look at, ascending. None: all.

    Returns:
        Index of the row, or None.
    """
    for start in range(0, len(column), _ROWS):
        part = column[start : start + _ROWS]
        is_empty = ~np.asarray(part).any(axis=1)
        if rows is not None:
            looked_at = np.zeros(len(part), bool)
            looked_at[rows[(rows >= start) & (rows < start + len(part))] - start] = True
            is_empty &= looked_at
        if is_empty.any():
            return start + int(is_empty.argmax())
    return None


def _save(path: Path, array: np.ndarray) -> None:
    with files.replacing(path) as temporary:
        np.save(temporary, array, allow_pickle=False)
