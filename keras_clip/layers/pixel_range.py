"""The warning of float images that cannot be normalised ones, once in a process."""

import functools
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

# Normalised pixels lie within about -2 and 3. Pixels of 0 to 255 are above this, except in an image that is all black.
_MOST = 20.0


@functools.cache
def _warn(largest: float) -> None:
    warnings.warn(
        "Float images must be normalised by mean and standard deviation, to about -2 to 3. Received: values up to "
        f"{largest:g}. Pass uint8 images, which the model normalises itself, or what `image_preprocessor` returns.",
        stacklevel=2,
    )


def check_pixel_range(images: Any) -> bool:
    """Warns, once in a process, of float images whose values are far outside of the normalised range.

    Only the first image is looked at, and only if its values are there to be read: not while a graph is traced.

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
        first = images[:1]
        first = first if isinstance(first, np.ndarray) else keras.ops.convert_to_numpy(first)
        largest = float(np.abs(first.astype(np.float32)).max(initial=0.0))
    except Exception:  # Each backend has its own for a value that a graph does not have yet.
        return False
    if largest > _MOST and not _warn.cache_info().currsize:
        _warn(largest)
    return True


class ChecksPixelRange:
    """A model whose `fit` and `predict` look at float arrays before they become batches of a graph."""

    def fit(self, x=None, *args, **kwargs):
        """As `keras.Model.fit`."""
        check_pixel_range(x)
        return super().fit(x, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """As `keras.Model.predict`."""
        check_pixel_range(x)
        return super().predict(x, *args, **kwargs)
