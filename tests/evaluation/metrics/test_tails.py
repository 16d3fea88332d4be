"""The incomplete beta and what is made of it, against SciPy and by hand."""

import pytest
from scipy import special

from keras_clip.evaluation.metrics.tails import binomial_at_least, incomplete_beta, solve, student_quantile

pytestmark = pytest.mark.backend_free


def test_incomplete_beta_against_scipy(rng):
    for _ in range(400):
        a, b = 10 ** rng.uniform(-1, 5, 2)
        mean, spread = a / (a + b), (a * b / (a + b) ** 3) ** 0.5
        x = min(max(mean + 3 * spread * rng.normal(), 1e-12), 1 - 1e-12)
        expected = special.betainc(a, b, x)
        # Below 1e-290 the logarithm is exact, but not its power.
        assert incomplete_beta(a, b, x) == pytest.approx(expected, rel=2e-8, abs=1e-290)


@pytest.mark.parametrize("x, expected", [(-1, 0), (0, 0), (0.3, 0.3), (1, 1), (2, 1)])
def test_incomplete_beta_is_the_identity_for_ones(x, expected):
    assert incomplete_beta(1, 1, x) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("correct, expected", [(-1, 1), (0, 1), (1, 0.875), (2, 0.5), (3, 0.125), (4, 0)])
def test_three_coins(correct, expected):
    assert binomial_at_least(correct, 3, 0.5) == pytest.approx(expected, abs=1e-14)


def test_far_tail_keeps_its_digits():
    assert binomial_at_least(100, 100, 0.01) == pytest.approx(1e-200, rel=1e-10)


# Tables of Student's t: 97.5 % and 95 %.
@pytest.mark.parametrize(
    "probability, degrees, expected", [(0.975, 1, 12.7062), (0.975, 3, 3.1824), (0.95, 10, 1.8125)]
)
def test_student_quantile(probability, degrees, expected):
    assert student_quantile(probability, degrees) == pytest.approx(expected, abs=5e-5)


def test_student_median():
    assert student_quantile(0.5, 4) == pytest.approx(0, abs=1e-7)


def test_solve():
    assert solve(lambda x: x**3, 0.125) == 0.5
