"""Reads texts from files, and counts the words and pairs of words of a corpus of any size in bounded memory."""

import bz2
import gzip
import heapq
import itertools
import json
import lzma
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

_OPEN = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# Bytes of a line that are read at once; longer lines are cut at white space.
_LINE_BYTES = 1 << 20
# Sorted files that are merged at once: each is open meanwhile.
_FAN_IN = 64


def open_text(path: str | os.PathLike) -> Any:
    """Opens a file to read bytes; .gz, .bz2 and .xz are decompressed."""
    return _OPEN.get(Path(path).suffix, open)(path, "rb")


def read_texts(paths: str | os.PathLike | Sequence[str | os.PathLike], field: str = "text") -> Iterator[str]:
    """Yields the texts of files, in the order given.

    Args:
        paths: a file or several: .jsonl, with a JSON object in each line, or others, with a text in each line; each may
            be compressed (.gz, .bz2, .xz). Bytes that are not UTF-8 are replaced by U+FFFD.
        field: str. The member of a JSON object with its text.

    Returns:
        Iterator of str. Lines above one megabyte are cut at white space.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line of a .jsonl file is not an object with this member.
    """
    for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        suffixes = Path(path).suffixes
        is_jsonl = (
            bool(suffixes) and (suffixes[-2] if suffixes[-1] in _OPEN and suffixes[1:] else suffixes[-1]) == ".jsonl"
        )
        with open_text(path) as file:
            if not is_jsonl:
                yield from _lines(file)
                continue
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _member(line, field, f"{path}, line {number}")


def _lines(file):
    rest = b""
    while chunk := file.readline(_LINE_BYTES):
        is_cut = len(chunk) == _LINE_BYTES and not chunk.endswith(b"\n")
        chunk, rest = rest + chunk, b""
        # A word that goes on in the next chunk stays whole, unless it is longer than a chunk.
        if is_cut and (end := max(chunk.rfind(b" "), chunk.rfind(b"\t"))) > 0:
            chunk, rest = chunk[:end], chunk[end:]
        yield chunk.decode("utf-8", "replace").rstrip("\r\n")
    if rest:
        yield rest.decode("utf-8", "replace")


def _member(line, field, where):
    try:
        value = json.loads(line)
        text = value[field] if isinstance(value, dict) else None
    except (ValueError, KeyError):
        text = None
    if not isinstance(text, str):
        raise ValueError(
            f"Each line of a .jsonl file must be a JSON object with a text as its {field!r}. Received: {where}: "
            f"{line[:80]!r}. Name another field."
        )
    return text


class SpillingCounter:
    """Counts strings exactly, in memory that does not grow with the number of different ones.

    When it holds `max_size` strings, it writes their counts to a sorted file; in the end the files are merged.

    Args:
        max_size: int >= 1. Strings held in memory, about 100 bytes each.
        folder: where the files are written, in a folder that `close` removes. None: the system's folder.

    Raises:
        ValueError: an invalid size.
    """

    def __init__(self, max_size: int = 4_000_000, folder: str | os.PathLike | None = None):
        if isinstance(max_size, bool) or not isinstance(max_size, int) or max_size < 1:
            raise ValueError(f"`max_size` must be a positive integer. Received: max_size={max_size!r}.")
        self.max_size = max_size
        self._counts: Counter[str] = Counter()
        self._folder = tempfile.TemporaryDirectory(prefix="keras_clip_counts_", dir=folder)
        self._files: list[Path] = []
        self._names = itertools.count()

    def update(self, strings: Iterable[str]) -> None:
        """Counts strings without line breaks and tabs."""
        self._counts.update(strings)
        if len(self._counts) >= self.max_size:
            self._spill(sorted(self._counts.items()))
            self._counts.clear()

    def items(self) -> Iterator[tuple[str, int]]:
        """Yields (string, count), each string once, sorted."""
        return _merged([*map(_read_counts, self._files), iter(sorted(self._counts.items()))])

    def close(self) -> None:
        """Removes the files."""
        self._folder.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def _spill(self, items):
        path = Path(self._folder.name) / f"{next(self._names)}.tsv"
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{string}\t{count}\n" for string, count in items)
        self._files.append(path)
        if len(self._files) == _FAN_IN:
            merged, self._files = self._files, []
            self._spill(_merged(map(_read_counts, merged)))
            for path in merged:
                path.unlink()


def _read_counts(path):
    with open(path, encoding="utf-8", newline="\n") as file:
        for line in file:
            string, count = line.rstrip("\n").split("\t")
            yield string, int(count)


def _merged(sorted_counts):
    for string, group in itertools.groupby(heapq.merge(*sorted_counts), key=lambda item: item[0]):
        yield string, sum(count for _, count in group)
