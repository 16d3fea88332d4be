"""Labelled images from where they are stored: tensorflow-datasets, folders, tables, WebDataset tars, scikit-learn.

Labels are names. A source may number its classes as it likes: what is looked up is the name, never the number.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from csv import DictReader
from pathlib import Path
from typing import Any

import numpy as np

from keras_clip.data.shard_index import IMAGE_EXTENSIONS
from keras_clip.data.sources import find_files
from keras_clip.evaluation.datasets.labelled_images import Image, Label, LabelledImages, image_digest
from keras_clip.evaluation.datasets.sources.tar import TarImages
from keras_clip.evaluation.datasets.sources.tensorflow_datasets import Records


def _files(paths: Sequence[str]) -> Callable[[int], Iterator[str]]:
    return lambda start: iter(paths[start:])


def folder_per_class(
    folder: str | os.PathLike,
    class_names: Sequence[str] | None = None,
    *,
    name: str | None = None,
    split: str = "test",
    empty_classes: str = "refuse",
) -> LabelledImages:
    """Images in one folder per class: `<folder>/<class>/**/<image>`.

    Args:
        folder: where they are.
        class_names: the folders to read, in this order. None: all, in alphabetical order.
        name: of the data set. None: that of the folder.
        split: what to call this part.
        empty_classes: what to do with a class without an image: "refuse", "keep" or "drop".

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
    absent = sorted(set(class_names) - set(found))
    if absent and empty_classes == "refuse":
        raise ValueError(f"Every class must have a folder. Received: {root} without {absent[:5]}.")
    paths, labels = [], []
    for class_name in class_names:
        for path in sorted((root / class_name).rglob("*")):
            if path.suffix.lower().lstrip(".") in (*IMAGE_EXTENSIONS, "ppm") and not path.name.startswith("."):
                paths.append(path)
                labels.append(class_name)
    ids = [path.relative_to(root).as_posix() for path in paths]
    return LabelledImages(
        _files(list(map(str, paths))),
        labels,
        ids,
        class_names,
        name=name or root.name,
        split=split,
        empty_classes=empty_classes,
    )


def csv(
    path: str | os.PathLike,
    class_names: Sequence[str] | None = None,
    *,
    separator: str | None = None,
    name: str | None = None,
    split: str = "test",
    empty_classes: str = "refuse",
) -> LabelledImages:
    """Images named in a table with the columns `path`, `label` and, if there are groups, `group`.

    Args:
        path: a .csv file with a header; a .tsv file is parted by tabs. Paths are relative to it.
        class_names: K names. None: all labels, in alphabetical order.
        separator: what parts the labels of an image of several classes, such as ";". None: one label per image.
        name: of the data set. None: that of the file.
        split: what to call this part.
        empty_classes: what to do with a class without an image: "refuse", "keep" or "drop".

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
        empty_classes=empty_classes,
    )


def tars(
    shards: str | os.PathLike | Sequence,
    class_names: Sequence[str] | None = None,
    *,
    label: str = "name",
    group: str | None = None,
    name: str | None = None,
    split: str = "test",
    empty_classes: str = "refuse",
) -> LabelledImages:
    """Images of WebDataset tars, `<key>.jpg` (png, ...) beside `<key>.json`, which has the label.

    Args:
        shards: .tar files: a path, a glob, braces such as `{00000..00003}.tar`, or a list of these.
        class_names: K names. None: all labels, in alphabetical order.
        label: the key of the class name in the .json. Several names in a list make the data set one of several classes.
        group: the key of the group. None: no groups.
        name: of the data set. None: that of the folder of the first shard.
        split: what to call this part.
        empty_classes: what to do with a class without an image: "refuse", "keep" or "drop".

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
        empty_classes=empty_classes,
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
    empty_classes: str = "refuse",
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
        empty_classes: what to do with a class without an image: "refuse", "keep" or "drop", as of ImageNet-A, whose
            builder names 1,000 and has 200.
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
        content.update(image_digest(records.image(example)))
    images = LabelledImages(
        records.read, labels, ids, class_names, name=name or builder, split=split, empty_classes=empty_classes
    )
    images._content = content.hexdigest()
    return images
