"""Features and embeddings of a dataset, computed once and stored, so that evaluations on them take seconds."""

import contextlib
import json
import os
import pickle
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from keras_clip import files
from keras_clip.data.arguments import check_max_broken
from keras_clip.data.image_files import PixelBudget
from keras_clip.data.skipped import MAX_BROKEN
from keras_clip.engines import Engine, Processes, Ray, engine_named
from keras_clip.engines.processes import num_cores
from keras_clip.evaluation.datasets.labelled_images import LabelledImages, require_class_names, require_images_of_all
from keras_clip.evaluation.features.draft import DRAFT_SUFFIX, MANIFEST, Draft, empty_row, recorded
from keras_clip.evaluation.features.encoding import EncodeBlock, load_model, located, logit_scale_of
from keras_clip.evaluation.features.key import Key, model_parts
from keras_clip.evaluation.metrics.classification import IGNORED
from keras_clip.evaluation.results import Examples, digest_of
from keras_clip.evaluation.rows import Rows
from keras_clip.lock import Lock
from keras_clip.model import CLIPModel, ImageEmbedder
from keras_clip.printable import printable

_LOCK_SUFFIX = ".lock"
# The stamp of the files of the images, by which it is seen that they have not changed.
_NOTE = "files.json"
_COLUMNS = ("features", "embeddings", "labels", "ids", "groups")


