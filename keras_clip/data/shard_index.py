"""Where the samples of a shard begin, so that any of them can be read without those before it.

A tar of WebDataset samples or a file of TFRecords is walked once, from header to header; what is found is kept in a
`.npz` file beside the shard, or in the user's cache folder where that cannot be written, and made anew when the shard
changes. The walk also proves that the shard is whole.
"""

import hashlib
import os
import struct
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp")

# Raise it when the columns or the meaning of an index change.
# Of the index beside a shard.
INDEX_SUFFIX = ".index.npz"
_VERSION = 1
_BLOCK = 512


class ByteStrings:
    """Many byte strings in two arrays: a hundredth of the objects, and stored without pickle."""

    def __init__(self, blob: np.ndarray, ends: np.ndarray):
        self.blob, self.ends = blob, ends

    @classmethod
    def pack(cls, strings: Iterable[bytes]) -> "ByteStrings":
        strings = list(strings)
        return cls(np.frombuffer(b"".join(strings), np.uint8), np.cumsum([len(s) for s in strings], dtype=np.int64))

    @classmethod
    def concatenate(cls, parts: list["ByteStrings"]) -> "ByteStrings":
        offsets = np.cumsum([0] + [len(part.blob) for part in parts])
        ends = [part.ends + offset for part, offset in zip(parts, offsets, strict=False)]
        return cls(np.concatenate([part.blob for part in parts]), np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        return self.blob[self.ends[index - 1] if index else 0 : self.ends[index]].tobytes()


class ShardIndex(NamedTuple):
    """The samples of one shard.

    `spans` (samples, 2, 2) int64: offset and size of the image and of the caption, size 0 where there is none; for
    TFRecords (samples, 1, 2), the record. `is_json` (samples,): the caption is a `.json` member. `keys`: their names.
    """

    spans: np.ndarray
    is_json: np.ndarray
    keys: ByteStrings


def load_index(path: str, walk: Callable[[str], ShardIndex]) -> ShardIndex:
    """The index of a shard: from the cache when it fits the file as it is now, else by `walk(path)`."""
    stat = os.stat(path)
    stamp = np.array([_VERSION, stat.st_size, stat.st_mtime_ns], np.int64)
    places = [Path(path + INDEX_SUFFIX), _user_cache(path)]
    for place in places:
        index = _read(place, stamp)
        if index is not None:
            return index
    index = walk(path)
    for place in places:
        try:
            _write(place, stamp, index)
            break
        except OSError:
            continue
    return index


def has_index(path: str) -> bool:
    """Whether some index of the shard is stored, fresh or stale: enough to foresee how long loading takes."""
    return Path(path + INDEX_SUFFIX).exists() or _user_cache(path).exists()


def walk_tar(path: str) -> ShardIndex:
    """Indexes a WebDataset tar: members `<key>.<image extension>`, `<key>.txt` or `<key>.json`, in any order.

    A key is the member's path up to the first dot of its base name. Of several images of a key the first counts; a
    `.txt` caption goes before a `.json` one. Other members are passed over.

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
            f"A WebDataset shard must be a whole, uncompressed tar file. {_found(path, str(error))}"
        ) from error
    _require_end_marker(path, end)
    spans = np.zeros((len(samples), 2, 2), np.int64)
    is_json = np.zeros(len(samples), bool)
    for row, found in enumerate(samples.values()):
        image = next((span for extension, span in found.items() if extension in IMAGE_EXTENSIONS), (0, 0))
        spans[row] = image, found.get("txt", found.get("json", (0, 0)))
        is_json[row] = "txt" not in found and "json" in found
    return ShardIndex(spans, is_json, ByteStrings.pack(os.fsencode(key) for key in samples))


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


def _require_end_marker(path: str, end: int) -> None:
    """A tar ends in blocks of zeros; `tarfile` takes a file without them, or with a damaged header, for complete."""
    with open(path, "rb") as file:
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise ValueError(
                "A WebDataset shard must be a whole tar file. "
                + _found(path, f"no end marker at byte {end}: the file is cut short or damaged")
            )
        while chunk := file.read(1 << 20):
            if chunk.strip(b"\0"):
                raise ValueError(
                    "A WebDataset shard must be one tar file. "
                    + _found(path, f"more data after its end marker at byte {end}: joined or damaged archives")
                )


def _found(path: str, what: str) -> str:
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            what = "a gzip file. Decompress it"
    return f"Received: {path}: {what} ({os.path.getsize(path)} bytes)."


def walk_tfrecord(path: str) -> ShardIndex:
    """Indexes a file of TFRecords by its length fields, whose checksums it verifies.

    Raises:
        ValueError: the file is compressed, damaged or cut short.
    """
    spans = []
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        offset = 0
        while offset < size:
            header = os.pread(file.fileno(), 12, offset)
            if len(header) < 12 or _masked_crc32c(header[:8]) != struct.unpack("<I", header[8:])[0]:
                raise ValueError(
                    "A TFRecord file must be whole and uncompressed. "
                    + _found(path, f"no record at byte {offset}, after {len(spans)} good ones")
                )
            (length,) = struct.unpack("<Q", header[:8])
            if offset + length + 16 > size:
                raise ValueError(
                    "A TFRecord file must be whole. "
                    + _found(path, f"cut short within the record at byte {offset}, after {len(spans)} good ones")
                )
            spans.append((offset + 12, length))
            offset += length + 16
    rows = np.array(spans, np.int64).reshape(-1, 1, 2)
    return ShardIndex(rows, np.zeros(len(rows), bool), ByteStrings.pack(b"%d" % row for row in range(len(rows))))


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # the Castagnoli polynomial, bits reversed
        table.append(byte)
    return table


_CRC_TABLE = _crc_table()


def _masked_crc32c(data: bytes) -> int:
    """The checksum of the TFRecord format."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _user_cache(path: str) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "keras_clip" / "index" / f"{hashlib.sha256(os.path.realpath(path).encode()).hexdigest()[:32]}.npz"


def _read(place: Path, stamp: np.ndarray) -> ShardIndex | None:
    try:
        with np.load(place, allow_pickle=False) as stored:
            if not np.array_equal(stored["stamp"], stamp):
                return None
            return ShardIndex(stored["spans"], stored["is_json"], ByteStrings(stored["blob"], stored["ends"]))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None  # absent, or damaged: it is made again


def _write(place: Path, stamp: np.ndarray, index: ShardIndex) -> None:
    """Writes the file whole or not at all: another process may be reading it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=place.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(
                file, stamp=stamp, spans=index.spans, is_json=index.is_json, blob=index.keys.blob, ends=index.keys.ends
            )
        os.replace(draft, place)
    except BaseException:
        os.unlink(draft)
        raise
