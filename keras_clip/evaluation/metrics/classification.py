"""The metrics of the paper's 27 data sets (Radford et al., 2021, table 9), each with an interval.

Scores are (N, K), the higher the likelier: logits, cosines or probabilities. Labels are class indices (N,), or where an
image has several classes 0 and 1 (N, K), with `IGNORED` for a class that is neither right nor wrong there, such as the
objects that VOC 2007 calls difficult.

Of classes with equal scores the first is predicted, as by `argmax`: a model that cannot tell classes apart gets the
share of the first one. The areas under curves let all images of equal score pass at once, as scikit-learn does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from keras_clip.evaluation.metrics.intervals import bootstrap_interval, wilson_interval

IGNORED = 255


def correct(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> np.ndarray:
    """Which images are classified rightly: what tests between models and tables of errors are made of.

    Args:
        scores: floats (N, K).
        labels: class indices (N,); or 0, 1 and `IGNORED` (N, K): then an image is right whose highest score is that of
            one of its classes.
        k: int. An image is right if its class is among the `k` highest.

    Returns:
        bool (N,).

    Raises:
        ValueError: NaN, shapes or labels that do not match, `k` > 1 for several labels.
    """
    scores, labels = _check(scores, labels)
    if labels.ndim == 1:
        return _ranks(scores, labels) < k
    if k != 1:
        raise ValueError(f"Expected one label per image for k > 1. Received: labels of shape {labels.shape}, k={k}.")
    return labels[np.arange(len(labels)), np.where(labels == IGNORED, -np.inf, scores).argmax(1)] == 1


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose class has the highest score.

    Args:
        scores: floats (N, K).
        labels: class indices (N,).

    Returns:
        Share in [0, 1].
    """
    return float(correct(scores, _single(labels)).mean())


def top5_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose class is among the five highest; arguments as `accuracy`, at least five classes."""
    return float(_in_top5(scores, labels).mean())


def mean_top1_top5(scores: np.ndarray, labels: np.ndarray) -> float:
    """The mean of `accuracy` and `top5_accuracy`, Kinetics' metric; arguments as there."""
    return (accuracy(scores, labels) + top5_accuracy(scores, labels)) / 2


def mean_per_class(scores: np.ndarray, labels: np.ndarray) -> float:
    """The mean over classes of the share of its images that are right, so that rare classes weigh as much.

    Args:
        scores: floats (N, K).
        labels: class indices (N,). Every class has an image.

    Returns:
        Share in [0, 1].

    Raises:
        ValueError: a class without an image.
    """
    right, counts = _per_class(scores, labels)
    return float((right / counts).mean())


def map_11pt(scores: np.ndarray, labels: np.ndarray) -> float:
    """The mean over classes of the 11-point average precision (VOC 2007).

    A class' average precision is the mean over the recalls 0, 0.1 ... 1 of the highest precision at that recall or a
    higher one.

    Args:
        scores: floats (N, K).
        labels: 0, 1 and `IGNORED` (N, K). Every class has a positive image.

    Returns:
        Share in [0, 1].

    Raises:
        ValueError: a class without a positive image.
    """
    return float(np.mean([curve.average_precision() for curve in _class_curves(scores, labels)]))


def roc_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """The area under the ROC curve of two classes (Hateful Memes): how often a positive is above a negative.

    Args:
        scores: floats (N, 2), or (N,) for class 1 alone.
        labels: 0 or 1 (N,). Both occur.

    Returns:
        Share in [0, 1]; a tie counts one half.

    Raises:
        ValueError: other than two classes, or one that does not occur.
    """
    return _binary_curve(scores, labels).roc_auc()


@dataclass(frozen=True)
class Metric:
    """A score of classification with its interval: one entry of `METRICS`.

    `metric(scores, labels)` is the score. To add a metric, write its two functions and one line of the table below.

    Args:
        name: str. Its key in `METRICS`, in `Task.metric` and in results.
        score: function of (scores, labels) that returns a float.
        interval: function of (scores, labels, confidence, resamples, seed) that returns the lower and the upper bound.
        unit: str. "fraction" for values in [0, 1], which reports show as percentages; another word for other values.
    """

    name: str
    score: Callable[[np.ndarray, np.ndarray], float]
    interval: Callable[..., tuple[float, float]]
    unit: str = "fraction"

    def __call__(self, scores: np.ndarray, labels: np.ndarray) -> float:
        return float(self.score(scores, labels))


