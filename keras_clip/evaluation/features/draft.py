"""A feature store under construction: it survives a killed process and becomes a store in one atomic step."""

import itertools
import json
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_clip import files
from keras_clip.data.image_files import PixelBudget
from keras_clip.data.images import ImagePreprocessor
from keras_clip.data.skipped import MAX_BROKEN, SkippedSamples
from keras_clip.evaluation.datasets.labelled_images import LabelledImages, require_images_of_all
from keras_clip.evaluation.features.key import Key
from keras_clip.model import ImageEmbedder
from keras_clip.printable import printable

MANIFEST = "store.json"
DRAFT_SUFFIX = ".building"
# Exists in a draft only: the number of encoded images.
_PROGRESS = "progress.json"
# At most this much work is lost when the process is killed.
_SECONDS_BETWEEN_NOTES = 5
# Batches decoded ahead of the encoder.
_AHEAD = 2
# Rows per copy.
_ROWS = 65536


class _FeaturesAndEmbeddings(keras.Model):
    """Features and embeddings from one pass through the encoder. It holds the embedder's layers, not the embedder."""

    def __init__(self, embedder: ImageEmbedder):
        super().__init__(dtype=embedder.dtype_policy, name="features_and_embeddings")
        self.pixels, self.encoder, self.projection = embedder.pixels, embedder.encoder, embedder.projection
        self.quantization = embedder.quantization
        self.built = True

    def call(self, images, training=False):
        features = self.encoder(self.pixels(images), training=False)
        return ops.cast(features, "float32"), self.projection(features)


# All stores of a model share its compiled function.
_COMPILED: "weakref.WeakKeyDictionary[ImageEmbedder, _FeaturesAndEmbeddings]" = weakref.WeakKeyDictionary()


def features_and_embeddings(embedder: ImageEmbedder) -> keras.Model:
    """Returns the model that maps images to float32 features (B, D) and embeddings (B, E)."""
    model = _COMPILED.get(embedder)
    if model is None or model.encoder is not embedder.encoder or model.quantization != embedder.quantization:
        model = _COMPILED[embedder] = _FeaturesAndEmbeddings(embedder)
    return model


