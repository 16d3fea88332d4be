"""Calibration: bins by hand, the temperature against SciPy's optimum and by hand, extremes, refusals."""

import numpy as np
import pytest
from scipy import optimize
from sklearn.metrics import log_loss

from keras_clip.evaluation import (
    calibration_error_interval,
    debiased_calibration_error,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_curve,
    softmax,
)
from keras_clip.evaluation.metrics import calibration

pytestmark = pytest.mark.backend_free
# Two images with confidence 0.9 (one correct, one wrong) and one with 0.6 (correct).
PROBABILITIES = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
LABELS = np.array([0, 1, 1])


def two_classes(rng, size=2000, temperature=2.5):
    """Returns labels and logits; the logits are `temperature` times those that the labels were drawn from."""
    logits = rng.normal(size=(size, 4))
    labels = (softmax(logits).cumsum(1) > rng.random(size)[:, None]).argmax(1)
    return temperature * logits, labels


def test_reliability_curve_by_hand():
    curve = reliability_curve(PROBABILITIES, LABELS, bins=5)
    assert curve.count.tolist() == [0, 0, 1, 0, 2]
    assert curve.edges == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert curve.confidence[[2, 4]] == pytest.approx([0.6, 0.9])
    assert curve.accuracy[[2, 4]] == pytest.approx([1, 0.5])
    assert np.isnan(curve.accuracy[[0, 1, 3]]).all()


def test_calibration_error_by_hand():
    # The gap is 0.4 in both bins, of one image and of two.
    assert expected_calibration_error(PROBABILITIES, LABELS, bins=5) == pytest.approx(0.4)
    # With one bin, the mean confidence is 0.8 and the accuracy 2/3.
    assert expected_calibration_error(PROBABILITIES, LABELS, bins=1) == pytest.approx(0.8 - 2 / 3)


@pytest.mark.parametrize("confidence, place", [(1.0, 4), (0.8, 3), (0.8000001, 4), (0.6, 2)])
def test_a_bin_holds_its_upper_edge(confidence, place):
    probabilities = np.array([[confidence, 1 - confidence]])
    assert reliability_curve(probabilities, np.array([0]), bins=5).count.argmax() == place


def test_certain_and_correct_is_calibrated():
    assert expected_calibration_error(np.eye(3), np.arange(3)) == 0
    assert expected_calibration_error(np.eye(3), np.array([1, 2, 0])) == 1


def test_probabilities_rounded_above_1_count_as_1():
    probabilities = np.array([[1.0000002, 0]], "float32")
    assert probabilities.max() > 1
    assert reliability_curve(probabilities, np.array([0])).count.tolist() == [0] * 14 + [1]


def test_interval_holds_the_error(rng):
    logits, labels = two_classes(rng, 500)
    error = expected_calibration_error(softmax(logits), labels)
    low, high = calibration_error_interval(softmax(logits), labels, resamples=300)
    assert 0.1 < low < error < high < 0.4
    # Three images that are sure and right leave much room for errors.
    low, high = calibration_error_interval(np.eye(3), np.arange(3), resamples=200)
    assert low == 0 and 0.5 < high < 0.9
    assert debiased_calibration_error(np.eye(3), np.arange(3), resamples=200) < 0.3


@pytest.mark.parametrize("confidence", [0.9999, 0.99, 1 - 1e-9])
def test_no_error_among_sure_images_does_not_exclude_some(confidence):
    """If 2 % of such images are wrong, 13 % of the test sets of 100 images have no error.

    The exact bound of their rate is 3.6 %. At a confidence of 0.99, two errors are the same calibration error as none.
    """
    low, high = calibration_error_interval(np.tile([confidence, 1 - confidence], (100, 1)), np.zeros(100, int))
    assert low <= 0.01 and 0.025 < high < 0.06


