"""Reads `.csv`, `.tsv` or `.jsonl` tables: each row has the path of an image, its caption, and other columns."""

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from keras_clip.data.readers.brief import brief
from keras_clip.data.readers.elements.mapping import CAPTION_NAMES, PATH_NAMES, Mapping, names_of
from keras_clip.data.readers.reader import Captions, as_captions
from keras_clip.data.readers.storage.copies import decompressed
from keras_clip.data.readers.storage.indexing import index_in_memory
from keras_clip.data.readers.storage.paths import file_bytes
from keras_clip.data.readers.storage.shard_index import ShardIndex
from keras_clip.data.readers.storage.shards import Shards
from keras_clip.data.readers.storage.stamps import digest_of, file_stamp

# Delimiters to try if that of the extension does not yield the required columns.
_DELIMITERS = (",", "\t", ";", "|")
_JSON = re.compile(r"\.(jsonl|ndjson)(\.\w+)?$", re.IGNORECASE)


class _Table(NamedTuple):
    """How the rows of one table are read.

    Attributes:
        folder: folder of the table.
        header: the names of its columns; of JSON those of the first row.
        path: the column of image paths.
        caption: the column of captions, None if there is none.
        delimiter: separator of columns; "" for lines of JSON.
    """

    folder: str
    header: list[str]
    path: str
    caption: str | None
    delimiter: str

    def image_path(self, row: dict[str, Any]) -> str:
        """The path of the image of a row, "" if it names none."""
        return os.path.join(self.folder, path) if (path := self.key(row)) else ""

    def key(self, row: dict[str, Any]) -> str:
        """The path as the table has it."""
        path = row.get(self.path)
        return path.strip() if isinstance(path, str) else ""

    def captions(self, row: dict[str, Any]) -> Captions:
        """The caption or captions of a row."""
        if self.caption is None:
            return []
        value = row.get(self.caption)
        # In a table of text a caption may be empty, which counts as a caption, or hold bytes that are not UTF-8.
        return [value.encode("utf-8", "surrogateescape")] if self.delimiter else as_captions(value)

    def parse(self, text: bytes) -> dict[str, Any]:
        """The values of a row by column; missing values of a table with a header are "".

        Raises:
            ValueError: the text is no row.
        """
        if not self.delimiter:
            return _parse_object(text)
        lines = io.StringIO(text.decode("utf-8", "surrogateescape"), newline="")
        try:
            (values,) = csv.reader(lines, delimiter=self.delimiter, strict=True)
        except csv.Error as error:
            raise ValueError(str(error)) from error
        return {**dict.fromkeys(self.header, ""), **dict(zip(self.header, values, strict=False))}


