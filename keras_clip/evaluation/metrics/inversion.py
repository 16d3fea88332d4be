"""Intervals of biased statistics, such as a sum of absolute differences, by inversion of a test.

`inverted_interval` compares the observed value with samples simulated at every true value. `shrunk_values` and
`shift_to_mean` give the parameters of such samples: the rates of groups whose differences have a given size.
"""

import functools
from collections.abc import Callable

import numpy as np


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