# The true error is a constant overconfidence.
@pytest.mark.parametrize("truth", [0.0, 0.03, 0.2])
def test_interval_encloses_the_true_error_and_the_estimate(truth, rng):
    """The percentile bootstrap enclosed a true error of 0.03 in 42 of 100 sets of 300 images, and 0 in none."""
    held, debiased = 0, []
    for seed in range(60):
        confidence = rng.uniform(0.5, 1, 300)
        labels = (rng.random(300) > confidence - truth).astype(int)
        # Class 1 is never predicted: a label of 1 is an error.
        probabilities = np.stack([confidence, 0 * confidence, 1 - confidence], 1)
        low, high, estimate = calibration._inverted(probabilities, labels, 15, 0.95, 200, seed)
        assert low <= expected_calibration_error(probabilities, labels) <= high and low <= estimate <= high
        held += low <= truth <= high
        debiased.append(estimate)
    assert held >= 53
    # Median-unbiased: as often below the true error as above it.
    assert 0.25 < np.mean(np.array(debiased) <= truth) < 0.8


def test_negative_log_likelihood_equals_scikit_learn(rng):
    logits, labels = two_classes(rng, 100)
    assert negative_log_likelihood(logits, labels, 0.5) == pytest.approx(log_loss(labels, softmax(logits, 0.5)))
    assert negative_log_likelihood(np.array([[1e4, 0]]), np.array([1])) == 1e4


def test_temperature_maximises_the_likelihood(rng):
    logits, labels = two_classes(rng)
    best = optimize.minimize_scalar(
        lambda t: negative_log_likelihood(logits, labels, np.exp(t)), bounds=(-3, 3), options={"xatol": 1e-9}
    )
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(np.exp(best.x), rel=1e-5)
    assert temperature == pytest.approx(2.5, rel=0.1)
    for factor in (0.01, 4, 100):
        assert fit_temperature(factor * logits, labels) == pytest.approx(factor * temperature, rel=1e-6)
    before, after = (expected_calibration_error(softmax(logits, t), labels) for t in (1, temperature))
    assert after < before / 3


def test_temperature_by_hand():
    # Two of three images are correct, with a logit difference of 1: sigmoid(1 / T) = 2/3.
    logits, labels = np.array([[1.0, 0.0]] * 3), np.array([0, 0, 1])
    assert fit_temperature(logits, labels) == pytest.approx(1 / np.log(2), rel=1e-9)


def test_temperature_without_an_optimum():
    logits = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert fit_temperature(logits, np.array([0, 1]), bounds=(0.5, 9)) == pytest.approx(0.5)
    assert fit_temperature(logits, np.array([1, 0]), bounds=(0.5, 9)) == pytest.approx(9)


def test_softmax():
    assert softmax(np.array([[np.log(3), 0]])) == pytest.approx(np.array([[0.75, 0.25]]))
    assert softmax(np.array([[1e4, 0]]), 0.1).tolist() == [[1, 0]]
    assert softmax(np.array([[2 * np.log(3), 0]]), 2) == pytest.approx(np.array([[0.75, 0.25]]))


BAD_INPUT = {
    "logits for probabilities": (expected_calibration_error, np.eye(2) * 9, [0, 1], "rows sum to 1"),
    "below 0": (reliability_curve, np.array([[1.5, -0.5]]), [0], "rows sum to 1"),
    "several labels": (expected_calibration_error, np.eye(2), np.eye(2, dtype=int), "one label per image"),
    "NaN": (expected_calibration_error, np.full((2, 2), np.nan), [0, 1], "NaN"),
    "NaN logits": (fit_temperature, np.full((2, 2), np.nan), [0, 1], "NaN"),
    "label too high": (fit_temperature, np.eye(2), [0, 2], r"labels \[2\]"),
    "labels of another form": (negative_log_likelihood, np.eye(2), np.eye(2, dtype=int), "one class index"),
}


@pytest.mark.parametrize("function, scores, labels, message", BAD_INPUT.values(), ids=BAD_INPUT)
def test_refusals(function, scores, labels, message):
    with pytest.raises(ValueError, match=message):
        function(scores, np.array(labels))


def test_bounds_in_the_wrong_order():
    with pytest.raises(ValueError, match="bounds="):
        fit_temperature(np.eye(2), np.array([0, 1]), bounds=(2, 1))


def test_no_bins():
    with pytest.raises(ValueError, match="bins=0"):
        reliability_curve(np.eye(2), np.array([0, 1]), bins=0)