class TableReader(Shards):
    """Reads the image files that the rows of tables name. Rows are read from the file when they are needed.

    Paths are relative to the table. The metadata are all columns.

    Args:
        paths: UTF-8 files. `.csv` and `.tsv` have a header; lines of a `.jsonl` are objects.
        mapping: the names of the columns of image paths and of captions, upper or lower case. None: the usual ones.
        captions: whether samples are pairs. If False, no column of captions is needed.
        delimiter: separator of the columns. None: a tab if the name ends in `.tsv`, otherwise a comma, or that of
            comma, tab, semicolon and bar with which the header has the columns.

    Raises:
        ValueError: no such column; a column twice; a row with more values than columns; quotes that do not match; a
            line that is no JSON object; a mapping by function.
    """

    def __init__(
        self,
        paths: Sequence[str],
        mapping: Mapping | None = None,
        captions: bool = True,
        delimiter: str | None = None,
    ):
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise ValueError(f"delimiter must be one character, and no quote. Received: delimiter={delimiter!r}.")
        wanted = _Wanted(*names_of(mapping, PATH_NAMES, CAPTION_NAMES), captions)
        files = list(map(decompressed, paths))
        index = [
            _index_lines(path, file, wanted) if _JSON.search(path) else _index_table(path, file, wanted, delimiter)
            for path, file in zip(paths, files, strict=True)
        ]
        self._tables, indexes = zip(*index, strict=True)
        super().__init__(paths, index_in_memory(indexes, files), files)

    def name(self, index: int) -> str:
        """Returns the path of the image, or the table and the row if there is none."""
        ((table, row),) = self._rows(np.array([index]))
        number = super().keys_in_shard(np.array([index]))[0]
        return table.image_path(row) or f"{self.paths[self._shards(index)]}: {number}"

    def keys_in_shard(self, ids: np.ndarray) -> list[str]:
        """The paths as the table has them."""
        return [table.key(row) for table, row in self._rows(ids)]

    def read(self, ids: np.ndarray) -> tuple[list[bytes], list[Captions]]:
        """Returns the bytes of the image files, and the captions."""
        rows = self._rows(ids)
        paths = [table.image_path(row) for table, row in rows]
        return [file_bytes(path) if path else b"" for path in paths], [table.captions(row) for table, row in rows]

    def captions(self, ids: np.ndarray) -> list[Captions]:
        """The caption of each row; of JSON it may be a list."""
        return [table.captions(row) for table, row in self._rows(ids)]

    def metadata(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """Returns all columns of each row; in captions, other bytes than UTF-8 are replaced.

        Raises:
            ValueError: another value of a row is not UTF-8.
        """
        metadata = []
        for index, (table, row) in zip(ids.tolist(), self._rows(ids), strict=True):
            if table.delimiter:
                caption = {name: _replaced(text) for name, text in row.items() if name == table.caption}
                row = {**row, **caption}
                try:
                    "".join(row.values()).encode()
                except UnicodeEncodeError as error:
                    raise ValueError(f"A table must be UTF-8. Received: {self.name(index)}: {brief(row)}.") from error
            metadata.append(row)
        return metadata

    def image_files(self, ids: np.ndarray) -> tuple[str, list[str]]:
        """Returns the image file of each row."""
        return "whole files", [table.image_path(row) for table, row in self._rows(ids)]

    def stamp(self, ids: np.ndarray) -> str:
        """Returns a digest of the rows, and of the sizes and times of change of the image files that they name."""
        images = [table.image_path(row) for table, row in self._rows(ids)]
        rows = zip(images, self._bytes(ids, 0), strict=True)
        return digest_of([image, file_stamp(image), row.hex()] for image, row in rows)

    def column(self, name: str) -> str:
        """Returns the name of a column as it is written in the tables; the comparison ignores case.

        Args:
            name: name of the column.

        Returns:
            The name in the first table that has it, or else the name that was given.
        """
        found = [
            _only(name, table.header, "columns", path) for path, table in zip(self.paths, self._tables, strict=True)
        ]
        return next(filter(None, found), name)

    def _rows(self, ids: np.ndarray) -> list[tuple[_Table, dict[str, Any]]]:
        """The table and the values by column of each row."""
        rows = []
        for index, shard, text in zip(ids.tolist(), self._shards(ids).tolist(), self._bytes(ids, 0), strict=True):
            table = self._tables[shard]
            try:
                rows.append((table, table.parse(text)))
            except ValueError as error:
                self._raise_changed(index, str(error))
        return rows


def _replaced(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode(errors="replace")


class _Wanted(NamedTuple):
    """Accepted names of the columns of image paths and captions, and whether captions are required."""

    paths: Sequence[str]
    captions: Sequence[str]
    needs_captions: bool

    def columns(self, path: str, header: Sequence[str]) -> list[str | None]:
        """Returns the columns with these names.

        Raises:
            ValueError: a column that is needed is missing, or there twice.
        """
        columns: list[str | None] = []
        needed = (("image paths", self.paths, True), ("captions", self.captions, self.needs_captions))
        for what, wanted, is_needed in needed:
            found = next(filter(None, (_only(name, header, what, path) for name in wanted)), None)
            if found is None and is_needed:
                raise ValueError(
                    f"A table must have a header with a column of {what}: {' or '.join(map(repr, wanted))}. "
                    f"Received: {path} with the columns {brief(list(header))}. Name yours: "
                    'mapping=("<path>", "<caption>"). If other characters separate the columns, pass `delimiter`.'
                )
            columns.append(found)
        return columns

    def fit(self, header: Sequence[str]) -> bool:
        """Whether a header has the columns that are needed."""
        folded = {name.lower() for name in header}
        needed = [self.paths, self.captions] if self.needs_captions else [self.paths]
        return all(any(name.lower() in folded for name in names) for names in needed)


def _only(name: str, header: Sequence[str], what: str, path: str) -> str | None:
    """Returns the column of this name, None if there is none."""
    found = [column for column in header if column.lower() == name.strip().lower()]
    if name in found:
        return name
    if len(found) > 1:
        raise ValueError(
            f"Names of columns must differ. Received: {path} with {found} for the {what}. Rename all but one."
        )
    return found[0] if found else None


def _index_table(path: str, file: str, wanted: _Wanted, delimiter: str | None) -> tuple[_Table, ShardIndex]:
    """Returns the header of a table and the index of its rows."""
    spans = []
    with open(file, "rb") as opened:
        _require_utf8(path, opened)
        delimiter = delimiter or _delimiter(path, opened, wanted)
        lines = _Lines(opened)
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(rows, [])]
            if twice := sorted({name for name in header if name and header.count(name) > 1}):
                raise ValueError(
                    f"Names of columns must differ. Received: {path} with {brief(twice)} twice. Rename one."
                )
            table = _Table(os.path.dirname(path), header, *wanted.columns(path, header), delimiter)
            start = lines.end
            for row in rows:
                if len(row) > len(header):
                    raise csv.Error(f"{len(row) - len(header)} more values than columns")
                if row:
                    spans.append((start, lines.end - start))
                start = lines.end
        except csv.Error as error:
            if "field limit" in str(error):
                raise ValueError(
                    f"A value of a table may have {csv.field_size_limit():,} characters. Received: {path}, a longer "
                    f"one that ends in line {rows.line_num}. Close the quote that is open there, or write long texts "
                    "as .jsonl."
                ) from error
            raise ValueError(
                f"A value with a {delimiter!r}, a line break or a quote in it must stand in quotes, as in "
                f'"a ""fine"" dog". Received: {path}, line {rows.line_num}: {error}.'
            ) from error
    return table, ShardIndex.of_spans(path, spans, 1)


def _require_utf8(path: str, file: BinaryIO) -> None:
    if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"A table must be UTF-8. Received: {path} in UTF-16. Save it as UTF-8.")
    file.seek(0)


