"""Labelled images named in a table: .csv or .tsv."""

import os
from collections.abc import Sequence
from csv import DictReader
from pathlib import Path

from keras_clip.evaluation.datasets.labelled_images import LabelledImages


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
    paths = [str(path.parent / row["path"]) for row in rows]
    return LabelledImages(
        lambda start: iter(paths[start:]),
        labels,
        [row["path"] for row in rows],
        sorted(set(known)) if class_names is None else class_names,
        groups=[row.get("group") or "" for row in rows],
        name=name or path.stem,
        split=split,
        empty_classes=empty_classes,
    )
