"""Confidence intervals of proportions, means and quantiles.

Proportions are in [0, 1]. Blaker's exact interval is for every reported fraction of images; the conservative interval
of Clopper and Pearson is for the paper's claims (Radford et al., 2021, section 5 and appendix C). `mean_interval`
generalises to means whose variance is not that of one binomial count; it and Clopper and Pearson's interval use SciPy.
`inversion` has the interval of statistics that are biased, `bootstrap` those of statistics without a formula.
`tools/simulate_coverage.py` measures the coverage of all of them.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from keras_clip.evaluation.metrics.distributions import load_scipy, student_quantile


def wilson_interval(correct: float, total: float, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the score interval of a proportion (Wilson, 1927), which stays in [0, 1].

    Its coverage is near the nominal one on average, but falls to 92 % at 95 % confidence for 1 expected error in 100
    images, and to 84 % at worst. The coverage of `blaker_interval` is never below the nominal one.

    Args:
        correct: int, 0 to `total`; or a float for effective counts.
        total: int >= 1; or a float >= 1 for effective counts.
        confidence: float in (0, 1).

    Returns:
        Lower and upper bound of the proportion.

    Raises:
        ValueError: impossible counts, or a confidence outside (0, 1).
    """
    check_counts(correct, total, confidence)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    fraction, spread = correct / total, z * z / total
    centre = (fraction + spread / 2) / (1 + spread)
    half = z * math.sqrt(fraction * (1 - fraction) / total + spread / (4 * total)) / (1 + spread)
    # Rounding may leave a bound beyond the fraction itself at 0 and 1.
    return float(max(0.0, min(fraction, centre - half))), float(min(1.0, max(fraction, centre + half)))


def blaker_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the exact interval of a proportion of Blaker (2000), which lies within that of Clopper and Pearson.

    Its coverage is at least the nominal confidence for every proportion. At 95 % and 100 images or more it is below
    97 % wherever three or more errors, and three or more successes, are expected.

    Args:
        correct: int, 0 to `total`.
        total: int >= 1.
        confidence: float in (0, 1).

    Returns:
        Lower and upper bound of the proportion.

    Raises:
        ValueError: impossible counts, or a confidence outside (0, 1).
    """
    check_counts(correct, total, confidence)
    if int(correct) != correct or int(total) != total:
        raise ValueError(f"Expected whole numbers of images. Received: correct={correct}, total={total}.")
    correct, total, alpha = int(correct), int(total), 1 - confidence
    return _blaker_bound(correct, total, alpha), 1 - _blaker_bound(total - correct, total, alpha)


def clopper_pearson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the exact interval of a proportion (Clopper and Pearson, 1934).

    Its coverage is at least the nominal confidence.

    Args:
        correct: int, 0 to `total`.
        total: int >= 1.
        confidence: float in (0, 1). The paper's data overlap analysis uses 0.995.

    Returns:
        Lower and upper bound of the proportion.

    Raises:
        ValueError: impossible counts, or a confidence outside (0, 1).
    """
    check_counts(correct, total, confidence)
    tail = (1 - confidence) / 2
    beta = load_scipy().stats.beta
    low = beta.ppf(tail, correct, total - correct + 1) if correct else 0.0
    high = beta.isf(tail, correct + 1, total - correct) if correct < total else 1.0
    return float(low), float(high)


def _blaker_bound(correct, total, alpha):
    """Returns the lower bound: the lowest p whose acceptability exceeds alpha.

    The acceptability of p is P(X >= x) plus the largest P(X <= y) that does not exceed it. It changes continuously
    except where a further y joins, and reaches twice P(X >= x) there.
    """
    if not correct:
        return 0.0
    # Counts farther away have no mass at any p of interest: these are 12 standard deviations.
    reach = 6 * math.isqrt(total) + 40
    counts = np.arange(max(0, correct - reach), min(total, correct + reach) + 1)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total + 1)))])
    log_choices = log_factorials[-1] - log_factorials[counts] - log_factorials[total - counts]

    def tails(p):
        """Returns P(X <= y) for each y below x, and P(X >= x)."""
        masses = np.exp(log_choices + counts * math.log(p) + (total - counts) * math.log1p(-p))
        return masses[: correct - counts[0]].cumsum(), masses[correct - counts[0] :].sum()

    highest = min(correct / total, 1 - 1e-15)
    start = _first(lambda p: tails(p)[1] >= alpha / 2, 0.0, highest)
    below, above = tails(start)
    joined = int(np.searchsorted(below, above, side="right"))
    if joined == len(below):
        end = highest
    else:
        end = _first(lambda p: tails(p)[0][joined] <= tails(p)[1], start, highest)

    def accepts(p):
        below, above = tails(p)
        return above + (below[joined - 1] if joined else 0.0) > alpha

    return _first(accepts, start, end) if accepts(end) else end


