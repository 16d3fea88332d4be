"""Readers of image-caption pairs: one class for each form in which they are stored.

A reader knows how many samples there are, and reads any of them by number, in blocks: the image as the bytes of its
file (or an array), the captions as bytes. It decodes nothing. What a sample lacks comes back as `b""`, for the pipeline
to skip and count; what is wrong with the whole source raises.
"""

import csv
import io
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from keras_clip.data.shard_index import (
    IMAGE_EXTENSIONS,
    ByteStrings,
    ShardIndex,
    has_index,
    load_index,
    walk_tar,
    walk_tfrecord,
)

_PATH_COLUMNS = ("path", "image", "image_path", "filepath", "file_path", "filename", "file_name", "file")
_CAPTION_COLUMNS = ("caption", "captions", "text", "title")
_RECORD_IMAGES = (*IMAGE_EXTENSIONS, "image", "image/encoded")
_RECORD_CAPTIONS = ("txt", "caption", "text", "image/caption")
_OPEN_FILES = 256

Captions = list[bytes]


class Reader(Protocol):
    """What the pipeline asks of a source."""

    def __len__(self) -> int:
        """The number of samples, broken ones included."""

    def read(self, ids: np.ndarray) -> tuple[list[bytes], list[Captions]]:
        """Image file and captions of each sample; `b""` and `[]` where there is none."""

    def name(self, index: int) -> str:
        """What a person finds the sample by: file and key."""


class _Shards:
    """Files that hold many samples each, with an index of where."""

    def __init__(self, paths: Sequence[str], walk: Callable[[str], ShardIndex]):
        self.paths = list(paths)
        indexes = [load_index(path, walk) for path in _with_progress(self.paths)]
        self.shards = np.repeat(np.arange(len(paths)), [len(index.spans) for index in indexes])
        self.spans = np.concatenate([index.spans for index in indexes])
        self.is_json = np.concatenate([index.is_json for index in indexes])
        self.keys = ByteStrings.concatenate([index.keys for index in indexes])
        self._files: OrderedDict[int, io.FileIO] = OrderedDict()

    def __len__(self) -> int:
        return len(self.spans)

    def name(self, index: int) -> str:
        return f"{self.paths[self.shards[index]]}: {os.fsdecode(self.keys[index])}"

    def _bytes(self, ids: np.ndarray, part: int) -> list[bytes]:
        """That part of each sample. The loop over them runs in C, and sets the interpreter free while it reads."""
        files = {shard: self._file(shard) for shard in np.unique(self.shards[ids]).tolist()}
        descriptors = [files[shard].fileno() for shard in self.shards[ids].tolist()]
        offsets, sizes = self.spans[ids, part].T.tolist()
        parts = list(map(os.pread, descriptors, sizes, offsets))
        if list(map(len, parts)) != sizes:
            short = next(k for k, part in enumerate(parts) if len(part) != sizes[k])
            raise OSError(
                "A shard must stay as it is while it is read. "
                f"Received: {self.name(ids[short])}: {len(parts[short])} of {sizes[short]} bytes. Start again."
            )
        return parts

    def _file(self, shard: int) -> io.FileIO:
        """An open file. One that leaves the store is closed when the last thread that reads it lets it go."""
        file = self._files.pop(shard, None) or open(self.paths[shard], "rb", buffering=0)
        self._files[shard] = file
        if len(self._files) > _OPEN_FILES:
            self._files.popitem(last=False)
        return file


class TarShards(_Shards):
    """WebDataset tars: see `walk_tar` for the members of a sample."""

    def __init__(self, paths: Sequence[str]):
        super().__init__(paths, walk_tar)

    def read(self, ids: np.ndarray) -> tuple[list[bytes], list[Captions]]:
        captions = [[text] for text in self._bytes(ids, 1)]
        for row in np.flatnonzero(self.is_json[ids]):
            captions[row] = _json_captions(captions[row][0])
        return self._bytes(ids, 0), captions


def _json_captions(text: bytes) -> Captions:
    try:
        record = json.loads(text)
    except ValueError:
        return [text] if not _is_utf8(text) else []
    captions = (
        next((record[name] for name in _CAPTION_COLUMNS if name in record), []) if isinstance(record, dict) else []
    )
    return _as_captions(captions)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


