"""Lines: SciPy's values, values by hand, refusals."""

import numpy as np
import pytest
from scipy import stats

from keras_clip.evaluation import fit_line

pytestmark = pytest.mark.backend_free


def test_line_equals_scipy(rng):
    x = rng.normal(size=12)
    y = 2 - 3 * x + rng.normal(size=12)
    fit, peer = fit_line(x, y, 0.9), stats.linregress(x, y)
    assert (fit.slope, fit.intercept, fit.r) == pytest.approx((peer.slope, peer.intercept, peer.rvalue), rel=1e-10)
    half = stats.t.ppf(0.95, 10) * peer.stderr
    assert (fit.slope_low, fit.slope_high) == pytest.approx((peer.slope - half, peer.slope + half), rel=1e-10)
    assert fit.residual == pytest.approx(np.sqrt(((y - peer.intercept - peer.slope * x) ** 2).sum() / 10))
    assert fit.n == 12 and fit.r2 == pytest.approx(peer.rvalue**2)


def test_line_by_hand():
    fit = fit_line([0, 1, 2], [1, 3, 5])
    assert (fit.slope, fit.intercept, fit.r, fit.residual) == pytest.approx((2, 1, 1, 0))
    assert fit.predict(10) == 21
    assert fit_line([0, 1, 2], [4, 4, 4]).r == 0


@pytest.mark.parametrize(
    "x, y", [([0, 1], [0, 1]), ([1, 1, 1], [0, 1, 2]), ([0, 1, 2], [0, 1]), ([0, 1, np.nan], [0, 1, 2])], ids=str
)
def test_line_refusals(x, y):
    with pytest.raises(ValueError, match="three finite points"):
        fit_line(x, y)
