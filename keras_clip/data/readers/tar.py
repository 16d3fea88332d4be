"""Reads WebDataset tars: the members `<key>.<extension>` of one key form a sample."""

import functools
import hashlib
import json
import os
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from keras_clip.data.readers.elements.image_formats import (
    IMAGE_EXTENSIONS,
    OTHER_IMAGE_EXTENSIONS,
    as_extension,
    is_unnamed_image,
    why_passed_over,
)
from keras_clip.data.readers.elements.mapping import CAPTION_NAMES, Mapping, names_of
from keras_clip.data.readers.reader import Captions, as_captions
from keras_clip.data.readers.storage.copies import decompressed
from keras_clip.data.readers.storage.indexing import open_index
from keras_clip.data.readers.storage.remote import open_binary
from keras_clip.data.readers.storage.shard_index import ShardIndex
from keras_clip.data.readers.storage.shards import Shards, describe_damage
from keras_clip.data.skipped import SkippedSamples

_BLOCK = 512
_IMAGE_EXTENSIONS = frozenset(IMAGE_EXTENSIONS)
# The parts of a sample in the index.
_IMAGE, _TEXT, _RECORD, _CLASS = range(4)
_PARTS = 4
_MAX_LINKS = 8
# Errors that `tarfile` raises for a damaged header, beside its own.
_HEADER_ERRORS = (tarfile.TarError, ValueError, OverflowError, IndexError, EOFError, RecursionError)


