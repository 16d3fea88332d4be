"""Which images are classified correctly, and the form that scores and labels must have.

Scores are an array (N, K), such as logits, cosines or probabilities; higher means more probable. Labels are
class indices (N,), or for multi-label datasets 0 and 1 (N, K), with `IGNORED` for a class that counts neither as
present nor as absent, such as the objects that VOC 2007 marks as difficult.

Ties between classes are resolved as `argmax` does, in favour of the first class: a model with constant scores reaches
the frequency of the first class.
"""

import numpy as np

IGNORED = 255


def correct(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> np.ndarray:
    """Returns which images are classified correctly, the input of paired tests and of tables of errors.

    Args:
        scores: floats (N, K).
        labels: class indices (N,); or 0, 1 and `IGNORED` (N, K). With several labels per image, an image is classified
            correctly if its highest score belongs to one of its classes.
        k: int. An image is classified correctly if its class is among the `k` highest scores.

    Returns:
        bool (N,).

    Raises:
        ValueError: NaN, shapes or labels that do not match, `k` > 1 with several labels per image.
    """
    scores, labels = checked(scores, labels)
    if labels.ndim == 1:
        return _ranks_of_true_class(scores, labels) < k
    if k != 1:
        raise ValueError(f"Expected one label per image for k > 1. Received: labels of shape {labels.shape}, k={k}.")
    return labels[np.arange(len(labels)), np.where(labels == IGNORED, -np.inf, scores).argmax(1)] == 1


def single(labels: np.ndarray) -> np.ndarray:
    """Returns the labels; raises a ValueError if they are not one class index per image."""
    if np.ndim(labels) != 1:
        raise ValueError(f"Expected one class index per image, labels (N,). Received: shape {np.shape(labels)}.")
    return labels


def checked(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores and labels as arrays; raises a ValueError for inputs for which no metric is defined."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    expected = "Expected finite scores (N, K) with N > 0, and labels: indices below K (N,), or 0, 1 and 255 (N, K). "
    if scores.ndim != 2 or not scores.size or labels.shape not in (scores.shape[:1], scores.shape):
        raise ValueError(f"{expected}Received: scores of shape {scores.shape}, labels of shape {labels.shape}.")
    if not np.isfinite(scores).all():
        rows = np.flatnonzero(~np.isfinite(scores).all(1))
        raise ValueError(f"{expected}Received: NaN or infinity in {len(rows)} rows; the first is row {rows[0]}.")
    if not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool):
        raise ValueError(f"{expected}Received: labels of dtype {labels.dtype}.")
    allowed = np.isin(labels, (0, 1, IGNORED)) if labels.ndim == 2 else (labels >= 0) & (labels < scores.shape[1])
    if not allowed.all():
        raise ValueError(
            f"{expected}Received: labels {np.unique(labels[~allowed]).tolist()[:10]}, K={scores.shape[1]}."
        )
    return scores, labels.astype("int64")


def _ranks_of_true_class(scores, labels):
    """Returns the rank of each image's true class, from 0; of classes with equal scores the first ranks higher."""
    true_scores = scores[np.arange(len(labels)), labels][:, None]
    before = np.arange(scores.shape[1]) < labels[:, None]
    return ((scores > true_scores) | ((scores == true_scores) & before)).sum(1)
