"""Intervals for what was counted."""

import math
from statistics import NormalDist


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a proportion (Wilson, 1927): never outside of [0, 1], and sound for small counts.

    Args:
        correct: int, 0 to `total`.
        total: int >= 1.
        confidence: float in (0, 1).

    Returns:
        Lower and upper bound of the proportion.

    Raises:
        ValueError: counts that cannot be, or a confidence outside (0, 1).
    """
    if not (total >= 1 and 0 <= correct <= total and 0 < confidence < 1):
        raise ValueError(
            "Wanted: 0 <= correct <= total, total >= 1, 0 < confidence < 1. "
            f"Received: correct={correct}, total={total}, confidence={confidence}."
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = correct / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)
