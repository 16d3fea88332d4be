"""Labelled images named in a table: .csv, .tsv or .jsonl."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_clip.data.readers import find_files
from keras_clip.data.readers.table import TableReader
from keras_clip.evaluation.datasets.labelled_images import LabelledImages
from keras_clip.evaluation.datasets.sources.reader import Columns


def csv(
    path: str | os.PathLike | Sequence,
    class_names: Sequence[str] | None = None,
    *,
    separator: str | None = None,
    delimiter: str | None = None,
    image: str | None = None,
    label: str = "label",
    group: str = "group",
    name: str | None = None,
    split: str = "test",
    empty_classes: str = "refuse",
) -> LabelledImages:
    """Images named in a table with columns of paths, labels and, if there are groups, groups.

    Upper and lower case of the names of columns do not matter, nor do spaces around labels.

    Args:
        path: a .csv or .tsv file with a header, or a .jsonl file of objects; a glob, braces, or a list of these. Paths
            in a table are relative to it.
        class_names: K names. None: all labels, in alphabetical order.
        separator: what parts the labels of an image of several classes, such as ";". None: one label per image. Labels
            in a list of JSON are several with any separator.
        delimiter: what separates the columns. None: tabs in a .tsv, otherwise commas, tabs, semicolons or bars,
            whichever give the columns that are needed.
        image: the column of paths. None: `path`, or another usual name (see `image_text_pairs`).
        label: the column of labels. In JSON it may be a list of several.
        group: the column of groups, if there is one.
        name: of the dataset. None: that of the first file.
        split: what to call this part.
        empty_classes: what to do with a class without an image: "refuse", "keep" or "drop".

    Returns:
        `LabelledImages`; the ids are the paths as the table has them.

    Raises:
        FileNotFoundError: no such table.
        ValueError: a column is missing or there twice, a row without path or label, or with more values than columns;
            see `LabelledImages`.
    """
    if separator is not None and not separator:
        raise ValueError(f"`separator` must be a text, or None for one label per image. Received: {separator!r}.")
    paths = find_files(path)
    reader = TableReader(paths, None if image is None else (image, None), captions=False, delimiter=delimiter)
    label, group = reader.column(label), reader.column(group)

    def several(row: dict[str, Any]) -> dict[str, int]:
        value = row[label]
        # In JSON the labels may be in a list, or be numbers.
        parts = value if isinstance(value, list) else [] if value is None else str(value).split(separator)
        return {str(part).strip(): 1 for part in parts if part is not None and str(part).strip()}

    columns = Columns(
        reader,
        label if separator is None else several,
        lambda row: "" if row.get(group) is None else row[group],
        "each row of the table",
    )
    return columns.labelled_images(
        class_names, name=name or Path(paths[0]).stem, split=split, empty_classes=empty_classes
    )
