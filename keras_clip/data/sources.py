"""Finds out what a source of pairs is, by its form, and opens the reader for it."""

import glob
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from keras_clip.data.readers import IndexedDataset, Reader, RecordShards, TarShards, read_folder, read_tables
from keras_clip.data.shard_index import INDEX_SUFFIX

_KINDS = {
    "tar": re.compile(r"\.tar$", re.I),
    "TFRecord": re.compile(r"\.tfrecords?(-\d+-of-\d+)?$", re.I),
    "table": re.compile(r"\.[ct]sv$", re.I),
}
_FORMS = (
    "source must be .tar shards, .tfrecord files, .csv or .tsv tables (a path, a glob, braces such as "
    "{00000..00031}, or a list of these), a folder of images and .txt files, or a dataset with a mapping."
)


def open_source(source: Any, mapping: Sequence[str] | Callable | None = None) -> Reader:
    """The reader of a source that can be read by number; see `image_text_pairs` for the forms.

    Raises:
        FileNotFoundError: nothing of that name.
        TypeError, ValueError: no such form, files of several kinds, a mapping where none belongs, or no samples.
    """
    if mapping is not None:
        mapping = require_mapping(mapping)
    if is_paths(source):
        reader = _open_files(source, mapping)
    elif hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, dict):
        reader = IndexedDataset(source, require_mapping(mapping))
    else:
        raise TypeError(
            f"{_FORMS} Received: source of {type(source)}. Of a dictionary of splits pick one; "
            "give a stream as a tf.data.Dataset."
        )
    if not len(reader):
        raise ValueError(f"A source must hold samples. Received: source={source!r} with none.")
    return reader


def is_paths(source: Any) -> bool:
    """Whether the source is a path or a list of paths."""
    if isinstance(source, (str, os.PathLike)):
        return True
    return isinstance(source, (list, tuple)) and all(isinstance(path, (str, os.PathLike)) for path in source)


def require_mapping(mapping: Any) -> Any:
    """A function, or two names as a tuple."""
    if mapping is None:
        raise ValueError(
            "A dataset needs a mapping to pairs. Received: mapping=None. Pass the names of two columns, e.g. "
            'mapping=("image", "caption"), or a function of an element that returns (image, caption or captions).'
        )
    if callable(mapping):
        return mapping
    mapping = tuple(mapping)
    if len(mapping) != 2 or isinstance(mapping[0], int):
        raise ValueError(f"mapping must name two columns, image and caption. Received: mapping={mapping!r}.")
    return mapping


def _open_files(source: Any, mapping: Any) -> Reader:
    paths = find_files(source)
    if callable(mapping):
        raise ValueError(f"A mapping for files must be two names. Received: mapping={mapping!r}, source={source!r}.")
    if len(paths) == 1 and os.path.isdir(paths[0]):
        kind, reader = "folder", read_folder
        paths = paths[0]
    else:
        kind = _kind(paths)
        reader = {"tar": TarShards, "TFRecord": RecordShards, "table": read_tables}[kind]
    if kind in ("tar", "folder"):
        if mapping is not None:
            raise ValueError(
                f"A {kind} source has fixed names (<key>.jpg, <key>.txt) and takes no mapping. "
                f"Received: mapping={mapping!r}."
            )
        return reader(paths)
    return reader(paths, mapping)


def _kind(paths: Sequence[str]) -> str:
    kinds = {}
    for path in paths:
        kinds.setdefault(next((kind for kind, name in _KINDS.items() if name.search(path)), "other"), path)
    if len(kinds) > 1 or "other" in kinds:
        raise ValueError(f"{_FORMS} All of one kind. Received: {kinds}.")
    return next(iter(kinds))


def find_files(source: str | os.PathLike | Sequence) -> list[str]:
    """The paths that a path, a glob, a brace expression or a list of these stands for, in order, each once."""
    found = {}
    for entry in [source] if isinstance(source, (str, os.PathLike)) else source:
        for pattern in _expand_braces(os.path.expanduser(os.fspath(entry))):
            if re.match(r"(?!file:)\w+:", pattern):
                raise ValueError(f"A source must be local files. Received: {pattern!r}. Download or mount it first.")
            paths = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
            # What `shard_index` puts beside a shard is no shard.
            paths = [path for path in paths if not path.endswith(INDEX_SUFFIX)]
            if not paths:
                raise FileNotFoundError(
                    f"No file matches. Received: source={pattern!r}, in the folder {os.getcwd()}. Check the path."
                )
            found.update(dict.fromkeys(paths))
    if not found:
        raise FileNotFoundError(f"{_FORMS} Received: source={source!r}, an empty list.")
    return list(found)


def _expand_braces(pattern: str) -> list[str]:
    """`a{00..02}b` and `a{x,y}b` as a shell expands them."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        return [pattern]
    first, last, choices = match.groups()
    if choices is None:
        step = 1 if int(first) <= int(last) else -1
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
        parts = [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]
    else:
        parts = choices.split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    rests = _expand_braces(tail)
    return [head + part + rest for part in parts for rest in rests]