def _delimiter(path: str, file: BinaryIO, wanted: _Wanted) -> str:
    """Returns the delimiter that yields the required columns, or else that of the extension."""
    usual = "\t" if re.search(r"\.tsv(\.\w+)?$", path, re.IGNORECASE) else ","
    first = re.split(rb"[\r\n]", file.readline())[0].decode("utf-8", "replace").removeprefix("\ufeff")
    file.seek(0)

    def header(delimiter: str) -> list[str]:
        return [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]

    fitting = [delimiter for delimiter in _DELIMITERS if wanted.fit(header(delimiter))]
    return fitting[0] if len(fitting) == 1 else usual


class _Lines:
    """The lines of a UTF-8 file as text; `end` bytes have been read. Invalid bytes become lone surrogates."""

    def __init__(self, file: BinaryIO):
        self._file, self.end = file, 0

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            # A carriage return alone also ends a line.
            for part in re.split(rb"(?<=\r)(?!\n)", line) if b"\r" in line else (line,):
                text = part.decode("utf-8", "surrogateescape")
                text = text if self.end else text.removeprefix("\ufeff")
                self.end += len(part)
                yield text


def _index_lines(path: str, file: str, wanted: _Wanted) -> tuple[_Table, ShardIndex]:
    """Returns the columns of lines of JSON and the index of the lines."""
    spans, header, end = [], {}, 0
    with open(file, "rb") as opened:
        for number, line in enumerate(opened, 1):
            if line.strip() not in (b"", b"\xef\xbb\xbf"):
                try:
                    # A later row may have columns that the first lacks.
                    header.update(dict.fromkeys(_parse_object(line)))
                except (ValueError, RecursionError) as error:
                    raise ValueError(
                        f"Each line must be a JSON object. Received: {path}, line {number}: {error}."
                    ) from error
                spans.append((end, len(line)))
            end += len(line)
    table = _Table(os.path.dirname(path), list(header), *wanted.columns(path, list(header)), "")
    return table, ShardIndex.of_spans(path, spans, 1)


def _parse_object(line: bytes) -> dict[str, Any]:
    value = json.loads(line.removeprefix(b"\xef\xbb\xbf"), object_pairs_hook=_without_duplicates)
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a name twice")
    return value
