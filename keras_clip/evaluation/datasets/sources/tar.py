"""Images of WebDataset tars with what the `.json` beside each says of it."""

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from keras_clip.data.shard_index import IMAGE_EXTENSIONS

# A record is a few names and numbers.
_MAX_RECORD = 1 << 20


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
