"""Exact tests and corrections: SciPy's values, values by hand, extremes, refusals."""

import numpy as np
import pytest
from scipy import stats

from keras_clip.evaluation import binomial_test, bonferroni, holm, mcnemar_test

pytestmark = pytest.mark.backend_free
COUNTS = [(0, 1), (1, 1), (0, 20), (20, 20), (3, 10), (81, 263), (499, 500), (38100, 50000)]


@pytest.mark.parametrize("alternative", ["greater", "less"])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_binomial_test_equals_scipy(counts, alternative):
    for share in (0.0, 0.1, 0.762, 1.0):
        expected = stats.binomtest(*counts, share, alternative).pvalue
        assert binomial_test(*counts, share, alternative) == pytest.approx(expected, rel=1e-8, abs=1e-300)


def test_binomial_test_by_hand():
    assert binomial_test(2, 2, 0.5) == pytest.approx(0.25)
    assert binomial_test(2, 2, 0.5, "less") == pytest.approx(1)
    with pytest.raises(ValueError, match="alternative='two-sided'"):
        binomial_test(2, 2, 0.5, "two-sided")
    with pytest.raises(ValueError, match="share=1.5"):
        binomial_test(2, 2, 1.5)


@pytest.mark.parametrize("correct, expected", [(0, 1), (1, 0.875), (2, 0.5), (3, 0.125)])
def test_three_coins(correct, expected):
    assert binomial_test(correct, 3, 0.5) == pytest.approx(expected, abs=1e-14)


def test_far_tail_keeps_its_digits():
    assert binomial_test(100, 100, 0.01) == pytest.approx(1e-200, rel=1e-10)


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (0, 5), (3, 4), (10, 25), (60, 2), (400, 460)], ids=str)
def test_mcnemar_equals_scipy(counts):
    expected = stats.binomtest(counts[0], sum(counts)).pvalue if sum(counts) else 1.0
    assert mcnemar_test(*counts) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_test(*counts) == mcnemar_test(*counts[::-1])


def test_mcnemar_by_hand():
    # All five discordant pairs are on one side: 2 / 2^5.
    assert mcnemar_test(0, 5) == pytest.approx(1 / 16)
    with pytest.raises(ValueError, match="only_first=-1"):
        mcnemar_test(-1, 5)


def test_bonferroni_and_holm_by_hand():
    p_values = [0.01, 0.04, 0.03, 0.5]
    assert bonferroni(p_values) == pytest.approx([0.04, 0.16, 0.12, 1.0])
    # 4 x 0.01; 3 x 0.03; 2 x 0.04 = 0.08 is raised to the 0.09 before it; 0.5.
    assert holm(p_values) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([]).shape == (0,)


@pytest.mark.parametrize("adjust", [bonferroni, holm])
@pytest.mark.parametrize("p_values", [[1.1], [-0.1], [np.nan], [[0.5]]], ids=str)
def test_invalid_p_values_are_refused(adjust, p_values):
    with pytest.raises(ValueError, match="Received"):
        adjust(p_values)
