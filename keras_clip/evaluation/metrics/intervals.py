"""Confidence intervals and tests for proportions and means, corrections for multiple tests, and linear regression.

Proportions are in [0, 1]. Blaker's exact interval is for every reported fraction of images; the conservative interval
of Clopper and Pearson is for the paper's claims (Radford et al., 2021, section 5 and appendix C). `mean_interval`
generalises to means whose variance is not that of one binomial count, and `inverted_interval` to statistics that are
biased, such as a sum of absolute differences. `tools/simulate_coverage.py` measures the coverage of all of them.
Clopper and Pearson's interval, `mean_interval`, the exact tests and regression use SciPy.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


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
    _check_counts(correct, total, confidence)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    fraction, spread = correct / total, z * z / total
    centre = (fraction + spread / 2) / (1 + spread)
    half = z * math.sqrt(fraction * (1 - fraction) / total + spread / (4 * total)) / (1 + spread)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


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
    _check_counts(correct, total, confidence)
    if int(correct) != correct or int(total) != total:
        raise ValueError(f"Expected whole numbers of images. Received: correct={correct}, total={total}.")
    correct, total, alpha = int(correct), int(total), 1 - confidence
    return _blaker_bound(correct, total, alpha), 1 - _blaker_bound(total - correct, total, alpha)


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
    try:
        from scipy.special import betainc
    except ImportError as error:
        raise _scipy_is_missing() from error
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


def inverted_interval(
    observed: float, draws: Callable[[float], np.ndarray], highest: float, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Returns the interval of a statistic by inversion of a test with simulated samples (Chuang and Lai, 2000).

    A true value belongs to the interval if the observed value is not in the tails of the samples that it produces. This
    accounts for the bias of a statistic such as a sum of absolute differences, whose percentile bootstrap has the bias
    twice. The observed value itself is always enclosed; where this extends the upper bound, the tail that is left over
    is spent on the lower one.

    Args:
        observed: float >= 0. The observed value of the statistic.
        draws: function that returns the statistic of simulated samples (R,) for a true value in [0, `highest`], with
            the same random numbers at each call. Larger true values must give larger statistics.
        highest: float. The largest true value.
        confidence: float in (0, 1).

    Returns:
        Lower bound, upper bound, and the median-unbiased estimate: the true value at which half of the samples are
        below the observed value. All in [0, `highest`].

    Raises:
        ValueError: a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"Expected 0 < confidence < 1. Received: confidence={confidence}.")

    @functools.cache
    def share_below(true):
        values = draws(true)
        # A tie counts one half, as in a mid-p test; sums in another order differ by rounding.
        return ((values < observed - 1e-9).mean() + (values <= observed + 1e-9).mean()) / 2, 0.5 / len(values)

    def where(share):
        if share_below(0.0)[0] < share:
            return 0.0
        low, high = 0.0, highest
        for _ in range(16):
            middle = (low + high) / 2
            found, resolution = share_below(middle)
            if abs(found - share) <= resolution:
                return middle
            low, high = (low, middle) if found < share else (middle, high)
        return high

    alpha = 1 - confidence
    high = max(where(alpha / 2), observed)
    low = where(1 - alpha + min(alpha / 2, share_below(high)[0]))
    median = where(0.5)
    return min(low, observed), high, min(max(median, low), high)


def shrunk_values(values: np.ndarray, variances: np.ndarray, mean: float) -> np.ndarray:
    """Returns values shrunk towards a mean by the share of their scatter that is due to chance.

    The scatter beyond chance is estimated by the method of moments (DerSimonian and Laird, 1986). The extremes of
    values, and the sum of their distances, are less biased than those of the observed ones.

    Args:
        values: floats (G,), such as the rates of groups.
        variances: floats (G,) > 0, of each value by chance.
        mean: float to shrink towards.

    Returns:
        float64 (G,).
    """
    if len(values) < 2:
        return np.asarray(values, "float64")
    weight = 1 / variances
    excess = (weight * (values - (weight * values).sum() / weight.sum()) ** 2).sum() - (len(values) - 1)
    between = max(0.0, excess) / (weight.sum() - (weight**2).sum() / weight.sum())
    return mean + between / (between + variances) * (values - mean)


def shift_to_mean(
    values: np.ndarray, steps: np.ndarray, highest: np.ndarray | float, weights: np.ndarray
) -> Callable[[float], np.ndarray]:
    """Returns a function that moves values within their ranges until their weighted mean is the one it is called with.

    Each value moves in proportion to its step, and stops at the ends of its range. With steps in proportion to weight
    times variance, the result is nearest to the values in units of their variances.

    Args:
        values: floats (G,).
        steps: floats (G,) > 0. How far each value moves per unit.
        highest: floats (G,) or a float >= 0. The ranges are [0, `highest`].
        weights: floats (G,) > 0 that sum to 1.

    Returns:
        A function of a mean in [0, the weighted mean of `highest`], which returns float64 (G,).
    """
    # The mean is linear between the moves at which a value leaves 0 or reaches the other end of its range.
    ends = np.concatenate([-values / steps, (highest - values) / steps])
    order = np.argsort(ends, kind="stable")
    moves, slopes = ends[order], np.cumsum(np.concatenate([weights * steps, -weights * steps])[order])
    means = np.concatenate([[0.0], np.cumsum(np.maximum(slopes[:-1], 0) * np.diff(moves))])
    return lambda mean: np.clip(values + np.interp(mean, means, moves) * steps, 0, highest)


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
    _check_counts(correct, total, confidence)
    tail = (1 - confidence) / 2
    beta = _scipy_stats().beta
    low = beta.ppf(tail, correct, total - correct + 1) if correct else 0.0
    high = beta.isf(tail, correct + 1, total - correct) if correct < total else 1.0
    return float(low), float(high)


def binomial_test(correct: int, total: int, share: float, alternative: str = "greater") -> float:
    """Returns the p-value of the exact one-sided binomial test of a count against a known fraction.

    The paper uses it to compare the accuracy on overlapping images with that on clean ones (appendix C).

    Args:
        correct: int, 0 to `total`.
        total: int >= 1.
        share: float in [0, 1]. The probability of success under the null hypothesis.
        alternative: "greater" or "less".

    Returns:
        The p-value: the probability of a count at least as large (or as small) under the null hypothesis.

    Raises:
        ValueError: impossible counts, a `share` outside [0, 1], or an unknown alternative.
    """
    _check_counts(correct, total)
    if alternative not in ("greater", "less") or not 0 <= share <= 1:
        raise ValueError(
            f'Expected 0 <= share <= 1 and alternative "greater" or "less". '
            f"Received: share={share}, alternative={alternative!r}."
        )
    return float(_scipy_stats().binomtest(correct, total, share, alternative).pvalue)


def mcnemar_test(only_first: int, only_second: int) -> float:
    """Returns the p-value of the exact two-sided test that two models have the same accuracy (McNemar, 1947).

    Both models must have been evaluated on the same images.

    Args:
        only_first: int. Number of images that only the first model classifies correctly.
        only_second: int. Number of images that only the second model classifies correctly.

    Returns:
        The p-value; 1 if the two models are correct on the same images.

    Raises:
        ValueError: a negative count.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"Expected counts >= 0. Received: only_first={only_first}, only_second={only_second}.")
    differing = only_first + only_second
    if differing == 0:
        return 1.0
    return float(_scipy_stats().binomtest(min(only_first, only_second), differing, 0.5).pvalue)


