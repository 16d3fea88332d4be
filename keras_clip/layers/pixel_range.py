"""The warning of float images that cannot be normalised ones, once in a process."""

import functools
import types
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_clip import distribution

# Normalised pixels lie within about -2 and 3. Pixels of 0 to 255 are above this, except in an image that is all black.
_MOST = 20.0
# About this number of images of a batch are looked at, and of their rows and columns one of this many.
_IMAGES, _STEP = 16, 4


@functools.cache
def _warn(largest: float) -> None:
    warnings.warn(
        "Float images must be normalised by mean and standard deviation, to about -2 to 3. Received: values up to "
        f"{largest:g}. Pass uint8 images, which the model normalises itself, or what `image_preprocessor` returns.",
        stacklevel=2,
    )


def check_pixel_range(images: Any) -> bool:
    """Warns, once in a process, of float images whose values are far outside of the normalised range.

    Some pixels of some images are looked at, if their values are there to be read: not while a graph is traced.

    Args:
        images: (B, ..., H, W, 3) array or tensor of any backend, or a dict of it with the key "images". Anything else
            passes.

    Returns:
        bool. Whether the values could be read.
    """
    images = images.get("images") if isinstance(images, Mapping) else images
    if not hasattr(images, "dtype") or not hasattr(images, "shape") or isinstance(images, keras.KerasTensor):
        return False
    try:
        if "float" not in keras.backend.standardize_dtype(images.dtype) or not images.shape[0]:
            return True
        # Not the first image alone: it may be black, as in a video.
        some = images[:: max(1, images.shape[0] // _IMAGES)][: 2 * _IMAGES]
        some = some[..., ::_STEP, ::_STEP, :] if len(images.shape) >= 4 else some
        some = some if isinstance(some, np.ndarray) else keras.ops.convert_to_numpy(some)
        largest = float(np.abs(some.astype(np.float32)).max(initial=0.0))
    except Exception:  # Each backend has its own for a value that a graph does not have yet.
        return False
    if largest > _MOST and not _has_warned():
        _warn(largest)
    return True


def _has_warned() -> bool:
    return bool(_warn.cache_info().currsize)


class ChecksPixelRange:
    """A model that looks at the first float images of `fit`, `evaluate` and `predict` before a graph takes them."""

    def fit(self, x=None, *args, **kwargs):
        """As `keras.Model.fit`."""
        return super().fit(_watched(x, self), *args, **kwargs)

    def evaluate(self, x=None, *args, **kwargs):
        """As `keras.Model.evaluate`."""
        # Within `fit`, Keras keeps the data of the first call.
        return super().evaluate(x if kwargs.get("_use_cached_eval_dataset") else _watched(x, self), *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """As `keras.Model.predict`."""
        return super().predict(_watched(x, self), *args, **kwargs)

    def train_on_batch(self, x, *args, **kwargs):
        """As `keras.Model.train_on_batch`."""
        self._check_first(x)
        return super().train_on_batch(x, *args, **kwargs)

    def test_on_batch(self, x, *args, **kwargs):
        """As `keras.Model.test_on_batch`."""
        self._check_first(x)
        return super().test_on_batch(x, *args, **kwargs)

    def predict_on_batch(self, x):
        """As `keras.Model.predict_on_batch`."""
        self._check_first(x)
        return super().predict_on_batch(x)

    def _check_first(self, x):
        # Once, since reading an image from a device at every step takes time.
        if not getattr(self, "_has_seen_images", False):
            self._has_seen_images = check_pixel_range(x)


def _watched(data: Any, model: keras.Model) -> Any:
    """The same data, whose first images are checked: arrays now, those of a source when its first batch is read."""
    if _has_warned() or check_pixel_range(data):
        return data
    if isinstance(data, types.GeneratorType):
        return _watched_generator(data)
    if isinstance(data, keras.utils.PyDataset):
        # The warning of another process would not be seen.
        return data if data.use_multiprocessing else _WatchedPyDataset(data)
    # A strategy divides the batches of a dataset by what it finds in its graph.
    is_whole = distribution.strategy_of(model) is None
    return _watched_dataset(data) if hasattr(data, "element_spec") and is_whole else data


def _images_of(batch: Any) -> Any:
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    return first.get("images") if isinstance(first, Mapping) else first


def _watched_generator(batches: Iterator) -> Iterator:
    is_first = True
    for batch in batches:
        if is_first:
            check_pixel_range(_images_of(batch))
        is_first = False
        yield batch


class _WatchedPyDataset(keras.utils.PyDataset):
    """A `PyDataset` whose first batch is checked when it is read."""

    def __init__(self, dataset: keras.utils.PyDataset):
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self._dataset, self._is_seen = dataset, False

    @property
    def num_batches(self):
        return self._dataset.num_batches

    def __len__(self):
        return len(self._dataset)

    def __getitem__(self, index):
        batch = self._dataset[index]
        if not self._is_seen:
            self._is_seen = True
            check_pixel_range(_images_of(batch))
        return batch

    def on_epoch_begin(self):
        self._dataset.on_epoch_begin()

    def on_epoch_end(self):
        self._dataset.on_epoch_end()


def _watched_dataset(dataset: Any) -> Any:
    """A `tf.data.Dataset` of float images whose first batch is checked; any other dataset as it is."""
    import tensorflow as tf

    spec = _images_of(getattr(dataset, "element_spec", None))
    if not isinstance(dataset, tf.data.Dataset) or not getattr(getattr(spec, "dtype", None), "is_floating", False):
        return dataset

    def look(images):
        check_pixel_range(images)
        return np.True_

    def watch(number, batch):
        first = _images_of(batch)[:1]
        is_seen = tf.cond(
            number > 0, lambda: True, lambda: tf.ensure_shape(tf.numpy_function(look, [first], tf.bool), ())
        )
        with tf.control_dependencies([is_seen]):
            return tf.nest.map_structure(tf.identity, batch)

    return dataset.enumerate().map(watch)
