"""Labelled images in batches, and the rank of the true class of each image."""

import reprlib
from collections.abc import Iterator

import numpy as np
from keras import ops


def to_numpy(x) -> np.ndarray:
    """Returns a tensor of any backend, or anything that NumPy takes, as an array."""
    return ops.convert_to_numpy(x) if ops.is_tensor(x) else np.asarray(x)


def _pixels(images) -> np.ndarray:
    """Images as an array; an error for paths, and for images that are not of one size."""
    try:
        array = to_numpy(images)
    except ValueError:  # Of arrays that differ in their shapes.
        array = np.empty(0, object)
    if array.dtype.kind in "OSU":
        raise ValueError(
            "Images must be an array (B, H, W, 3) of uint8 or normalised floats. Received: "
            f"{reprlib.repr(images)}. Pass what `image_preprocessor` returns for files, or images of several sizes."
        )
    return array


def labelled_batches(x, y, batch_size: int) -> Iterator[tuple]:
    """Yields batches (images, labels).

    Args:
        x: images (B, H, W, 3) with labels in `y`, a tuple of both, or a dataset of batches (images, labels).
        y: labels (B,), or None.
        batch_size: images per batch, for arrays.

    Raises:
        ValueError: images without labels, another number of labels than images, or a dataset of other batches.
    """
    if y is None and isinstance(x, tuple) and len(x) == 2:
        x, y = x
    if y is not None:
        images, labels = _pixels(x), to_numpy(y)
        if len(images) != len(labels):
            raise ValueError(
                f"There must be one label per image. Received: {len(images)} images and {len(labels)} labels."
            )
        for start in range(0, len(images), batch_size):
            yield images[start : start + batch_size], labels[start : start + batch_size]
        return
    if isinstance(x, np.ndarray) or ops.is_tensor(x):
        raise ValueError(f"Images require labels. Received: x of shape {tuple(x.shape)}, y=None. Pass `y`.")
    for batch in x:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(
                "A dataset must yield batches (images, labels). "
                f"Received: a batch of type {type(batch).__name__}, in x={x!r}."
            )
        images, labels = batch
        if isinstance(images, dict):
            images = images["images"]
        yield _pixels(images), labels


def ranks_of(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the rank of the true class, from 0, (B,). Ties are ranked by class index, and NaN is never correct."""
    true = probabilities[np.arange(len(labels)), labels][:, None]
    before = np.arange(probabilities.shape[1]) < labels[:, None]
    return (~(probabilities <= true) | ((probabilities == true) & before)).sum(axis=1)
