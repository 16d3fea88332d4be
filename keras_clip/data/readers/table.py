"""Tables, `.csv` or `.tsv`: each row names an image file and has its caption, and may have other columns."""

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from keras_clip.data.readers.mapping import CAPTION_NAMES, Mapping, names_of
from keras_clip.data.readers.paths import file_bytes
from keras_clip.data.readers.reader import Captions
from keras_clip.data.readers.shards import ShardIndex, Shards

_PATHS = ("path", "image", "image_path", "filepath", "file_path", "filename", "file_name", "file")


class _Table(NamedTuple):
    """What the rows of one table are read by; `caption` is None if no column has captions."""

    folder: str
    header: list[str]
    path: str
    caption: str | None
    delimiter: str

    def image_path(self, row: dict[str, str]) -> str:
        """The path of the image of a row, "" if it names none."""
        return os.path.join(self.folder, row[self.path]) if row[self.path] else ""

    def captions(self, row: dict[str, str]) -> Captions:
        """The caption of a row."""
        return [row[self.caption].encode("utf-8", "surrogateescape")] if self.caption else []


class TableReader(Shards):
    """Image files that the rows of tables name. Rows are read from the file when they are needed.

    Paths are relative to the table. The metadata are all columns.

    Args:
        paths: UTF-8 files with a header, separated by commas, or by tabs if their name ends in `.tsv`.
        mapping: the names of the columns of image paths and of captions, upper or lower case. None: the usual ones.
        captions: whether samples are pairs. If False, no column of captions is needed.

    Raises:
        ValueError: no such column; a row with more values than columns; quotes that do not match; a mapping by
            function.
    """

    def __init__(self, paths: Sequence[str], mapping: Mapping | None = None, captions: bool = True):
        names = names_of(mapping, _PATHS, CAPTION_NAMES)
        self._tables, indexes = zip(*(_index_table(path, names, captions) for path in paths), strict=True)
        super().__init__(paths, indexes)

    def name(self, index: int) -> str:
        """The path of the image; the table and the row if there is none."""
        ((table, row),) = self._rows(np.array([index]))
        return table.image_path(row) or f"{self.paths[self._shards(index)]}: {super().keys(np.array([index]))[0]}"

    def keys(self, ids: np.ndarray) -> list[str]:
        """The paths as the table has them."""
        return [row[table.path] for table, row in self._rows(ids)]

    def read(self, ids: np.ndarray) -> tuple[list[bytes], list[Captions]]:
        """The bytes of the image files, and the captions."""
        rows = self._rows(ids)
        paths = [table.image_path(row) for table, row in rows]
        return [file_bytes(path) if path else b"" for path in paths], [table.captions(row) for table, row in rows]

    def captions(self, ids: np.ndarray) -> list[Captions]:
        """One caption for each row."""
        return [table.captions(row) for table, row in self._rows(ids)]

    def metadata(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """All columns of each row.

        Raises:
            ValueError: a row is not UTF-8.
        """
        rows = [row for _, row in self._rows(ids)]
        for index, row in zip(ids.tolist(), rows, strict=True):
            try:
                "".join(row.values()).encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"A table must be UTF-8. Received: {self.name(index)}: {row}.") from error
        return rows

    def _rows(self, ids: np.ndarray) -> list[tuple[_Table, dict[str, str]]]:
        """The table and the values by column of each row; missing values are ""."""
        rows = []
        for index, shard, text in zip(ids.tolist(), self._shards(ids).tolist(), self._bytes(ids, 0), strict=True):
            table = self._tables[shard]
            lines = io.StringIO(text.decode("utf-8", "surrogateescape"), newline="")
            try:
                (values,) = csv.reader(lines, delimiter=table.delimiter, strict=True)
            except (csv.Error, ValueError) as error:
                self._raise_changed(index, str(error))
            rows.append((table, {**dict.fromkeys(table.header, ""), **dict(zip(table.header, values, strict=False))}))
        return rows


def _index_table(path: str, names: tuple[Sequence[str], Sequence[str]], captions: bool) -> tuple[_Table, ShardIndex]:
    """The header of a table, and where each of its rows lies."""
    delimiter = "\t" if path.lower().endswith(".tsv") else ","
    spans = []
    with open(path, "rb") as file:
        lines = _Lines(file)
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            header = next(rows, [])
            table = _Table(os.path.dirname(path), header, *_columns(path, header, names, captions), delimiter)
            start = lines.end
            for row in rows:
                if len(row) > len(header):
                    raise csv.Error(f"{len(row) - len(header)} more values than columns")
                if row:
                    spans.append((start, lines.end - start))
                start = lines.end
        except csv.Error as error:
            raise ValueError(
                'A value with a comma, a tab or a quote in it must stand in quotes, as in "a ""fine"" dog". '
                f"Received: {path}, line {rows.line_num}: {error}."
            ) from error
    return table, ShardIndex.of_spans(path, spans, 1)


class _Lines:
    """The lines of a UTF-8 file as text, of which `end` bytes have been read. Other bytes become lone surrogates."""

    def __init__(self, file: BinaryIO):
        self._file, self.end = file, 0

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            # A lone carriage return ends a line as well.
            for part in re.split(rb"(?<=\r)(?!\n)", line) if b"\r" in line else (line,):
                text = part.decode("utf-8", "surrogateescape")
                text = text if self.end else text.removeprefix("\ufeff")
                self.end += len(part)
                yield text


def _columns(
    path: str, header: Sequence[str], names: tuple[Sequence[str], Sequence[str]], captions: bool
) -> list[str | None]:
    folded = {name.strip().lower(): name for name in reversed(header) if name}
    columns: list[str | None] = []
    for what, wanted, is_needed in (("image paths", names[0], True), ("captions", names[1], captions)):
        found = [folded[name.lower()] for name in wanted if name.lower() in folded]
        if not found and is_needed:
            raise ValueError(
                f"A table must have a header with a column of {what}: {' or '.join(map(repr, wanted))}. "
                f'Received: {path} with the columns {list(header)}. Name yours: mapping=("<path>", "<caption>").'
            )
        columns.append(found[0] if found else None)
    return columns
