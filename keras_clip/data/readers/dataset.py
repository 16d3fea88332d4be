"""Data sets in memory or of other libraries: sequences (Hugging Face among them), tf.data, tensorflow-datasets."""

import io
import os
import sys
from collections.abc import Iterator
from collections.abc import Mapping as AnyMapping
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_clip.data.readers.mapping import Mapping, require_columns, require_mapping
from keras_clip.data.readers.paths import file_bytes
from keras_clip.data.readers.reader import Captions, Reader, as_captions

if TYPE_CHECKING:
    import tensorflow as tf


def is_sequence(source: Any) -> bool:
    """Whether an object has `len()` and `[number]`."""
    has_both = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    return has_both and not isinstance(source, (str, bytes, dict))


class SequenceReader(Reader):
    """Anything with `len()` and `[number]`, e.g. a Hugging Face data set, and a mapping of its elements to pairs.

    An image may be the bytes of a file, a path, Hugging Face's record of both, an array or a PIL image. The metadata
    are the other columns of an element, with the names of classes instead of Hugging Face's numbers.

    Args:
        dataset: the elements.
        mapping: the names of two columns, or a function of an element that returns (image, caption or captions).
        captions: unused; the mapping says whether there are captions.

    Raises:
        ValueError: no mapping, or one of other columns.
    """

    def __init__(self, dataset: Any, mapping: Mapping | None = None, captions: bool = True):
        mapping = require_mapping(mapping)
        if not callable(mapping) and len(dataset):
            require_columns(mapping, getattr(dataset, "column_names", None) or dataset[0])
        self._dataset = _undecoded(dataset, mapping)
        self._image = None if callable(mapping) else mapping[0]
        self._pair = mapping if callable(mapping) else lambda element: _pair_of_columns(element, mapping)
        features = getattr(dataset, "features", None) or {}
        self._class_names = {name: kind.int2str for name, kind in features.items() if hasattr(kind, "int2str")}

    def __len__(self) -> int:
        return len(self._dataset)

    def name(self, index: int) -> str:
        """The number of the element."""
        return f"element {index}"

    def keys(self, ids: np.ndarray) -> list[str]:
        """The numbers of the elements, with leading zeros."""
        return [f"{index:07d}" for index in ids.tolist()]

    def read(self, ids: np.ndarray) -> tuple[list[bytes], list[Captions]]:
        """The images as the bytes of files, and the captions."""
        images, captions = [], []
        for index in ids.tolist():
            try:
                image, caption = self._pair(self._dataset[index])
                images.append(_as_image_file(image))
                captions.append(as_captions(caption))
            except OSError as error:
                # What PIL raises of a broken file: no image, so that the pipeline skips it.
                images.append(f"{type(error).__name__}: {error}".encode())
                captions.append([b"unknown"])
        return images, captions

    def metadata(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """The other columns of each element; empty if elements have no columns."""
        return [self._other_columns(self._dataset[index]) for index in ids.tolist()]

    def _other_columns(self, element: Any) -> dict[str, Any]:
        if not isinstance(element, AnyMapping):
            return {}
        columns = {name: value for name, value in element.items() if name != self._image}
        names = {name: number for name, number in columns.items() if name in self._class_names and number is not None}
        return columns | {name: self._class_names[name](number) for name, number in names.items()}


def _pair_of_columns(element: Any, names: tuple[str, str | None]) -> tuple[Any, Any]:
    return element[names[0]], None if names[1] is None else element[names[1]]


def _undecoded(dataset: Any, mapping: Mapping) -> Any:
    """A Hugging Face data set that returns the files of its images, which the pipeline decodes faster."""
    feature = None if callable(mapping) else (getattr(dataset, "features", None) or {}).get(mapping[0])
    if type(feature).__name__ == "Image" and hasattr(dataset, "cast_column"):
        return dataset.cast_column(mapping[0], type(feature)(decode=False))
    return dataset


def _as_image_file(image: Any) -> bytes:
    """The bytes of an image file."""
    from PIL import Image

    from keras_clip.data.image_files import from_array, upright

    if isinstance(image, dict) and {"bytes", "path"} >= set(image):
        image = image.get("bytes") or image.get("path")
    if image is None:
        return b""
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, os.PathLike)):
        return file_bytes(os.fsencode(image))
    image = upright(image) if isinstance(image, Image.Image) else from_array(image, "an image of the dataset")
    file = io.BytesIO()
    image = image.convert("RGB") if image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "F") else image
    # A bitmap costs no more than copying; what it cannot hold, such as transparency, a PNG can.
    image.save(file, "BMP") if image.mode == "RGB" else image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def is_stream(source: Any) -> bool:
    """Whether an object is a `tf.data.Dataset`."""
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(source, tensorflow.data.Dataset)


