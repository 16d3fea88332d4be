"""Datasets in memory or of other libraries: sequences, data frames, Hugging Face, tf.data, tensorflow-datasets."""

import inspect
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Mapping as AnyMapping
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_clip.data.readers.brief import brief
from keras_clip.data.readers.mapping import (
    CAPTION_NAMES,
    PATH_NAMES,
    Mapping,
    names_of,
    require_columns,
    require_mapping,
)
from keras_clip.data.readers.paths import file_bytes
from keras_clip.data.readers.reader import Captions, Reader, as_captions

if TYPE_CHECKING:
    import tensorflow as tf


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
            has_columns = getattr(dataset, "column_names", None) and not _has_transform(dataset)
            require_columns(mapping, dataset.column_names if has_columns else dataset[0])
        self._dataset = _undecoded(dataset, mapping)
        self._image = None if callable(mapping) else mapping[0]
        self._pair = mapping if callable(mapping) else lambda element: _pair_of_columns(element, mapping)
        self._class_names = {} if _has_transform(dataset) else _class_names(dataset)

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
        pairs = [_read_pair(self._dataset, index, self._pair) for index in ids.tolist()]
        return [image for image, _ in pairs], [captions for _, captions in pairs]

    def captions(self, ids: np.ndarray) -> list[Captions]:
        """The captions alone: images are not converted."""
        return [as_captions(self._pair(self._dataset[index])[1]) for index in ids.tolist()]

    def metadata(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """Returns the other columns of each element; empty if elements have no columns."""
        return [self._other_columns(self._dataset[index]) for index in ids.tolist()]

    def _other_columns(self, element: Any) -> dict[str, Any]:
        if isinstance(element, (tuple, list)) and self._image is not None:
            element = dict(enumerate(element))
        if not isinstance(element, AnyMapping):
            return {}
        columns = {name: value for name, value in element.items() if name != self._image}
        names = {name: number for name, number in columns.items() if name in self._class_names and number is not None}
        return columns | {name: self._class_names[name](number) for name, number in names.items()}


def _read_pair(dataset: Any, index: int, pair: Callable) -> tuple[bytes, Captions]:
    """An image as the bytes of a file, and its captions."""
    try:
        image, caption = pair(dataset[index])
        return as_image_file(image, f"element {index}"), as_captions(caption)
    except OSError as error:
        # PIL raises these for a broken file; without an image, the pipeline skips the sample.
        return f"{type(error).__name__}: {error}".encode(), [b"unknown"]


def _pair_of_columns(element: Any, names: tuple[Any, Any]) -> tuple[Any, Any]:
    return element[names[0]], None if names[1] is None else element[names[1]]


def _has_transform(dataset: Any) -> bool:
    """Returns whether a Hugging Face dataset applies a transform of the user's to its elements."""
    form = getattr(dataset, "format", None)
    return isinstance(form, dict) and form.get("type") == "custom"


def _class_names(dataset: Any) -> dict[str, Callable[[int], str]]:
    """Returns, for each class column of a Hugging Face dataset, the function from numbers to names."""
    features = getattr(dataset, "features", None) or {}
    return {name: kind.int2str for name, kind in features.items() if hasattr(kind, "int2str")}


def _undecoded(dataset: Any, mapping: Mapping) -> Any:
    """A Hugging Face dataset that returns the files of its images, which the pipeline decodes faster.

    A transform of the user's gets the decoded images that it expects. Other formats, such as "torch", are left out:
    they change how values are represented, not the values.
    """
    if callable(mapping) or _has_transform(dataset):
        return dataset
    feature = (getattr(dataset, "features", None) or {}).get(mapping[0])
    if type(feature).__name__ != "Image" or not hasattr(dataset, "cast_column"):
        return dataset
    if isinstance(getattr(dataset, "format", None), dict):
        dataset = dataset.with_format(None)
    return dataset.cast_column(mapping[0], type(feature)(decode=False))


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


def as_image_file(image: Any, name: str, folder: str = "") -> bytes:
    """Returns the bytes of an image file, `b""` if there is no image.

    Args:
        image: bytes, path, Hugging Face's record of both, array, PIL image of any mode, None or NaN.
        name: name of the sample in error messages.
        folder: to which paths are relative.

    Returns:
        bytes.

    Raises:
        OSError: a PIL image that cannot be loaded.
        ValueError: something else than an image.
    """
    from PIL import Image

    from keras_clip.data.image_files import open_image

    if isinstance(image, dict) and {"bytes", "path"} >= set(image):
        image = image.get("bytes") or image.get("path")
    if image is None or (isinstance(image, float) and image != image):
        return b""
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, (str, os.PathLike)):
        return file_bytes(os.path.join(os.fsencode(folder), os.fsencode(image)))
    if isinstance(image, Image.Image):
        _load(image)
        # Pillow has no other conversion of premultiplied alpha.
        image = image.convert("LA") if image.mode == "La" else image
    elif not hasattr(image, "__array__"):
        raise ValueError(
            "An image must be the bytes of a file, a path, an array or a PIL image. "
            f"Received: {name} with an image of {type(image)}. Pass another `mapping`."
        )
    file = io.BytesIO()
    # Evaluation opens it in the same way: upright, composited on white, in RGB. A bitmap is only copied.
    open_image(image, name, sys.maxsize).save(file, "BMP")
    return file.getvalue()