class FeatureStore:
    """Features, embeddings and labels of the images of one split, in memory-mapped files.

    Create it with `FeatureStore.build`, open it with `FeatureStore.open`, or wrap arrays with
    `FeatureStore.from_arrays`; these check their inputs.

    Args:
        columns: the attributes that are arrays, by name.
        manifest: the other attributes, as in `store.json`.

    Attributes:
        features: float32 (N, D), before the projection: the input of linear probes (Radford et al., 2021, appendix
            A.3).
        embeddings: float32 (N, E) of unit length.
        labels: int64 (N,); of images of several classes uint8 (N, K) with 0, 1 and `metrics.IGNORED`.
        ids: str (N,), stable and unique.
        groups: str (N,), "" for none.
        class_names: K names, or None.
        name: name of the dataset.
        split: split of the dataset.
        logit_scale: float, log(1 / temperature), of the model; None: unknown.
        key: hex digest of everything that the numbers depend on; "" for arrays.
        skipped: `SkippedSamples`, the images that could not be read, which are not among the N, and the files that the
            source passed over.
    """

    def __init__(self, columns: dict[str, np.ndarray], manifest: dict[str, Any]):
        self.features, self.embeddings, self.labels, self.ids, self.groups = (columns[name] for name in _COLUMNS)
        class_names = manifest["class_names"]
        self.class_names = None if class_names is None else tuple(class_names)
        self.name, self.split = manifest["name"], manifest["split"]
        self.logit_scale: float | None = manifest["logit_scale"]
        self._key = Key(manifest["key_parts"]) if manifest["key_parts"] else None
        # Stores of earlier versions do not say what the source passed over.
        self._broken = manifest["skipped"]
        passed_over = recorded(self.name, manifest.get("passed_over", {}))
        self.skipped = recorded(f"{self.name}/{self.split}", manifest["skipped"], passed_over)

    @property
    def key(self) -> str:
        """Hex digest of the model, its preprocessing, and the images and labels of the dataset."""
        return self._key.digest() if self._key else ""

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several classes."""
        return self.labels.ndim == 2

    @cached_property
    def examples(self) -> Examples:
        """The identity of the images, by which results of two models are compared: see `Examples`."""
        images = "" if self._key is None else self._key.parts["data set"]["images"]
        return Examples(digest_of(self.ids.tolist()), images, np.asarray(self.labels))

    def __len__(self) -> int:
        return len(self.embeddings)

    def __repr__(self) -> str:
        return printable(f"FeatureStore({self.name}/{self.split}: {len(self)} images)")

    @classmethod
    def build(
        cls,
        clip: CLIPModel | ImageEmbedder | str | os.PathLike,
        images: LabelledImages,
        folder: str | os.PathLike,
        batch_size: int = 64,
        max_pixels_in_flight: int | None = None,
        max_broken: float = MAX_BROKEN,
        engine: str | Engine | None = None,
        full_digest: bool = False,
    ) -> "FeatureStore":
        """Encodes images, or opens the store if it exists.

        Every image is read once for the digest. A store that exists is opened without this if its files show that no
        image has changed: by their sizes, inodes, and times of change, of local folders, tables and tars. Other
        sources, and files that changed in the last seconds, are read again.

        If the process is interrupted or killed, the next call resumes. Images that cannot be decoded are skipped,
        counted and named in `skipped`, with a warning; more than `max_broken` is an error, also of a store that exists.
        PIL decodes them, with one thread per core.

        Several processes may build one store: the first one encodes, and the others wait for it, with a warning that
        names it, and open what it built. The lock of a process that died is taken over (see `keras_clip.lock`).

        With an engine, workers encode blocks of images, each with a model that it loads once. They write a block whole
        or not at all, so that finished blocks survive a kill. The batches, and so the store, are those of one process.
        Each block reads the images from its first one on: of readers that read by index at once, of tensorflow-datasets
        by skipping what comes before.

        Args:
            clip: `CLIPModel` or `ImageEmbedder`; or a model as `presets.load` takes it, such as the name of a published
                one or the path of a saved one.
            images: the images to encode.
            folder: folder of the store, which must be empty or new. The draft is kept in `<folder>.building`, and the
                lock in `<folder>.lock`.
            batch_size: int. Images per step; all batches have this size, so that the encoder compiles once.
            max_pixels_in_flight: int. How many pixels are decoded at the same time at most, at up to 16 bytes of memory
                each; an image of more is decoded alone. None: a number that fits the memory of the machine. Processes
                share it; on a cluster it is that of each worker.
            max_broken: float in [0, 1]. The fraction of the images that may be unreadable.
            engine: where the images are encoded: "auto", "serial", "processes", "ray" or an `engines.Engine`. Other
                processes take the model as `presets.load` does, and images that can be pickled: all `sources` can.
                None: in this process.
            full_digest: bool. Whether every image is read, also if the store exists and no file has changed by its
                times: for file systems whose times cannot be relied on.

        Returns:
            The store.

        Raises:
            ValueError: the folder holds a store of another model, preprocessing or dataset; the model returns NaN; too
                many images, or all images of a class, are broken.
            RuntimeError: another process took the lock over, since this one was suspended; workers die again and again.
            TypeError: a model or images that cannot be sent to other processes.
        """
        check_max_broken(max_broken)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` must be an integer of at least 1. Received: batch_size={batch_size!r}.")
        budget = PixelBudget(max_pixels_in_flight)
        block_size = EncodeBlock.block_size(batch_size)
        if engine is not None:
            engine = engine_named(engine)
            _require_sendable(engine, clip, images)
        given, clip = located(clip), load_model(clip)
        folder, embedder = Path(folder), getattr(clip, "image_embedder", clip)
        logit_scale = logit_scale_of(clip)
        images.distrust() if full_digest else images.trust(_note_of(folder))
        dataset = {"name": images.name, "split": images.split, "images": images.digest()}
        key = Key({**model_parts(embedder, logit_scale), "data set": dataset})
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not (folder / MANIFEST).exists():
            with Lock(f"{folder}{_LOCK_SUFFIX}", f"the feature store {folder}") as lock:
                # Another process may have built it meanwhile.
                if not (folder / MANIFEST).exists():
                    _require_empty(folder)
                    draft = Draft(folder, key, images, lock.require_held, max_broken)
                    if engine is None:
                        draft.encode(embedder, batch_size, budget)
                    else:
                        pixels = _pixels_of_worker(engine, budget, max_pixels_in_flight)
                        task = EncodeBlock(given, images, draft.place, batch_size, pixels, key)
                        draft.encode_by(engine, task, block_size)
                    draft.finish(logit_scale)
        store = cls.open(folder)
        store._key.require_equal(key, folder)
        _write_note(folder, images)
        store.skipped = recorded(f"{images.name}/{images.split}", store._broken, images.skipped, max_broken)
        size = len(images)
        store.skipped.check(size, size, ended=True)
        return store

    @classmethod
    def open(cls, folder: str | os.PathLike, clip: CLIPModel | ImageEmbedder | None = None) -> "FeatureStore":
        """Opens a store without a model.

        Args:
            folder: the folder passed to `build`.
            clip: if given, the model that must have computed the store.

        Returns:
            The store.

        Raises:
            FileNotFoundError: the store does not exist or is not finished.
            ValueError: a store of another model, of another version of this format, or damaged.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).exists():
            begun = Path(f"{folder}{DRAFT_SUFFIX}").exists()
            state = (
                "a store that is not finished; call `build` again to resume" if begun else "no store; `build` makes one"
            )
            raise FileNotFoundError(f"There must be a feature store. Received: folder={folder}, with {state}.")
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _COLUMNS}
            store = cls(columns, manifest)
        except Exception as error:  # NumPy raises many types of exceptions for a damaged header.
            raise ValueError(
                f"A store must be complete. Received: folder={folder}: {error}. Build it again."
            ) from error
        store._key.require_format(folder)
        _check_columns(columns, store.class_names, f"{folder}")
        if not manifest.get("is_verified"):
            _require_no_empty_row(columns, folder)
        if clip is not None:
            store.require_model(clip)
        return store

    @classmethod
    def from_arrays(
        cls,
        features: np.ndarray,
        embeddings: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str] | None = None,
        *,
        ids: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
        name: str = "arrays",
        split: str = "test",
        logit_scale: float | None = None,
    ) -> "FeatureStore":
        """Wraps existing arrays as a store; writes nothing.

        Args:
            features: floats (N, D).
            embeddings: floats (N, E) of unit length.
            labels: integers (N,) below K, or (N, K) of 0, 1 and `metrics.IGNORED`.
            class_names: K names, in the order of the labels. None: classes without names.
            ids: N unique names. None: row numbers.
            groups: N names. None: no groups.
            name: name of the dataset.
            split: split of the dataset.
            logit_scale: float, log(1 / temperature), of the model that gave the embeddings. None: unknown.

        Returns:
            The store.

        Raises:
            ValueError: arrays of unequal length, NaN, embeddings that are not of unit length, labels that do not fit
                the names, a class without an image, fewer than two classes, or ids that are not unique.
        """
        labels = np.asarray(labels)
        if labels.dtype.kind not in "iub":
            raise ValueError(f"`labels` must be integers. Received: labels of dtype {labels.dtype}.")
        columns = {
            "features": np.asarray(features, np.float32),
            "embeddings": np.asarray(embeddings, np.float32),
            "labels": labels.astype(np.int64 if labels.ndim == 1 else np.uint8),
            "ids": np.array([str(i) for i in range(len(labels))] if ids is None else list(ids), str),
            "groups": np.array([""] * len(labels) if groups is None else list(groups), str),
        }
        class_names = None if class_names is None else list(class_names)
        _check_columns(columns, class_names, name)
        _check_values(columns, class_names, name)
        manifest = {"class_names": class_names, "name": name, "split": split, "logit_scale": logit_scale}
        return cls(columns, {**manifest, "key_parts": None, "skipped": {"counts": {}, "examples": []}})

    def require_model(self, clip: CLIPModel | ImageEmbedder) -> None:
        """Raises a ValueError if another model computed the store; stores of arrays are not checked."""
        if self._key is not None:
            embedder = getattr(clip, "image_embedder", clip)
            self._key.require_model(model_parts(embedder, logit_scale_of(clip)), repr(self))

    def take(self, rows: np.ndarray) -> "FeatureStore":
        """Selects images, in memory.

        Args:
            rows: indices or bool (N,).

        Returns:
            A store with the same classes.
        """
        return self._with({name: np.asarray(getattr(self, name)[rows]) for name in _COLUMNS})

    def _with(self, columns: dict[str, Any]) -> "FeatureStore":
        store = object.__new__(FeatureStore)
        store.__dict__.update(self.__dict__)
        store.__dict__.pop("examples", None)
        for name, column in columns.items():
            setattr(store, name, column)
        return store

    def view(self, rows: np.ndarray) -> "FeatureStore":
        """Selects images as `take` does; features and embeddings in memory-mapped files are not copied.

        Args:
            rows: indices or bool (N,).

        Returns:
            A store with the same classes, whose features and embeddings may be `Rows`.
        """
        numbers = np.arange(len(self))[rows]
        columns = {name: getattr(self, name) for name in _COLUMNS}
        return self._with(
            {
                name: Rows([column], numbers)
                if name in ("features", "embeddings") and isinstance(column, (np.memmap, Rows))
                else np.asarray(column[numbers])
                for name, column in columns.items()
            }
        )

    def of_classes(self, class_names: Sequence[str]) -> "FeatureStore":
        """Selects the images of some classes; features and embeddings in memory-mapped files are not copied.

        Args:
            class_names: K names. Images of other classes are left out; of images with several classes, those without a
                remaining one. A class without images stays a class.

        Returns:
            A store with these classes in this order.
        """
        places = {name: place for place, name in enumerate(self.class_names)}
        columns = np.array([places.get(name, -1) for name in class_names], np.int64)
        if self.multi_label:
            labels = np.where(columns >= 0, np.asarray(self.labels)[:, columns], 0).astype(self.labels.dtype)
            kept = (labels == 1).any(axis=1) | ~(np.asarray(self.labels) == 1).any(axis=1)
        else:
            numbers = np.full(len(self.class_names), -1)
            numbers[columns[columns >= 0]] = np.flatnonzero(columns >= 0)
            labels = numbers[self.labels]
            kept = labels >= 0
        store = self.view(kept)
        store.class_names, store.labels = tuple(class_names), labels[kept]
        return store


