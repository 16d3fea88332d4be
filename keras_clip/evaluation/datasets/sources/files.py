"""Labelled images of files of any form, each form with the names of labels that are usual for it."""

import os
from collections.abc import Sequence
from typing import Any

from keras_clip.data.readers.forms import parts_of
from keras_clip.evaluation.datasets.labelled_images import LabelledImages
from keras_clip.evaluation.datasets.sources.folder import folder_per_class
from keras_clip.evaluation.datasets.sources.reader import from_reader
from keras_clip.evaluation.datasets.sources.table import csv
from keras_clip.evaluation.datasets.sources.tar import tars


def from_files(
    source: str | os.PathLike | Sequence,
    class_names: Sequence[str] | None = None,
    *,
    label: str | None = None,
    group: str | None = None,
    image: str | None = None,
    delimiter: str | None = None,
    name: str | None = None,
    split: str = "test",
    empty_classes: str = "refuse",
) -> LabelledImages:
    """Reads labelled images from files of any form that `image_text_pairs` reads; the same files decide the form.

    A folder is read by `folder_per_class`, tables by `csv`, tars by `tars`, and other forms or several of them by
    `from_reader`, with the defaults of these functions.

    Args:
        source: a path, a glob, braces such as `{00000..00003}.tar`, or a list of these.
        class_names: K names. None: all labels, in alphabetical order.
        label: the column, the feature or the key of the .json with the class, or "cls". None: the usual one. Of a
            folder per class, the folders are the labels.
        group: the column, the feature or the key of the group. None: "group" of tables that have it, else no groups.
        image: the column or feature of the image, or the extension of the images of tars and folders. None: the usual
            ones.
        delimiter: what separates the columns of tables; other forms do not need it. None: see `csv`.
        name: of the dataset. None: see these functions.
        split: what to call this part.
        empty_classes: what to do with a class without an image: "refuse", "keep" or "drop".

    Returns:
        `LabelledImages`.

    Raises:
        FileNotFoundError: no such file.
        TypeError, ValueError: files of no known form; see these functions.
    """
    forms = list(dict.fromkeys(part.form.name for part in parts_of(source)))
    options: dict[str, Any] = {"name": name, "split": split, "empty_classes": empty_classes}
    if forms == ["folder"] and image is None and isinstance(source, (str, os.PathLike)) and os.path.isdir(source):
        return folder_per_class(source, class_names, **options)
    if forms == ["table"]:
        groups = {} if group is None else {"group": group}
        return csv(source, class_names, label=label or "label", image=image, delimiter=delimiter, **groups, **options)
    if forms == ["tar"]:
        return tars(source, class_names, label=label, group=group, image=image, **options)
    mapping = None if image is None else (image, None)
    delimiter = delimiter if "table" in forms else None
    return from_reader(source, class_names, label=label, group=group, mapping=mapping, delimiter=delimiter, **options)
