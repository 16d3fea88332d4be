"""Checks features and labels for the classifiers and converts them to one form."""

from collections.abc import Iterator

import numpy as np

from keras_clip.evaluation.classifiers.matmul import tiles
from keras_clip.evaluation.metrics.classification import IGNORED
from keras_clip.evaluation.rows import Rows

# Images of a training split that are compared with others at a time.
KEYS_PER_BLOCK = 8192


def check_features(features: np.ndarray) -> np.ndarray:
    """Checks that features are a matrix of finite numbers.

    Args:
        features: (N, D).

    Returns:
        The features as an array, or as the `Rows` that they are.

    Raises:
        ValueError: another shape, no row, NaN or infinity.
    """
    features = features if isinstance(features, Rows) else np.asarray(features)
    if features.ndim != 2 or not features.size or features.dtype.kind not in "fiub":
        raise ValueError(
            f"`features` must be numbers (N, D). Received: shape {features.shape}, dtype {features.dtype}."
        )
    for tile in tiles(*features.shape):
        with np.errstate(over="ignore"):
            finite = np.isfinite(np.asarray(features[tile], "float32")).all(axis=1)
        if not finite.all():
            row = tile.start + int(finite.argmin())
            raise ValueError(
                f"`features` must be finite in float32. Received: NaN or infinity in row {row}. "
                "Check that image, and whether the encoder overflows on it."
            )
    return features


def check_labels(labels: np.ndarray, rows: int, num_classes: int | None = None) -> tuple[np.ndarray, int]:
    """Checks that a classifier of these classes can be fitted on the labels.

    Args:
        labels: class indices (N,), or 0, 1 and `metrics.IGNORED` (N, K).
        rows: int, N.
        num_classes: int, K; None: the largest index + 1.

    Returns:
        Labels, int64 (N,) or uint8 (N, K), and K.

    Raises:
        ValueError: shapes that do not match, an index out of range, one class only, a class without an image, or, with
            several labels per image, a class that all images have.
    """
    labels = np.asarray(labels)
    if labels.ndim not in (1, 2) or len(labels) != rows or labels.dtype.kind not in "iub":
        raise ValueError(
            f"`labels` must be integers, one row for each of the {rows} rows of `features`: indices (N,), or 0 and 1 "
            f"(N, K). Received: shape {labels.shape}, dtype {labels.dtype}."
        )
    found = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    num_classes = num_classes or found
    if labels.ndim == 2:
        _check_several(labels, num_classes)
        return labels.astype("uint8"), num_classes
    if labels.min() < 0 or found > num_classes:
        raise ValueError(
            f"`labels` must be 0 to {num_classes - 1}. Received: labels from {labels.min()} to {labels.max()}. "
            "Pass `num_classes`, or correct the labels."
        )
    counts = np.bincount(labels.astype("int64"), minlength=num_classes)
    if np.count_nonzero(counts) < 2:
        raise ValueError(
            f"At least two classes are needed. Received: {rows} images, all of class {labels[0]}. Check whether the "
            "split is sorted by class and truncated."
        )
    if not counts.all():
        raise ValueError(
            f"Every class needs an image in the training split. Received: none of class {np.flatnonzero(counts == 0)}. "
            "Add images, or remove the class and renumber the labels."
        )
    return labels.astype("int64"), num_classes


def _check_several(labels, num_classes):
    values = np.unique(labels)
    if labels.shape[1] != num_classes or not set(values.tolist()) <= {0, 1, IGNORED}:
        raise ValueError(
            f"Labels of several classes must be 0, 1 or {IGNORED} (ignored), shape (N, {num_classes}). "
            f"Received: shape {labels.shape}, values {values[:10]}."
        )
    one_sided = ~((labels == 0).any(axis=0) & (labels == 1).any(axis=0))
    if one_sided.any():
        raise ValueError(
            "Every class needs a positive and a negative image. "
            f"Received: no such images for class {np.flatnonzero(one_sided)}. Add images, or leave the class out."
        )


def check_split(
    features: np.ndarray, labels: np.ndarray, width: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Checks that a validation split matches the training split; classes may be missing from it.

    Args:
        features: (N, D).
        labels: as `check_labels` takes them.
        width: int, D.
        num_classes: int, K.

    Returns:
        Features and labels as arrays.

    Raises:
        ValueError: NaN, another width, other classes.
    """
    features, labels = check_features(features), np.asarray(labels)
    fits = features.shape[1] == width and len(labels) == len(features) and labels.dtype.kind in "iub"
    if fits and labels.ndim == 1:
        fits = 0 <= labels.min() and labels.max() < num_classes
    elif fits:
        fits = labels.shape[1:] == (num_classes,)
    if not fits:
        values = f", from {labels.min()} to {labels.max()}" if labels.size else ""
        raise ValueError(
            f"The validation split must have features (N, {width}) and labels of the same {num_classes} classes. "
            f"Received: features {features.shape}, labels {labels.shape} of dtype {labels.dtype}{values}."
        )
    return features, labels


def targets_of(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns targets, float32 (N, K): 1 for each class of an image, else 0."""
    if labels.ndim == 2:
        return (labels == 1).astype("float32")
    return (labels[:, None] == np.arange(num_classes)).astype("float32")


def unit_length(embeddings: np.ndarray) -> np.ndarray:
    """Checks embeddings (N, E) and normalises them to unit length in float64."""
    return normalised(check_features(embeddings))


def normalised(embeddings: np.ndarray) -> np.ndarray:
    """Normalises embeddings (N, E), which were checked, to unit length in float64."""
    embeddings = np.asarray(embeddings).astype("float64")
    embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    return embeddings


def key_blocks(keys: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields blocks of the embeddings (N, E) of a training split, and each of them in unit length, float64."""
    for start in range(0, len(keys), KEYS_PER_BLOCK):
        rows = slice(start, min(len(keys), start + KEYS_PER_BLOCK))
        yield rows, normalised(keys[rows])
