"""Datasets with random access: sequences, data frames, Hugging Face; and the examples of tensorflow-datasets."""

import os
from collections.abc import Iterator
from collections.abc import Mapping as AnyMapping
from typing import Any

import numpy as np

from keras_clip.data.readers.brief import brief
from keras_clip.data.readers.elements import hugging_face
from keras_clip.data.readers.elements.images import read_pair
from keras_clip.data.readers.elements.mapping import (
    CAPTION_NAMES,
    PATH_NAMES,
    Mapping,
    fields_of,
    names_of,
    pair_of,
    require_columns,
    require_mapping,
)
from keras_clip.data.readers.reader import Captions, Reader, as_captions


def is_sequence(source: Any) -> bool:
    """Returns whether an object has `len()` and `[number]`."""
    has_both = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    return has_both and not isinstance(source, (str, bytes, dict))


def is_data_frame(source: Any) -> bool:
    """Returns whether an object is a pandas `DataFrame` or has its interface."""
    return hasattr(source, "iloc") and hasattr(source, "columns")


class SequenceReader(Reader):
    """Reads any object with `len()` and `[number]`, such as a Hugging Face dataset, by a mapping of elements to pairs.

    An image may be the bytes of a file, a path, Hugging Face's record of both, an array or a PIL image of any mode. The
    metadata are the other columns of an element, with the names of classes instead of Hugging Face's numbers.

    Args:
        dataset: the elements.
        mapping: the names of two columns (of tuples their places), or a function of an element that returns (image,
            caption or captions).
        captions: unused; the mapping says whether there are captions.

    Raises:
        ValueError: no mapping, or a mapping that names columns that do not exist.
    """

    def __init__(self, dataset: Any, mapping: Mapping | None = None, captions: bool = True):
        mapping = require_mapping(mapping)
        if not callable(mapping) and len(dataset):
            # A transform may return other columns than the dataset has.
            has_columns = getattr(dataset, "column_names", None) and not hugging_face.has_transform(dataset)
            require_columns(mapping, dataset.column_names if has_columns else dataset[0])
        self._dataset = hugging_face.undecoded(dataset, mapping)
        self._image = None if callable(mapping) else mapping[0]
        self._pair = pair_of(mapping)
        self._class_names = hugging_face.class_names(dataset)

    def __len__(self) -> int:
        return len(self._dataset)

    def name(self, index: int) -> str:
        """Returns the number of the element."""
        return f"element {index}"

    def keys(self, ids: np.ndarray) -> list[str]:
        """Returns the numbers of the elements, with leading zeros."""
        return [f"{index:07d}" for index in ids.tolist()]

    def read(self, ids: np.ndarray) -> tuple[list[bytes], list[Captions]]:
        """The images as the bytes of files, and the captions."""
        pairs = [read_pair(self._dataset, index, self._pair) for index in ids.tolist()]
        return [image for image, _ in pairs], [captions for _, captions in pairs]

    def captions(self, ids: np.ndarray) -> list[Captions]:
        """The captions alone: images are not converted."""
        return [as_captions(self._pair(self._dataset[index])[1]) for index in ids.tolist()]

    def metadata(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """Returns the other columns of each element; empty if elements have no columns."""
        return [self._other_columns(self._dataset[index]) for index in ids.tolist()]

    def _other_columns(self, element: Any) -> dict[str, Any]:
        if isinstance(element, (tuple, list)) and self._image is not None:
            is_named = fields_of(element) and isinstance(self._image, str)
            element = dict(zip(fields_of(element), element, strict=True)) if is_named else dict(enumerate(element))
        if not isinstance(element, AnyMapping):
            return {}
        columns = {name: value for name, value in element.items() if name != self._image}
        return hugging_face.with_names(columns, self._class_names)


class DataFrameReader(SequenceReader):
    """Reads the rows of a pandas `DataFrame`; images have the forms that `SequenceReader` accepts.

    Args:
        frame: the rows; paths are relative to the working directory.
        mapping: the names or places of the columns of images and captions, or a function of a row, which is a dict.
            None: the usual names of tables.
        captions: whether samples are pairs. If False, no column of captions is needed.

    Raises:
        ValueError: no such column, or a column twice.
    """

    def __init__(self, frame: Any, mapping: Mapping | None = None, captions: bool = True):
        columns = list(map(str, frame.columns))
        if len(set(columns)) < len(columns):
            raise ValueError(f"Names of columns must differ. Received: a data frame with {brief(columns)}.")
        if mapping is None:
            found = [
                next((name for name in names if name in columns), None)
                for names in names_of(None, PATH_NAMES, CAPTION_NAMES)
            ]
            if found[0] is None or (captions and found[1] is None):
                raise ValueError(
                    "A data frame must have a column of images and one of captions. "
                    f'Received: {brief(columns)}. Name yours: mapping=("<image>", "<caption>").'
                )
            mapping = tuple(found)
        if isinstance(mapping, tuple):
            mapping = tuple(
                columns[name] if isinstance(name, int) and -len(columns) <= name < len(columns) else name
                for name in mapping
            )
        super().__init__(_Rows(frame, columns), mapping, captions)


class _Rows:
    """The rows of a data frame as dicts."""

    def __init__(self, frame: Any, names: list[str]):
        self.column_names = names
        self._columns = [frame.iloc[:, place] for place in range(len(names))]
        self._length = len(frame)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column.iloc[index] for name, column in zip(self.column_names, self._columns, strict=True)}


class TFDSExamples:
    """The examples of a split of tensorflow-datasets in a fixed order, with images that are not decoded.

    Args:
        builder: name of a dataset, with its configuration. It is downloaded and prepared if necessary.
        split: as tensorflow-datasets writes it: "test", "train[:10000]".
        data_dir: where tensorflow-datasets keeps its files. None: its own default.

    Raises:
        ImportError: tensorflow-datasets is not installed.
        AssertionError: files that must be downloaded manually are missing.
    """

    def __init__(self, builder: str, split: str, data_dir: str | os.PathLike | None = None):
        try:
            import tensorflow_datasets
        except ImportError as error:
            raise ImportError(
                f"{builder!r} is read by tensorflow-datasets, which is not installed. "
                'pip install "keras_clip[tensorflow,evaluation]"'
            ) from error
        self._builder, self._split = tensorflow_datasets.builder(builder, data_dir=data_dir), split
        self._builder.download_and_prepare()
        is_image = tensorflow_datasets.features.Image
        skip = tensorflow_datasets.decode.SkipDecoding()
        self._decoders = {key: skip for key, feature in self.features.items() if type(feature) is is_image}
        self._config = tensorflow_datasets.ReadConfig(add_tfds_id=True)

    @property
    def features(self) -> AnyMapping[str, Any]:
        """The features of the builder, which have the class names."""
        return self._builder.info.features

    def read(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """Yields the examples from the `start`-th on, as NumPy values."""
        import tensorflow_datasets

        dataset = self._builder.as_dataset(
            split=self._split, decoders=self._decoders, read_config=self._config, shuffle_files=False
        )
        return iter(tensorflow_datasets.as_numpy(dataset.skip(start)))

    @staticmethod
    def key(example: AnyMapping[str, Any], number: int) -> str:
        """Returns the id that tensorflow-datasets gives an example, or the number of the example if it has none.

        Args:
            example: an element of `read`.
            number: number of the example.

        Returns:
            The key.
        """
        identity = example.get("tfds_id")
        return f"{number:07d}" if identity is None else identity.decode()
