"""Intervals and tests for what was counted or averaged, and the straight line through points.

Shares are in [0, 1]. Wilson's interval is for display; Clopper and Pearson's, which never promises too much, for the
paper's claims (Radford et al., 2021, section 5 and appendix C). Tails, quantiles and the line are SciPy's.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


def wilson_interval(correct: float, total: float, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a proportion (Wilson, 1927): never outside of [0, 1], and sound for small counts.

    Args:
        correct: int, 0 to `total`; or a float, where the counts are effective ones.
        total: int >= 1, or float.
        confidence: float in (0, 1).

    Returns:
        Lower and upper bound of the proportion.

    Raises:
        ValueError: counts that cannot be, or a confidence outside (0, 1).
    """
    _check_counts(correct, total, confidence)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = correct / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def clopper_pearson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a proportion (Clopper and Pearson, 1934): it covers at least as often as it says.

    Args:
        correct: int, 0 to `total`.
        total: int >= 1.
        confidence: float in (0, 1). The paper's data overlap analysis uses 0.995.

    Returns:
        Lower and upper bound of the proportion.

    Raises:
        ValueError: counts that cannot be, or a confidence outside (0, 1).
    """
    _check_counts(correct, total, confidence)
    rest = (1 - confidence) / 2
    beta = _scipy_stats().beta
    low = beta.ppf(rest, correct, total - correct + 1) if correct else 0.0
    high = beta.isf(rest, correct + 1, total - correct) if correct < total else 1.0
    return float(low), float(high)


def binomial_test(correct: int, total: int, share: float, alternative: str = "greater") -> float:
    """The exact one-sided test of a count against a known share (the paper's appendix C: overlap against clean).

    Args:
        correct: int, 0 to `total`.
        total: int >= 1.
        share: float in [0, 1]. What the count is held against.
        alternative: "greater" or "less".

    Returns:
        The p-value: how probable so many (or so few) are under `share`.

    Raises:
        ValueError: counts or a share that cannot be, an unknown alternative.
    """
    _check_counts(correct, total)
    if alternative not in ("greater", "less") or not 0 <= share <= 1:
        raise ValueError(
            f'Expected 0 <= share <= 1 and alternative "greater" or "less". '
            f"Received: share={share}, alternative={alternative!r}."
        )
    return float(_scipy_stats().binomtest(correct, total, share, alternative).pvalue)


def mcnemar_test(only_first: int, only_second: int) -> float:
    """The exact two-sided test whether two models that saw the same images are equally good (McNemar, 1947).

    Args:
        only_first: int. Images that the first model alone has right.
        only_second: int. Images that the second model alone has right.

    Returns:
        The p-value; 1 where the two never differ.

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
    """P-values made larger for the number of tests, so that any false alarm among them is as rare as one was.

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
    """`bonferroni` in steps (Holm, 1979): keeps the same promise and finds more.

    Args:
        p_values: sequence of n floats in [0, 1].

    Returns:
        Adjusted p-values (n,), float64, in the order given.

    Raises:
        ValueError: a value outside [0, 1].
    """
    p_values = _check_p_values(p_values)
    order = np.argsort(p_values, kind="stable")
    steps = np.minimum(1.0, p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    size: int,
    groups: Sequence | None = None,
    strata: Sequence | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile bootstrap (Efron, 1979): what the statistic is on examples drawn anew from those at hand.

    Args:
        statistic: from how often each example was drawn, int64 (N,), to a float. `lambda drawn: (drawn * x).sum() /
            drawn.sum()` is the mean of x.
        size: int, N.
        groups: N values. Examples of one group are drawn together: the captions of an image, the frames of a video.
        strata: N values. The draw is made within each stratum, so that none comes out empty: the classes.
        confidence: float in (0, 1).
        resamples: int >= 1.
        seed: int.

    Returns:
        Lower and upper bound of the statistic.

    Raises:
        ValueError: no examples, groups together with strata, lengths that do not match, or a statistic that is NaN.
    """
    if size < 1 or not 0 < confidence < 1 or resamples < 1 or (groups is not None and strata is not None):
        raise ValueError(
            "Expected size >= 1, 0 < confidence < 1, resamples >= 1, and groups or strata but not both. "
            f"Received: size={size}, confidence={confidence}, resamples={resamples}."
        )
    draw = _drawer(size, groups, strata, np.random.default_rng(seed))
    values = np.array([statistic(draw()) for _ in range(resamples)], "float64")
    if np.isnan(values).any():
        raise ValueError(
            "Expected a statistic that is a number on every resample. Received: NaN on "
            f"{np.isnan(values).sum()} of {resamples}. Give the classes as `strata`, so that none can be missing."
        )
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _drawer(size, groups, strata, generator):
    """A function that draws as many units as there are, with replacement, and counts each example."""
    if groups is None and strata is None:
        return lambda: np.bincount(generator.integers(0, size, size), minlength=size)
    names, members = np.unique(np.asarray(groups if strata is None else strata), return_inverse=True)
    if len(members) != size:
        raise ValueError(f"Expected a group or stratum for each of {size} examples. Received: {len(members)}.")
    if groups is not None:
        return lambda: np.bincount(generator.integers(0, len(names), len(names)), minlength=len(names))[members]
    order, sizes = np.argsort(members, kind="stable"), np.bincount(members)
    starts, lengths = np.repeat(np.cumsum(sizes) - sizes, sizes), np.repeat(sizes, sizes)
    return lambda: np.bincount(order[starts + generator.integers(0, lengths)], minlength=size)


@dataclass(frozen=True)
class LineFit:
    """The straight line of least squares through points.

    Args:
        slope: float.
        intercept: float.
        slope_low: lower bound of the slope, by Student's t.
        slope_high: upper bound of the slope.
        r: Pearson's correlation, in [-1, 1].
        residual: standard deviation around the line, with n - 2 degrees of freedom.
        n: int. How many points.
    """

    slope: float
    intercept: float
    slope_low: float
    slope_high: float
    r: float
    residual: float
    n: int

    def predict(self, x: float) -> float:
        """The height of the line at x, a float or an array."""
        return self.intercept + self.slope * x

    @property
    def r2(self) -> float:
        """The share of the variance that the line explains."""
        return self.r**2


def fit_line(x: Sequence[float], y: Sequence[float], confidence: float = 0.95) -> LineFit:
    """Fits y = intercept + slope * x by least squares.

    Args:
        x: sequence of n >= 3 floats, not all equal.
        y: sequence of n floats.
        confidence: float in (0, 1). That of the slope's bounds.

    Returns:
        A `LineFit`.

    Raises:
        ValueError: fewer than three points, equal x, lengths that differ, or NaN.
    """
    x, y = np.asarray(x, "float64"), np.asarray(y, "float64")
    if x.ndim != 1 or x.shape != y.shape or len(x) < 3 or not np.isfinite([x, y]).all() or np.ptp(x) == 0:
        raise ValueError(
            f"Expected at least three finite points with different x. Received: x={x.tolist()}, y={y.tolist()}."
        )
    fit = _scipy_stats().linregress(x, y)
    rest = y - fit.intercept - fit.slope * x
    residual = math.sqrt(rest @ rest / (len(x) - 2))
    half = student_quantile((1 + confidence) / 2, len(x) - 2) * residual / math.sqrt(((x - x.mean()) ** 2).sum())
    return LineFit(
        slope=float(fit.slope),
        intercept=float(fit.intercept),
        slope_low=float(fit.slope - half),
        slope_high=float(fit.slope + half),
        # Points on a level have no correlation.
        r=float(fit.rvalue) if np.ptp(y) else 0.0,
        residual=residual,
        n=len(x),
    )


def student_quantile(probability: float, degrees: float) -> float:
    """The quantile of Student's t.

    Args:
        probability: float in (0, 1).
        degrees: float > 0. Degrees of freedom.

    Returns:
        The value that t is below with that probability.
    """
    return float(_scipy_stats().t.ppf(probability, degrees))


def _scipy_stats():
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError('Exact tests and lines need SciPy: pip install "keras_clip[evaluation]".') from error
    return stats


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
