"""Precision-recall and ROC curves.

Images with equal scores are one point of a curve, as in scikit-learn.
"""

import numpy as np

from keras_clip.evaluation.metrics.correctness import IGNORED, checked, single


class Curve:
    """Precision, recall and ROC of one class over images sorted by decreasing score.

    Each curve can be evaluated on a bootstrap resample, given as the number of times that each image was sampled.

    Args:
        scores: floats (M,).
        positive: bool (M,).
        indices: ints (M,). The number of each image in the dataset, by which `weights` are looked up.
    """

    def __init__(self, scores: np.ndarray, positive: np.ndarray, indices: np.ndarray):
        order = np.argsort(-scores, kind="stable")
        self.indices = indices[order]
        self.positive = positive[order]
        # Images with equal scores cross the threshold together, so that only the last of them is a point of the curve.
        self.last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
        self.rises = self.last[np.unique(np.searchsorted(self.last, np.flatnonzero(self.positive)))]

    def average_precision(self, weights: np.ndarray | None = None) -> float:
        """Returns the 11-point interpolated average precision; NaN if no positive image is left."""
        weights = self._sorted(weights)
        if not (weights * self.positive).any():
            return np.nan
        # Precision has its local maxima at positive images; no other point of the curve matters.
        hits, retrieved = np.cumsum(weights * self.positive)[self.rises], np.cumsum(weights)[self.rises]
        best = np.maximum.accumulate((hits / np.maximum(retrieved, 1))[::-1])[::-1]
        # Recalls are compared as integers, since 0.1 * 3 > 0.3 in floating point.
        return best[np.searchsorted(hits * 10, np.arange(11) * hits[-1])].mean()

    def roc_auc(self, weights: np.ndarray | None = None) -> float:
        """Returns the area under the ROC curve; a tie counts one half."""
        weights = self._sorted(weights)
        hits, false_alarms = (np.cumsum(weights * mask)[self.last] for mask in (self.positive, ~self.positive))
        steps = np.diff(false_alarms, prepend=0)
        return float((steps * (hits - np.diff(hits, prepend=0) / 2)).sum() / (hits[-1] * false_alarms[-1]))

    def placements(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the fraction of negatives below each positive, and of positives above each negative; ties are half.

        Their variances are DeLong's components of the variance of the area.
        """
        point = np.searchsorted(self.last, np.arange(len(self.positive)))
        fractions = []
        for own, other in ((self.positive, ~self.positive), (~self.positive, self.positive)):
            up_to = np.cumsum(other)[self.last]
            before = (up_to + np.append(0, up_to[:-1])) / 2 / other.sum()
            fractions.append(before[point[own]])
        return 1 - fractions[0], fractions[1]

    def _sorted(self, weights):
        return np.ones(len(self.indices), "int64") if weights is None else weights[self.indices]


def class_curves(scores: np.ndarray, labels: np.ndarray) -> list[Curve]:
    """Returns the curve of each class.

    Args:
        scores: floats (N, K).
        labels: 0, 1 and `IGNORED` (N, K). An image does not belong to the curve of a class that is ignored for it.

    Returns:
        K curves.

    Raises:
        ValueError: labels of another form, or a class without a positive image.
    """
    if np.ndim(labels) != 2:
        raise ValueError(f"Expected labels (N, K) of 0 and 1 for map_11pt. Received: shape {np.shape(labels)}.")
    scores, labels = checked(scores, labels)
    empty = np.flatnonzero(~(labels == 1).any(0))
    if len(empty):
        raise ValueError(
            "Expected a positive image of every class for map_11pt. Received: none of the classes "
            f"{empty.tolist()[:10]}. Remove these classes from scores and labels."
        )
    counted = [np.flatnonzero(labels[:, k] != IGNORED) for k in range(labels.shape[1])]
    return [Curve(scores[rows, k], labels[rows, k] == 1, rows) for k, rows in enumerate(counted)]


def binary_curve(scores: np.ndarray, labels: np.ndarray) -> Curve:
    """Returns the curve of class 1 of two.

    Args:
        scores: floats (N, 2), or (N,) for class 1 alone.
        labels: 0 or 1 (N,). Both classes must occur.

    Returns:
        `Curve`.

    Raises:
        ValueError: a number of classes other than two, or a class that does not occur.
    """
    scores = np.asarray(scores)
    two = np.stack([np.zeros(len(scores)), scores], 1) if scores.ndim == 1 else scores
    if np.shape(two)[1:] != (2,) or len(np.unique(labels)) != 2:
        raise ValueError(
            "Expected scores (N, 2) or (N,), and labels in which both 0 and 1 occur. "
            f"Received: scores of shape {scores.shape}, labels {np.unique(labels).tolist()[:10]}."
        )
    two, labels = checked(two, single(labels))
    return Curve(two[:, 1].astype("float64") - two[:, 0], labels == 1, np.arange(len(labels)))
