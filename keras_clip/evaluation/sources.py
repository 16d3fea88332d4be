"""Labelled images from where they are stored: tensorflow-datasets, folders, tables, WebDataset tars, scikit-learn.

Labels are names. A source may number its classes as it likes: what is looked up is the name, never the number.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from csv import DictReader
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_clip.data.shard_index import IMAGE_EXTENSIONS
from keras_clip.data.sources import find_files
from keras_clip.evaluation.metrics import IGNORED
from keras_clip.evaluation.tar_labels import TarImages
from keras_clip.evaluation.tfds_records import PATIENCE, Records

Image = str | bytes | np.ndarray
# The name of an image's class; or, of an image of several, each name with 1, or with `IGNORED` if it is neither right
# nor wrong.
Label = str | Mapping[str, int]


class Sample(NamedTuple):
    """One image: a path, the bytes of a file, or uint8 pixels; with its label, its stable id and its group or ""."""

    image: Image
    label: int | np.ndarray
    id: str
    group: str


class LabelledImages:
    """Images with labels, ids and groups; what a feature store is built from.

    Only the images are read one after the other, as often as needed. The functions of this module make them.

    Args:
        read: function of a number n, gives an iterator over the images from the n-th on: paths, bytes of files, or
            uint8 arrays (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). It gives the same ones each time.
        labels: N names of classes; of images of several classes, N dicts from names to 1 (or to `metrics.IGNORED`). If
            `class_names` is None: N integers, which mean nothing but themselves.
        ids: N names, no two alike, the same in every run: draws of few-shot subsets hang on them.
        class_names: K names, the order of the numbers that the labels become. None: classes without names.
        groups: N names of what the images are compared by, "" where there is none. None: no groups.
        name: of the data set.
        split: of the data set: "train", "test" ...
        content: hex digest of the images, if it is known. None: computed when asked for, by reading all of them.

    Raises:
        ValueError: labels that are none of the classes, a class without an image, fewer than two classes, ids that are
            not unique, or columns of unequal length.
    """

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
        content: str | None = None,
    ):
        self.name, self.split = name, split
        self.read = read
        self.class_names = None if class_names is None else tuple(class_names)
        self.ids = tuple(ids)
        self.groups = ("",) * len(self.ids) if groups is None else tuple(groups)
        _require_columns(self, len(labels))
        self.labels = np.asarray(labels, np.int64) if class_names is None else _numbers(labels, self.class_names, name)
        self._content = content

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several classes: then the labels are (N, K)."""
        return self.labels.ndim == 2

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Sample]:
        return map(Sample, self.read(0), self.labels, self.ids, self.groups)

    def digest(self) -> str:
        """Hex digest of all there is: names, labels, ids, groups and every byte of the images."""
        if self._content is None:
            self._content = _content(self.read(0), len(self), self.name)
        whole = hashlib.sha256(self._content.encode())
        for texts in ((self.name, self.split), self.class_names or (), self.ids, self.groups):
            whole.update(repr(tuple(map(str, texts))).encode())
        whole.update(str((self.labels.dtype, self.labels.shape)).encode() + self.labels.tobytes())
        return whole.hexdigest()


def _require_columns(images: LabelledImages, labels: int) -> None:
    lengths = len(images.ids), labels, len(images.groups)
    if len(set(lengths)) > 1 or not labels:
        raise ValueError(
            "There must be images, and an id, a label and a group for each. "
            f"Received: {images.name!r} with {lengths[0]} ids, {lengths[1]} labels, {lengths[2]} groups."
        )
    if len(set(images.ids)) < len(images.ids):
        twice = [name for name, count in Counter(images.ids).items() if count > 1]
        raise ValueError(f"No two images may have the same id. Received: {images.name!r} with {twice[:3]} twice.")


def _numbers(labels: Sequence[Label], class_names: tuple[str, ...], where: str) -> np.ndarray:
    """Labels by name as numbers (N,), or as 0, 1 and `IGNORED` (N, K)."""
    require_class_names(class_names, where)
    several = isinstance(labels[0], Mapping)
    index = {name: number for number, name in enumerate(class_names)}
    rows = [label if several else {label: 1} for label in labels]
    unknown = sorted({str(name) for row in rows for name in row if name not in index})
    if unknown:
        raise ValueError(
            f"Every label must be a name of a class. Received: {where!r} with the labels {unknown[:5]}, which are none "
            f"of its {len(class_names)} classes: {list(class_names[:5])}, ..."
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
    require_images_of_all(table if several else numbers, class_names, where)
    return table if several else numbers


def require_class_names(class_names: Sequence[str], where: str) -> None:
    """Raises a ValueError unless there are two names or more, none empty and none twice."""
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
            f"{len(class_names)} classes). Leave such classes out of `class_names`."
        )


