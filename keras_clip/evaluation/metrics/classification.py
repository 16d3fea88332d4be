"""The metrics of the paper's 27 datasets (Radford et al., 2021, table 9), each with a confidence interval.

`correctness` describes scores and labels, and `curves` areas under curves. To add a metric, write its functions and one
`Metric` in the table `METRICS`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import NormalDist

import numpy as np

from keras_clip.evaluation.metrics.bootstrap import resampled_variance
from keras_clip.evaluation.metrics.correctness import IGNORED, correct, single  # noqa: F401
from keras_clip.evaluation.metrics.curves import binary_curve, class_curves
from keras_clip.evaluation.metrics.distributions import student_quantile
from keras_clip.evaluation.metrics.intervals import blaker_interval, mean_interval
from keras_clip.evaluation.metrics.inversion import shift_to_mean
from keras_clip.evaluation.metrics.metric import MEAN, Metric, Statistic


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns the fraction of images whose class has the highest score.

    Args:
        scores: floats (N, K).
        labels: class indices (N,).

    Returns:
        Fraction in [0, 1].
    """
    return float(correct(scores, single(labels)).mean())


def top5_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns the fraction of images whose class is among the five highest scores.

    Arguments as of `accuracy`; there must be at least five classes.
    """
    return float(_in_top5(scores, labels).mean())


def mean_top1_top5(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean of `accuracy` and `top5_accuracy`, the metric of Kinetics. Arguments as of these."""
    return (accuracy(scores, labels) + top5_accuracy(scores, labels)) / 2