class TarReader(Shards):
    """Reads the samples of WebDataset tars; see `index_tar` for their members.

    The caption is the text of the `.txt` member, or else the caption or captions that the `.json` member names. The
    metadata are the object of the `.json` member, and as "cls" the text of the `.cls` member.

    Args:
        paths: tars. Compressed ones are decompressed into the user's cache folder, at the first use.
        mapping: (image, caption): the extension of the image members, and that of the caption members or the name of
            the caption in the `.json` members. None: any image, `.txt`, and the usual names.
        captions: whether samples are pairs. If False, they are the keys that have an image.

    Raises:
        ValueError: a mapping by function; a file that is no complete tar (see `index_tar`).
    """

    def __init__(self, paths: Sequence[str], mapping: Mapping | None = None, captions: bool = True):
        (*images,), (*texts,) = names_of(mapping, ("",), CAPTION_NAMES)
        image = as_extension(images[0]) or None
        text = as_extension(texts[0]) if mapping and texts else "txt"
        text = None if text == "json" else text
        self._caption_names = CAPTION_NAMES if texts in ([], ["json"], ["txt"]) else tuple(texts)
        make = functools.partial(index_tar, image=image, text=text)
        variant = "" if (image, text) == (None, "txt") else hashlib.sha256(f"{image} {text}".encode()).hexdigest()[:8]
        self._members = f"members {image}"
        files = list(map(decompressed, paths))
        index = open_index(files, make, variant)
        super().__init__(paths, index, files, needed=None if captions else _IMAGE)

    def keys_in_shard(self, ids: np.ndarray) -> list[str]:
        """The paths of the members up to the first dot of their base names."""
        return list(map(_as_text, self._index.keys(self._indexed(ids))))

    def _keys_of_shards(self) -> Iterator[list[str]]:
        # This includes keys without an image, because training and evaluation must name samples alike.
        for keys in self._index.keys_by_shard():
            yield list(map(_as_text, keys))

    def image_files(self, ids: np.ndarray) -> tuple[str, list[str]]:
        """Returns the tar files of these samples."""
        return self._members, [self.paths[shard] for shard in np.unique(self._shards(ids)).tolist()]

    def read(self, ids: np.ndarray) -> tuple[list[bytes], list[Captions]]:
        """Returns the bytes of the image members, and the captions."""
        # Of a remote shard, neighbouring parts arrive with one request.
        images, texts = self._read_parts(ids, (_IMAGE, _TEXT))
        return images, self._captions(ids, texts)

    def captions(self, ids: np.ndarray) -> list[Captions]:
        """Returns the text of each `.txt` member as one caption, or else the captions of the `.json` member."""
        return self._captions(ids, self._bytes(ids, _TEXT))

    def _captions(self, ids: np.ndarray, texts: Sequence[bytes]) -> list[Captions]:
        captions = [[text] for text in texts]
        empty = np.flatnonzero([not text for text in texts])
        rows = empty[~self._has(ids[empty], _TEXT) & self._has(ids[empty], _RECORD)]
        for row, record in zip(rows.tolist(), self._bytes(ids[rows], _RECORD), strict=True):
            captions[row] = self._captions_of_record(record)
        return captions

    def metadata(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """The object of each `.json` member and the text of each `.cls` member; empty where there is neither."""
        records = map(_parse, self._bytes(ids, _RECORD))
        metadata = [record if isinstance(record, dict) else {} for record in records]
        for row in np.flatnonzero(self._has(ids, _CLASS)).tolist():
            (name,) = self._bytes(ids[row : row + 1], _CLASS)
            metadata[row] = {"cls": name.decode(errors="replace").strip(), **metadata[row]}
        return metadata

    def _captions_of_record(self, text: bytes) -> Captions:
        record = _parse(text)
        if not isinstance(record, dict):
            # Text that is not UTF-8 is returned, so that the pipeline can name the reason.
            return [] if _is_utf8(text) else [text]
        return as_captions(next((record[name] for name in self._caption_names if name in record), []))


def _as_text(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


def _parse(record: bytes) -> Any:
    try:
        return json.loads(record)
    except (ValueError, RecursionError):
        return None


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


class _Member(NamedTuple):
    """A member of a tar; `target` is the `_place` that a link leads to, None for other members."""

    name: str
    offset: int
    size: int
    is_sparse: bool = False
    target: str | None = None


def index_tar(path: str, image: str | None = None, text: str | None = "txt") -> ShardIndex:
    """Indexes a WebDataset tar: members `<key>.<image extension>`, `.txt`, `.json` and `.cls`, in any order.

    A key is the member's path up to the first dot of its base name, as in the library webdataset. A member with another
    extension is an image if its content begins like one and the key has no other image. Of several images of a key the
    first counts. Hard and symbolic links stand for the members that they lead to. Other members are passed over and
    counted, among them those with a second dot in their base name, such as `1.5mm.jpg`.

    Args:
        path: an uncompressed tar.
        image: extension of the images, which may have dots. None: any.
        text: extension of the captions, which may have dots. None: captions are in the `.json`.

    Returns:
        The index, with the parts image, text, `.json` and `.cls`.

    Raises:
        ValueError: the file is no tar, is compressed or cut short, has a member twice, or one that is stored sparsely.
    """
    passed_over = SkippedSamples(path)
    members = _members(path, passed_over)
    # Of a file and a link of one place, such as `a.jpg` and `./a.jpg`, links lead to the file.
    by_name = {_place(member.name): member for member in sorted(members, key=lambda member: member.target is None)}
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    with open_binary(path) as file:
        for member in members:
            _note_member(path, samples, member, by_name, passed_over, (image, text), file)
    spans = [_spans(key, found, text, passed_over) for key, found in samples.items()]
    keys = [key.encode("utf-8", "surrogateescape") for key in samples]
    return ShardIndex.of_spans(path, spans, _PARTS, keys, passed_over)


def _members(path: str, passed_over: SkippedSamples) -> list[_Member]:
    """The files and links of a tar that is whole."""
    members = []
    end = 0
    try:
        with (
            open_binary(path) as file,
            tarfile.open(path, "r:", file, encoding="utf-8", errors="surrogateescape") as tar,
        ):
            for info in tar:
                if tar.offset <= end:
                    raise tarfile.ReadError("a member of negative size")
                end = tar.offset  # of the next header
                tar.members = []  # tarfile would keep every header
                target = None
                if not info.isfile():
                    if info.islnk():
                        target = _place(info.linkname)
                    elif info.issym():
                        target = _place(posixpath.join(posixpath.dirname(info.name), info.linkname))
                    else:
                        if not info.isdir():
                            passed_over.add(info.name, "not a regular file")
                        continue
                members.append(_Member(info.name, info.offset_data, info.size, info.issparse(), target))
    except _HEADER_ERRORS as error:
        raise ValueError(
            f"A WebDataset shard must be a whole, uncompressed tar file. {describe_damage(path, str(error))}"
        ) from error
    _require_end_marker(path, end)
    return members


def _place(name: str) -> str:
    """The place of a member as links name it: `./a.jpg` and `/a.jpg` are `a.jpg`, whichever form the archiver wrote."""
    return posixpath.normpath(name.lstrip("/"))


def _note_member(
    path: str,
    samples: dict,
    member: _Member,
    members: dict[str, _Member],
    passed_over: SkippedSamples,
    wanted: tuple[str | None, str | None],
    file: BinaryIO,
) -> None:
    """Adds a member to the sample of its key, by extension, or counts it as passed over."""
    folder, _, base = member.name.rpartition("/")
    stem, _, extension = base.partition(".")
    extension = extension.lower()
    image, text = wanted
    place = member if member.target is None else _follow(member, members)
    is_image = extension == image if image else extension in _IMAGE_EXTENSIONS
    is_part = is_image or extension in (text, "json", "cls")
    if place is None or not stem:
        passed_over.add(member.name, "hidden file" if place else "link without target")
        return
    if not is_part and "." in extension:
        passed_over.add(member.name, "a second dot in the name, where keys end at the first")
        return
    if not is_part and (image or not is_unnamed_image(extension, functools.partial(_head, file, place))):
        is_format = extension in OTHER_IMAGE_EXTENSIONS
        passed_over.add(member.name, why_passed_over(extension) if is_format else "no part of a pair")
        return
    if place.is_sparse:
        raise ValueError(
            "The members of a WebDataset shard must be stored in one piece. "
            f"Received: {member.name!r} in {path}, stored sparsely. Write the tar without --sparse."
        )
    found = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
    if extension in found:
        raise ValueError(
            f"The members of a WebDataset shard must have different names. Received: {member.name!r} twice in {path}. "
            "Give every sample a key of its own."
        )
    found[extension] = (place.offset, place.size)


def _follow(member: _Member, members: dict[str, _Member]) -> _Member | None:
    """Resolves a link, if necessary through other links; returns None if it cannot be resolved."""
    for _ in range(_MAX_LINKS):
        member = members.get(member.target)
        if member is None or member.target is None:
            return member
    return None


def _head(file: BinaryIO, member: _Member, size: int) -> bytes:
    file.seek(member.offset)
    return file.read(min(size, member.size))


def _spans(key: str, found: dict[str, tuple[int, int]], text: str | None, passed_over: SkippedSamples) -> tuple:
    """Returns the spans of the parts in their order."""
    absent = (0, 0)
    others = [found.pop(extension, absent) for extension in (text, "json", "cls")]
    # A member with an image extension takes precedence over one that only begins like an image.
    images = list(found)
    if len(images) > 1:
        images.sort(key=lambda extension: extension not in _IMAGE_EXTENSIONS)
    for extension in images[1:]:
        passed_over.add(f"{key}.{extension}", "another image of the same key")
    return found[images[0]] if images else absent, *others


def _require_end_marker(path: str, end: int) -> None:
    """Raises a ValueError if the tar does not end in blocks of zeros; `tarfile` also accepts truncated files."""
    with open_binary(path) as file:
        if file.seek(0, os.SEEK_END) % _BLOCK:
            raise ValueError(
                "A WebDataset shard must be a whole tar file. "
                + describe_damage(path, f"not a multiple of {_BLOCK} bytes: the file is cut short or damaged")
            )
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise ValueError(
                "A WebDataset shard must be a whole tar file. "
                + describe_damage(path, f"no end marker at byte {end}: the file is truncated or damaged")
            )
        while chunk := file.read(1 << 20):
            if chunk.strip(b"\0"):
                raise ValueError(
                    "A WebDataset shard must be one tar file. "
                    + describe_damage(path, f"more data after its end marker at byte {end}: joined or damaged archives")
                )