def interval(
    metric: str,
    scores: np.ndarray,
    labels: np.ndarray,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The confidence interval of a metric over a random draw of the images.

    Fractions of images have Wilson's interval. The mean per class has it too, at the number of images that gives the
    variance of the delta method. Areas under curves are bootstrapped over images, within classes.

    Args:
        metric: key of `METRICS`.
        scores: floats (N, K), as the metric takes them.
        labels: as the metric takes them.
        confidence: float in (0, 1).
        resamples: int. Number of bootstrap resamples.
        seed: int. Seed of the bootstrap.

    Returns:
        Lower and upper bound, in the unit of the metric.

    Raises:
        ValueError: an unknown metric, or scores and labels that the metric refuses.
    """
    if metric not in METRICS:
        raise ValueError(f"`metric` must be one of {list(METRICS)}. Received: metric={metric!r}.")
    return METRICS[metric].interval(scores, labels, confidence, resamples, seed)


def _accuracy_interval(scores, labels, confidence, resamples, seed):
    return _wilson(correct(scores, _single(labels)), confidence)


def _top5_interval(scores, labels, confidence, resamples, seed):
    return _wilson(_in_top5(scores, labels), confidence)


def _top1_top5_interval(scores, labels, confidence, resamples, seed):
    # The mean of the bounds: exact where the two are fully correlated, too wide otherwise.
    hits = correct(scores, _single(labels)), _in_top5(scores, labels)
    return mean_over_folds([_wilson(hit, confidence) for hit in hits])


def _wilson(hits, confidence):
    return wilson_interval(int(hits.sum()), len(hits), confidence)


def _mean_per_class_interval(scores, labels, confidence, resamples, seed):
    return _class_counts_interval(*_per_class(scores, labels), confidence)


def _class_counts_interval(right, counts, confidence):
    """Wilson's interval at the number of images whose plain accuracy would vary as much as the mean per class does."""
    # Half a right and half a wrong image more: a class of few images, all right, leaves some uncertainty.
    fractions = (right + 0.5) / (counts + 1)
    variance = (fractions * (1 - fractions) / counts).sum() / len(counts) ** 2
    total = max(1.0, fractions.mean() * (1 - fractions.mean()) / variance)
    return wilson_interval((right / counts).mean() * total, total, confidence)


def _map_11pt_interval(scores, labels, confidence, resamples, seed):
    curves = _class_curves(scores, labels)

    def mean_average_precision(drawn):
        return np.mean([curve.average_precision(drawn) for curve in curves])

    draws = {"confidence": confidence, "resamples": resamples, "seed": seed}
    bounds = bootstrap_interval(mean_average_precision, len(labels), strata=_rarest_positive(labels), **draws)
    return _widened(bounds, sum(int(curve.positive.sum()) for curve in curves), confidence)


def _roc_auc_interval(scores, labels, confidence, resamples, seed):
    curve = _binary_curve(scores, labels)
    draws = {"confidence": confidence, "resamples": resamples, "seed": seed}
    bounds = bootstrap_interval(curve.roc_auc, len(labels), strata=labels, **draws)
    return _widened(bounds, min(int(curve.positive.sum()), int((~curve.positive).sum())), confidence)


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", accuracy, _accuracy_interval),
        Metric("top5_accuracy", top5_accuracy, _top5_interval),
        Metric("mean_per_class", mean_per_class, _mean_per_class_interval),
        Metric("map_11pt", map_11pt, _map_11pt_interval),
        Metric("roc_auc", roc_auc, _roc_auc_interval),
        Metric("mean_top1_top5", mean_top1_top5, _top1_top5_interval),
    )
}


def mean_over_folds(values: Sequence) -> float | tuple[float, ...]:
    """The mean over the folds of STL-10 or the splits of UCF101.

    Args:
        values: one value per fold; or one tuple per fold, such as (value, low, high). The mean of the folds' bounds
            holds for folds tested on the same images, and is too wide where they are tested on others.

    Returns:
        A float, or a tuple of floats.

    Raises:
        ValueError: no fold, or folds of other forms.
    """
    folds = np.asarray(values, "float64") if len({np.shape(value) for value in values}) == 1 else np.empty(())
    if folds.ndim not in (1, 2):
        raise ValueError(
            f"Expected a float, or a tuple of as many, for each of the folds. Received: values={values!r}."
        )
    mean = folds.mean(0)
    return float(mean) if folds.ndim == 1 else tuple(map(float, mean))


