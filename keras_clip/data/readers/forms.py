"""The table of storage forms: how a path or an object is recognised, and which reader reads it."""

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from keras_clip.data.readers.brief import brief
from keras_clip.data.readers.dataset import DataFrameReader, SequenceReader, is_data_frame, is_sequence
from keras_clip.data.readers.elements.mapping import Mapping, check_mapping
from keras_clip.data.readers.folder import FolderReader
from keras_clip.data.readers.joined import JoinedReader
from keras_clip.data.readers.parquet import ParquetReader
from keras_clip.data.readers.reader import Reader, Stream, is_reader
from keras_clip.data.readers.storage.manifest import check_manifests
from keras_clip.data.readers.storage.paths import find_files
from keras_clip.data.readers.storage.remote import open_binary
from keras_clip.data.readers.storage.urls import is_remote
from keras_clip.data.readers.stream import DatasetStream, is_iterable, is_tf_dataset
from keras_clip.data.readers.table import TableReader
from keras_clip.data.readers.tar import TarReader
from keras_clip.data.readers.tfrecord import TFRecordReader


class Form(NamedTuple):
    """A storage form.

    Attributes:
        name: name of the form in error messages.
        fits: function that returns whether a path (str), or another object, is of this form.
        open: function (paths or object, mapping, captions) that returns the reader; see `open_reader`.
        is_sharded: whether each file holds many samples with their images, so that it can be processed by itself.
    """

    name: str
    fits: Callable[[Any], bool]
    open: Callable[[Any, Mapping | None, bool], Reader | Stream]
    is_sharded: bool = False


class Part(NamedTuple):
    """The elements of a source of one form.

    Attributes:
        form: the form.
        source: a list of paths, or an object.
        is_paths: whether it is a list of paths.
    """

    form: Form
    source: Any
    is_paths: bool


def named(pattern: str) -> Callable[[Any], bool]:
    """Returns a test for file names that end in the pattern, or in it and the extension of a compression."""
    whole = re.compile(rf"({pattern})(\.(gz|bz2|xz|zst))?$", re.IGNORECASE)
    return lambda source: isinstance(source, str) and whole.search(source) is not None


def _is_folder(source: Any) -> bool:
    return isinstance(source, str) and os.path.isdir(source)


def _is_own(source: Any) -> bool:
    return is_reader(source) or isinstance(source, Stream)


def _own_reader(reader: Reader | Stream, mapping: Mapping | None, captions: bool) -> Reader | Stream:
    if mapping is not None:
        raise ValueError(
            "A reader returns pairs itself and takes no mapping. "
            f"Received: source={brief(reader)}, mapping={brief(mapping)}."
        )
    return reader


# The first row that fits is used. To add a form, write its reader and a row.
FORMS = (
    Form("folder", _is_folder, FolderReader),
    Form("tar", named(r"\.tar|\.tgz|\.tbz2?|\.txz"), TarReader, is_sharded=True),
    Form("TFRecord", named(r"\.tfrec(ord)?s?(-\d+-of-\d+)?"), TFRecordReader, is_sharded=True),
    Form("Parquet", named(r"\.(parquet|pq)"), ParquetReader, is_sharded=True),
    Form("table", named(r"\.([ct]sv|jsonl|ndjson)"), TableReader),
    Form("reader", _is_own, _own_reader),
    Form("stream", is_tf_dataset, DatasetStream),
    Form("data frame", is_data_frame, DataFrameReader),
    Form("sequence", is_sequence, SequenceReader),
    Form("stream", is_iterable, DatasetStream),
)
_ACCEPTED = (
    "source must be .tar shards, .tfrecord or .parquet files, .csv, .tsv or .jsonl tables (a path, a glob, braces such "
    "as {00000..00031}, or a list of these), a folder of images and .txt files, a dataset or data frame, or a Reader."
)


