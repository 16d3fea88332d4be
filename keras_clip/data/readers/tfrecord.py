"""Reads TFRecords of `tf.train.Example`, as img2dataset writes them: an image file, captions and other features."""

import os
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_clip.data.readers.elements.image_formats import IMAGE_EXTENSIONS
from keras_clip.data.readers.elements.mapping import Mapping, names_of
from keras_clip.data.readers.reader import Captions
from keras_clip.data.readers.storage.copies import decompressed
from keras_clip.data.readers.storage.indexing import open_index
from keras_clip.data.readers.storage.remote import open_binary
from keras_clip.data.readers.storage.shard_index import ShardIndex
from keras_clip.data.readers.storage.shards import Shards, describe_damage

_IMAGES = (*IMAGE_EXTENSIONS, "image", "image/encoded")
_CAPTIONS = ("txt", "caption", "text", "image/caption")


class TFRecordReader(Shards):
    """Reads the samples of TFRecord files. The metadata are all features except the image.

    Args:
        paths: TFRecord files. Compressed ones are decompressed into the user's cache folder, at the first use.
        mapping: the names of the image and the caption feature. None: the usual ones.
        captions: whether samples are pairs. If False, no caption is needed.

    Raises:
        ValueError: the first record lacks a feature; a damaged file (see `index_tfrecord`); a mapping by function.
    """

    def __init__(self, paths: Sequence[str], mapping: Mapping | None = None, captions: bool = True):
        self.image_names, self.caption_names = names_of(mapping, _IMAGES, _CAPTIONS)
        files = list(map(decompressed, paths))
        super().__init__(paths, open_index(files, index_tfrecord), files)
        if len(self):
            self._require_features([self.image_names, self.caption_names] if captions else [self.image_names])

    def _require_features(self, needed: Sequence[tuple[str, ...]]) -> None:
        (features,) = self._features(np.array([0]))
        for names in needed:
            if not any(name in features for name in names):
                raise ValueError(
                    f"The records must have a feature named {' or '.join(map(repr, names))}. "
                    f"Received: {self.paths[0]} with the features {sorted(features)}. "
                    'Name yours: mapping=("<image>", "<caption>").'
                )

    def _features(self, ids: np.ndarray) -> list[Any]:
        return [_parse(record) for record in self._bytes(ids, 0)]

    def read(self, ids: np.ndarray) -> tuple[list[bytes], list[Captions]]:
        """Returns the first image feature and the first caption feature that have a value."""
        rows = self._features(ids)
        captions = [_strings(row, self.caption_names) for row in rows]
        return [(_strings(row, self.image_names) or [b""])[0] for row in rows], captions

    def keys_in_shard(self, ids: np.ndarray) -> list[str]:
        """Returns the features `key`, or the row numbers of records without one."""
        keys = [_strings(row, ("key",)) for row in self._features(ids)]
        rows = super().keys_in_shard(ids)
        return [key[0].decode(errors="replace") if key else row for key, row in zip(keys, rows, strict=True)]

    def metadata(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """Returns all features except the image: a value, or a list of several; strings that are UTF-8 become str."""
        return [
            {name: _value(feature) for name, feature in row.items() if name not in self.image_names}
            for row in self._features(ids)
        ]


def _parse(record: bytes) -> Any:
    """Returns the features of a record by name; none if it is damaged."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    try:
        return tf.train.Example.FromString(record).features.feature
    except DecodeError:
        return {}


def _strings(features: Any, names: Sequence[str]) -> list[bytes]:
    """Returns the strings of the first of these features that has any."""
    for name in names:
        if name in features and any(features[name].bytes_list.value):
            return list(features[name].bytes_list.value)
    return []


def _value(feature: Any) -> Any:
    kind = feature.WhichOneof("kind")
    values = [_text(value) for value in getattr(feature, kind).value] if kind else []
    return values[0] if len(values) == 1 else values


def _text(value: Any) -> Any:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def index_tfrecord(path: str) -> ShardIndex:
    """Indexes a file of TFRecords by its length fields, whose checksums it verifies.

    Args:
        path: an uncompressed file.

    Returns:
        The index, with one part: the record.

    Raises:
        ValueError: the file is compressed, damaged or truncated.
    """
    spans = []
    with open_binary(path) as file:
        size = file.seek(0, os.SEEK_END)
        offset = 0
        while offset < size:
            file.seek(offset)
            header = file.read(12)
            if len(header) < 12 or _masked_crc32c(header[:8]) != struct.unpack("<I", header[8:])[0]:
                raise ValueError(
                    "A TFRecord file must be whole and uncompressed. "
                    + describe_damage(path, f"no record at byte {offset}, after {len(spans)} good ones")
                )
            (length,) = struct.unpack("<Q", header[:8])
            if offset + length + 16 > size:
                raise ValueError(
                    "A TFRecord file must be whole. "
                    + describe_damage(
                        path, f"truncated within the record at byte {offset}, after {len(spans)} good ones"
                    )
                )
            spans.append((offset + 12, length))
            offset += length + 16
    return ShardIndex.of_spans(path, spans, 1)


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # the Castagnoli polynomial, bits reversed
        table.append(byte)
    return table


_CRC_TABLE = _crc_table()


def _masked_crc32c(data: bytes) -> int:
    """Returns the checksum of the TFRecord format."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
