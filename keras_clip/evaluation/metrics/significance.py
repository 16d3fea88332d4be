"""Exact tests of proportions, and corrections for multiple tests. The tests use SciPy."""

from collections.abc import Sequence

import numpy as np

from keras_clip.evaluation.metrics.distributions import load_scipy
from keras_clip.evaluation.metrics.intervals import check_counts


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
    check_counts(correct, total)
    if alternative not in ("greater", "less") or not 0 <= share <= 1:
        raise ValueError(
            f'Expected 0 <= share <= 1 and alternative "greater" or "less". '
            f"Received: share={share}, alternative={alternative!r}."
        )
    return float(load_scipy().stats.binomtest(correct, total, share, alternative).pvalue)


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
    return float(load_scipy().stats.binomtest(min(only_first, only_second), differing, 0.5).pvalue)


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


def _check_p_values(p_values):
    p_values = np.asarray(p_values, "float64")
    if p_values.ndim != 1 or not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError(f"Expected a list of p-values in [0, 1]. Received: {p_values.tolist()}.")
    return p_values
