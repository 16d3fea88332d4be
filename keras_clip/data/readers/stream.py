"""Datasets without random access: `tf.data.Dataset`, and other objects that can be iterated over again and again."""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from keras_clip.data.readers.elements import hugging_face
from keras_clip.data.readers.elements.images import read_pair
from keras_clip.data.readers.elements.mapping import Mapping, fields_of, pair_of, require_columns, require_mapping
from keras_clip.data.readers.reader import Stream

if TYPE_CHECKING:
    import tensorflow as tf


def is_tf_dataset(source: Any) -> bool:
    """Returns whether an object is a `tf.data.Dataset`."""
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(source, tensorflow.data.Dataset)


class DatasetStream(Stream):
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

    def __init__(self, dataset: Any, mapping: Mapping | None = None, captions: bool = True):
        mapping = require_mapping(mapping)
        if is_tf_dataset(dataset):
            self.dataset, self._mapping = dataset, mapping
        else:
            self.dataset, self._mapping = _generate_pairs(dataset, mapping), (0, 1)
        size = int(self.dataset.cardinality())
        self.size = size if size >= 0 else None

    def part(self, shard: tuple[int, int], training: bool) -> "DatasetStream":
        """Returns every n-th element; in training, if the size is known, all parts have the same number of elements."""
        index, count = shard
        if count == 1:
            return self
        part = self.dataset.shard(count, index)
        if training and self.size is not None:
            part = part.take(self.size // count)
        return DatasetStream(part, self._mapping)

    def pairs(self, parallel: int) -> "tf.data.Dataset":
        """Returns (image, captions) of each element, by the mapping."""
        return self.dataset.map(self._pair, num_parallel_calls=parallel, deterministic=True)

    def _pair(self, *parts):
        import tensorflow as tf

        # tf.data passes the parts of a tuple one by one, but not those of a named tuple.
        element = parts[0] if len(parts) == 1 else parts
        parts = tuple(element) if len(parts) == 1 and fields_of(element) else parts
        mapping = self._mapping
        if not callable(mapping):
            require_columns(mapping, element)
            image, captions = pair_of(mapping)(element)
        elif len(parts) > 1 and _positions(mapping) in ((len(parts), None) if element is parts else (len(parts),)):
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


def _positions(function: Callable) -> int | None:
    """Returns the number of positional arguments of a function; None for `*args`, 1 if it is not known."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1
    if any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters):
        return None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [each for each in parameters if each.kind in kinds and each.default is inspect.Parameter.empty]
    return max(1, len(needed))


def is_iterable(source: Any) -> bool:
    """Returns whether an object can be iterated over repeatedly, unlike an iterator."""
    return isinstance(source, Iterable) and not isinstance(source, (Iterator, str, bytes, dict))


def _generate_pairs(source: Iterable, mapping: Mapping) -> "tf.data.Dataset":
    """(image file, captions) of each element of an object that can be iterated over."""
    import tensorflow as tf

    pair = pair_of(mapping)
    elements = hugging_face.undecoded(source, mapping)

    def generate() -> Iterator[tuple[bytes, list[bytes]]]:
        for number, element in enumerate(elements):
            if number == 0 and not callable(mapping):
                require_columns(mapping, element)
            yield read_pair({number: element}, number, pair)

    kinds = (tf.TensorSpec((), tf.string), tf.TensorSpec((None,), tf.string))
    return tf.data.Dataset.from_generator(generate, output_signature=kinds)