def _load(image: Any) -> None:
    """Decodes a PIL image that has been opened but not loaded.

    Raises:
        OSError: it cannot be decoded.
    """
    try:
        image.load()
    except Exception as error:  # PIL raises many types of exceptions for corrupt files.
        raise OSError(f"{type(error).__name__}: {error}") from error


def is_stream(source: Any) -> bool:
    """Returns whether an object is a `tf.data.Dataset`."""
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(source, tensorflow.data.Dataset)


class Stream:
    """Iterates over elements that have no random access, and maps them to pairs.

    Args:
        dataset: `tf.data.Dataset`, or another object that can be iterated over again and again, such as a streamed data
            set of Hugging Face.
        mapping: the names of two columns (of tuples their places), or a function that returns (image, caption or
            captions): of a `tf.data.Dataset` a graph function of an element, or of the parts of a tuple if it has as
            many parameters; otherwise a function of an element.
        captions: unused.

    Raises:
        ValueError: no mapping.
    """

    skipped = None

    def __init__(self, dataset: Any, mapping: Mapping | None = None, captions: bool = True):
        mapping = require_mapping(mapping)
        if is_stream(dataset):
            self.dataset, self._mapping = dataset, mapping
        else:
            self.dataset, self._mapping = _generate_pairs(dataset, mapping), (0, 1)

    def part(self, shard: tuple[int, int], training: bool) -> "Stream":
        """Returns every n-th element; in training, if the size is known, all parts have the same number of elements.

        Args:
            shard: (index, count) of the part.
            training: whether all parts must be equally long.

        Returns:
            The part.
        """
        index, count = shard
        size = int(self.dataset.cardinality())
        part = self.dataset.shard(count, index) if count > 1 else self.dataset
        return Stream(part.take(size // count) if training and count > 1 and size >= 0 else part, self._mapping)

    def pairs(self, parallel: int) -> "tf.data.Dataset":
        """Returns (image, captions) of each element.

        Args:
            parallel: number of elements that are mapped at a time.

        Returns:
            Dataset of the bytes of a file or uint8 (H, W, 3), and strings (captions,).

        Raises:
            TypeError: the mapping returns something else.
            ValueError: the mapping names other columns.
        """
        return self.dataset.map(self._pair, num_parallel_calls=parallel, deterministic=True)

    def _pair(self, *parts):
        import tensorflow as tf

        # tf.data passes the parts of a tuple one by one.
        element = parts[0] if len(parts) == 1 else parts
        mapping = self._mapping
        if not callable(mapping):
            require_columns(mapping, element)
            image, captions = _pair_of_columns(element, mapping)
        elif len(parts) > 1 and _positions(mapping) == len(parts):
            image, captions = mapping(*parts)
        else:
            image, captions = mapping(element)
        image, captions = tf.convert_to_tensor(image), tf.reshape(tf.convert_to_tensor(captions), [-1])
        if image.dtype not in (tf.string, tf.uint8) or captions.dtype != tf.string:
            raise TypeError(
                "The mapping must give the image as a file's bytes or uint8 (H, W, 3), and the caption as a string. "
                f"Received: image of {image.dtype.name}, caption of {captions.dtype.name}."
            )
        if image.dtype == tf.uint8:
            image = _three_channels(image)
        return image, captions


def _three_channels(image):
    import tensorflow as tf

    image = image[..., None] if image.shape.rank == 2 else image
    channels = image.shape[-1] if image.shape.rank == 3 else None
    if image.shape.rank not in (3, None) or channels not in (1, 3, None):
        raise TypeError(
            "The mapping must give an image as uint8 (H, W), (H, W, 1) or (H, W, 3), or as the bytes of a file. "
            f"Received: an image of shape {tuple(image.shape)}. Convert it in the mapping."
        )
    return tf.image.grayscale_to_rgb(image) if channels == 1 else image


def _positions(function: Callable) -> int:
    """Returns the number of positional arguments of a function; 1 for `*args` or anything else."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [each for each in parameters if each.kind in kinds and each.default is inspect.Parameter.empty]
    return max(1, len(needed))


def is_iterable(source: Any) -> bool:
    """Returns whether an object can be iterated over repeatedly, unlike an iterator."""
    return isinstance(source, Iterable) and not isinstance(source, (Iterator, str, bytes, dict))


def _generate_pairs(source: Iterable, mapping: Mapping) -> "tf.data.Dataset":
    """(image file, captions) of each element of an object that can be iterated over."""
    import tensorflow as tf

    pair = mapping if callable(mapping) else lambda element: _pair_of_columns(element, mapping)
    elements = _undecoded(source, mapping)

    def generate() -> Iterator[tuple[bytes, list[bytes]]]:
        for number, element in enumerate(elements):
            if number == 0 and not callable(mapping):
                require_columns(mapping, element)
            yield _read_pair({number: element}, number, pair)

    kinds = (tf.TensorSpec((), tf.string), tf.TensorSpec((None,), tf.string))
    return tf.data.Dataset.from_generator(generate, output_signature=kinds)


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
