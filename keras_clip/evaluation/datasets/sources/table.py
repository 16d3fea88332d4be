"""Labelled images named in a table: .csv or .tsv."""

import os
from collections.abc import Sequence
from pathlib import Path

from keras_clip.data.readers.table import TableReader
from keras_clip.evaluation.datasets.labelled_images import LabelledImages
from keras_clip.evaluation.datasets.sources.reader import Columns


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
        ValueError: a column is missing, a row without path or label, or with more values than columns; see
            `LabelledImages`.
    """
    path = Path(path)

    def several(row: dict[str, str]) -> dict[str, int]:
        return {label.strip(): 1 for label in row["label"].split(separator) if label.strip()}

    reader = TableReader([str(path)], captions=False)
    label = "label" if separator is None else several
    columns = Columns(reader, label, lambda row: row.get("group", ""), "each row of the table")
    return columns.labelled_images(class_names, name=name or path.stem, split=split, empty_classes=empty_classes)