def _note_of(folder: Path) -> dict[str, Any]:
    """Returns the note on the files that the store was last found to be of; {} if there is none."""
    try:
        note = json.loads((folder / _NOTE).read_text(encoding="utf-8")) if (folder / MANIFEST).exists() else {}
    except (OSError, ValueError):
        note = {}
    return note if isinstance(note, dict) else {}


def _write_note(folder: Path, images: LabelledImages) -> None:
    note = images.note()
    if note is not None and note != _note_of(folder):
        # Without the note, as in a folder that is read-only, the images are read again.
        with contextlib.suppress(OSError):
            files.write_json(folder / _NOTE, note)


def _require_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"`folder` must be empty, new, or a store. Received: folder={folder}, with other files.")


def _require_no_empty_row(columns: dict[str, np.ndarray], folder: Path) -> None:
    """Checks a store of an earlier version, in which two processes could leave rows out."""
    for name in ("features", "embeddings"):
        if (row := empty_row(columns[name])) is not None:
            raise ValueError(
                f"Every image must have {name}. Received: folder={folder}, where those of image "
                f"{str(columns['ids'][row])!r} are all zero. Delete the folder and build the store again."
            )


def _require_sendable(engine: Engine, clip: Any, images: LabelledImages) -> None:
    """Raises a TypeError if an engine of other processes cannot get a model or images."""
    if not isinstance(engine, (Processes, Ray)):
        return
    if not isinstance(clip, (str, os.PathLike)):
        raise TypeError(
            "Workers in other processes load the model themselves. "
            f"Received: clip of type {type(clip).__name__}. Save it by `keras_clip.presets.save(clip, path)`, and pass "
            "the path; or pass the name of a published model."
        )
    try:
        pickle.dumps(images)
    except Exception as error:  # Objects raise many types of exceptions when they are pickled.
        raise TypeError(
            "Images must be sent to other processes. "
            f"Received: {images.name}/{images.split}, which cannot be pickled: {error}. Give `LabelledImages` a `read` "
            "that is a function at the top level of a module, or a `functools.partial` of one; or use engine=None."
        ) from error


