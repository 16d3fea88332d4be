"""A pool: a source of pairs, divided into shards, and the folder with the results of the passes over it."""

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_clip import files
from keras_clip.data.readers import Reader, open_reader
from keras_clip.data.readers.brief import brief
from keras_clip.data.readers.forms import Part, parts_of
from keras_clip.data.readers.storage.paths import is_remote

if TYPE_CHECKING:
    import pyarrow

_VERSION = 1
# Samples of a shard, where the source is not files that are shards themselves.
SHARD_SIZE = 10_000


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
        stamp: size and time of change of the file; a pass over a changed file is made again.
    """

    name: str
    source: Any
    start: int = 0
    stop: int | None = None
    mapping: Any = None
    delimiter: str | None = None
    stamp: tuple[int, ...] = ()

    def open(self) -> tuple[Reader, np.ndarray]:
        """Opens the source.

        Returns:
            The reader of the source, and the indices of the samples of this shard in it, int64 (N,).
        """
        reader = _open(self)
        return reader, np.arange(self.start, len(reader) if self.stop is None else self.stop, dtype=np.int64)


class Pool:
    """Pairs in shards, and the folder with the results of the passes; `Pool.open` makes it.

    Each pass has a folder in it, with a Parquet file and a marker of its completion for each shard.

    Args:
        shards: `Shard` objects with different names.
        folder: folder of the results.
    """

    def __init__(self, shards: Sequence[Shard], folder: str | os.PathLike):
        self.shards, self.folder = list(shards), Path(folder)

    @classmethod
    def open(
        cls,
        source: Any,
        folder: str | os.PathLike,
        *,
        mapping: Any = None,
        delimiter: str | None = None,
        shard_size: int = SHARD_SIZE,
    ) -> "Pool":
        """Opens a source of pairs, and the folder for its results, which is made.

        Args:
            source: as `image_text_pairs` takes it, except streams, which cannot be read by index. Each tar, TFRecord
                and Parquet file is a shard; other sources are divided into shards of `shard_size` samples. None: the
                source that the folder was made for, if it consists of files.
            folder: folder of the results, outside the source.
            mapping: see `image_text_pairs`.
            delimiter: see `image_text_pairs`.
            shard_size: int >= 1. Samples of a shard.

        Returns:
            The pool.

        Raises:
            FileNotFoundError, TypeError, ValueError: an invalid source, or a folder that was made for another one.

        Files may be added to the source and removed from it between calls: results of the other shards are kept.
        """
        folder = Path(folder)
        record = folder / "pool.json"
        stored = _read_record(record)
        if source is None:
            if stored is None or stored["source"] is None:
                raise FileNotFoundError(
                    f"A folder of results must exist, of a pool of files. Received: {str(folder)!r} "
                    f"{'without pool.json' if stored is None else 'made for an object'}. Give the source."
                )
            source, delimiter, shard_size = stored["source"], stored["delimiter"], stored["shard_size"]
            mapping = stored["mapping"] if mapping is None else mapping
            if isinstance(mapping, str):
                raise ValueError(f"The mapping of this pool is a {mapping}. Received: mapping=None. Give it again.")
        if isinstance(shard_size, bool) or not isinstance(shard_size, int) or shard_size < 1:
            raise ValueError(f"`shard_size` must be a positive integer. Received: shard_size={shard_size!r}.")
        source = _absolute(source)
        shards = _shards(source, mapping, delimiter, shard_size)
        described = {
            "format": _VERSION,
            "source": source if _is_paths(source) else None,
            "mapping": described_mapping(mapping),
            "delimiter": delimiter,
            "shard_size": shard_size,
            "shards": [shard.name for shard in shards],
        }
        described = json.loads(json.dumps(described))
        names = [name for name, value in (stored or {}).items() if name != "shards" and described.get(name) != value]
        if names:
            raise ValueError(
                f"A folder holds the results of one pool. Received: {str(folder)!r}, whose pool differs in "
                f"{', '.join(names)}. Use another folder for this source."
            )
        if stored != described:
            folder.mkdir(parents=True, exist_ok=True)
            files.write_json(record, described)
        return cls(shards, folder)

    def path(self, name: str, shard: Shard) -> Path:
        """Returns the path of the table of a pass for a shard.

        Args:
            name: name of the pass.
            shard: the shard.

        Returns:
            Path of a Parquet file, which may not exist.
        """
        return self.folder / name / f"{shard.name}.parquet"

    def marker_path(self, name: str, shard: Shard) -> Path:
        """Returns the path of the marker of a pass that is complete for a shard.

        Args:
            name: name of the pass.
            shard: the shard.

        Returns:
            Path of a JSON file, which may not exist.
        """
        return self.folder / name / f"{shard.name}.json"

    def marker(self, name: str, shard: Shard) -> dict[str, Any] | None:
        """Returns the marker of a pass for a shard.

        Args:
            name: name of the pass.
            shard: the shard.

        Returns:
            {"kind", "key", "output", "inputs", "rows", "counts"}: the class of the pass, a digest of what the result
            depends on, the SHA-256 of the table and of those that were read, its number of rows, and the counts of the
            pass; None if the pass is not complete for the shard.
        """
        try:
            marker = json.loads(self.marker_path(name, shard).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return marker if isinstance(marker, dict) and "output" in marker else None

    def is_complete(self, name: str) -> bool:
        """Returns whether a pass has a result for every shard.

        Args:
            name: name of the pass.

        Returns:
            bool.
        """
        return all(self.marker(name, shard) is not None for shard in self.shards)

    def require(self, name: str) -> None:
        """Checks that a pass has a result for every shard, made from the present results of the passes that it reads.

        Args:
            name: name of the pass.

        Raises:
            ValueError: it has none for a shard, or one that was made from an earlier result.
        """
        markers = [self.marker(name, shard) for shard in self.shards]
        missing = [shard.name for shard, marker in zip(self.shards, markers, strict=True) if marker is None]
        if missing:
            raise ValueError(
                f"The pass {name!r} must be complete. Received: {str(self.folder)!r}, where it has no result for "
                f"{len(missing)} of {len(self.shards)} shards, among them {missing[0]!r}. Run it first."
            )
        for each in dict.fromkeys(each for marker in markers for each in marker.get("inputs", ())):
            self.require(each)
            for shard, marker in zip(self.shards, markers, strict=True):
                if marker["inputs"].get(each) != self.marker(each, shard)["output"]:
                    raise ValueError(
                        f"The pass {name!r} must be made from the present results. Received: {str(self.folder)!r}, "
                        f"where {each!r} of {shard.name!r} has changed since. Run {name!r} again."
                    )

    def table(self, name: str, shard: Shard, columns: Sequence[str] | None = None) -> "pyarrow.Table":
        """Returns the table of a pass for a shard.

        Args:
            name: name of the pass.
            shard: the shard.
            columns: names of columns. None: all.

        Returns:
            Table with one row for each pair, in the order of the profile.

        Raises:
            ImportError: pyarrow is not installed.
            FileNotFoundError: the pass has no result for the shard.
        """
        return read_table(self.path(name, shard), columns)

    def tables(self, name: str, columns: Sequence[str] | None = None) -> Iterator["pyarrow.Table"]:
        """Yields the table of a pass for each shard, in the order of the shards.

        Args:
            name: name of the pass.
            columns: names of columns. None: all.

        Returns:
            Iterator over tables.

        Raises:
            ValueError: the pass has no result for a shard.
        """
        self.require(name)
        for shard in self.shards:
            yield self.table(name, shard, columns)


def read_table(path: str | os.PathLike, columns: Sequence[str] | None = None) -> "pyarrow.Table":
    """Reads a Parquet file that `write_table` wrote.

    Args:
        path: the file.
        columns: names of columns. None: all.

    Returns:
        The table.

    Raises:
        ImportError: pyarrow is not installed.
        FileNotFoundError: there is no such file.
    """
    parquet = require_parquet()
    # Given as an open file: a path with "=" would be taken for a partition with one more column.
    with open(path, "rb") as file:
        return parquet.ParquetFile(file).read(None if columns is None else list(columns))


def write_table(path: str | os.PathLike, table: "pyarrow.Table") -> str:
    """Writes a Parquet file, whole or not at all, and returns the SHA-256 of its content.

    Equal tables give equal bytes.

    Args:
        path: the file. Its folder must exist.
        table: the table.

    Returns:
        64 hexadecimal digits.
    """
    parquet = require_parquet()
    with files.replacing(path) as temporary:
        parquet.write_table(table, temporary, compression="zstd")
        with open(temporary, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def require_parquet() -> Any:
    """Returns `pyarrow.parquet`.

    Raises:
        ImportError: pyarrow is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            'Curation stores tables by pyarrow, which is not installed. pip install "keras_clip[curation]"'
        ) from error
    return parquet


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"pool.json must be JSON. Received: {path}: {error}. Remove the folder.") from error
    if not isinstance(stored, dict) or stored.get("format") != _VERSION:
        raise ValueError(
            f"Expected the results of a pool in format {_VERSION}. Received: {path}. Use another folder, or the "
            "version of keras_clip that wrote it."
        )
    return stored