class Stream:
    """A `tf.data.Dataset`, which cannot be read by number: its elements are mapped to pairs in graph.

    Args:
        dataset: of any elements.
        mapping: the names of two columns, or a graph function of an element that returns (image, caption or captions).
        captions: unused.

    Raises:
        ValueError: no mapping.
    """

    def __init__(self, dataset: "tf.data.Dataset", mapping: Mapping | None = None, captions: bool = True):
        self.dataset, self._mapping = dataset, require_mapping(mapping)

    def part(self, shard: tuple[int, int], training: bool) -> "Stream":
        """Every n-th element; in training, if the size is known, equally many in all parts.

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
        """(image, captions of any number) of each element.

        Args:
            parallel: how many elements are mapped at a time.

        Returns:
            Dataset of the bytes of a file or uint8 (H, W, 3), and strings (captions,).

        Raises:
            TypeError: the mapping returns something else.
            ValueError: the mapping names other columns.
        """
        return self.dataset.map(self._pair, num_parallel_calls=parallel, deterministic=True)

    def _pair(self, element):
        import tensorflow as tf

        mapping = self._mapping
        if not callable(mapping):
            require_columns(mapping, element)
        image, captions = mapping(element) if callable(mapping) else _pair_of_columns(element, mapping)
        image, captions = tf.convert_to_tensor(image), tf.reshape(tf.convert_to_tensor(captions), [-1])
        if image.dtype not in (tf.string, tf.uint8) or captions.dtype != tf.string:
            raise TypeError(
                "The mapping must give the image as a file's bytes or uint8 (H, W, 3), and the caption as a string. "
                f"Received: image of {image.dtype.name}, caption of {captions.dtype.name}."
            )
        if image.dtype == tf.uint8 and image.shape[-1] == 1:
            image = tf.image.grayscale_to_rgb(image)
        return image, captions


class TFDSExamples:
    """The examples of a split of tensorflow-datasets, one after the other, always in the same order; images undecoded.

    Args:
        builder: name of a data set, with its configuration. It is downloaded and prepared if it is not there yet.
        split: as tensorflow-datasets writes it: "test", "train[:10000]".
        data_dir: where tensorflow-datasets keeps its files. None: its own default.

    Raises:
        ImportError: tensorflow-datasets is not installed.
        AssertionError: files that must be downloaded by hand are not there.
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
        """Those of the builder, which know the names of classes."""
        return self._builder.info.features

    def read(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """The examples from the `start`-th on, as NumPy values."""
        import tensorflow_datasets

        dataset = self._builder.as_dataset(
            split=self._split, decoders=self._decoders, read_config=self._config, shuffle_files=False
        )
        return iter(tensorflow_datasets.as_numpy(dataset.skip(start)))

    @staticmethod
    def key(example: AnyMapping[str, Any], number: int) -> str:
        """The identity that tensorflow-datasets gives an example, or its number where there is none.

        Args:
            example: what `read` returned.
            number: of the example.

        Returns:
            The key.
        """
        identity = example.get("tfds_id")
        return f"{number:07d}" if identity is None else identity.decode()