def mean_per_class(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean over classes of the per-class accuracy, in which rare and frequent classes weigh the same.

    Args:
        scores: floats (N, K).
        labels: class indices (N,). Every class must have an image.

    Returns:
        Fraction in [0, 1].

    Raises:
        ValueError: a class without an image.
    """
    hits, counts = _per_class(scores, labels)
    return float((hits / counts).mean())


def map_11pt(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean over classes of the 11-point interpolated average precision (VOC 2007).

    The average precision of a class is the mean over the recalls 0, 0.1 ... 1 of the highest precision at that recall
    or a higher one.

    Args:
        scores: floats (N, K).
        labels: 0, 1 and `IGNORED` (N, K). Every class must have a positive image.

    Returns:
        Mean average precision in [0, 1].

    Raises:
        ValueError: a class without a positive image.
    """
    return float(np.mean([curve.average_precision() for curve in class_curves(scores, labels)]))


def roc_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns the area under the ROC curve of two classes (the metric of Hateful Memes).

    It is the probability that a random positive image has a higher score than a random negative one.

    Args:
        scores: floats (N, 2), or (N,) for class 1 alone.
        labels: 0 or 1 (N,). Both classes must occur.

    Returns:
        Area in [0, 1]; a tie counts one half.

    Raises:
        ValueError: a number of classes other than two, or a class that does not occur.
    """
    return binary_curve(scores, labels).roc_auc()


def interval(
    metric: str,
    scores: np.ndarray,
    labels: np.ndarray,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the confidence interval of a metric, for the uncertainty that comes from the sample of test images.

    Fractions of images have Blaker's exact interval. The others are means whose variance is not that of one binomial
    count; they have `mean_interval` at an effective number of images. For the mean per class, its variance is computed
    at the true mean, with each class at its own rate. For the area under the ROC curve it is that of DeLong et al.
    (1988), shrunk towards that of Hanley and McNeil (1982) where one of the two classes has few images. For `map_11pt`,
    whose value is biased upwards by a few points for classes with few positive images, the interval is that of the
    expected value on test sets of this size, and its variance is from resampling
    within classes.

    Args:
        metric: key of `METRICS`.
        scores: floats (N, K), in the form that the metric expects.
        labels: in the form that the metric expects.
        confidence: float in (0, 1).
        resamples: int. Number of bootstrap resamples.
        seed: int. Seed of the bootstrap.

    Returns:
        Lower and upper bound, in the unit of the metric.

    Raises:
        ValueError: an unknown metric, or scores and labels for which the metric is undefined.
    """
    if metric not in METRICS:
        raise ValueError(f"`metric` must be one of {list(METRICS)}. Received: metric={metric!r}.")
    return METRICS[metric].interval(scores, labels, confidence, resamples, seed)


def _accuracy_interval(scores, labels, confidence, resamples, seed):
    return _exact(correct(scores, single(labels)), confidence)


def _top5_interval(scores, labels, confidence, resamples, seed):
    return _exact(_in_top5(scores, labels), confidence)


def _top1_top5_interval(scores, labels, confidence, resamples, seed):
    hits = _mean_hits(scores, labels)
    variance = hits.var() / len(hits)
    return mean_interval(hits.mean(), _effective(hits.mean(), variance, len(hits)), confidence)


def _exact(hits, confidence):
    return blaker_interval(int(hits.sum()), len(hits), confidence)


def _effective(value, variance, otherwise):
    """Returns the number of images at which a proportion has this variance."""
    return max(1.0, value * (1 - value) / variance) if variance > 0 else float(otherwise)


def _mean_per_class_interval(scores, labels, confidence, resamples, seed):
    return _class_counts_interval(*_per_class(scores, labels), confidence)


def _class_counts_interval(hits, counts, confidence):
    value, classes = float((hits / counts).mean()), len(counts)
    # One image of the mean rate is added to each class, since the rate of a class of one image is 0 or 1.
    rates = (hits + value) / (counts + 1)
    # This makes the variance unbiased if all classes have the same rate: few images look alike by chance.
    unbiased = (counts + 1) ** 2 / ((counts + 1) ** 2 - counts)

    # The maximum-likelihood rates under another mean: rare classes are shifted most.
    rates_at = shift_to_mean(rates, 1 / counts, 1.0, np.full(classes, 1 / classes))

    def count(mean):
        at_mean = rates_at(mean)
        variance = (at_mean * (1 - at_mean) * unbiased / counts).sum() / classes**2
        return _effective(mean, variance, classes**2 / (1 / counts).sum())

    return mean_interval(value, count, confidence)


def _map_11pt_interval(scores, labels, confidence, resamples, seed):
    curves = class_curves(scores, labels)

    def mean_average_precision(weights):
        # A class whose positive images are all left out is passed over.
        return np.nanmean([curve.average_precision(weights) for curve in curves])

    value = mean_average_precision(None)
    variance = resampled_variance(mean_average_precision, len(labels), _rarest_positive(labels), resamples, seed)
    positives = sum(int(curve.positive.sum()) for curve in curves)
    return mean_interval(value, min(_effective(value, variance, positives), positives), confidence)


# Weight of the model variance of an area under the ROC curve, as a number of images per class.
_AUC_PRIOR = 10


def _roc_auc_interval(scores, labels, confidence, resamples, seed):
    curve = binary_curve(scores, labels)
    value, placements = curve.roc_auc(), curve.placements()
    sizes = [len(values) for values in placements]
    model = _auc_component(value)
    # The variances of the two classes relative to those of the model. A small one may be small by chance.
    ratios = [np.var(values, ddof=min(1, len(values) - 1)) / max(model, 1e-9) for values in placements]
    ratios = [
        max(ratio, (ratio * size + _AUC_PRIOR) / (size + _AUC_PRIOR)) for ratio, size in zip(ratios, sizes, strict=True)
    ]
    # Student's t in place of the normal distribution, for the variance is estimated from few images.
    degrees = max(1, min(sizes) - 1)
    normal = NormalDist().inv_cdf((1 + confidence) / 2)
    factor = (normal / student_quantile((1 + confidence) / 2, degrees)) ** 2

    def count(area):
        component = _auc_component(area)
        variance = component * sum(ratio / size for ratio, size in zip(ratios, sizes, strict=True))
        variance += max(0.0, area * (1 - area) - 2 * component) / (sizes[0] * sizes[1])
        return max(1.0, factor * area * (1 - area) / variance)

    return mean_interval(value, count, confidence)


def _auc_component(area):
    """Returns the variance of an image's placement by Hanley and McNeil, the mean of both classes."""
    return (area / (2 - area) + 2 * area**2 / (1 + area)) / 2 - area**2


def _rarest_positive(labels):
    """Returns the rarest class of each image; as bootstrap strata, these keep images of nearly every class."""
    positive = np.asarray(labels) == 1
    return np.where(positive, positive.sum(0), len(positive) + 1).argmin(1)


# The outcomes and statistics by which two models are compared.


def _mean_hits(scores, labels):
    return (correct(scores, single(labels)) + _in_top5(scores, labels).astype("float64")) / 2


def _mean_of_classes(hits, labels, counts):
    counts = np.ones(len(labels)) if counts is None else counts
    images = np.bincount(labels, counts)
    occurs = images > 0
    return float((np.bincount(labels, counts * hits)[occurs] / images[occurs]).mean())


def _weights_of_classes(n, labels):
    images = np.bincount(labels)
    return 1 / (images[labels] * (images > 0).sum())


def _ranks_by_class(scores, labels):
    return np.stack([_ranks(column) for column in np.asarray(scores).T], axis=1)


def _average_precision_of_ranks(ranks, labels, counts):
    # Signed, since the curves sort by the negative.
    return float(np.mean([curve.average_precision(counts) for curve in class_curves(ranks.astype("int64"), labels)]))


def _ranks_of_margin(scores, labels):
    scores = np.asarray(scores, "float64")
    return _ranks(scores[:, 1] - scores[:, 0])


def _area_of_ranks(ranks, labels, counts):
    return binary_curve(ranks, labels).roc_auc(counts)


def _ranks(values):
    """Returns the ranks of values; equal values have equal ranks.

    Curves depend on the order of the images alone, so that models with different temperatures have ranks in common.
    """
    ranks = np.unique(values, return_inverse=True)[1].reshape(-1)
    return ranks.astype("uint16" if len(values) <= 2**16 else "int32")


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", accuracy, _accuracy_interval, statistic=MEAN),
        Metric("top5_accuracy", top5_accuracy, _top5_interval, correct=partial(correct, k=5), statistic=MEAN),
        Metric(
            "mean_per_class",
            mean_per_class,
            _mean_per_class_interval,
            statistic=Statistic(_mean_of_classes, weights=_weights_of_classes, strata=np.asarray, needs_labels=True),
        ),
        Metric(
            "map_11pt",
            map_11pt,
            _map_11pt_interval,
            outcomes=_ranks_by_class,
            statistic=Statistic(_average_precision_of_ranks, strata=_rarest_positive, needs_labels=True),
        ),
        Metric(
            "roc_auc",
            roc_auc,
            _roc_auc_interval,
            outcomes=_ranks_of_margin,
            statistic=Statistic(_area_of_ranks, strata=np.asarray, needs_labels=True),
        ),
        Metric("mean_top1_top5", mean_top1_top5, _top1_top5_interval, outcomes=_mean_hits, statistic=MEAN),
    )
}


