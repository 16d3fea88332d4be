"""Labelled pictures as files that evaluation and training read: a class folder, tables, a WebDataset tar.

Exports are produced part by part, so that memory does not grow with the number of pictures.
"""

import csv
import io
import itertools
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from keras_clip import files
from keras_clip.printable import cell, printable
from keras_clip.search.labels.assigning import LabelledPicture

# The formats, with the names of their files and their media types.
FORMATS = {
    "csv": ("pictures.csv", "text/csv; charset=utf-8"),
    "json": ("pictures.jsonl", "application/jsonl"),
    "paths": ("pictures.txt", "text/plain; charset=utf-8"),
    "tar": ("pictures.tar", "application/x-tar"),
    "folder": ("pictures.zip", "application/zip"),
}
UNLABELLED = "unlabelled"
_CHUNK = 2**18
# Names that Windows gives to devices.
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))})
# Bytes of a name, of the 255 that file systems allow for it and its number.
_MOST_BYTES = 200


@dataclass(frozen=True)
class Row:
    """A picture of an export.

    Args:
        picture: `Picture` of the index.
        labels: its classes, the one that counts first.
    """

    picture: Any
    labels: Sequence[LabelledPicture]

    @property
    def label(self) -> str | None:
        """The name of the class that counts, or None."""
        return self.labels[0].saved.name if self.labels else None

    @property
    def caption(self) -> str:
        """The caption of the picture, or else the first prompt of its class; "" if it has neither."""
        return self.picture.caption or (self.labels[0].saved.prompts[0] if self.labels else "")


class Left:
    """The pictures that an export left out.

    Attributes:
        pictures: (id, reason) of each.
    """

    def __init__(self):
        self.pictures: list[tuple[int, str]] = []


def parts(
    format: str, rows: Iterator[Row], open_picture: Callable[[Any], BinaryIO], left: Left | None = None
) -> Iterator[bytes]:
    """Yields the parts of an export.

    - "csv": a table with the columns path, label, labels (separated by ;), caption, by_hand, name, folder, width,
      height, taken, sha256, id. Paths are absolute. A text that a spreadsheet would take for a formula begins with an
      apostrophe.
    - "json": the same as a line of JSON for each picture (.jsonl), with a list of labels.
    - "paths": a path a line; one with a line break is written as a file: address.
    - "tar": a WebDataset shard: the file, its caption as .txt, its class as .cls, and the rest as .json.
    - "folder": a zip of one folder for each class, with captions as .txt beside the pictures; a picture of several
      classes is in that of the first.

    Args:
        format: one of `FORMATS`.
        rows: `Row`s.
        open_picture: function of a `Picture` that opens its file for reading, and raises an OSError if it cannot.
        left: is told which pictures were left out, because their files are not there any more, or a
            table cannot name them. None: nobody is.

    Returns:
        Iterator of bytes.

    Raises:
        ValueError: an unknown format.
    """
    if format not in FORMATS:
        raise ValueError(f"`format` must be one of {', '.join(FORMATS)}. Received: format={format!r}.")
    left = Left() if left is None else left
    if format in ("tar", "folder"):
        return (_tar if format == "tar" else _zip)(rows, open_picture, left)
    if format == "paths":
        return _paths(rows)
    return {"csv": _csv, "json": _json}[format](_with_text_path(rows, left))


def export(
    format: str,
    rows: Iterator[Row],
    open_picture: Callable[[Any], BinaryIO],
    target: str | os.PathLike,
) -> Left:
    """Writes an export to a file, whole or not at all, or a class folder to a folder.

    Args:
        format: as of `parts`.
        rows: `Row`s.
        open_picture: as of `parts`.
        target: the file; of "folder" a new or empty folder, or a name with .zip.

    Returns:
        Which pictures were left out.

    Raises:
        ValueError: an unknown format, or a folder that has something in it.
    """
    left, target = Left(), Path(target)
    if format == "folder" and target.suffix.lower() != ".zip":
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ValueError(f"A class folder is written to a new or empty folder. Received: {target}.")
        for name, file, caption in _opened(rows, open_picture, left, _Names().in_class):
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.replacing(path) as temporary, open(temporary, "xb") as copy:
                for part in _chunks(file):
                    copy.write(part)
            if caption:
                path.with_suffix(".txt").write_bytes(caption)
        return left
    target.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(target) as temporary, open(temporary, "wb") as file:
        for part in parts(format, rows, open_picture, left):
            file.write(part)
    return left


def _facts(row: Row) -> dict[str, Any]:
    picture = row.picture
    return {
        "path": str(picture.path),
        "label": row.label,
        "labels": [label.saved.name for label in row.labels],
        "caption": row.caption,
        "by_hand": bool(row.labels) and row.labels[0].by_hand,
        "name": picture.name,
        "folder": picture.folder,
        "width": picture.width,
        "height": picture.height,
        "taken": picture.taken.isoformat(),
        "sha256": picture.sha256,
        "id": picture.id,
    }


def _with_text_path(rows: Iterator[Row], left: Left) -> Iterator[Row]:
    """Yields the rows whose paths can be in a table: one that is not UTF-8 would make the whole table unreadable."""
    for row in rows:
        try:
            str(row.picture.path).encode()
        except UnicodeEncodeError:
            left.pictures.append(
                (row.picture.id, "its path is not UTF-8, as a table must be: export a tar or a folder")
            )
        else:
            yield row