def _content(images: Iterator[Image], size: int, name: str) -> str:
    from tqdm import tqdm

    whole = hashlib.sha256()
    for image in tqdm(images, desc=f"Reading {name}", total=size, delay=PATIENCE, leave=False):
        whole.update(_image_digest(image))
    return whole.hexdigest()


def _image_digest(image: Image) -> bytes:
    if isinstance(image, np.ndarray):
        digest = hashlib.sha256(f"{image.dtype} {image.shape}".encode())
        digest.update(np.ascontiguousarray(image).data)
        return digest.digest()
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    try:
        with open(image, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except FileNotFoundError:
        return b"no such file"


def _files(paths: Sequence[str]) -> Callable[[int], Iterator[str]]:
    return lambda start: iter(paths[start:])


def folder_per_class(
    folder: str | os.PathLike, class_names: Sequence[str] | None = None, *, name: str | None = None, split: str = "test"
) -> LabelledImages:
    """Images in one folder per class: `<folder>/<class>/**/<image>`.

    Args:
        folder: where they are.
        class_names: the folders to read, in this order. None: all, in alphabetical order.
        name: of the data set. None: that of the folder.
        split: what to call this part.

    Returns:
        `LabelledImages`; the ids are the paths below the folder.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: see `LabelledImages`.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"There must be a folder with one folder for each class. Received: folder={root}.")
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    class_names = found if class_names is None else list(class_names)
    if absent := sorted(set(class_names) - set(found)):
        raise ValueError(f"Every class must have a folder. Received: {root} without {absent[:5]}.")
    paths, labels = [], []
    for class_name in class_names:
        for path in sorted((root / class_name).rglob("*")):
            if path.suffix.lower().lstrip(".") in (*IMAGE_EXTENSIONS, "ppm") and not path.name.startswith("."):
                paths.append(path)
                labels.append(class_name)
    ids = [path.relative_to(root).as_posix() for path in paths]
    return LabelledImages(_files(list(map(str, paths))), labels, ids, class_names, name=name or root.name, split=split)


def csv(
    path: str | os.PathLike,
    class_names: Sequence[str] | None = None,
    *,
    separator: str | None = None,
    name: str | None = None,
    split: str = "test",
) -> LabelledImages:
    """Images named in a table with the columns `path`, `label` and, if there are groups, `group`.

    Args:
        path: a .csv file with a header; a .tsv file is parted by tabs. Paths are relative to it.
        class_names: K names. None: all labels, in alphabetical order.
        separator: what parts the labels of an image of several classes, such as ";". None: one label per image.
        name: of the data set. None: that of the file.
        split: what to call this part.

    Returns:
        `LabelledImages`; the ids are the paths as the table has them.

    Raises:
        FileNotFoundError: no such table.
        ValueError: a column is missing, a row without path or label; see `LabelledImages`.
    """
    path = Path(path)
    with open(path, encoding="utf-8-sig", newline="") as file:
        table = DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        if missing := {"path", "label"} - set(table.fieldnames or ()):
            raise ValueError(
                f"A table must have the columns path and label. Received: {path} without {sorted(missing)}, "
                f"with {table.fieldnames}."
            )
        rows = list(table)
    for number, row in enumerate(rows, start=1):
        if not row["path"] or (not row["label"] and separator is None):
            raise ValueError(f"Every row must have a path and a label. Received: row {number} of {path}: {row}.")
    labels = [row["label"] for row in rows]
    if separator is not None:
        parts = [(part.strip() for part in (label or "").split(separator)) for label in labels]
        labels = [{part: 1 for part in of_image if part} for of_image in parts]
    known = labels if separator is None else [label for of_image in labels for label in of_image]
    return LabelledImages(
        _files([str(path.parent / row["path"]) for row in rows]),
        labels,
        [row["path"] for row in rows],
        sorted(set(known)) if class_names is None else class_names,
        groups=[row.get("group") or "" for row in rows],
        name=name or path.stem,
        split=split,
    )


def tars(
    shards: str | os.PathLike | Sequence,
    class_names: Sequence[str] | None = None,
    *,
    label: str = "name",
    group: str | None = None,
    name: str | None = None,
    split: str = "test",
) -> LabelledImages:
    """Images of WebDataset tars, `<key>.jpg` (png, ...) beside `<key>.json`, which has the label.

    Args:
        shards: .tar files: a path, a glob, braces such as `{00000..00003}.tar`, or a list of these.
        class_names: K names. None: all labels, in alphabetical order.
        label: the key of the class name in the .json. Several names in a list make the data set one of several classes.
        group: the key of the group. None: no groups.
        name: of the data set. None: that of the folder of the first shard.
        split: what to call this part.

    Returns:
        `LabelledImages`; the ids are the keys.

    Raises:
        FileNotFoundError: no such shard.
        ValueError: no tar, no such key in a .json, an image without .json; see `LabelledImages`.
    """
    paths = find_files(shards)
    members = TarImages(paths)
    labels = members.values(label)
    several = isinstance(labels[0], list)
    if several:
        labels = [{str(part): 1 for part in of_image} for of_image in labels]
    else:
        labels = list(map(str, labels))
    known = [part for of_image in labels for part in of_image] if several else labels
    return LabelledImages(
        members.read,
        labels,
        members.keys,
        sorted(set(known)) if class_names is None else class_names,
        groups=None if group is None else list(map(str, members.values(group))),
        name=name or Path(paths[0]).resolve().parent.name,
        split=split,
    )


def digits(split: str = "test") -> LabelledImages:
    """The 1,797 handwritten digits that come with scikit-learn, 8 x 8 grey levels.

    Args:
        split: "train", the first 1,200, or "test", the other 597, mostly of other writers.

    Returns:
        `LabelledImages` of the classes "0" to "9".

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: no such split.
    """
    from sklearn.datasets import load_digits

    rows = {"train": slice(0, 1200), "test": slice(1200, None)}.get(split)
    if rows is None:
        raise ValueError(f"`split` must be 'train' or 'test'. Received: split={split!r}.")
    found = load_digits()
    pixels = np.round(found.images[rows] * (255 / 16)).astype(np.uint8)
    numbers = range(*rows.indices(len(found.images)))
    return LabelledImages(
        lambda start: iter(pixels[start:]),
        [str(label) for label in found.target[rows]],
        [f"{number:04d}" for number in numbers],
        list("0123456789"),
        name="digits",
        split=split,
    )


def tfds(
    builder: str,
    split: str,
    *,
    image: str | Callable[[dict], Image] = "image",
    label: str | Callable[[dict, Any], Label] = "label",
    class_names: Sequence[str] | None = None,
    only_occurring: bool = False,
    name: str | None = None,
    data_dir: str | os.PathLike | None = None,
) -> LabelledImages:
    """A split of a data set of tensorflow-datasets, downloaded and prepared if it is not there yet.

    The records are read once for their labels and for the digest of their images, which takes minutes for a million.

    Args:
        builder: its name there, with its configuration: "eurosat/rgb".
        split: as there: "test", "train[:10000]", "train+validation".
        image: the feature that is the image, or a function of an example (images as bytes) that gives one.
        label: the feature that is the class, or a function of an example and of the builder's features that gives the
            class name, or for several classes a dict (see `LabelledImages`). A function needs `class_names`.
        class_names: K names. None: those of the builder.
        only_occurring: whether to leave out classes without an image, as of ImageNet-A, whose builder has all 1,000.
        name: of the data set. None: `builder`.
        data_dir: where tensorflow-datasets keeps its files. None: its own default.

    Returns:
        `LabelledImages`; the ids are those of tensorflow-datasets.

    Raises:
        ImportError: tensorflow-datasets is not installed.
        AssertionError: of tensorflow-datasets: files that must be downloaded by hand are not there.
        ValueError: see `LabelledImages`.
    """
    records = Records(builder, split, image, data_dir)
    if not callable(label):
        feature, key = records.features[label], label
        class_names = feature.names if class_names is None else class_names
        # A builder's numbers are those of its own names.
        label = lambda example, _: feature.int2str(int(example[key]))  # noqa: E731
    elif class_names is None:
        raise ValueError("A function that gives labels needs `class_names`. Received: class_names=None.")
    labels, ids, content = [], [], hashlib.sha256()
    for example in records.examples(name or builder):
        labels.append(label(example, records.features))
        ids.append(records.id(example, len(ids)))
        content.update(_image_digest(records.image(example)))
    if only_occurring:
        occurring = {part for each in labels for part in ([each] if isinstance(each, str) else each)}
        class_names = [class_name for class_name in class_names if class_name in occurring]
    return LabelledImages(
        records.read, labels, ids, class_names, name=name or builder, split=split, content=content.hexdigest()
    )
