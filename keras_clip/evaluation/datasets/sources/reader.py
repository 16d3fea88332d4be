"""Labelled images and captions of any reader, so that evaluation reads a storage form by the code of training."""

import functools
import os
import reprlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_clip.data.readers import Reader, open_reader
from keras_clip.data.readers.brief import brief
from keras_clip.data.readers.storage.stamps import change_stamp, digest_of
from keras_clip.data.skipped import SkippedSamples
from keras_clip.evaluation.datasets.labelled_images import Label, LabelledImages

# Numbers of images and of metadata records that are read at a time.
_IMAGES, _SAMPLES = 8, 1024
# A file that was changed less than this before has no stamp: FAT has times of two seconds.
_NANOSECONDS_SETTLED = 3 * 10**9


def from_reader(
    source: Reader | str | os.PathLike | Sequence,
    class_names: Sequence[str] | None = None,
    *,
    label: str | Callable[[dict], Label] | None = None,
    group: str | None = None,
    mapping: Sequence | Callable | None = None,
    delimiter: str | None = None,
    name: str | None = None,
    split: str = "test",
    empty_classes: str = "refuse",
) -> LabelledImages:
    """Reads images of a `keras_clip.data.Reader`, or of any source that `image_text_pairs` reads by index.

    Args:
        source: a `Reader` with the methods `keys` and `metadata`, files of any form, or a dataset.
        class_names: K names. None: all labels, in alphabetical order. The numbers of `.cls` files are names too, but if
            they are not among `class_names`, they are indices into them.
        label: the name of the class in the metadata, or a function of the metadata of an image that returns it. For
            several classes per image, it is a list of names. None: "label", "name", "class" (of a folder) or "cls" (of
            a tar), the first that the first image has.
        group: the name of the group in the metadata. None: no groups.
        mapping: as of `image_text_pairs`. The second name may be None: captions are not needed.
        delimiter: as of `image_text_pairs`.
        name: of the dataset. None: "images".
        split: what to call this part.
        empty_classes: what to do with a class without an image: "refuse", "keep" or "drop".

    Returns:
        `LabelledImages`; the ids are the keys of the reader.

    Raises:
        FileNotFoundError, TypeError: as of `image_text_pairs`; a stream, or a reader without `keys` and `metadata`.
        ValueError: an image without a label; see `LabelledImages`.
    """
    reader = open_reader(source, mapping, captions=False, delimiter=delimiter)
    columns = Columns(reader, label or usual_label(reader, ("label", "name", "class", "cls")), group)
    return columns.labelled_images(class_names, name=name or "images", split=split, empty_classes=empty_classes)


def captions_of(
    source: Reader | str | os.PathLike | Sequence, mapping: Any = None, *, delimiter: str | None = None
) -> dict[str, list[str]]:
    """The captions of a `keras_clip.data.Reader`, or of any source that `image_text_pairs` reads by number.

    A text is one caption, as in training, whatever its lines; for several, a `.json` has a list. Captions that are not
    UTF-8 are left out, with a warning that names them.

    Args:
        source: a `Reader` with the methods `keys` and `captions`, files of any form, or a dataset.
        mapping: as of `image_text_pairs`.
        delimiter: as of `image_text_pairs`.

    Returns:
        {key: captions} of the samples that have any; the keys are the ids of images from the same source.

    Raises:
        FileNotFoundError, TypeError, ValueError: as of `image_text_pairs`; a stream, or a reader without these methods.
    """
    reader = open_reader(source, mapping, delimiter=delimiter)
    _require_methods(reader, "keys", "captions")
    found: dict[str, list[str]] = {}
    skipped = SkippedSamples(brief(source))
    for ids in _blocks(np.arange(len(reader)), _SAMPLES):
        for index, key, texts in zip(ids.tolist(), reader.keys(ids), reader.captions(ids), strict=True):
            if key in found:
                raise ValueError(
                    f"No two images may have the same key. Received: {reader.name(index)} with the key {key!r} of an "
                    "earlier one. Give every sample a key of its own."
                )
            found[key] = []
            for text in texts:
                try:
                    found[key] += filter(None, [text.decode().strip()])
                except UnicodeDecodeError:
                    skipped.add(reader.name(index), "caption not UTF-8")
    skipped.finish(len(reader))
    return {key: captions for key, captions in found.items() if captions}


