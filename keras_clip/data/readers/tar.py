"""WebDataset tars: the members `<key>.<extension>` of one key are a sample."""

import json
import os
import tarfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_clip.data.readers.byte_strings import ByteStrings
from keras_clip.data.readers.mapping import CAPTION_NAMES, Mapping, require_no_mapping
from keras_clip.data.readers.paths import IMAGE_EXTENSIONS
from keras_clip.data.readers.reader import Captions, as_captions
from keras_clip.data.readers.shards import ShardIndex, Shards, describe_damage, load_indexes

_BLOCK = 512
# The parts of a sample in the index.
_IMAGE, _TEXT, _RECORD = range(3)


class TarReader(Shards):
    """Samples of WebDataset tars; see `index_tar` for their members.

    The caption is the text of the `.txt` member, or else the caption or captions that the `.json` member names. The
    metadata are the object of the `.json` member.

    Args:
        paths: uncompressed tars.
        mapping: None; the names of members are fixed.
        captions: whether samples are pairs. If False, they are the keys that have an image.

    Raises:
        ValueError: a mapping; a file that is no complete tar (see `index_tar`).
    """

    def __init__(self, paths: Sequence[str], mapping: Mapping | None = None, captions: bool = True):
        require_no_mapping(mapping, "tar")
        indexes = load_indexes(paths, index_tar)
        if not captions:
            indexes = [index.with_part(_IMAGE) for index in indexes]
        super().__init__(paths, indexes)
        self._keys = ByteStrings.concatenate([index.keys for index in indexes])

    def keys(self, ids: np.ndarray) -> list[str]:
        """The paths of the members up to the first dot of their base names."""
        return [os.fsdecode(self._keys[index]) for index in ids.tolist()]

    def read(self, ids: np.ndarray) -> tuple[list[bytes], list[Captions]]:
        """The bytes of the image members, and the captions."""
        return self._bytes(ids, _IMAGE), self.captions(ids)

    def captions(self, ids: np.ndarray) -> list[Captions]:
        """The text of each `.txt` member as one caption, or else those of the `.json` member."""
        captions = [[text] for text in self._bytes(ids, _TEXT)]
        has_record = (self.offsets[ids, _TEXT] == 0) & (self.offsets[ids, _RECORD] > 0)
        rows = np.flatnonzero(has_record)
        for row, record in zip(rows.tolist(), self._bytes(ids[rows], _RECORD), strict=True):
            captions[row] = _captions_of_record(record)
        return captions

    def metadata(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """The object of each `.json` member; empty where there is none."""
        records = map(_parse, self._bytes(ids, _RECORD))
        return [record if isinstance(record, dict) else {} for record in records]


def _parse(record: bytes) -> Any:
    try:
        return json.loads(record)
    except ValueError:
        return None


def _captions_of_record(text: bytes) -> Captions:
    record = _parse(text)
    if not isinstance(record, dict):
        # Text that is not UTF-8 is returned, so that the pipeline can name the reason.
        return [] if _is_utf8(text) else [text]
    return as_captions(next((record[name] for name in CAPTION_NAMES if name in record), []))


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def index_tar(path: str) -> ShardIndex:
    """Indexes a WebDataset tar: members `<key>.<image extension>`, `<key>.txt` and `<key>.json`, in any order.

    A key is the member's path up to the first dot of its base name. Of several images of a key the first counts. Other
    members are passed over.

    Args:
        path: an uncompressed tar.

    Returns:
        The index, with the parts image, `.txt` and `.json`.

    Raises:
        ValueError: the file is no tar, is compressed or cut short, or has one member twice.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                end = tar.offset  # of the next header
                tar.members = []  # tarfile would keep every header
                if member.isfile():
                    _note_member(path, samples, member)
    except tarfile.TarError as error:
        raise ValueError(
            f"A WebDataset shard must be a whole, uncompressed tar file. {describe_damage(path, str(error))}"
        ) from error
    _require_end_marker(path, end)
    return ShardIndex.of_spans(path, list(map(_spans, samples.values())), 3, list(map(os.fsencode, samples)))


def _note_member(path: str, samples: dict, member: tarfile.TarInfo) -> None:
    folder, _, base = member.name.rpartition("/")
    stem, _, extension = base.partition(".")
    extension = extension.lower()
    if not stem or extension not in (*IMAGE_EXTENSIONS, "txt", "json"):
        return
    found = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
    if extension in found:
        raise ValueError(
            f"The members of a WebDataset shard must have different names. Received: {member.name!r} twice in {path}. "
            "Give every sample a key of its own."
        )
    found[extension] = (member.offset_data, member.size)


def _spans(found: dict[str, tuple[int, int]]) -> tuple:
    """The spans of the parts in their order."""
    absent = (0, 0)
    image = next((span for extension, span in found.items() if extension in IMAGE_EXTENSIONS), absent)
    return image, found.get("txt", absent), found.get("json", absent)


def _require_end_marker(path: str, end: int) -> None:
    """A tar ends in blocks of zeros; `tarfile` takes a file without them, or with a damaged header, for complete."""
    with open(path, "rb") as file:
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise ValueError(
                "A WebDataset shard must be a whole tar file. "
                + describe_damage(path, f"no end marker at byte {end}: the file is cut short or damaged")
            )
        while chunk := file.read(1 << 20):
            if chunk.strip(b"\0"):
                raise ValueError(
                    "A WebDataset shard must be one tar file. "
                    + describe_damage(path, f"more data after its end marker at byte {end}: joined or damaged archives")
                )
