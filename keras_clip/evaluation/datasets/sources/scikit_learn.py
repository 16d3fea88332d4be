"""The handwritten digits that come with scikit-learn."""

import functools
from collections.abc import Iterator

import numpy as np

from keras_clip.evaluation.datasets.labelled_images import LabelledImages


def digits(split: str = "test") -> LabelledImages:
    """Returns the 1,797 handwritten digits that come with scikit-learn, 8 x 8 grey levels.

    Args:
        split: "train", the first 1,200, or "test", the other 597, mostly of other writers.

    Returns:
        `LabelledImages` of the classes "0" to "9".

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: no such split.
    """
    from sklearn.datasets import load_digits

    rows = {"train": slice(0, 1200), "test": slice(1200, None)}.get(split)
    if rows is None:
        raise ValueError(f"`split` must be 'train' or 'test'. Received: split={split!r}.")
    found = load_digits()
    pixels = np.round(found.images[rows] * (255 / 16)).astype(np.uint8)
    numbers = range(*rows.indices(len(found.images)))
    return LabelledImages(
        functools.partial(_read, pixels),
        [str(label) for label in found.target[rows]],
        [f"{number:04d}" for number in numbers],
        list("0123456789"),
        name="digits",
        split=split,
    )


def _read(pixels: np.ndarray, start: int) -> Iterator[np.ndarray]:
    return iter(pixels[start:])
