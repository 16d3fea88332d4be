"""The table of forms: what a path or an object is, and which reader reads it."""

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from keras_clip.data.readers.dataset import SequenceReader, Stream, is_sequence, is_stream
from keras_clip.data.readers.folder import FolderReader
from keras_clip.data.readers.mapping import Mapping, check_mapping
from keras_clip.data.readers.paths import find_files
from keras_clip.data.readers.reader import Reader, is_reader
from keras_clip.data.readers.table import TableReader
from keras_clip.data.readers.tar import TarReader
from keras_clip.data.readers.tfrecord import TFRecordReader


class Form(NamedTuple):
    """A form of storage.

    Attributes:
        name: what errors call it.
        fits: whether a path (str), or an object that is none, is of this form.
        open: function (paths or object, mapping, captions) that returns the reader; see `open_reader`.
    """

    name: str
    fits: Callable[[Any], bool]
    open: Callable[[Any, Mapping | None, bool], Reader | Stream]


def _named(pattern: str) -> Callable[[Any], bool]:
    """Whether the name of a file ends like this."""
    return lambda source: isinstance(source, str) and re.search(rf"{pattern}$", source, re.IGNORECASE) is not None


def _is_folder(source: Any) -> bool:
    return isinstance(source, str) and os.path.isdir(source)


def _own_reader(reader: Reader, mapping: Mapping | None, captions: bool) -> Reader:
    if mapping is not None:
        raise ValueError(
            f"A reader returns pairs itself and takes no mapping. Received: source={reader!r}, mapping={mapping!r}."
        )
    return reader


# The first row that fits is taken. To add a form, write its reader and a row.
FORMS = (
    Form("folder", _is_folder, FolderReader),
    Form("tar", _named(r"\.tar"), TarReader),
    Form("TFRecord", _named(r"\.tfrecords?(-\d+-of-\d+)?"), TFRecordReader),
    Form("table", _named(r"\.[ct]sv"), TableReader),
    Form("reader", is_reader, _own_reader),
    Form("stream", is_stream, Stream),
    Form("sequence", is_sequence, SequenceReader),
)
_ACCEPTED = (
    "source must be .tar shards, .tfrecord files, .csv or .tsv tables (a path, a glob, braces such as "
    "{00000..00031}, or a list of these), a folder of images and .txt files, a dataset with a mapping, or a Reader."
)


def open_reader(source: Any, mapping: Any = None, captions: bool = True) -> Reader | Stream:
    """The reader of a source; see `image_text_pairs` for the forms.

    Args:
        source: a path, a glob, braces, a list of these, or an object.
        mapping: the names of the image and the caption column, or, for data sets, a function of an element.
        captions: whether samples must be pairs. If False, they are images with metadata: no captions are needed, and
            the second name of a mapping may be None.

    Returns:
        The `Reader`; of a `tf.data.Dataset` a `Stream`.

    Raises:
        FileNotFoundError: nothing has that name.
        TypeError, ValueError: no such form, files of several forms, a mapping where none belongs, or no samples.
    """
    mapping = check_mapping(mapping, captions)
    if _is_paths(source):
        paths = find_files(source)
        reader = _form_of_paths(paths).open(paths, mapping, captions)
    else:
        form = _form_of(source)
        if form is None:
            raise TypeError(
                f"{_ACCEPTED} Received: source of {type(source)}. Of a dictionary of splits pick one; "
                "give a stream as a tf.data.Dataset."
            )
        reader = form.open(source, mapping, captions)
    if not isinstance(reader, Stream) and not len(reader):
        raise ValueError(f"A source must hold samples. Received: source={source!r} with none.")
    return reader


def _is_paths(source: Any) -> bool:
    """Whether the source is a path or a list of paths."""
    if isinstance(source, (str, os.PathLike)):
        return True
    return isinstance(source, (list, tuple)) and all(isinstance(path, (str, os.PathLike)) for path in source)


def _form_of(source: Any) -> Form | None:
    return next((form for form in FORMS if form.fits(source)), None)


def _form_of_paths(paths: list[str]) -> Form:
    """The one form of all paths."""
    examples: dict[str, str] = {}
    for path in paths:
        form = _form_of(path)
        examples.setdefault(form.name if form else "other", path)
    if len(examples) > 1 or form is None:
        raise ValueError(f"{_ACCEPTED} All of one kind. Received: {examples}.")
    return form
