"""The shards of a pool: how a source is divided, what each is named, and how a change of its samples is noticed."""

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_clip.data.readers import Reader, open_reader
from keras_clip.data.readers.brief import brief
from keras_clip.data.readers.forms import Part, parts_of
from keras_clip.data.readers.parquet import image_paths
from keras_clip.data.readers.storage.stamps import digest_of, file_stamp

# Samples whose content is read at a time.
_BLOCK = 64


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of the source, which a worker reads by itself.

    Args:
        name: name of its results, unique in the pool.
        source: a path, or an object as `image_text_pairs` takes it.
        start: int. The first sample of the source.
        stop: int or None. The end of its samples; None: all.
        mapping: see `image_text_pairs`.
        delimiter: see `image_text_pairs`.
        stamp: digest of the state of its samples; a pass over samples that have changed is made again.
        source_stamp: digest of the state of the whole source, which a worker opens again when it has changed.
    """

    name: str
    source: Any
    start: int = 0
    stop: int | None = None
    mapping: Any = None
    delimiter: str | None = None
    stamp: str = ""
    source_stamp: str = ""

    def open(self) -> tuple[Reader, np.ndarray]:
        """Opens the source.

        Returns:
            The reader of the source, and the indices of the samples of this shard in it, int64 (N,).
        """
        reader = _open(self)
        return reader, np.arange(self.start, len(reader) if self.stop is None else self.stop, dtype=np.int64)


def shards_of(
    source: Any, mapping: Any, delimiter: str | None, shard_size: int, version: str | None = None
) -> list[Shard]:
    """Divides a source: a file of a sharded form is a shard, other sources are cut into ranges of samples.

    Args:
        source: see `Pool.open`.
        mapping: see `image_text_pairs`.
        delimiter: see `image_text_pairs`.
        shard_size: int >= 1. Samples of a range.
        version: see `Pool.open`.

    Returns:
        The shards.

    Raises:
        FileNotFoundError, TypeError, ValueError: an invalid source.
    """
    shards = []
    for part in parts_of(source):
        options = _options(part, mapping, delimiter)
        if part.form.is_sharded:
            shards += [_whole_file(part, path, options) for path in part.source]
            continue
        # A list of one path or several: tables may be many files.
        for each in part.source if part.is_paths else [part.source]:
            shards += _ranges(each, options, shard_size, None if part.is_paths else version)
    return _named(shards, shard_size)


def described_mapping(mapping: Any) -> Any:
    """Returns a mapping as JSON data: a function by its name."""
    if callable(mapping):
        return f"function {getattr(mapping, '__qualname__', type(mapping).__qualname__)}"
    return list(mapping) if isinstance(mapping, (list, tuple)) else mapping


def _whole_file(part: Part, path: str, options: dict[str, Any]) -> Shard:
    images = image_paths(path, options["mapping"]) if part.form.name == "Parquet" else ()
    stamp = digest_of([file_stamp(path), *([image, file_stamp(image)] for image in images)])
    return Shard("", path, stamp=stamp, source_stamp=stamp, **options)


def _ranges(source: Any, options: dict[str, Any], shard_size: int, version: str | None) -> list[Shard]:
    # Not the reader of an earlier call, in which a folder or table may have had other files.
    reader = _opened(source, options["mapping"], options["delimiter"])
    length = len(reader)
    ranges = [(start, min(length, start + shard_size)) for start in range(0, length, shard_size)]
    stamps = [_stamp(reader, np.arange(*each, dtype=np.int64), version) for each in ranges]
    whole = digest_of([length, *stamps])
    return [
        Shard("", source, *each, stamp=stamp, source_stamp=whole, **options)
        for each, stamp in zip(ranges, stamps, strict=True)
    ]


def _stamp(reader: Reader, ids: np.ndarray, version: str | None) -> str:
    """Returns a digest of the state of samples: as the user says, as their reader says, or else of all their content.

    A function that maps elements to pairs needs no digest of its own: the content is what it returns.
    """
    if version is not None:
        return digest_of([version, *ids[[0, -1]].tolist()])
    stamp = reader.stamp(ids) if hasattr(reader, "stamp") else None
    return _content(reader, ids) if stamp is None else stamp


def _content(reader: Reader, ids: np.ndarray) -> str:
    digest = hashlib.sha256()

    def add(data: bytes) -> None:
        digest.update(len(data).to_bytes(8, "big") + data)

    read_metadata = getattr(reader, "metadata", lambda ids: [])
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK]
        images, captions = reader.read(block)
        for image, texts in zip(images, captions, strict=True):
            add(image)
            add(len(texts).to_bytes(8, "big"))
            list(map(add, texts))
        facts = [keys_of(reader, block), read_metadata(block)]
        add(json.dumps(facts, default=_described, skipkeys=True).encode())
    return digest.hexdigest()


def keys_of(reader: Reader, ids: np.ndarray) -> list[str]:
    """Returns the keys of samples, also of a reader of the user's that has names only."""
    return reader.keys(ids) if hasattr(reader, "keys") else [reader.name(index) for index in ids.tolist()]


