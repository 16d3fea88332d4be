"""Linear regression by least squares, with SciPy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_clip.evaluation.metrics.distributions import load_scipy, student_quantile


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
    fit = load_scipy().stats.linregress(x, y)
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
