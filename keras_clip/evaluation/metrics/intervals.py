"""Confidence intervals and tests for proportions, the bootstrap, corrections for multiple tests, and linear regression.

Proportions are in [0, 1]. Wilson's interval is for display; the conservative interval of Clopper and Pearson is for
the paper's claims (Radford et al., 2021, section 5 and appendix C). Exact tests, quantiles and regression use SciPy.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


def wilson_interval(correct: float, total: float, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the score interval of a proportion (Wilson, 1927), which stays in [0, 1] and is valid for small counts.

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


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    size: int,
    groups: Sequence | None = None,
    strata: Sequence | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a statistic (Efron, 1979).

    Args:
        statistic: function that returns a float for the number of times that each example was sampled, int64 (N,).
            `lambda counts: (counts * x).sum() / counts.sum()` is the mean of x.
        size: int, N. Number of examples.
        groups: N values. Examples of one group are sampled together, such as the captions of an image or the frames
            of a video.
        strata: N values. Examples are resampled within each stratum, such as a class, so that no stratum is empty.
        confidence: float in (0, 1).
        resamples: int >= 1. Number of bootstrap resamples.
        seed: int. Seed of the random number generator.

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
    resample = _resampler(size, groups, strata, np.random.default_rng(seed))
    values = np.array([statistic(resample()) for _ in range(resamples)], "float64")
    if np.isnan(values).any():
        raise ValueError(
            "Expected a statistic that is a number on every resample. Received: NaN on "
            f"{np.isnan(values).sum()} of {resamples}. Pass the classes as `strata`, so that none can be missing."
        )
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _resampler(size, groups, strata, generator):
    """Returns a function that samples examples or groups with replacement and returns the count of each example."""
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
        """The fraction of the variance that the line explains."""
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
        raise ImportError(
            'Exact tests and linear regression require SciPy: pip install "keras_clip[evaluation]".'
        ) from error
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
