"""A pool: a source of pairs, divided into shards, and the folder with the results of the passes over it."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_clip import files
from keras_clip.curation.shards import Shard, described_mapping, shards_of
from keras_clip.data.readers.brief import brief
from keras_clip.data.readers.storage.urls import is_remote

if TYPE_CHECKING:
    import pyarrow

_VERSION = 1
# Samples of a shard, where the source is not files that are shards themselves.
SHARD_SIZE = 10_000


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
        version: str | None = None,
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
            version: str or None. Of a source that is an object, any text that names the state of its samples and of a
                function that maps them: results are kept while it stays the same. None: all samples are read when the
                pool is opened, and results are kept for the shards whose pairs and metadata are as they were.

        Returns:
            The pool.

        Raises:
            FileNotFoundError, TypeError, ValueError: an invalid source, or a folder that was made for another one.

        Files may be added to the source, removed and changed between calls: results of the other shards are kept.
        A change is noticed by the sizes and times of change of the files, also of those in a folder, or that a table
        or Parquet file names, and by the rows of a table.
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
        if version is not None and (_is_paths(source) or not isinstance(version, str)):
            raise ValueError(
                "`version` must be a text that names the state of an object; files are compared by their times of "
                f"change. Received: version={version!r}, source={brief(source)}."
            )
        shards = shards_of(source, mapping, delimiter, shard_size, version)
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
            {"kind", "key", "output", "inputs", "global_inputs", "rows", "counts"}: the class of the pass, a digest of
            what the result depends on, the SHA-256 of the table and of those that were read, the `state` of the passes
            of which the tables of all shards count, its number of rows, and the counts of the pass; None if the pass is
            not complete for the shard.
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

    def reads(self, name: str) -> set[str]:
        """Returns the names of all passes that the results of a pass were made from, directly or not.

        Args:
            name: name of the pass, which need not be complete.
        """
        found, left = set(), [name]
        while left:
            marker = next(filter(None, (self.marker(left[-1], shard) for shard in self.shards)), {})
            left.pop()
            new = {*marker.get("inputs", ()), *marker.get("global_inputs", ())} - found
            found |= new
            left += new
        return found

    def state(self, name: str) -> str:
        """Returns a digest of the results of a pass for all shards, which does not depend on their order.

        Args:
            name: name of the pass, which must be complete.

        Returns:
            64 hexadecimal digits.
        """
        outputs = sorted((shard.name, self.marker(name, shard)["output"]) for shard in self.shards)
        return hashlib.sha256(json.dumps(outputs).encode()).hexdigest()

    def require(self, *names: str) -> None:
        """Checks that passes have a result for every shard, made from the present results of the passes that they read.

        Args:
            names: names of passes.

        Raises:
            ValueError: one has none for a shard, or one that was made from an earlier result or for other shards.
        """
        checked: dict[str, list[dict[str, Any]]] = {}
        for name in names:
            self._require(name, checked)

    def _require(self, name: str, checked: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Checks a pass and those that it reads; the markers of each are read once, and returned."""
        if name in checked:
            return checked[name]
        markers = [self.marker(name, shard) for shard in self.shards]
        missing = [shard.name for shard, marker in zip(self.shards, markers, strict=True) if marker is None]
        if missing:
            raise ValueError(
                f"The pass {name!r} must be complete. Received: {str(self.folder)!r}, where it has no result for "
                f"{len(missing)} of {len(self.shards)} shards, among them {missing[0]!r}. Run it first."
            )
        checked[name] = markers
        states: dict[str, str] = {}
        for shard_number, (shard, marker) in enumerate(zip(self.shards, markers, strict=True)):
            changed = [
                f"{each!r} of {shard.name!r}"
                for each, output in marker.get("inputs", {}).items()
                if self._require(each, checked)[shard_number]["output"] != output
            ]
            for each, state in marker.get("global_inputs", {}).items():
                self._require(each, checked)
                states[each] = states.get(each) or self.state(each)
                changed += [f"{each!r} of some shard, or the list of shards,"] if states[each] != state else []
            if changed:
                raise ValueError(
                    f"The pass {name!r} must be made from the present results. Received: {str(self.folder)!r}, "
                    f"where {changed[0]} has changed since. Run {name!r} again."
                )
        return markers

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

    def column_type(self, name: str, column: str) -> "pyarrow.DataType":
        """Returns the type of a column of a pass.

        Args:
            name: name of the pass, which must be complete.
            column: name of the column.

        Returns:
            The type.

        Raises:
            ImportError: pyarrow is not installed.
            ValueError: the pass has no such column.
        """
        schema = require_parquet().read_schema(self.path(name, self.shards[0]))
        if column not in schema.names:
            raise ValueError(
                f"The pass {name!r} must have the column that is named. Received: {column!r}. It has "
                f"{', '.join(schema.names)}. If an earlier version of keras_clip made it, run it again."
            )
        return schema.field(column).type

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