def _first(holds, low, high, steps=50):
    """Returns the lowest value in (low, high] from which a condition holds, by bisection."""
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def mean_interval(
    value: float, count: float | Callable[[float], float], confidence: float = 0.95
) -> tuple[float, float]:
    """Returns the interval of a mean in [0, 1] whose variance is that of a proportion of an effective number of images.

    As Korn and Graubard (1998), it takes the effective number for the total of a binomial distribution with tails that
    are continuous in it, but with half of the observed value on each side (as a mid-p interval). At 0 and 1 the bound
    is that of Clopper and Pearson.

    Args:
        value: float in [0, 1]. The observed mean.
        count: float >= 1, the effective number of images, value (1 - value) / variance; or a function that returns it
            for a true mean in (0, 1), for a variance that depends on the true mean (a score interval).
        confidence: float in (0, 1).

    Returns:
        Lower and upper bound; they enclose the value.

    Raises:
        ValueError: a mean outside [0, 1], a count below 1, or a confidence outside (0, 1).
    """
    count_at = count if callable(count) else lambda mean: count
    if not (0 <= value <= 1 and 0 < confidence < 1 and count_at(0.5) >= 1):
        raise ValueError(
            "Expected 0 <= value <= 1, count >= 1, 0 < confidence < 1. "
            f"Received: value={value}, count={count_at(0.5)}, confidence={confidence}."
        )
    tail = (1 - confidence) / 2
    low = _mean_bound(value, count_at, tail)
    return low, 1 - _mean_bound(1 - value, lambda mean: count_at(1 - mean), tail)


def _mean_bound(value, count_at, tail):
    betainc = load_scipy().special.betainc
    # Sums of fractions reach 1 up to rounding.
    if value < 1e-12:
        return 0.0
    half = 0.0 if value > 1 - 1e-12 else 0.5

    def holds(mean):
        count = count_at(mean)
        hits = min(value, 1.0) * count
        return betainc(hits + half, count - hits + 1 - half, mean) >= tail

    return min(float(_first(holds, 0.0, min(value, 1 - 1e-15), steps=40)), value)


def clustered_interval(hits: np.ndarray, groups: Sequence, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the interval of a proportion of examples that are not independent within a group.

    Examples are the captions of an image, the altered copies of one or the frames of a video. It is `mean_interval` at
    the number of independent examples that gives the variance over groups, with Student's t; and Blaker's exact
    interval if every group has one example.

    Args:
        hits: bool (N,).
        groups: N values; examples with equal values are of one group.
        confidence: float in (0, 1).

    Returns:
        Lower and upper bound of the proportion.

    Raises:
        ValueError: no examples, lengths that do not match, or a confidence outside (0, 1).
    """
    hits = np.asarray(hits, bool)
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    if hits.ndim != 1 or not len(hits) or members.shape != hits.shape or not 0 < confidence < 1:
        raise ValueError(
            "Expected hits (N,), N > 0, a group for each, and 0 < confidence < 1. "
            f"Received: hits of shape {hits.shape}, {len(members)} groups, confidence={confidence}."
        )
    if len(names) == len(hits):
        return blaker_interval(int(hits.sum()), len(hits), confidence)
    return mean_interval(float(hits.mean()), _effective_examples(hits, members, len(names), confidence), confidence)


def clustered_quantile_interval(
    values: np.ndarray, groups: Sequence, share: float = 0.5, confidence: float = 0.95
) -> tuple[float, float]:
    """Returns the interval of a quantile, such as the median, from the interval of its proportion (Woodruff, 1952).

    Args:
        values: numbers (N,).
        groups: N values; examples with equal values are of one group, as in `clustered_interval`.
        share: float in (0, 1). The proportion of examples below the quantile.
        confidence: float in (0, 1).

    Returns:
        Lower and upper bound; both are values that occur.

    Raises:
        ValueError: as of `clustered_interval`.
    """
    values = np.asarray(values)
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    if values.ndim != 1 or not len(values) or members.shape != values.shape:
        raise ValueError(f"Expected values (N,) and N groups. Received: {values.shape}, {len(members)} groups.")
    ordered = np.sort(values)
    size = len(values)
    count = _effective_examples(values <= np.quantile(values, share), members, len(names), confidence)
    low, high = mean_interval(share, count, confidence)
    # Rounded outwards, so that few examples give a wide interval rather than a narrow one.
    first, last = math.floor(low * size), min(math.ceil(high * size), size) - 1
    return float(min(ordered[first], np.quantile(values, share))), float(max(ordered[last], np.quantile(values, share)))


def _effective_examples(hits, members, groups, confidence):
    """Returns the number of independent examples at which a proportion has the variance of these, summed by group."""
    value = hits.mean()
    residuals = np.bincount(members, hits - value, groups)
    variance = (residuals**2).sum() * groups / max(1, groups - 1) / len(hits) ** 2
    # If all agree, nothing is known about the dependence: each group counts once.
    count = min(value * (1 - value) / variance, len(hits)) if variance > 0 else groups
    # Few groups may decide: those with the largest residuals are the degrees of freedom.
    decisive = (residuals**2).sum() ** 2 / (residuals**4).sum() if variance > 0 else groups
    level, degrees = (1 + confidence) / 2, max(1.0, decisive - 1)
    return max(1.0, count * (NormalDist().inv_cdf(level) / student_quantile(level, degrees)) ** 2)


def check_counts(correct: float, total: float, confidence: float = 0.95) -> None:
    """Raises ValueError for impossible counts, or a confidence outside (0, 1)."""
    if not (total >= 1 and 0 <= correct <= total and 0 < confidence < 1):
        raise ValueError(
            "Expected 0 <= correct <= total, total >= 1, 0 < confidence < 1. "
            f"Received: correct={correct}, total={total}, confidence={confidence}."
        )