def _ranks(scores, labels):
    """How many classes come before the label's: those with a higher score, and of equal ones those before it."""
    own = scores[np.arange(len(labels)), labels][:, None]
    before = np.arange(scores.shape[1]) < labels[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(1)


def _in_top5(scores, labels):
    if np.ndim(scores) == 2 and np.shape(scores)[1] < 5:
        raise ValueError(f"Expected at least five classes for top-5. Received: scores of shape {np.shape(scores)}.")
    return correct(scores, _single(labels), k=5)


def _per_class(scores, labels):
    """How many images of each class are right, and how many there are."""
    right = correct(scores, _single(labels))
    classes = np.shape(scores)[1]
    counts = np.bincount(labels, minlength=classes)
    if not counts.all():
        raise ValueError(
            f"Expected an image of each of {classes} classes for the mean per class. Received: none of "
            f"{np.flatnonzero(counts == 0).tolist()[:10]}. Leave these classes out of scores and labels."
        )
    return np.bincount(labels, right, classes), counts


def _widened(bounds, images, confidence):
    """A bootstrap's bounds, or where no resample differed, as at perfect scores, Wilson's for that number of images."""
    low, high = bounds
    return wilson_interval(low * images, images, confidence) if low == high else (low, high)


class _Curve:
    """Images by falling score: precision and recall at each score, for images counted as often as they were drawn."""

    def __init__(self, scores, positive, indices):
        order = np.argsort(-scores, kind="stable")
        self.indices = indices[order]
        self.positive = positive[order]
        # All images of one score pass together: only the last of them is a point of the curve.
        self.last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
        self.rises = self.last[np.unique(np.searchsorted(self.last, np.flatnonzero(self.positive)))]

    def average_precision(self, drawn=None):
        drawn = self._drawn(drawn)
        # Precision is highest where a positive image passes: no other point of the curve matters.
        hits, passed = np.cumsum(drawn * self.positive)[self.rises], np.cumsum(drawn)[self.rises]
        best = np.maximum.accumulate((hits / np.maximum(passed, 1))[::-1])[::-1]
        # In whole numbers, since 0.1 * 3 is above 0.3.
        return best[np.searchsorted(hits * 10, np.arange(11) * hits[-1])].mean()

    def roc_auc(self, drawn=None):
        drawn = self._drawn(drawn)
        hits, misses = (np.cumsum(drawn * kind)[self.last] for kind in (self.positive, ~self.positive))
        steps = np.diff(misses, prepend=0)
        return float((steps * (hits - np.diff(hits, prepend=0) / 2)).sum() / (hits[-1] * misses[-1]))

    def _drawn(self, drawn):
        return np.ones(len(self.indices), "int64") if drawn is None else drawn[self.indices]


def _class_curves(scores, labels):
    if np.ndim(labels) != 2:
        raise ValueError(f"Expected labels (N, K) of 0 and 1 for map_11pt. Received: shape {np.shape(labels)}.")
    scores, labels = _check(scores, labels)
    empty = np.flatnonzero(~(labels == 1).any(0))
    if len(empty):
        raise ValueError(
            f"Expected a positive image of every class for map_11pt. Received: none of {empty.tolist()[:10]}. "
            "Leave these classes out of scores and labels."
        )
    seen = [np.flatnonzero(labels[:, k] != IGNORED) for k in range(labels.shape[1])]
    return [_Curve(scores[rows, k], labels[rows, k] == 1, rows) for k, rows in enumerate(seen)]


def _rarest_positive(labels):
    """For each image the rarest of its classes: drawn within these, hardly any class loses all of its images."""
    positive = np.asarray(labels) == 1
    return np.where(positive, positive.sum(0), len(positive) + 1).argmin(1)


def _binary_curve(scores, labels):
    scores = np.asarray(scores)
    two = np.stack([np.zeros(len(scores)), scores], 1) if scores.ndim == 1 else scores
    if np.shape(two)[1:] != (2,) or len(np.unique(labels)) != 2:
        raise ValueError(
            "Expected scores (N, 2) or (N,), and labels of which some are 0 and some are 1. "
            f"Received: scores of shape {scores.shape}, labels {np.unique(labels).tolist()[:10]}."
        )
    two, labels = _check(two, _single(labels))
    return _Curve(two[:, 1].astype("float64") - two[:, 0], labels == 1, np.arange(len(labels)))


def _single(labels):
    if np.ndim(labels) != 1:
        raise ValueError(f"Expected one class index per image, labels (N,). Received: shape {np.shape(labels)}.")
    return labels


def _check(scores, labels):
    """Both as arrays; refuses what no metric is defined for."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    wanted = "Expected finite scores (N, K) with N > 0, and labels: indices below K (N,), or 0, 1 and 255 (N, K). "
    if scores.ndim != 2 or not scores.size or labels.shape not in (scores.shape[:1], scores.shape):
        raise ValueError(f"{wanted}Received: scores of shape {scores.shape}, labels of shape {labels.shape}.")
    if not np.isfinite(scores).all():
        rows = np.flatnonzero(~np.isfinite(scores).all(1))
        raise ValueError(f"{wanted}Received: NaN or infinity in {len(rows)} rows, the first is {rows[0]}.")
    if not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool):
        raise ValueError(f"{wanted}Received: labels of dtype {labels.dtype}.")
    allowed = np.isin(labels, (0, 1, IGNORED)) if labels.ndim == 2 else (labels >= 0) & (labels < scores.shape[1])
    if not allowed.all():
        raise ValueError(f"{wanted}Received: labels {np.unique(labels[~allowed]).tolist()[:10]}, K={scores.shape[1]}.")
    return scores, labels.astype("int64")
