"""Labelled images in one folder per class."""

import os
from collections.abc import Sequence
from pathlib import Path

from keras_clip.data.readers.folder import FolderReader
from keras_clip.data.skipped import SkippedSamples
from keras_clip.evaluation.datasets.labelled_images import LabelledImages
from keras_clip.evaluation.datasets.sources.reader import Columns


def folder_per_class(
    folder: str | os.PathLike,
    class_names: Sequence[str] | None = None,
    *,
    name: str | None = None,
    split: str = "test",
    empty_classes: str = "refuse",
) -> LabelledImages:
    """Reads images in one folder per class: `<folder>/<class>/**/<image>`.

    Which files are images, and which links are followed, `data.readers.folder.FolderReader` says. `skipped` of the
    images counts and names the other files.

    Args:
        folder: folder that contains the folders of the classes.
        class_names: the folders to read, in this order. None: all, in alphabetical order.
        name: name of the dataset. None: that of the folder.
        split: name of the split.
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
    reader = FolderReader([str(root)], captions=False)
    # A file beside the folders of the classes gets a label that no folder has.
    columns = Columns(reader, lambda metadata: metadata["class"] or ".")
    rows = {class_name: [] for class_name in class_names}
    skipped = SkippedSamples(str(root))
    skipped.merge(reader.skipped)
    for row, class_name in enumerate(columns.labels):
        if class_name in rows:
            rows[class_name].append(row)
        elif class_name == ".":
            skipped.add(reader.name(row), "in no folder of a class")
    skipped.warn_of_files()
    return columns.labelled_images(
        class_names,
        [row for of_class in rows.values() for row in of_class],
        name=name or root.name,
        split=split,
        empty_classes=empty_classes,
        skipped=skipped,
    )