def bonferroni(p_values: Sequence[float]) -> np.ndarray:
    """Returns p-values adjusted by Bonferroni's correction, which controls the family-wise error rate.

    Args:
        p_values: sequence of n floats in [0, 1].

    Returns:
        Adjusted p-values (n,), float64.

    Raises:
        ValueError: a value outside [0, 1].
    """
    p_values = _check_p_values(p_values)
    return np.minimum(1.0, p_values * len(p_values))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Returns p-values adjusted by Holm's step-down correction (1979).

    It controls the family-wise error rate, as `bonferroni` does, and is more powerful.

    Args:
        p_values: sequence of n floats in [0, 1].

    Returns:
        Adjusted p-values (n,), float64, in the order of the input.

    Raises:
        ValueError: a value outside [0, 1].
    """
    p_values = _check_p_values(p_values)
    order = np.argsort(p_values, kind="stable")
    steps = np.minimum(1.0, p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted


@dataclass(frozen=True)
class LineFit:
    """A linear regression by ordinary least squares.

    Args:
        slope: float.
        intercept: float.
        slope_low: lower bound of the slope, by Student's t distribution.
        slope_high: upper bound of the slope.
        r: Pearson's correlation, in [-1, 1].
        residual: residual standard deviation, with n - 2 degrees of freedom.
        n: int. Number of points.
    """

    slope: float
    intercept: float
    slope_low: float
    slope_high: float
    r: float
    residual: float
    n: int

    def predict(self, x: float) -> float:
        """Returns the predicted value at x, a float or an array."""
        return self.intercept + self.slope * x

    @property
    def r2(self) -> float:
        """Returns the fraction of the variance that the line explains."""
        return self.r**2


def fit_line(x: Sequence[float], y: Sequence[float], confidence: float = 0.95) -> LineFit:
    """Fits y = intercept + slope * x by least squares.

    Args:
        x: sequence of n >= 3 floats, not all equal.
        y: sequence of n floats.
        confidence: float in (0, 1). Confidence of the bounds of the slope.

    Returns:
        A `LineFit`.

    Raises:
        ValueError: fewer than three points, values of x that are all equal, lengths that differ, or NaN.
    """
    x, y = np.asarray(x, "float64"), np.asarray(y, "float64")
    if x.ndim != 1 or x.shape != y.shape or len(x) < 3 or not np.isfinite([x, y]).all() or np.ptp(x) == 0:
        raise ValueError(
            f"Expected at least three finite points with different x. Received: x={x.tolist()}, y={y.tolist()}."
        )
    fit = _scipy_stats().linregress(x, y)
    errors = y - fit.intercept - fit.slope * x
    residual = math.sqrt(errors @ errors / (len(x) - 2))
    half = student_quantile((1 + confidence) / 2, len(x) - 2) * residual / math.sqrt(((x - x.mean()) ** 2).sum())
    return LineFit(
        slope=float(fit.slope),
        intercept=float(fit.intercept),
        slope_low=float(fit.slope - half),
        slope_high=float(fit.slope + half),
        # The correlation with a constant y is undefined.
        r=float(fit.rvalue) if np.ptp(y) else 0.0,
        residual=residual,
        n=len(x),
    )


def student_quantile(probability: float, degrees: float) -> float:
    """Returns a quantile of Student's t distribution.

    Args:
        probability: float in (0, 1).
        degrees: float > 0. Degrees of freedom.

    Returns:
        The value below which t lies with that probability.
    """
    return float(_scipy_stats().t.ppf(probability, degrees))


def _scipy_stats():
    try:
        from scipy import stats
    except ImportError as error:
        raise _scipy_is_missing() from error
    return stats


def _scipy_is_missing():
    return ImportError(
        'Intervals of means, exact tests and linear regression require SciPy: pip install "keras_clip[evaluation]".'
    )


def _check_counts(correct, total, confidence=0.95):
    if not (total >= 1 and 0 <= correct <= total and 0 < confidence < 1):
        raise ValueError(
            "Expected 0 <= correct <= total, total >= 1, 0 < confidence < 1. "
            f"Received: correct={correct}, total={total}, confidence={confidence}."
        )


def _check_p_values(p_values):
    p_values = np.asarray(p_values, "float64")
    if p_values.ndim != 1 or not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError(f"Expected a list of p-values in [0, 1]. Received: {p_values.tolist()}.")
    return p_values