def _pixels_of_worker(engine: Engine, budget: PixelBudget, given: int | None) -> int | None:
    """Returns the budget of each worker; those of one machine share its memory."""
    if isinstance(engine, Processes):
        return max(1, budget.pixels // (engine.workers or num_cores()))
    return given


def _check_columns(columns: dict[str, np.ndarray], class_names: Sequence[str] | None, where: str) -> None:
    shapes = {name: column.shape for name, column in columns.items()}
    size = len(columns["labels"])
    dimensions = {name: len(shape) for name, shape in shapes.items()}
    several = dimensions.pop("labels") == 2
    right = dimensions == {"features": 2, "embeddings": 2, "ids": 1, "groups": 1}
    if several and class_names is not None:
        right = right and shapes["labels"][1] == len(class_names)
    if not size or not right or any(shape[0] != size for shape in shapes.values()):
        raise ValueError(
            "A store must have features (N, D), embeddings (N, E), labels (N,) or (N, K), ids (N,) and groups (N,), "
            f"and N >= 1. Received: {where!r} with {shapes}"
            + (f" and {len(class_names)} class names." if class_names is not None else ".")
        )


def _check_values(columns: dict[str, np.ndarray], class_names: Sequence[str] | None, where: str) -> None:
    for name in ("features", "embeddings"):
        if not np.isfinite(columns[name]).all():
            row = columns["ids"][~np.isfinite(columns[name]).all(axis=1)][0]
            raise ValueError(f"`{name}` must be finite. Received: {where!r} with NaN or infinity for image {row!r}.")
    lengths = np.linalg.norm(columns["embeddings"], axis=1)
    if not np.allclose(lengths, 1, atol=1e-3):
        raise ValueError(
            f"`embeddings` must be of unit length. Received: {where!r} with lengths from {lengths.min():.4g} to "
            f"{lengths.max():.4g}. Normalise them."
        )
    if len(set(columns["ids"].tolist())) < len(columns["ids"]):
        raise ValueError(f"No two images may have the same id. Received: {where!r} with some ids twice.")
    labels = columns["labels"]
    if class_names is None and labels.ndim == 1 and labels.min() < 0:
        raise ValueError(f"Labels must be integers from 0 on. Received: {where!r} with {labels.min()}.")
    if labels.ndim == 2 and (wrong := set(np.unique(labels).tolist()) - {0, 1, IGNORED}):
        raise ValueError(f"Labels (N, K) must be 0, 1 or {IGNORED}. Received: {where!r} with {sorted(wrong)[:5]}.")
    if class_names is None:
        return
    require_class_names(class_names, where)
    if labels.ndim == 1 and not 0 <= labels.min() <= labels.max() < len(class_names):
        raise ValueError(
            f"Labels must be numbers of the {len(class_names)} class names. "
            f"Received: {where!r} with labels from {labels.min()} to {labels.max()}."
        )
    require_images_of_all(labels, class_names, where)
