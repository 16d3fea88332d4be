"""Labelled images in one folder per class."""

import os
from collections.abc import Sequence
from pathlib import Path

from keras_clip.data.readers.paths import IMAGE_EXTENSIONS
from keras_clip.evaluation.datasets.labelled_images import LabelledImages


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
        lambda start: map(str, paths[start:]),
        labels,
        ids,
        class_names,
        name=name or root.name,
        split=split,
        empty_classes=empty_classes,
    )
