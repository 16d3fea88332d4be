"""Images of WebDataset tars with what the `.json` beside each says of it."""

import os
from collections.abc import Sequence
from pathlib import Path

from keras_clip.data.readers import find_files
from keras_clip.data.readers.tar import TarReader
from keras_clip.evaluation.datasets.labelled_images import LabelledImages
from keras_clip.evaluation.datasets.sources.reader import Columns


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
    columns = Columns(TarReader(paths, captions=False), label, group, "the .json beside each image")
    name = name or Path(paths[0]).resolve().parent.name
    return columns.labelled_images(class_names, name=name, split=split, empty_classes=empty_classes)