def _described(value: Any) -> Any:
    """Returns what JSON has no form for: bytes by a digest, arrays and their numbers by value, others by their type."""
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    return value.tolist() if hasattr(value, "tolist") else str(type(value))


def _named(shards: Sequence[Shard], shard_size: int) -> list[Shard]:
    """Gives each shard a name of its own, which does not depend on the order of the files."""
    sources = [shard.source if isinstance(shard.source, str) else f"object {id(shard.source)}" for shard in shards]
    places = list(dict.fromkeys(sources))
    # Objects have no names.
    suffixes = {
        each: f"-{places.index(each):02d}"
        if each.startswith("object ")
        else f"-{hashlib.sha256(each.encode(errors='surrogateescape')).hexdigest()[:8]}"
        for each in places
    }
    stems = [_stem(shard.source) for shard in shards]
    numbers = ["" if shard.stop is None else f"-{shard.start // shard_size:05d}" for shard in shards]
    names = [f"{stem}{number}" for stem, number in zip(stems, numbers, strict=True)]
    # Every file whose name another one has gets a suffix.
    counts = Counter(names)
    ambiguous = {source for source, name in zip(sources, names, strict=True) if counts[name] > 1}
    suffixed = [suffixes[source] if source in ambiguous else "" for source in sources]
    parts = zip(shards, stems, suffixed, numbers, strict=True)
    return [dataclasses.replace(shard, name=f"{stem}{suffix}{number}") for shard, stem, suffix, number in parts]


def _stem(source: Any) -> str:
    """Returns the name of a file without the extension of its form, as a name of results."""
    if not isinstance(source, str):
        return "source"
    base = re.sub(r"(\.\w{2,8})(\.(gz|bz2|xz|zst))?$", "", os.path.basename(os.path.normpath(source)))
    return re.sub(r"[^\w.-]", "_", base).strip(".")[:80] or "shard"


def _options(part: Part, mapping: Any, delimiter: str | None) -> dict[str, Any]:
    is_own = part.form.name == "reader"
    return {"mapping": None if is_own else mapping, "delimiter": delimiter if part.form.name == "table" else None}


def _open(shard: Shard) -> Reader:
    """Opens the source of a shard; shards of the same files share one reader."""
    if isinstance(shard.source, str):
        mapping = tuple(shard.mapping) if isinstance(shard.mapping, list) else shard.mapping
        return _open_path(shard.source, mapping, shard.delimiter, shard.source_stamp)
    return _opened(shard.source, shard.mapping, None)


def _opened(source: Any, mapping: Any, delimiter: str | None) -> Reader:
    if isinstance(source, str):
        # One shard without samples among others is no fault of the pool.
        return open_reader(source, mapping, delimiter=delimiter, may_be_empty=True)
    return _require_random_access(open_reader(source, mapping), source)


@functools.lru_cache(maxsize=2)
def _open_path(path: str, mapping: Any, delimiter: str | None, source_stamp: str) -> Reader:
    return _opened(path, mapping, delimiter)


def _require_random_access(reader: Any, source: Any) -> Reader:
    if not hasattr(reader, "read"):
        raise TypeError(
            "A pool is read by index, and more than once. "
            f"Received: source={brief(source)}, a stream. Store it as tars first: "
            "`curation.write_stream(source, folder, mapping=...)`."
        )
    return reader
