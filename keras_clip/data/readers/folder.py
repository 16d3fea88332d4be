"""Folders of image files, with the caption of `<name>.jpg` in `<name>.txt` beside it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_clip.data.readers.byte_strings import ByteStrings
from keras_clip.data.readers.mapping import Mapping, require_no_mapping
from keras_clip.data.readers.paths import IMAGE_EXTENSIONS, file_bytes
from keras_clip.data.readers.reader import Captions, Reader


class FolderReader(Reader):
    """The image files of a folder and of the folders below it, links included. Hidden files are passed over.

    The metadata are `{"class": name}`, the first folder on the way to the file, "" where there is none. Memory holds
    the path and the caption of each image.

    Args:
        paths: one folder.
        mapping: None; the names of files are fixed.
        captions: whether samples are pairs. If False, a `.txt` file without an image is no sample.
        extensions: those of image files, in lower case.

    Raises:
        ValueError: several folders, a mapping, or, if samples are pairs, no images or no `.txt` files.
    """

    def __init__(
        self,
        paths: Sequence[str],
        mapping: Mapping | None = None,
        captions: bool = True,
        extensions: Sequence[str] = IMAGE_EXTENSIONS,
    ):
        require_no_mapping(mapping, "folder")
        if len(paths) != 1:
            raise ValueError(f"A source must be one folder. Received: {list(paths)}.")
        self._root = str(Path(paths[0]))
        images, texts, others = _sort_files(self._root, extensions)
        if captions and (not images or not texts):
            raise ValueError(
                f"A folder must hold images ({', '.join(extensions)}) and a .txt file of the same name for each. "
                f"Received: {self._root} with {len(images)} images, {len(texts)} .txt files, and by extension "
                f'{others}. For shards give their names, e.g. source="<folder>/*.tar".'
            )
        beside = [file_bytes(texts[stem]) if stem in texts else b"" for stem in images.values()]
        with_image = set(images.values())
        # A text without an image is a sample too, so that it is counted and named.
        lonely = [path for stem, path in texts.items() if captions and stem not in with_image]
        self._count = len(images)
        self._paths = ByteStrings.pack(map(os.fsencode, [*images, *lonely]))
        self._captions = ByteStrings.pack([*beside, *map(file_bytes, lonely)])

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        """The path of the image; that of the text if it has none."""
        return os.fsdecode(self._paths[index])

    def keys(self, ids: np.ndarray) -> list[str]:
        """The paths below the folder, with slashes."""
        return [Path(self.name(index)).relative_to(self._root).as_posix() for index in ids.tolist()]

    def read(self, ids: np.ndarray) -> tuple[list[bytes], list[Captions]]:
        """The bytes of the image files, and the texts beside them."""
        images = [file_bytes(self._paths[index]) if index < self._count else b"" for index in ids.tolist()]
        return images, self.captions(ids)

    def captions(self, ids: np.ndarray) -> list[Captions]:
        """The text of each `.txt` file as one caption."""
        return [[self._captions[index]] for index in ids.tolist()]

    def metadata(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """The first folder on the way to each file, as its class."""
        return [{"class": folder} for folder in (key.rpartition("/")[0].partition("/")[0] for key in self.keys(ids))]


def _sort_files(root: str, extensions: Sequence[str]) -> tuple[dict[str, str], dict[str, str], dict[str, int]]:
    """{image: its path without extension}, {the like: `.txt` file}, and the number of other files by extension."""
    images, texts, others = {}, {}, {}
    for path in _files(root):
        stem, extension = os.path.splitext(path)
        extension = extension.lower().lstrip(".")
        if extension in extensions:
            images[path] = stem
        elif extension == "txt":
            texts[stem] = path
        else:
            others[extension] = others.get(extension, 0) + 1
    return images, texts, others


def _files(folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """The files of a folder and of those below it, in the order of their names; links to folders above end there."""
    place = os.path.realpath(folder)
    if place in above:
        return
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            yield from _files(path, (*above, place))
        elif not name.startswith("."):
            yield path