def _csv(rows: Iterator[Row]) -> Iterator[bytes]:
    for place, row in enumerate(rows):
        facts = _facts(row)
        facts.update(label=facts["label"] or "", labels=";".join(facts["labels"]), by_hand=int(facts["by_hand"]))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not place:
            writer.writerow(facts)
        # The path names the file in any case: it is absolute, so it begins no formula.
        writer.writerow([value if name == "path" else cell(value) for name, value in facts.items()])
        yield text.getvalue().encode("utf-8", "replace")


def _json(rows: Iterator[Row]) -> Iterator[bytes]:
    for row in rows:
        yield json.dumps(_facts(row), allow_nan=False).encode() + b"\n"


def _paths(rows: Iterator[Row]) -> Iterator[bytes]:
    for row in rows:
        path = row.picture.path
        is_line = not any(character in str(path) for character in "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")
        yield (os.fsencode(path) if is_line else path.as_uri().encode()) + b"\n"


class _Sink(io.RawIOBase):
    """A file that is written to, and whose content is taken away part by part."""

    def __init__(self):
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data


def _tar(rows: Iterator[Row], open_picture: Callable, left: Left) -> Iterator[bytes]:
    sink = _Sink()
    tar = tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT)
    for row in rows:
        file = _file_of(row, open_picture, left)
        if file is None:
            continue
        with file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(size)
        if len(data) != size:
            left.pictures.append((row.picture.id, "the file changed while it was read"))
            continue
        key, facts = f"{row.picture.id:09}", _facts(row)
        # `name` is where sources of evaluation look for the class; the path would tell of this machine.
        facts = {**facts, "file": facts.pop("name"), "name": facts["label"]}
        facts.pop("path")
        members = {_extension(row.picture): data, "json": json.dumps(facts, allow_nan=False).encode()}
        if row.caption:
            members["txt"] = row.caption.encode("utf-8", "replace")
        if row.label is not None:
            members["cls"] = row.label.encode()
        for extension, content in members.items():
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size, info.mode = len(content), 0o644
            tar.addfile(info, io.BytesIO(content))
        yield sink.take()
    tar.close()
    yield sink.take()


def _zip(rows: Iterator[Row], open_picture: Callable, left: Left) -> Iterator[bytes]:
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name, file, caption in _opened(rows, open_picture, left, _Names().in_class):
            # The size that is declared first decides whether the member can be larger than 4 GiB.
            info = zipfile.ZipInfo(name)
            info.file_size = os.fstat(file.fileno()).st_size
            info.external_attr = 0o644 << 16
            with archive.open(info, "w", force_zip64=info.file_size > 2**31) as member:
                for part in _chunks(file, info.file_size):
                    member.write(part)
                    yield sink.take()
            if caption:
                text = zipfile.ZipInfo(str(PurePosixPath(name).with_suffix(".txt")))
                text.external_attr = 0o644 << 16
                archive.writestr(text, caption)
                yield sink.take()
    yield sink.take()


def _opened(
    rows: Iterator[Row], open_picture: Callable, left: Left, name_of: Callable[[Row], str]
) -> Iterator[tuple[str, BinaryIO, bytes]]:
    """Yields a name, the open file and the caption of each picture; the file is closed before the next one."""
    for row in rows:
        file = _file_of(row, open_picture, left)
        if file is not None:
            with file:
                yield name_of(row), file, row.caption.encode("utf-8", "replace")


def _file_of(row: Row, open_picture: Callable, left: Left) -> BinaryIO | None:
    try:
        return open_picture(row.picture)
    except OSError as error:
        left.pictures.append((row.picture.id, error.strerror or str(error)))
        return None


def _chunks(file: BinaryIO, size: float = float("inf")) -> Iterator[bytes]:
    """Yields at most `size` bytes of a file: it may grow while it is read."""
    while size > 0 and (part := file.read(int(min(size, _CHUNK)))):
        size -= len(part)
        yield part


class _Names:
    """Names of members that are files on every system, below the folder of their class, and all different."""

    def __init__(self):
        self._taken: set[str] = set()
        self._folders: dict[str, str] = {}

    def in_class(self, row: Row) -> str:
        label = UNLABELLED if row.label is None else row.label
        if label not in self._folders:
            self._folders[label] = self._free(portable(label), "")
        stem = portable(Path(row.picture.name).stem)
        return self._free(f"{self._folders[label]}/{stem}", f".{_extension(row.picture)}")

    def _free(self, name: str, extension: str) -> str:
        for number in itertools.count(1):
            candidate = f"{name}{f'_{number}' if number > 1 else ''}"
            # Some file systems do not distinguish upper and lower case; a caption has the name without the extension.
            if candidate.casefold() not in self._taken:
                self._taken.add(candidate.casefold())
                return candidate + extension


def portable(name: str) -> str:
    """Returns a text as the name of a file or folder that every system can have, inside its folder.

    Args:
        name: str.

    Returns:
        str without separators, reserved characters, dots and spaces at its ends, and of at most 200 bytes.
    """
    name = "".join("_" if character in '<>:"/\\|?*' else character for character in printable(name))
    name = name.encode("utf-8", "replace")[:_MOST_BYTES].decode("utf-8", "ignore").strip(". ")
    return f"_{name}" if not name or name.split(".")[0].lower() in _DEVICES else name


def _extension(picture: Any) -> str:
    """The extension of a picture by what it is, not by how it is called."""
    return {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}.get(picture.format, picture.format.lower())
