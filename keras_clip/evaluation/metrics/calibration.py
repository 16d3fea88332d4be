"""Calibration of a classifier's probabilities: reliability curve, expected calibration error, temperature scaling."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from keras_clip.evaluation.metrics.correctness import correct, single
from keras_clip.evaluation.metrics.inversion import inverted_interval, shift_to_mean, shrunk_values
from keras_clip.evaluation.metrics.metric import Metric, Statistic
from keras_clip.evaluation.results import Score


@dataclass(frozen=True)
class ReliabilityCurve:
    """Accuracy and mean confidence of images, binned by confidence: the probability of the predicted class.

    Args:
        edges: floats (bins + 1,). A bin contains the confidences in (lower edge, upper edge].
        confidence: floats (bins,). Mean confidence of each bin; NaN where the bin is empty.
        accuracy: floats (bins,). Accuracy on the images of each bin; NaN where the bin is empty.
        count: int64 (bins,). Number of images in each bin.
    """

    edges: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Returns the softmax of the logits divided by a temperature.

    Args:
        logits: floats (N, K).
        temperature: float > 0.

    Returns:
        Probabilities (N, K), float64; each row sums to 1.
    """
    logits = np.asarray(logits, "float64") / temperature
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def reliability_curve(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> ReliabilityCurve:
    """Returns accuracy and mean confidence in bins of equal width (Guo et al., 2017).

    Args:
        probabilities: floats (N, K); each row sums to 1. `softmax` computes them from logits.
        labels: class indices (N,).
        bins: int >= 1.

    Returns:
        A `ReliabilityCurve`.

    Raises:
        ValueError: rows that do not sum to 1, or labels that do not match.
    """
    confidence, hits, bin_index = _binned(probabilities, labels, bins)
    count = np.bincount(bin_index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(bin_index, confidence, bins) / count
        accuracy = np.bincount(bin_index, hits, bins) / count
    return ReliabilityCurve(np.linspace(0, 1, bins + 1), mean_confidence, accuracy, count)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Returns the mean over bins, weighted by their images, of |accuracy - mean confidence| (Guo et al., 2017).

    The estimate is biased upwards: it is above 0 even for a perfectly calibrated model, and more so with few images
    per bin. `debiased_calibration_error` corrects it.

    Args:
        probabilities: floats (N, K); each row sums to 1.
        labels: class indices (N,).
        bins: int >= 1.

    Returns:
        Error in [0, 1].

    Raises:
        ValueError: rows that do not sum to 1, or labels that do not match.
    """
    confidence, hits, bin_index = _binned(probabilities, labels, bins)
    return _error(confidence - hits, bin_index, bins)


def error_of_outcomes(
    confidence: np.ndarray, hits: np.ndarray, counts: np.ndarray | None = None, bins: int = 15
) -> float:
    """Returns `expected_calibration_error` from the confidence and the correctness of each image.

    Args:
        confidence: floats (N,) in [0, 1]. Probability of the predicted class.
        hits: bool or 0 and 1 (N,). Whether the image is classified correctly.
        counts: (N,). How often each image counts, as in a bootstrap resample; None: once.
        bins: int >= 1.

    Returns:
        Error in [0, 1].
    """
    counts = np.ones(len(hits)) if counts is None else counts
    return float(
        abs(np.bincount(_bin_index(confidence, bins), counts * (confidence - hits), bins)).sum() / counts.sum()
    )


def debiased_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = 15, resamples: int = 1000, seed: int = 0
) -> float:
    """Returns the median-unbiased estimate of the expected calibration error.

    It is the true error at which half of the test sets of this size would have a lower `expected_calibration_error`
    than the one observed; 0 if more than half of the test sets of a calibrated model have a higher one.

    Args:
        probabilities: floats (N, K); each row sums to 1.
        labels: class indices (N,).
        bins: int >= 1.
        resamples: int. Number of simulated test sets.
        seed: int. Seed of the simulation.

    Returns:
        Error in [0, 1].

    Raises:
        ValueError: rows that do not sum to 1, or labels that do not match.
    """
    return _inverted(probabilities, labels, bins, 0.95, resamples, seed)[2]


def calibration_error_interval(
    probabilities: np.ndarray,
    labels: np.ndarray,
    bins: int = 15,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the interval of the true calibration error in these bins, which accounts for the bias of the estimate.

    It inverts a test (`inverted_interval`): test sets of this size are simulated for each candidate error, with the gap
    of each bin moved as little as the candidate requires, in units of its variance. It encloses both
    `expected_calibration_error`, which is near the upper bound if there are few images per bin, and
    `debiased_calibration_error`.

    Args:
        probabilities: floats (N, K); each row sums to 1.
        labels: class indices (N,).
        bins: int >= 1.
        confidence: float in (0, 1).
        resamples: int. Number of simulated test sets.
        seed: int. Seed of the simulation.

    Returns:
        Lower and upper bound.

    Raises:
        ValueError: rows that do not sum to 1, or labels that do not match.
    """
    return _inverted(probabilities, labels, bins, confidence, resamples, seed)[:2]


def _inverted(probabilities, labels, bins, confidence, resamples, seed):
    predicted, hits, bin_index = _binned(probabilities, labels, bins)
    counts = np.bincount(bin_index, minlength=bins)
    used = counts > 0
    images, counts = len(hits), counts[used]
    mean_confidence = np.bincount(bin_index, predicted, bins)[used] / counts
    gap = mean_confidence - np.bincount(bin_index, hits, bins)[used] / counts
    share = counts / images
    # The accuracy of a bin, with one image added that is as accurate as it is confident.
    smoothed = mean_confidence - gap * counts / (counts + 1)
    variance = np.maximum(smoothed * (1 - smoothed), 1e-6) / counts
    step = share * variance
    # The observed gaps are scattered by chance too; what is left of their mean is a common over- or underconfidence.
    gap = shrunk_values(gap, variance, float(share @ gap))
    # Where the range on the observed side is the narrower one and all within chance, as that above a confidence of
    # 0.9999, the side is not known: the true gap may be a large one on the other side.
    room = np.where(gap < 0, 1 - mean_confidence, mean_confidence)
    within_chance = room < np.minimum(0.5, 2 * np.sqrt(mean_confidence * (1 - mean_confidence) / counts))
    sign = np.where((gap < 0) != within_chance, -1, 1)
    largest = np.where(sign > 0, mean_confidence, 1 - mean_confidence)

    gaps_at = shift_to_mean(sign * gap, step, largest, share)
    drawn = np.random.default_rng(seed).multinomial(images, share, size=resamples)
    confidences = drawn * mean_confidence

    def draws(error):
        accuracy = np.clip(mean_confidence - sign * gaps_at(error), 0, 1)
        hits = np.random.default_rng(seed).binomial(drawn, accuracy)
        return abs(confidences - hits).sum(1) / images

    observed = _error(predicted - hits, bin_index, bins)
    return inverted_interval(observed, draws, float(share @ largest), confidence)


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Returns the mean over images of -log p, where p is the softmax probability of the true class.

    Args:
        logits: floats (N, K).
        labels: class indices (N,).
        temperature: float > 0. The logits are divided by it.

    Returns:
        Nats, >= 0.

    Raises:
        ValueError: NaN, or labels that do not match.
    """
    logits, labels = _check(logits, labels)
    logits = logits.astype("float64") / temperature
    highest = logits.max(1)
    total = np.log(np.exp(logits - highest[:, None]).sum(1)) + highest
    return float((total - logits[np.arange(len(labels)), labels]).mean())


def fit_temperature(logits: np.ndarray, labels: np.ndarray, bounds: tuple[float, float] = (1e-3, 1e3)) -> float:
    """Returns the temperature that minimizes the negative log-likelihood (temperature scaling, Guo et al., 2017).

    It must be fitted on images other than the test images. The negative log-likelihood is convex in 1 / temperature;
    a safeguarded Newton iteration finds its minimum. The optimal temperature is 0 if all images are classified
    correctly, and infinite if the logits are no better than a uniform prediction: then the nearer bound is returned.

    Args:
        logits: floats (N, K), such as the zero-shot logits with the model's own scale.
        labels: class indices (N,).
        bounds: the lowest and the highest temperature.

    Returns:
        The temperature by which to divide the logits: above 1 if the model is overconfident.

    Raises:
        ValueError: NaN, labels that do not match, or bounds in the wrong order.
    """
    logits, labels = _check(logits, labels)
    if not 0 < bounds[0] < bounds[1]:
        raise ValueError(f"Expected 0 < lowest < highest temperature. Received: bounds={bounds}.")
    low, high = 1 / bounds[1], 1 / bounds[0]
    inverse = min(max(1.0, low), high)
    while high - low > 1e-12 * high:
        slope, curvature = _slope(logits, labels, inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        newton = inverse - slope / curvature if curvature else np.inf
        # If Newton's step leaves the bracket, the geometric mean of the bracket replaces it.
        before, inverse = inverse, newton if low < newton < high else np.sqrt(low * high)
        if abs(inverse - before) <= 1e-12 * inverse:
            break
    return float(1 / inverse)


def _slope(logits, labels, inverse, block=2**18):
    """Returns the first and second derivative of the negative log-likelihood with respect to 1 / temperature.

    The sums run over blocks of rows, which bounds the memory of the float64 copies.
    """
    slope = curvature = 0.0
    rows = max(1, block // logits.shape[1])
    for start in range(0, len(logits), rows):
        part = logits[start : start + rows].astype("float64")
        part -= part[np.arange(len(part)), labels[start : start + rows]][:, None]
        probabilities = softmax(part, 1 / inverse)
        mean = (probabilities * part).sum(1)
        slope += mean.sum()
        curvature += ((probabilities * part**2).sum(1) - mean**2).sum()
    return slope / len(logits), curvature / len(logits)


def _binned(probabilities, labels, bins):
    """Returns the confidence of each image, whether it is classified correctly, and the index of its bin."""
    probabilities = np.asarray(probabilities)
    hits = correct(probabilities, labels)
    if np.ndim(labels) != 1 or bins < 1 or (probabilities < 0).any() or (abs(probabilities.sum(1) - 1) > 1e-3).any():
        raise ValueError(
            "Expected probabilities (N, K) whose rows sum to 1, one label per image, and bins >= 1. Received: "
            f"shape {probabilities.shape}, bins={bins}. `evaluation.softmax` converts logits to probabilities."
        )
    confidence = np.minimum(probabilities.max(1).astype("float64"), 1)
    return confidence, hits, _bin_index(confidence, bins)


def _bin_index(confidence, bins):
    return np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="left") - 1


def _error(excess, bin_index, bins):
    return float(abs(np.bincount(bin_index, excess, bins)).sum() / len(bin_index))


def _check(logits, labels):
    correct(logits, labels)  # Raises a ValueError for inputs that do not match.
    return np.asarray(logits), np.asarray(single(labels))


def _metric_interval(probabilities, labels, confidence, resamples, seed):
    return calibration_error_interval(probabilities, labels, 15, confidence, resamples, seed)


def _confidence(probabilities, labels):
    return probabilities.max(axis=1)


def _confidence_and_correctness(score: Score) -> np.ndarray | None:
    is_known = score.outcomes is not None and score.correct is not None
    return np.stack([score.outcomes, score.correct], axis=1) if is_known else None


def _error_of_pairs(outcomes, labels, counts):
    return error_of_outcomes(outcomes[:, 0], outcomes[:, 1], counts)


# The metrics of probabilities (N, K), whose rows sum to 1, and labels (N,).
METRICS: Mapping[str, Metric] = {
    "expected_calibration_error": Metric(
        "expected_calibration_error",
        expected_calibration_error,
        _metric_interval,
        outcomes=_confidence,
        statistic=Statistic(_error_of_pairs),
        stored=_confidence_and_correctness,
    )
}