def described_mapping(mapping: Any) -> Any:
    """Returns a mapping as JSON data: a function by its name."""
    if callable(mapping):
        return f"function {getattr(mapping, '__qualname__', type(mapping).__qualname__)}"
    return list(mapping) if isinstance(mapping, (list, tuple)) else mapping


def _is_paths(source: Any) -> bool:
    each = source if isinstance(source, list) else [source]
    return all(isinstance(entry, str) for entry in each)


def _absolute(source: Any) -> Any:
    """Makes paths absolute, so that workers and later runs find them from any folder."""
    if is_remote(source):
        return source
    if isinstance(source, (str, os.PathLike)):
        return os.path.abspath(os.path.expanduser(os.fspath(source)))
    if isinstance(source, (list, tuple)) and all(isinstance(each, (str, os.PathLike)) for each in source):
        return [_absolute(each) for each in source]
    return source


def _shards(source: Any, mapping: Any, delimiter: str | None, shard_size: int) -> list[Shard]:
    """Divides a source: a file of a sharded form is a shard, other sources are cut into ranges of samples."""
    shards = []
    for part in parts_of(source):
        options = _options(part, mapping, delimiter)
        if part.form.is_sharded:
            shards += [Shard("", path, stamp=_stamp(path), **options) for path in part.source]
            continue
        # A list of one path or several: tables may be many files.
        for each in part.source if part.is_paths else [part.source]:
            length = len(_open(Shard("", each, **options)))
            stamp = _stamp(each) + (length,)
            starts = range(0, length, shard_size)
            shards += [
                Shard("", each, start, min(length, start + shard_size), stamp=stamp, **options) for start in starts
            ]
    return _named(shards, shard_size)


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


def _stamp(source: Any) -> tuple[int, ...]:
    if not isinstance(source, str) or not os.path.isfile(source):
        return ()
    stat = os.stat(source)
    return stat.st_size, stat.st_mtime_ns


def _open(shard: Shard) -> Reader:
    """Opens the source of a shard; shards of the same files share one reader."""
    if isinstance(shard.source, str):
        mapping = tuple(shard.mapping) if isinstance(shard.mapping, list) else shard.mapping
        return _open_path(shard.source, mapping, shard.delimiter, shard.stamp)
    return _require_random_access(open_reader(shard.source, shard.mapping), shard.source)


@functools.lru_cache(maxsize=2)
def _open_path(path: str, mapping: Any, delimiter: str | None, stamp: tuple[int, ...]) -> Reader:
    # One shard without samples among others is no fault of the pool.
    return open_reader(path, mapping, delimiter=delimiter, may_be_empty=True)


def _require_random_access(reader: Any, source: Any) -> Reader:
    if not hasattr(reader, "read"):
        raise TypeError(
            "A pool is read by index, and more than once. "
            f"Received: source={brief(source)}, a stream. Store it as tars first: "
            "`curation.write_stream(source, folder, mapping=...)`."
        )
    return reader