def open_reader(
    source: Any, mapping: Any = None, captions: bool = True, *, delimiter: str | None = None, may_be_empty: bool = False
) -> Reader | Stream:
    """Returns the reader of a source; see `image_text_pairs` for the forms.

    Args:
        source: a path, a glob, braces, an object, or a list of these, of one form or several.
        mapping: the names of the image and the caption column, or, for datasets, a function of an element.
        captions: whether samples must be pairs. If False, they are images with metadata: no captions are needed, and
            the second name of a mapping may be None.
        delimiter: separator of the columns of tables. None: see `TableReader`.
        may_be_empty: whether a source without samples is accepted.

    Returns:
        A `Reader`; a `Stream` if the source can only be iterated over, such as a `tf.data.Dataset`.

    Raises:
        FileNotFoundError: nothing has that name.
        TypeError, ValueError: no such form, a mapping or delimiter where none belongs, or no samples.
    """
    mapping = check_mapping(mapping, captions)
    parts = parts_of(source)
    if delimiter is not None and not any(part.form.name == "table" for part in parts):
        raise ValueError(f"Only tables have a delimiter. Received: delimiter={delimiter!r}, source={brief(source)}.")
    readers = []
    for form, part, _ in parts:
        if form.is_sharded:
            check_manifests([path for path in part if not is_remote(path)])
        options = {"delimiter": delimiter} if delimiter is not None and form.name == "table" else {}
        # A user's reader takes no mapping, also if sources joined with it need one.
        is_own = form.name == "reader" and len(parts) > 1
        readers.append(form.open(part, None if is_own else mapping, captions, **options))
    if len(readers) > 1 and any(isinstance(reader, Stream) for reader in readers):
        raise ValueError(
            "Streams cannot be joined with other sources. "
            f"Received: source={brief(source)}. Join them yourself, as by tf.data.Dataset.concatenate."
        )
    reader = readers[0] if len(readers) == 1 else JoinedReader(readers, _names(parts))
    if not may_be_empty and not isinstance(reader, Stream) and not len(reader):
        raise ValueError(f"A source must hold samples. Received: source={brief(source)} with none.")
    if getattr(reader, "skipped", None):
        reader.skipped.warn_of_files()
    return reader


def parts_of(source: Any) -> list[Part]:
    """Groups the elements of a source by form: the paths of a form, one folder, or an object.

    Args:
        source: as of `open_reader`.

    Returns:
        The parts, in the order of the elements.

    Raises:
        FileNotFoundError, TypeError, ValueError: as of `open_reader`.
    """
    parts: list[Part] = []
    if not _is_several(source):
        source = [source]
    elif not source:
        find_files(source)
    known: set[str] = set()
    for each in source:
        if not isinstance(each, (str, os.PathLike)):
            parts.append(Part(_form_of_object(each), each, False))
            continue
        for path in find_files(each):
            # A glob may find a shard and a link to it.
            place = path if is_remote(path) else os.path.realpath(path)
            if place in known:
                continue
            known.add(place)
            form = _form_of_path(path)
            if parts and parts[-1].is_paths and parts[-1].form is form and form.name != "folder":
                parts[-1].source.append(path)
            else:
                parts.append(Part(form, [path], True))
    return parts


def _is_several(source: Any) -> bool:
    """Returns whether a list holds sources rather than samples."""
    return isinstance(source, (list, tuple)) and all(
        isinstance(each, (str, os.PathLike))
        or _is_own(each)
        or is_data_frame(each)
        or is_tf_dataset(each)
        or hasattr(each, "column_names")
        for each in source
    )


def _form_of_object(source: Any) -> Form:
    form = next((form for form in FORMS if form.fits(source)), None)
    if form is None:
        raise TypeError(
            f"{_ACCEPTED} Received: source of {type(source)}. Of a dictionary of splits pick one; "
            "give a stream as a tf.data.Dataset, or as an object that can be iterated over again."
        )
    return form


def _form_of_path(path: str) -> Form:
    """Returns the form of a file, by its extension, or else by its first bytes."""
    # A web address may have a query after the name of the file.
    name = path.partition("?")[0] if is_remote(path) else path
    form = next((form for form in FORMS if form.fits(name)), None)
    if is_remote(path) and form is not None and not form.is_sharded:
        raise ValueError(
            f"Remote sources are .tar, .tfrecord and .parquet files. Received: {path!r}, a {form.name}. Download it."
        )
    if form is None and not os.path.isdir(path):
        with open_binary(path) as file:
            head = file.read(262)
        name = "Parquet" if head.startswith(b"PAR1") else "tar" if head[257:] == b"ustar" else ""
        form = next((form for form in FORMS if form.name == name), None)
    if form is None:
        raise ValueError(f"{_ACCEPTED} Received: {path!r}, which is none of these.")
    return form


def _names(parts: list[Part]) -> list[str]:
    """Prefixes that make the keys of different parts unique."""
    return [f"source{number}" for number in range(len(parts))]
