"""Reads folders of image files, with the caption of `<name>.jpg` in `<name>.txt` beside it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_clip.data.readers.brief import brief
from keras_clip.data.readers.elements.image_formats import (
    IMAGE_EXTENSIONS,
    as_extension,
    is_unnamed_image,
    why_passed_over,
)
from keras_clip.data.readers.elements.mapping import Mapping, names_of
from keras_clip.data.readers.reader import Captions, Reader
from keras_clip.data.readers.storage.byte_strings import ByteStrings
from keras_clip.data.readers.storage.paths import file_bytes
from keras_clip.data.readers.storage.stamps import digest_of, file_stamp
from keras_clip.data.skipped import SkippedSamples


class FolderReader(Reader):
    """The image files of a folder and of the folders below it; a folder that links lead to is read once.

    A file is an image if it has the extension of a format that the library reads, or begins like one. Hidden files and
    folders are passed over. The metadata are `{"class": name}`, the first folder on the way to the file, "" where there
    is none. Memory holds the path and the caption of each image.

    Args:
        paths: one folder.
        mapping: the extensions of the image files and of the files with their captions. None: all images, and `.txt`.
        captions: whether samples are pairs. If False, a text without an image is no sample.

    Raises:
        ValueError: several folders, a mapping by function, or, if samples are pairs, no images or no texts.
    """

    def __init__(self, paths: Sequence[str], mapping: Mapping | None = None, captions: bool = True):
        if len(paths) != 1:
            raise ValueError(f"A source must be one folder. Received: {brief(list(paths))}.")
        wanted = tuple(map(as_extension, names) for names in names_of(mapping, IMAGE_EXTENSIONS, ("txt",)))
        self._root = str(Path(paths[0]))
        self.skipped = SkippedSamples(self._root)
        files = _Files(self._root, *map(tuple, wanted), sniff=mapping is None or mapping[0] is None)
        if captions and (not files.images or not files.texts):
            raise ValueError(
                "A folder must hold images (.jpg, .png, ...) and a .txt file of the same name for each. Received: "
                f"{self._root} with {len(files.images)} images, {len(files.texts)} texts, and by extension "
                f'{brief(files.others)}. For shards give their names, e.g. source="<folder>/*.tar"; if captions have '
                'another extension, mapping=("jpg", "<extension>").'
            )
        beside = [file_bytes(files.texts[stem]) if stem in files.texts else b"" for stem in files.images.values()]
        with_image = set(files.images.values())
        # A text without an image is a sample too, so that it is counted and named.
        lonely = [path for stem, path in files.texts.items() if stem not in with_image]
        if not captions:
            files.passed_over += [(path, "not an image") for path in lonely]
            lonely = []
        for path, reason in files.passed_over:
            self.skipped.add(path, reason)
        self._count = len(files.images)
        self._paths = ByteStrings.pack(map(os.fsencode, [*files.images, *lonely]))
        self._captions = ByteStrings.pack([*beside, *map(file_bytes, lonely)])

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        """Returns the path of the image, or of the text if the sample has no image."""
        return os.fsdecode(self._paths[index])

    def keys(self, ids: np.ndarray) -> list[str]:
        """Returns the paths relative to the folder, with slashes."""
        return [Path(self.name(index)).relative_to(self._root).as_posix() for index in ids.tolist()]

    def read(self, ids: np.ndarray) -> tuple[list[bytes], list[Captions]]:
        """Returns the bytes of the image files, and the texts beside them."""
        images = [file_bytes(self._paths[index]) if index < self._count else b"" for index in ids.tolist()]
        return images, self.captions(ids)

    def captions(self, ids: np.ndarray) -> list[Captions]:
        """The text of each file of captions as one caption."""
        return [[self._captions[index]] for index in ids.tolist()]

    def metadata(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """Returns the first folder of the relative path of each file as its class."""
        return [{"class": folder} for folder in (key.rpartition("/")[0].partition("/")[0] for key in self.keys(ids))]

    def image_files(self, ids: np.ndarray) -> tuple[str, list[str]]:
        """Returns the file of each image."""
        return "whole files", [os.fsdecode(self._paths[index]) for index in ids.tolist()]

    def stamp(self, ids: np.ndarray) -> str:
        """Returns a digest of the names, sizes and times of change of the images, and of their captions."""
        return digest_of(
            [key, file_stamp(self._paths[index]), self._captions[index].hex()]
            for key, index in zip(self.keys(ids), ids.tolist(), strict=True)
        )


class _Files:
    """The files of a folder by kind.

    Attributes:
        images: {path: path without extension}.
        texts: {path without extension: path}.
        passed_over: (path, reason) of each other file.
        others: the number of other files by extension.
    """

    def __init__(self, root: str, images: Sequence[str], texts: Sequence[str], sniff: bool):
        self.images: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.passed_over: list[tuple[str, str]] = []
        self.others: dict[str, int] = {}
        for path, problem in sorted(_files(root), key=lambda file: file[0].split(os.sep)):
            stem, extension = os.path.splitext(path)
            extension = as_extension(extension)
            if not problem and extension in texts:
                self.texts[stem] = path
            elif not problem and (extension in images or (sniff and _is_unnamed_image(path, extension))):
                self.images[path] = stem
            else:
                self.passed_over.append((path, problem or why_passed_over(extension)))
                self.others[extension] = self.others.get(extension, 0) + 1


def _is_unnamed_image(path: str, extension: str) -> bool:
    def head(size: int) -> bytes:
        with open(path, "rb") as file:
            return file.read(size)

    try:
        return is_unnamed_image(extension, head)
    except PermissionError:
        return False


def _files(root: str) -> Iterator[tuple[str, str]]:
    """Yields (path, reason why it cannot be used or "") of each file of a folder and its subfolders.

    A folder is read once, however many links lead to it: in its own place, if that is below the root.
    """
    known: set[str] = set()
    folders, links = [root], []
    while folders or links:
        is_link = not folders
        folder = links.pop(0) if is_link else folders.pop()
        place = os.path.realpath(folder)
        if place in known:
            yield folder, "link to a folder that is read already"
            continue
        known.add(place)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    if entry.name.startswith("."):
                        yield entry.path, "hidden folder"
                    else:
                        (links if entry.is_symlink() else folders).append(entry.path)
                elif entry.name.startswith("."):
                    yield entry.path, "hidden file"
                elif entry.is_file():
                    yield entry.path, ""
                else:
                    yield entry.path, "link without target" if entry.is_symlink() else "not a regular file"
        if not folders:
            links.sort()