class Columns:
    """The keys, labels and groups of the samples of a reader.

    Args:
        reader: reader of the samples.
        label: the name of the label in the metadata, or a function of the metadata.
        group: the name of the group, or a function of the metadata. None: no groups.
        where: location of the metadata, for error messages.

    Raises:
        TypeError: a reader without `keys` and `metadata`.
        ValueError: a sample without key, label or group.
    """

    def __init__(
        self,
        reader: Reader,
        label: str | Callable[[dict], Label],
        group: str | Callable[[dict], str] | None = None,
        where: str = "the metadata of each image",
    ):
        _require_methods(reader, "keys", "metadata")
        self._reader, self._where = reader, where
        self._are_places = label == "cls"
        self.keys: list[str] = []
        self.labels: list[Label] = []
        self.groups: list[str] | None = None if group is None else []
        for ids in _blocks(np.arange(len(reader)), _SAMPLES):
            for index, key, metadata in zip(ids.tolist(), reader.keys(ids), reader.metadata(ids), strict=True):
                if not key:
                    raise ValueError(f"Each image must have a key. Received: {reader.name(index)} without one.")
                self.keys.append(key)
                self.labels.append(_as_label(self._value("a label", label, metadata, index)))
                if group is not None:
                    self.groups.append(str(self._value("a group", group, metadata, index)))

    def _value(self, what: str, name: str | Callable, metadata: dict, index: int) -> Any:
        try:
            value = name(metadata) if callable(name) else metadata[name]
        except KeyError as error:
            value, name = None, error.args[0]
        is_nothing = value is None or (isinstance(value, float) and value != value)
        if is_nothing or (isinstance(value, str) and not value.strip() and what == "a label"):
            what = what if callable(name) else repr(name)
            found = reprlib.repr(metadata) if metadata else "nothing"
            raise ValueError(
                f"There must be {what} in {self._where}. Received: {self._reader.name(index)} with {found}. "
                "Name another part of it."
            )
        return value

    def labelled_images(
        self, class_names: Sequence[str] | None, rows: Sequence[int] | None = None, **options: Any
    ) -> LabelledImages:
        """Returns the images, or some of them.

        Args:
            class_names: K names. None: all labels, in alphabetical order.
            rows: the numbers of the images, in order. None: all.
            **options: of `LabelledImages`.

        Returns:
            `LabelledImages`.
        """
        rows = np.arange(len(self.keys)) if rows is None else np.array(rows, np.int64)
        labels = [self.labels[row] for row in rows.tolist()]
        if self._are_places and class_names is not None:
            labels = _names_at_places(labels, class_names)
        known = {part for label in labels for part in ([label] if isinstance(label, str) else label)}
        return LabelledImages(
            functools.partial(_read, self._reader, rows),
            labels,
            [self.keys[row] for row in rows.tolist()],
            sorted(known) if class_names is None else class_names,
            groups=None if self.groups is None else [self.groups[row] for row in rows.tolist()],
            stamp=functools.partial(_stamp, self._reader, rows),
            **{"skipped": getattr(self._reader, "skipped", None), **options},
        )


def usual_label(reader: Reader, names: Sequence[str]) -> str:
    """Which of these names the metadata of the first image have; the first name if they have none of them."""
    _require_methods(reader, "keys", "metadata")
    metadata = reader.metadata(np.arange(min(1, len(reader))))
    return next((name for name in names if metadata and name in metadata[0]), names[0])


def _names_at_places(labels: list[Label], class_names: Sequence[str]) -> list[Label]:
    """The labels of `.cls` files, or, if they are class indices, the corresponding names."""
    if not all(isinstance(label, str) and label.isdecimal() for label in labels) or set(labels) <= set(class_names):
        return labels
    places = list(map(int, labels))
    if max(places) >= len(class_names):
        raise ValueError(
            "The number of a class must be a place in `class_names`. "
            f"Received: {max(places)} in a .cls, with {len(class_names)} names. Pass those of all classes, in order."
        )
    return [class_names[place] for place in places]


def _as_label(value: Any) -> Label:
    if isinstance(value, Mapping):
        return value
    # Surrounding whitespace is not part of a name.
    return {str(part).strip(): 1 for part in value} if isinstance(value, (list, tuple)) else str(value).strip()


def _stamp(reader: Reader, rows: np.ndarray) -> str | None:
    """Returns a digest of the state of the files of the images; None if only reading them shows a change."""
    # What a derived class reads may be more than the files that its base class names.
    if "image_files" not in vars(type(reader)):
        return None
    newest = time.time_ns() - _NANOSECONDS_SETTLED
    parts, paths = reader.image_files(rows)
    stamps = [change_stamp(path) for path in paths]
    # A file may change once more within the resolution of its times.
    if not all(stamps) or max(max(stamp[2:]) for stamp in stamps) > newest:
        return None
    return digest_of([parts, *zip(map(os.path.abspath, paths), stamps, strict=True)])


def _read(reader: Reader, rows: np.ndarray, start: int) -> Iterator[bytes]:
    for ids in _blocks(rows[start:], _IMAGES):
        yield from reader.read(ids)[0]


def _blocks(ids: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (ids[start : start + size] for start in range(0, len(ids), size))


def _require_methods(reader: Any, *methods: str) -> None:
    missing = [method for method in methods if not callable(getattr(reader, method, None))]
    if missing or not hasattr(reader, "read"):
        raise TypeError(
            f"Evaluation needs a reader with the methods {', '.join(methods)}. Received: {reader!r} without "
            f"{', '.join(missing or ['read'])}. Derive the class from keras_clip.data.Reader; make a list of a stream."
        )
