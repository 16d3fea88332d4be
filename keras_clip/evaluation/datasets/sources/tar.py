"""Images of WebDataset tars with what the `.json` beside each says of it."""

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from keras_clip.data.readers import find_files
from keras_clip.data.readers.paths import IMAGE_EXTENSIONS
from keras_clip.evaluation.datasets.labelled_images import LabelledImages

# A record is a few names and numbers.
_MAX_RECORD = 1 << 20


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


class TarImages:
    """The samples of some tars, in their order.

    Args:
        paths: uncompressed tars with members `<key>.<image extension>` and `<key>.json`.

    Raises:
        ValueError: no tar, or an image without a .json that is a JSON object of at most a MiB.
    """

    def __init__(self, paths: Sequence[str]):
        self._spans, self._records, self.keys = [], [], []
        for path in paths:
            try:
                with tarfile.open(path, "r:") as tar:
                    self._add(path, tar)
            except tarfile.TarError as error:
                raise ValueError(
                    f"A shard must be a whole, uncompressed tar file. Received: {path}: {error}."
                ) from error
        if not self.keys:
            raise ValueError(f"The shards must hold images. Received: {list(paths)[:3]} with none.")

    def _add(self, path: str, tar: tarfile.TarFile) -> None:
        images, records = {}, {}
        for member in tar:
            name = PurePosixPath(member.name)
            key, _, extension = name.name.partition(".")
            key = str(name.with_name(key)) if key else ""
            if not key or not member.isfile():
                continue
            if extension.lower() in IMAGE_EXTENSIONS:
                images[key] = (path, member.offset_data, member.size)
            elif extension.lower() == "json" and member.size <= _MAX_RECORD:
                records[key] = _parse(tar.extractfile(member).read())
        for key, span in images.items():
            if not isinstance(records.get(key), dict):
                raise ValueError(
                    "Every image must have a .json beside it, with an object in it. "
                    f"Received: {path} without that of {key!r}."
                )
            self._spans.append(span)
            self._records.append(records[key])
            self.keys.append(key)

    def values(self, name: str) -> list[Any]:
        """What the records have under that name.

        Raises:
            ValueError: a record has nothing there.
        """
        for key, record in zip(self.keys, self._records, strict=True):
            if record.get(name) is None:
                raise ValueError(
                    f"Every .json must have {name!r}. Received: that of {key!r} with {sorted(record)}. "
                    "Name another of its keys."
                )
        return [record[name] for record in self._records]

    def read(self, start: int) -> Iterator[bytes]:
        """The files of the images from the `start`-th on."""
        path, file = None, None
        try:
            for shard, offset, size in self._spans[start:]:
                if shard != path:
                    if file is not None:
                        file.close()
                    path, file = shard, open(shard, "rb")
                yield os.pread(file.fileno(), size, offset)
        finally:
            if file is not None:
                file.close()


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
