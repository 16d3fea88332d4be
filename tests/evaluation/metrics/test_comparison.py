"""Two models on the same images: counts and intervals by hand, coverage, Holm over data sets, refusals."""

import numpy as np
import pytest

from keras_clip.evaluation import blaker_interval, compare_models, compare_over_datasets, mcnemar_test

pytestmark = pytest.mark.backend_free


def pair(both, only_first, only_second, neither):
    cells = [both, only_first, only_second, neither]
    return np.repeat([True, True, False, False], cells), np.repeat([True, False, True, False], cells)


def test_by_hand():
    compared = compare_models(*pair(60, 5, 15, 20))
    assert (compared.n, compared.only_first, compared.only_second) == (100, 5, 15)
    assert (compared.first, compared.second, compared.difference) == (0.65, 0.75, 0.1)
    assert compared.p_value == compared.adjusted_p_value == mcnemar_test(5, 15)
    # The variance of a difference of two cells is (p + q - (p - q)^2) / n.
    half = 1.959964 * np.sqrt((0.2 - 0.01) / 100)
    assert (compared.low, compared.high) == pytest.approx((0.1 - half, 0.1 + half), abs=0.015)


def test_models_without_a_difference_may_have_one():
    # 100 images on which both agree: a model that is right on 2 % more would agree in 13 % of such sets.
    compared = compare_models(*pair(90, 0, 0, 10))
    bound = blaker_interval(0, 100)[1]
    assert (compared.low, compared.high) == pytest.approx((-bound, bound)) and bound > 0.02


def test_interval_counts_the_correlation_of_the_cells():
    # Of images on which all differ, the difference is 2 p - 1.
    compared = compare_models(*pair(0, 200, 200, 0))
    assert compared.high == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 400), rel=0.02)


def test_exchanged_models():
    one, other = compare_models(*pair(60, 5, 15, 20)), compare_models(*pair(60, 15, 5, 20))
    assert (other.difference, other.low, other.high) == pytest.approx((-one.difference, -one.high, -one.low))
    assert one.p_value == other.p_value


def test_equal_models():
    right = np.array([True, False, True])
    compared = compare_models(right, right)
    assert compared.p_value == 1 and compared.low < 0 < compared.high


def test_interval_stays_within_bounds():
    compared = compare_models(np.array([False]), np.array([True]), confidence=0.999)
    assert compared.high == 1 and compared.low >= -1


def test_interval_covers(rng):
    cells, held = np.array([0.7, 0.03, 0.12, 0.15]), 0
    for counts in rng.multinomial(80, cells, 300):
        compared = compare_models(*pair(*counts))
        held += compared.low <= 0.09 <= compared.high
    assert 0.92 < held / 300 < 0.995


def test_over_datasets_by_hand():
    first, second = {}, {}
    for name, cells in {"a": (9, 0, 8, 9), "b": (9, 2, 9, 9), "c": (9, 5, 5, 9)}.items():
        first[name], second[name] = pair(*cells)
    compared = compare_over_datasets(first, second)
    assert list(compared) == ["a", "b", "c"]
    plain = [mcnemar_test(0, 8), mcnemar_test(2, 9), 1.0]
    assert [c.p_value for c in compared.values()] == plain
    assert [c.adjusted_p_value for c in compared.values()] == pytest.approx([3 * plain[0], 2 * plain[1], 1.0])


BAD_INPUT = {
    "lengths": ([True, False], [True]),
    "numbers": ([1, 0], [1, 0]),
    "none": (np.zeros(0, bool), np.zeros(0, bool)),
    "matrices": ([[True]], [[True]]),
}


@pytest.mark.parametrize("first, second", BAD_INPUT.values(), ids=BAD_INPUT)
def test_refusals(first, second):
    with pytest.raises(ValueError, match="bool"):
        compare_models(first, second)


def test_datasets_of_one_model_only():
    right = np.array([True])
    with pytest.raises(ValueError, match=r"\['b'\]"):
        compare_over_datasets({"a": right}, {"a": right, "b": right})
    with pytest.raises(ValueError, match="at least one"):
        compare_over_datasets({}, {})
