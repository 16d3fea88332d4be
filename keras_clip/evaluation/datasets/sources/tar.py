"""Labelled images of WebDataset tars; labels come from `.json` or `.cls`."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from keras_clip.data.readers import find_files
from keras_clip.data.readers.tar import TarReader
from keras_clip.evaluation.datasets.labelled_images import Label, LabelledImages
from keras_clip.evaluation.datasets.sources.reader import Columns, usual_label


def tars(
    shards: str | os.PathLike | Sequence,
    class_names: Sequence[str] | None = None,
    *,
    label: str | Callable[[dict], Label] | None = None,
    group: str | None = None,
    image: str | None = None,
    name: str | None = None,
    split: str = "test",
    empty_classes: str = "refuse",
) -> LabelledImages:
    """Images of WebDataset tars, `<key>.jpg` (png, ...) beside `<key>.json` or `<key>.cls`, which has the label.

    Args:
        shards: .tar files: a path, a glob, braces such as `{00000..00003}.tar`, or a list of these.
        class_names: K names. None: all labels, in alphabetical order. The numbers of `.cls` files are names too, but if
            they are not among `class_names`, they are places in them.
        label: the key of the class name in the .json, or "cls", or a function of the .json's object. Several names in a
            list make the dataset one of several classes. None: "name", or "cls" if there is only that.
        group: the key of the group. None: no groups.
        image: the extension of the images, if there are several images of a key. None: the first.
        name: of the dataset. None: that of the folder of the first shard.
        split: what to call this part.
        empty_classes: what to do with a class without an image: "refuse", "keep" or "drop".

    Returns:
        `LabelledImages`; the ids are the keys, after the name of the shard if a key occurs in several shards.

    Raises:
        FileNotFoundError: no such shard.
        ValueError: a file that is no tar, a .json without this key, or an image without .json; see `LabelledImages`.
    """
    paths = find_files(shards)
    reader = TarReader(paths, None if image is None else (image, None), captions=False)
    reader.skipped.warn_of_files()
    columns = Columns(reader, label or usual_label(reader, ("name", "cls")), group, "the .json beside each image")
    name = name or Path(paths[0]).resolve().parent.name
    return columns.labelled_images(class_names, name=name, split=split, empty_classes=empty_classes)