def mean_over_folds(values: Sequence, same_images: bool = True) -> float | tuple[float, ...]:
    """Returns the mean over folds, such as those of STL-10 or the splits of UCF101.

    Args:
        values: one value per fold; or one tuple per fold, (value, low, high).
        same_images: whether the folds are tested on the same images, as those of STL-10. Then the bounds are the means
            of the folds' bounds. Otherwise the folds are independent, and their distances from the value are combined
            by the root of the sum of squares (Zou and Donner, 2008).

    Returns:
        A float, or a tuple of floats.

    Raises:
        ValueError: no fold, or folds whose values differ in form; `same_images=False` without bounds.
    """
    folds = np.asarray(values, "float64") if len({np.shape(value) for value in values}) == 1 else np.empty(())
    if folds.ndim not in (1, 2):
        raise ValueError(
            f"Expected one float per fold, or one tuple per fold, all of the same length. Received: values={values!r}."
        )
    mean = folds.mean(0)
    if folds.ndim == 1:
        return float(mean)
    if not same_images:
        if folds.shape[1] != 3:
            raise ValueError(
                f"Expected (value, low, high) per fold for independent folds. Received: values={values!r}."
            )
        spread = np.sqrt(((folds[:, :1] - folds[:, 1:]) ** 2).sum(0)) / len(folds)
        mean[1:] = mean[0] - spread[0], mean[0] + spread[1]
    return tuple(map(float, mean))


def _in_top5(scores, labels):
    if np.ndim(scores) == 2 and np.shape(scores)[1] < 5:
        raise ValueError(f"Expected at least five classes for top-5. Received: scores of shape {np.shape(scores)}.")
    return correct(scores, single(labels), k=5)


def _per_class(scores, labels):
    """Returns the number of correctly classified images of each class, and the number of images of each class."""
    hits = correct(scores, single(labels))
    classes = np.shape(scores)[1]
    counts = np.bincount(labels, minlength=classes)
    if not counts.all():
        raise ValueError(
            f"Expected at least one image of each of {classes} classes for the mean per class. Received: none of the "
            f"classes {np.flatnonzero(counts == 0).tolist()[:10]}. Remove these classes from scores and labels."
        )
    return np.bincount(labels, hits, classes), counts
