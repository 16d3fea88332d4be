"""Tail probabilities and quantiles of the binomial and of Student's t, from one function: the incomplete beta.

Written out here since SciPy is no dependency of this library; the tests hold both to SciPy's values.
"""

import math
from collections.abc import Callable

_MOST_TERMS = 100_000
_TINY = 1e-300


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (Lentz' method).

    Args:
        a: float > 0.
        b: float > 0.
        x: float in [0, 1].

    Returns:
        The share of a Beta(a, b) variable below `x`, in [0, 1]; relative error up to 1e-8 for a, b up to a million.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    # The fraction converges fast on this side of the mean only.
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    fraction, numerator, denominator = 1.0, 1.0, 0.0
    for term in range(_MOST_TERMS):
        m = term // 2
        if term == 0:
            step = 1.0
        elif term % 2 == 0:
            step = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            step = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        denominator = 1 / (1 + step * denominator or _TINY)
        numerator = 1 + step / numerator or _TINY
        fraction *= numerator * denominator
        if abs(numerator * denominator - 1) < 1e-15:
            break
    return min(1.0, math.exp(front) / a * (fraction - 1))


def binomial_at_least(correct: int, total: int, share: float) -> float:
    """The probability of `correct` or more out of `total` where each succeeds with probability `share`.

    Args:
        correct: int.
        total: int >= 0.
        share: float in [0, 1].

    Returns:
        P(X >= correct) of the binomial, in [0, 1].
    """
    if correct <= 0:
        return 1.0
    return incomplete_beta(correct, total - correct + 1, share) if correct <= total else 0.0


def student_quantile(probability: float, degrees: float) -> float:
    """The quantile of Student's t.

    Args:
        probability: float in [0.5, 1).
        degrees: float > 0. Degrees of freedom.

    Returns:
        The value that t is below with that probability, >= 0.
    """
    # t is above q with half the probability that a Beta(degrees / 2, 1 / 2) variable is below d / (d + q^2).
    below = solve(lambda x: incomplete_beta(degrees / 2, 0.5, x), 2 * (1 - probability))
    return math.sqrt(degrees * (1 / below - 1))


def solve(function: Callable[[float], float], value: float) -> float:
    """Where a function that grows from 0 to 1 over [0, 1] has a value, by bisection to the last bit.

    Args:
        function: of one float in [0, 1].
        value: float in [0, 1].

    Returns:
        The argument, in [0, 1].
    """
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if function(middle) < value else (low, middle)
    return high
