"""Whether a classifier's probabilities can be believed: reliability curve, calibration error, temperature."""

from dataclasses import dataclass

import numpy as np

from keras_clip.evaluation.metrics.classification import correct
from keras_clip.evaluation.metrics.intervals import bootstrap_interval


@dataclass(frozen=True)
class ReliabilityCurve:
    """Images put into bins by the probability of their predicted class.

    Args:
        edges: floats (bins + 1,). A bin holds the confidences above its lower edge, up to its upper one.
        confidence: floats (bins,). Mean confidence of each bin; NaN where it is empty.
        accuracy: floats (bins,). Share of each bin's images that are right; NaN where it is empty.
        count: int64 (bins,). Images of each bin.
    """

    edges: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities of logits divided by a temperature.

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
    """Accuracy against confidence, in bins of equal width (Guo et al., 2017).

    Args:
        probabilities: floats (N, K); each row sums to 1. `softmax` makes them of logits.
        labels: class indices (N,).
        bins: int >= 1.

    Returns:
        A `ReliabilityCurve`.

    Raises:
        ValueError: rows that do not sum to 1, or labels that do not match.
    """
    confidence, right, place = _binned(probabilities, labels, bins)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(place, confidence, bins) / count
        accuracy = np.bincount(place, right, bins) / count
    return ReliabilityCurve(np.linspace(0, 1, bins + 1), mean_confidence, accuracy, count)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """The mean over images of how far their bin's confidence is from its accuracy (Guo et al., 2017).

    It is above 0 by chance even for a perfectly calibrated model, the more the fewer images a bin has.

    Args:
        probabilities: floats (N, K); each row sums to 1.
        labels: class indices (N,).
        bins: int >= 1.

    Returns:
        Error in [0, 1].

    Raises:
        ValueError: rows that do not sum to 1, or labels that do not match.
    """
    confidence, right, place = _binned(probabilities, labels, bins)
    return _error(confidence - right, place, bins)


def calibration_error_interval(
    probabilities: np.ndarray,
    labels: np.ndarray,
    bins: int = 15,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The bootstrap interval of `expected_calibration_error`, over images.

    Args:
        probabilities: floats (N, K); each row sums to 1.
        labels: class indices (N,).
        bins: int >= 1.
        confidence: float in (0, 1).
        resamples: int.
        seed: int.

    Returns:
        Lower and upper bound.
    """
    predicted, right, place = _binned(probabilities, labels, bins)
    return bootstrap_interval(
        lambda drawn: _error(drawn * (predicted - right), place, bins),
        len(right),
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """The mean of -log of the probability that a softmax gives to the right class.

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
    """The temperature at which the logits are likeliest, to be found on images other than those tested on.

    The likelihood has one optimum in 1 / temperature, found by Newton's steps. Where all images are right it is at
    0, and where the logits say less than nothing at infinity: then the nearer bound is returned.

    Args:
        logits: floats (N, K), such as the zero-shot logits with the model's own scale.
        labels: class indices (N,).
        bounds: the lowest and the highest temperature.

    Returns:
        The temperature to divide the logits by: above 1 if the model is too sure.

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
        # Newton's step, unless it leaves the bracket: then the middle of it, by orders of magnitude.
        before, inverse = inverse, newton if low < newton < high else np.sqrt(low * high)
        if abs(inverse - before) <= 1e-12 * inverse:
            break
    return float(1 / inverse)


def _slope(logits, labels, inverse, block=2**18):
    """First and second derivative of the negative log-likelihood in 1 / temperature, over blocks of rows."""
    slope = curvature = 0.0
    rows = max(1, block // logits.shape[1])
    for start in range(0, len(logits), rows):
        part = logits[start : start + rows].astype("float64")
        part -= part[np.arange(len(part)), labels[start : start + rows]][:, None]
        share = softmax(part, 1 / inverse)
        mean = (share * part).sum(1)
        slope += mean.sum()
        curvature += ((share * part**2).sum(1) - mean**2).sum()
    return slope / len(logits), curvature / len(logits)


def _binned(probabilities, labels, bins):
    """Confidence of each image, whether it is right, and its bin."""
    probabilities = np.asarray(probabilities)
    right = correct(probabilities, labels)
    if np.ndim(labels) != 1 or bins < 1 or (probabilities < 0).any() or (abs(probabilities.sum(1) - 1) > 1e-3).any():
        raise ValueError(
            "Expected probabilities (N, K) whose rows sum to 1, one label per image, and bins >= 1. Received: "
            f"shape {probabilities.shape}, bins={bins}. `evaluation.softmax` makes probabilities of logits."
        )
    confidence = np.minimum(probabilities.max(1).astype("float64"), 1)
    place = np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="left") - 1
    return confidence, right, place


def _error(excess, place, bins):
    return float(abs(np.bincount(place, excess, bins)).sum() / len(place))


def _check(logits, labels):
    correct(logits, labels)  # refuses what does not match
    if np.ndim(labels) != 1:
        raise ValueError(f"Expected one class index per image, labels (N,). Received: shape {np.shape(labels)}.")
    return np.asarray(logits), np.asarray(labels)
