"""Intervals by inversion of a test: the textbook's interval, biases, moves to a mean by hand."""

import numpy as np
import pytest

from keras_clip.evaluation import inverted_interval
from keras_clip.evaluation.metrics.inversion import shift_to_mean, shrunk_values

pytestmark = pytest.mark.backend_free


def test_shift_to_mean_by_hand():
    at = shift_to_mean(np.array([0.2, 0.5]), np.array([1.0, 3.0]), np.array([1.0, 0.6]), np.array([0.5, 0.5]))
    np.testing.assert_allclose(at(0.35), [0.2, 0.5])
    np.testing.assert_allclose(at(0.15), [0.1, 0.2], atol=1e-12)
    np.testing.assert_allclose(at(0.7), [0.8, 0.6])  # the second is at the end of its range
    np.testing.assert_allclose([at(0), at(0.8)], [[0, 0], [1, 0.6]])


@pytest.mark.parametrize("size", [1, 7, 2000])
def test_shift_to_mean_reaches_every_mean(size, rng):
    weights, highest = rng.dirichlet(np.ones(size)), rng.random(size)
    at = shift_to_mean(rng.normal(size=size), weights * 10.0 ** rng.uniform(-4, 0, size), highest, weights)
    for share in (0, 0.01, 0.5, 0.99, 1):
        values = at(share * weights @ highest)
        assert (values >= 0).all() and (values <= highest).all()
        assert weights @ values == pytest.approx(share * weights @ highest, abs=1e-9)


def test_inverted_interval_of_a_shift_is_students(rng):
    # The mean of 400 values with deviation 1: no bias, so the textbook's interval.
    noise = np.random.default_rng(1).normal(size=4000) / 20
    low, high, median = inverted_interval(0.5, lambda true: true + noise, 1.0)
    assert (low, median, high) == pytest.approx((0.5 - 0.098, 0.5, 0.5 + 0.098), abs=0.006)


def test_inverted_interval_removes_a_bias_and_holds_the_estimate():
    noise = np.random.default_rng(1).normal(size=4000) / 20
    # The statistic is 0.2 too high.
    low, high, median = inverted_interval(0.5, lambda true: true + 0.2 + noise, 1.0)
    assert median == pytest.approx(0.3, abs=0.01) and high == 0.5
    # The upper tail that is not used is spent on the lower bound.
    assert low == pytest.approx(0.3 - 1.645 * 0.05, abs=0.006)
    # An observed value that is below what no effect gives.
    assert inverted_interval(0.1, lambda true: true + 0.2 + noise, 1.0) == (0.0, 0.1, 0.0)


def test_shrunk_values_by_hand():
    # Variances of 1: the scatter around 2 is 8 where chance gives 2, so that (8 - 2) / 2 = 3 is between the values.
    assert shrunk_values(np.array([0.0, 2.0, 4.0]), np.ones(3), 2.0) == pytest.approx([0.5, 2.0, 3.5])
    # Less scatter than chance gives: all are the mean. One value has no scatter.
    assert shrunk_values(np.array([1.9, 2.0, 2.1]), np.ones(3), 2.0) == pytest.approx([2.0, 2.0, 2.0])
    assert shrunk_values(np.array([0.7]), np.ones(1), 0.1) == pytest.approx([0.7])


def test_refusal():
    with pytest.raises(ValueError, match="Received: confidence=0.0"):
        inverted_interval(0.5, lambda true: np.zeros(2), 1.0, confidence=0.0)
