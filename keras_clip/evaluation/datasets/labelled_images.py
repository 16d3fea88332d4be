"""Images with labels, ids and groups from any source: the input of a feature store."""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from keras_clip.data.skipped import SkippedSamples
from keras_clip.evaluation.metrics.classification import IGNORED
from keras_clip.printable import printable

# Seconds after which a progress bar appears.
PATIENCE = 5

Image = str | bytes | np.ndarray
# The class name; or, for several classes, {class name: 1, or `IGNORED` if it counts neither as positive nor as
# negative}.
Label = str | Mapping[str, int]


class Sample(NamedTuple):
    """One image: a path, the bytes of a file, or uint8 pixels; with its label, its stable id and its group or ""."""

    image: Image
    label: int | np.ndarray
    id: str
    group: str


class LabelledImages:
    """Images with labels, ids and groups: the input of a feature store.

    The images are read sequentially, as often as needed. The functions of `sources` create them.

    Args:
        read: function of n that returns an iterator over the images from the n-th on: paths, bytes of files, or uint8
            arrays (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). It must return the same images each time.
        labels: N class names; for several classes per image, N dicts from names to 1 (or `metrics.IGNORED`). If
            `class_names` is None: N integers.
        ids: N unique names, the same in every run: few-shot subsets are drawn by them.
        class_names: K names in the order of the label indices. None: classes without names.
        groups: N names of the groups that are compared, "" for none. None: no groups.
        name: name of the dataset.
        split: split of the dataset: "train", "test" ...
        empty_classes: what to do with a class of `class_names` without an image: "refuse" it with an error, "keep" it
            as a class that may be predicted, or "drop" it.
        skipped: `SkippedSamples`: the files that the source passed over. None: none.
        stamp: function that returns a text which differs whenever an image has changed, found without reading the
            images, or None if this is not known now. None: only reading the images shows it.

    Raises:
        ValueError: labels that are not among the classes, a class without an image, fewer than two classes, ids that
            are not unique, or columns of unequal length.
    """

    # Hex digest of the images, once computed, and the stamp of the files that it was computed from.
    _content: str | None = None
    _content_stamp: str | None = None
    # Whether the images were not read, since their files have the stamp of an earlier digest.
    _is_trusted = False

    def __init__(
        self,
        read: Callable[[int], Iterator[Image]],
        labels: Sequence[Label | int],
        ids: Sequence[str],
        class_names: Sequence[str] | None,
        *,
        groups: Sequence[str] | None = None,
        name: str = "images",
        split: str = "test",
        empty_classes: str = "refuse",
        skipped: SkippedSamples | None = None,
        stamp: Callable[[], str | None] | None = None,
    ):
        self.name, self.split = name, split
        self.skipped = SkippedSamples(f"{name}/{split}") if skipped is None else skipped
        self.read, self._stamp = read, stamp
        self.class_names = None if class_names is None else _classes(labels, class_names, empty_classes)
        self.ids = tuple(ids)
        self.groups = ("",) * len(self.ids) if groups is None else tuple(groups)
        _require_columns(self, len(labels))
        self.labels = _indices(labels, name) if class_names is None else _numbers(labels, self.class_names, name)
        if class_names is not None and empty_classes == "refuse":
            require_images_of_all(self.labels, self.class_names, name)

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several classes: then the labels are (N, K)."""
        return self.labels.ndim == 2

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Sample]:
        return map(Sample, self.read(0), self.labels, self.ids, self.groups)

    def digest(self) -> str:
        """Hex digest of names, labels, ids, groups and the bytes of all images."""
        if self._content is None:
            before = self._stamp and self._stamp()
            self._content = _content(self.read(0), len(self), self.name)
            # Of files that changed meanwhile, it is not known what was read.
            self._content_stamp = before if before is not None and before == self._stamp() else None
        whole = hashlib.sha256(self._content.encode())
        for texts in ((self.name, self.split), self.class_names or (), self.ids, self.groups):
            whole.update(repr(tuple(map(str, texts))).encode())
        whole.update(str((self.labels.dtype, self.labels.shape)).encode() + self.labels.tobytes())
        return whole.hexdigest()

    def trust(self, note: Mapping[str, str]) -> None:
        """Takes the digest of the images from the note of an earlier one, if no image has changed since by its stamp.

        Args:
            note: as of `note`; any other JSON object is ignored.
        """
        stamp = self._stamp() if self._content is None and self._stamp and note.get("content") else None
        if stamp is not None and stamp == note.get("stamp"):
            self._content, self._content_stamp, self._is_trusted = note["content"], stamp, True

    def distrust(self) -> None:
        """Has `digest` read the images, unless it has read them before."""
        if self._is_trusted:
            self._content, self._content_stamp, self._is_trusted = None, None, False

    def note(self) -> dict[str, str] | None:
        """Returns the digest of the images and the stamp of their files, for `trust`; None if either is unknown."""
        if self._content is None or self._content_stamp is None:
            return None
        return {"stamp": self._content_stamp, "content": self._content}


def _require_columns(images: LabelledImages, labels: int) -> None:
    lengths = len(images.ids), labels, len(images.groups)
    if len(set(lengths)) > 1 or not labels:
        raise ValueError(
            "There must be images, and an id, a label and a group for each. "
            f"Received: {images.name!r} with {lengths[0]} ids, {lengths[1]} labels, {lengths[2]} groups."
            + (f" Passed over: {images.skipped}." if images.skipped.total else "")
        )
    if len(set(images.ids)) < len(images.ids):
        twice = [name for name, count in Counter(images.ids).items() if count > 1]
        raise ValueError(f"No two images may have the same id. Received: {images.name!r} with {twice[:3]} twice.")


def _classes(labels: Sequence[Label], class_names: Sequence[str], empty_classes: str) -> tuple[str, ...]:
    if empty_classes not in ("refuse", "keep", "drop"):
        raise ValueError(f"`empty_classes` must be 'refuse', 'keep' or 'drop'. Received: {empty_classes!r}.")
    if isinstance(class_names, str):
        raise TypeError(f"`class_names` must be a list of texts. Received: class_names={class_names!r}.")
    if empty_classes != "drop":
        return tuple(class_names)
    rows = [label if isinstance(label, Mapping) else {label: 1} for label in labels]
    occurring = {name for row in rows for name, value in row.items() if value == 1}
    return tuple(name for name in class_names if name in occurring)


def _indices(labels: Sequence[int], where: str) -> np.ndarray:
    """Labels (N,), or 0, 1 and `IGNORED` (N, K), of classes without names."""
    numbers = np.asarray(labels)
    if numbers.ndim not in (1, 2) or numbers.dtype.kind not in "iub" or numbers.min() < 0:
        raise ValueError(
            "Labels of classes without names must be integers from 0 on. Received: "
            f"{where!r} with class_names=None and labels of dtype {numbers.dtype} and shape {numbers.shape}, such as "
            f"{list(labels[:5])}. Pass `class_names` for labels that are names."
        )
    return numbers.astype(np.int64)


def _numbers(labels: Sequence[Label], class_names: tuple[str, ...], where: str) -> np.ndarray:
    """Converts labels to class indices (N,), or to 0, 1 and `IGNORED` (N, K)."""
    require_class_names(class_names, where)
    several = any(isinstance(label, Mapping) for label in labels)
    index = {name: number for number, name in enumerate(class_names)}
    rows = [label if isinstance(label, Mapping) else {label: 1} for label in labels]
    unknown = sorted({str(name) for row in rows for name in row if name not in index})
    if unknown:
        raise ValueError(
            f"Every label must be a name of a class. Received: {where!r} with the labels {unknown[:5]}, which are not "
            f"among its {len(class_names)} classes: {list(class_names[:5])}, ...{_lookalikes(unknown, class_names)}"
        )
    if wrong := {value for row in rows for value in row.values()} - {1, IGNORED}:
        raise ValueError(f"Classes of an image must have the value 1 or {IGNORED}. Received: {where!r} with {wrong}.")
    table = np.zeros((len(rows), len(class_names)), np.uint8) if several else None
    numbers = np.empty(len(rows), np.int64)
    for number, row in enumerate(rows):
        for name, value in row.items():
            numbers[number] = index[name]
            if several:
                table[number, index[name]] = value
    return table if several else numbers


def _lookalikes(unknown: Sequence[str], class_names: Sequence[str]) -> str:
    """A sentence on labels that look like a class name, but have other characters; file systems may write so."""

    def plain(name: str) -> str:
        return unicodedata.normalize("NFKC", name).casefold().strip()

    known = {plain(str(name)): str(name) for name in class_names}
    pairs = [f"{ascii(name)} and {ascii(known[plain(name)])}" for name in unknown if plain(name) in known]
    return f" Alike, but not equal, are {'; '.join(pairs[:3])}." if pairs else ""


def require_class_names(class_names: Sequence[str], where: str) -> None:
    """Raises an error unless there are at least two names, all distinct texts and not empty."""
    if isinstance(class_names, str) or not all(isinstance(name, str) for name in class_names):
        raise TypeError(f"`class_names` must be a list of texts. Received: {where!r} with class_names={class_names!r}.")
    if len(class_names) < 2 or len(set(class_names)) < len(class_names) or not all(map(str.strip, class_names)):
        raise ValueError(
            "There must be at least two classes, with names that differ and are not empty. "
            f"Received: {where!r} with class_names={list(class_names[:5])}."
        )


def require_images_of_all(labels: np.ndarray, class_names: Sequence[str], where: str) -> None:
    """Raises a ValueError if a class has no image; `labels` (N,), or (N, K) with 1 where an image is of a class."""
    counts = (labels == 1).sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=len(class_names))
    empty = [name for name, count in zip(class_names, counts, strict=True) if not count]
    if empty:
        raise ValueError(
            f"Every class must have an image. Received: {where!r} with none of {empty[:5]} ({len(empty)} of "
            f"{len(class_names)} classes). Leave such classes out, or pass `empty_classes='keep'` or 'drop'."
        )


def _content(images: Iterator[Image], size: int, name: str) -> str:
    from tqdm import tqdm

    whole = hashlib.sha256()
    for image in tqdm(images, desc=printable(f"Reading {name}"), total=size, delay=PATIENCE, leave=False):
        whole.update(image_digest(image))
    return whole.hexdigest()


def image_digest(image: Image) -> bytes:
    if isinstance(image, np.ndarray):
        digest = hashlib.sha256(f"{image.dtype} {image.shape}".encode())
        digest.update(np.ascontiguousarray(image).data)
        return digest.digest()
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    if not isinstance(image, str | os.PathLike):
        raise TypeError(
            "An image must be a path, the bytes of a file, or a uint8 array. Received: an image of type "
            f"{type(image).__name__}. Convert PIL images by `np.asarray`."
        )
    try:
        with open(image, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except FileNotFoundError:
        return b"no such file"
    except (IsADirectoryError, PermissionError) as error:
        # The store counts it among its broken images.
        return type(error).__name__.encode()