class Draft:
    """The folder `<folder>.building`: one row per image of the source, and the number of finished rows.

    Args:
        folder: folder of the finished store.
        key: key of the finished store.
        images: the images to encode.
        require_held: called before anything is noted; it raises an error if another process builds the draft.
        max_broken: float in [0, 1]. The fraction of the images that may be unreadable.

    Raises:
        ValueError: the draft belongs to another model or dataset.
    """

    def __init__(
        self, folder: Path, key: Key, images: LabelledImages, require_held: Callable[[], None], max_broken: float
    ):
        self._folder, self._place = folder, Path(f"{folder}{DRAFT_SUFFIX}")
        self._key, self._images, self._require_held = key, images, require_held
        self._done, self._is_broken = 0, np.zeros(len(images), bool)
        self._skipped = SkippedSamples(f"{images.name}/{images.split}", max_broken)
        self._columns: dict[str, np.ndarray] = {}
        self._place.mkdir(parents=True, exist_ok=True)
        if (self._place / _PROGRESS).exists():
            self._resume()

    def _resume(self) -> None:
        try:
            note = json.loads((self._place / _PROGRESS).read_text(encoding="utf-8"))
        except ValueError:
            # Of a disk that was full or not written to the end: what it was of is not known.
            logging.getLogger("keras_clip").warning("%s is damaged; all images are encoded again.", self._place)
            return
        Key(note["key_parts"]).require_equal(self._key, self._place)
        self._is_broken[note["broken"]] = True
        for name in ("features", "embeddings"):
            if (self._place / f"{name}.npy").exists():
                self._columns[name] = np.lib.format.open_memmap(self._place / f"{name}.npy", mode="r+")
        if self._has_empty_row(note["done"]):
            # A disk that was not written to the end, or two processes of an earlier version.
            logging.getLogger("keras_clip").warning("%s has empty rows; all images are encoded again.", self._place)
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
        files.write_json(self._place / _PROGRESS, note | {"skipped": self._record()})

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
        from tqdm import tqdm

        model, noted = features_and_embeddings(embedder), time.monotonic()
        total = len(self._images)
        bar = tqdm(
            total=total, initial=self._done, desc=printable(f"Encoding {self._images.name}/{self._images.split}")
        )
        with bar:
            batches = _decoded(iter(self._images.read(self._done)), embedder.image_preprocessor, batch_size, budget)
            for decoded in batches:
                self._encode(model, decoded, batch_size)
                bar.update(len(decoded))
                if time.monotonic() - noted >= _SECONDS_BETWEEN_NOTES:
                    self._note()
                    noted = time.monotonic()
        if self._done != total:
            raise ValueError(
                f"The source must yield the {total} images that it has labels for. Received: {self._done} of "
                f"{self._images.name}/{self._images.split}."
            )
        self._skipped.check(total, total, ended=True)
        self._skipped.finish(total)
        self._note()

    def _encode(self, model: keras.Model, decoded: list, batch_size: int) -> None:
        first = self._done
        good = [row for row, pixels in enumerate(decoded) if isinstance(pixels, np.ndarray)]
        for row in sorted(set(range(len(decoded))) - set(good)):
            self._is_broken[first + row] = True
            self._skipped.add(self._images.ids[first + row], *decoded[row])
            self._skipped.check(first + row + 1, len(self._images), ended=False)
        if good:
            # One batch shape means one compilation, so an incomplete batch is padded with its own images.
            filled = np.stack([decoded[row] for row in np.resize(good, batch_size)])
            outputs = model.predict_on_batch(filled)
            rows = first + np.array(good)
            for name, output in zip(("features", "embeddings"), outputs, strict=True):
                self._write(name, rows, np.asarray(output, np.float32)[: len(good)])
        self._done += len(decoded)

    def _write(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        if not np.isfinite(values).all():
            row = rows[~np.isfinite(values).all(axis=1)][0]
            raise ValueError(
                f"The model must return finite {name}. "
                f"Received: NaN or infinity for image {self._images.ids[row]!r} of "
                f"{self._images.name}/{self._images.split}. Try float32, or check the model's weights."
            )
        if name not in self._columns:
            shape = (len(self._images), values.shape[1])
            path = self._place / f"{name}.npy"
            self._columns[name] = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        self._columns[name][rows] = values

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
                    f"Every image must have {name}. Received: {self._place}, where those of image "
                    f"{images.ids[kept[row]]!r} are all zero. Delete this folder and build the store again; if the "
                    "same image is named, the model returns zeros for it."
                )
        self._columns.clear()
        _save(self._place / "labels.npy", images.labels[kept])
        _save(self._place / "ids.npy", np.array(images.ids, str)[kept])
        _save(self._place / "groups.npy", np.array(images.groups, str)[kept])
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
        files.write_json(self._place / MANIFEST, manifest)
        os.replace(self._place, self._folder)
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
        path, part = self._place / f"{name}.npy", self._place / f"{name}.npy.part"
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


def _decoded(images: Iterator, preprocessor: ImagePreprocessor, batch_size: int, budget: PixelBudget) -> Iterator[list]:
    """Yields batches: pixels uint8 (H, W, 3) for each image, or (reason, detail) if it is broken."""

    def decode(image):
        if isinstance(image, bytes) and not image:
            return "no image", ""
        try:
            return preprocessor.to_uint8(image, budget)[0]
        except FileNotFoundError:
            return "no image", ""
        except PermissionError as error:
            return "unreadable image", str(error)
        except ValueError as error:
            return "image too large" if "max_pixels" in str(error) else "undecodable image", str(error)

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        waiting = []
        while batch := list(itertools.islice(images, batch_size)):
            waiting.append([pool.submit(decode, image) for image in batch])
            if len(waiting) > _AHEAD:
                yield [future.result() for future in waiting.pop(0)]
        for futures in waiting:
            yield [future.result() for future in futures]


def _save(path: Path, array: np.ndarray) -> None:
    with files.replacing(path) as temporary:
        np.save(temporary, array, allow_pickle=False)