class RecordShards(_Shards):
    """TFRecords of `tf.train.Example` with an encoded image and its caption or captions, as img2dataset writes them."""

    def __init__(self, paths: Sequence[str], mapping: tuple[str, str] | None = None):
        super().__init__(paths, walk_tfrecord)
        self.image_names = (mapping[0],) if mapping else _RECORD_IMAGES
        self.caption_names = (mapping[1],) if mapping else _RECORD_CAPTIONS
        if len(self):
            self._require_features()

    def _require_features(self) -> None:
        features = self._features(self._bytes(np.array([0]), 0)[0])
        for wanted in (self.image_names, self.caption_names):
            if not any(name in features for name in wanted):
                raise ValueError(
                    f"The records must have a feature named {' or '.join(map(repr, wanted))}. "
                    f"Received: {self.paths[0]} with the features {sorted(features)}. "
                    'Name yours: mapping=("<image>", "<caption>").'
                )

    @staticmethod
    def _features(record: bytes) -> dict[str, Any]:
        import tensorflow as tf
        from google.protobuf.message import DecodeError

        try:
            return tf.train.Example.FromString(record).features.feature
        except DecodeError:
            return {}

    def read(self, ids: np.ndarray) -> tuple[list[bytes], list[Captions]]:
        rows = [self._features(record) for record in self._bytes(ids, 0)]
        captions = [_values(row, self.caption_names) for row in rows]
        return [(_values(row, self.image_names) or [b""])[0] for row in rows], captions

    def name(self, index: int) -> str:
        key = _values(self._features(self._bytes(np.array([index]), 0)[0]), ("key",))
        return f"{self.paths[self.shards[index]]}: {key[0].decode(errors='replace')}" if key else super().name(index)


def _values(features: dict[str, Any], names: Sequence[str]) -> list[bytes]:
    """The strings of the first of these features that has any."""
    for name in names:
        if name in features and any(features[name].bytes_list.value):
            return list(features[name].bytes_list.value)
    return []


class ImageFiles:
    """Image files, and a caption for each (`""`: none)."""

    def __init__(self, paths: Sequence[bytes], captions: Sequence[bytes]):
        self.paths, self.captions = ByteStrings.pack(paths), ByteStrings.pack(captions)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return os.fsdecode(self.paths[index])

    def read(self, ids: np.ndarray) -> tuple[list[bytes], list[Captions]]:
        return [_file_bytes(self.paths[k]) for k in ids.tolist()], [[self.captions[k]] for k in ids.tolist()]


def _file_bytes(path: bytes) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError):
        return b""  # the rest, a failing disk or a missing permission, is no matter of one sample


def read_tables(tables: Sequence[str], mapping: tuple[str, str] | None = None) -> ImageFiles:
    """The pairs of `.csv` or `.tsv` files: a header, a column of paths (relative to the file), one of captions."""
    paths, captions = [], []
    for table in tables:
        with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t" if table.lower().endswith(".tsv") else ",", strict=True)
            columns = _columns(table, rows.fieldnames or [], mapping)
            try:
                for row in rows:
                    if None in row:
                        raise csv.Error(f"{len(row[None])} more values than columns")
                    path, caption = (row[column] or "" for column in columns)
                    paths.append(os.fsencode(os.path.join(os.path.dirname(table), path)) if path else b"")
                    captions.append(caption.encode("utf-8", "surrogateescape"))
            except csv.Error as error:
                raise ValueError(
                    'A value with a comma, a tab or a quote in it must stand in quotes, as in "a ""fine"" dog". '
                    f"Received: {table}, line {rows.reader.line_num}: {error}."
                ) from error
    return ImageFiles(paths, captions)


def _columns(table: str, header: Sequence[str], mapping: tuple[str, str] | None) -> list[str]:
    path_names, caption_names = ([name] for name in mapping) if mapping else (_PATH_COLUMNS, _CAPTION_COLUMNS)
    folded = {name.strip().lower(): name for name in reversed(header) if name}
    columns = []
    for what, names in (("image paths", path_names), ("captions", caption_names)):
        found = [folded[name.lower()] for name in names if name.lower() in folded]
        if not found:
            raise ValueError(
                f"A table must have a header with a column of {what}: {' or '.join(map(repr, names))}. "
                f'Received: {table} with the columns {list(header)}. Name yours: mapping=("<path>", "<caption>").'
            )
        columns.append(found[0])
    return columns


def read_folder(folder: str) -> ImageFiles:
    """The pairs of a folder and those below it: `<name>.<image extension>` beside `<name>.txt`."""
    images, texts, others = {}, {}, {}
    for path in sorted(Path(folder).rglob("*")):
        extension = path.suffix.lower().lstrip(".")
        if path.name.startswith(".") or path.is_dir():
            continue
        if extension in IMAGE_EXTENSIONS:
            images[path] = path.with_suffix("")
        elif extension == "txt":
            texts[path.with_suffix("")] = path
        else:
            others[extension] = others.get(extension, 0) + 1
    if not images or not texts:
        raise ValueError(
            f"A folder must hold images ({', '.join(IMAGE_EXTENSIONS)}) and a .txt file of the same name for each. "
            f"Received: {folder} with {len(images)} images, {len(texts)} .txt files, and by extension {others}. "
            'For shards give their names, e.g. source="<folder>/*.tar".'
        )
    captions = [os.fsencode(texts[stem]) if stem in texts else b"" for stem in images.values()]
    with_image = set(images.values())
    lonely = [path for stem, path in texts.items() if stem not in with_image]
    return ImageFiles(
        [*map(os.fsencode, images), *(b"" for _ in lonely)],
        [*map(_file_bytes, captions), *map(os.fsencode, lonely)],
    )


class IndexedDataset:
    """Anything with `len()` and `[number]`, e.g. a Hugging Face dataset, and a mapping of its elements to pairs."""

    def __init__(self, dataset: Any, mapping: tuple[str, str] | Callable):
        if not callable(mapping) and len(dataset):
            require_columns(mapping, getattr(dataset, "column_names", None) or dataset[0])
        self.dataset = _undecoded(dataset, mapping)
        self.pair = mapping if callable(mapping) else lambda element: (element[mapping[0]], element[mapping[1]])

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        return f"element {index}"

    def read(self, ids: np.ndarray) -> tuple[list[bytes], list[Captions]]:
        images, captions = [], []
        for index in ids.tolist():
            try:
                image, caption = self.pair(self.dataset[index])
                images.append(_as_image_file(image))
                captions.append(_as_captions(caption))
            except OSError as error:
                # What PIL raises of a broken file: no image, so that the pipeline skips it.
                images.append(f"{type(error).__name__}: {error}".encode())
                captions.append([b"unknown"])
        return images, captions


def require_columns(mapping: tuple[str, str], element: Any) -> None:
    """Raises if the names are none of the element's, or of the given ones."""
    if isinstance(element, (dict, list)) and not set(mapping) <= set(element):
        raise ValueError(
            f"A mapping must name two columns of the dataset, image and caption. Received: mapping={mapping!r} for the "
            f"columns {list(element)}."
        )


def _undecoded(dataset: Any, mapping: tuple[str, str] | Callable) -> Any:
    """A Hugging Face dataset that hands out the files of its images, which the pipeline decodes faster."""
    feature = None if callable(mapping) else (getattr(dataset, "features", None) or {}).get(mapping[0])
    if type(feature).__name__ == "Image" and hasattr(dataset, "cast_column"):
        return dataset.cast_column(mapping[0], type(feature)(decode=False))
    return dataset


def _as_image_file(image: Any) -> bytes:
    """The bytes of an image file from such bytes, a path, Hugging Face's record of both, an array or a PIL image."""
    from PIL import Image

    from keras_clip.data.images import from_array, upright

    if isinstance(image, dict) and {"bytes", "path"} >= set(image):
        image = image.get("bytes") or image.get("path")
    if image is None:
        return b""
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, os.PathLike)):
        return _file_bytes(os.fsencode(image))
    image = upright(image) if isinstance(image, Image.Image) else from_array(image, "an image of the dataset")
    file = io.BytesIO()
    image = image.convert("RGB") if image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "F") else image
    # A bitmap costs no more than copying; what it cannot hold, such as transparency, a PNG can.
    image.save(file, "BMP") if image.mode == "RGB" else image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _as_captions(captions: Any) -> Captions:
    """Captions as bytes; what is not text (None, a number) is no caption."""
    if isinstance(captions, np.ndarray):
        captions = captions.tolist()
    if isinstance(captions, (str, bytes)):
        captions = [captions]
    if not isinstance(captions, (list, tuple)):
        return []
    texts = [text for text in captions if isinstance(text, (str, bytes))]
    return [text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text for text in texts]


def _with_progress(paths: Sequence[str]) -> Sequence[str]:
    """A progress bar where making the indexes takes long enough to wonder."""
    if sum(not has_index(path) for path in paths) < 5:
        return paths
    from tqdm import tqdm

    return tqdm(paths, desc="indexing shards", unit="shard")
