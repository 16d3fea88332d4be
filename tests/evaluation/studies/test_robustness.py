"""Effective robustness, gaps, adaptation, and the classes of a shift: by hand, invariances, refusals."""

import numpy as np
import pytest

from keras_clip.evaluation import (
    SHIFT_LINES,
    ShiftLine,
    accuracy,
    adaptation,
    effective_robustness,
    effective_robustness_interval,
    few_shot_robustness,
    fit_shift_line,
    gap_closed,
    pool_classes,
    restrict_to_classes,
    robustness_gaps,
)

pytestmark = pytest.mark.backend_free
IDENTITY = ShiftLine(1.0, 0.0, 3, 1.0, 0.0)


def test_line_by_hand():
    # logit(0.8) = ln 4, and 2 ln 4 - ln 2 = ln 8, the logit of 8/9.
    assert ShiftLine(2.0, -np.log(2), 3, 1.0, 0.0).predict(0.8) == pytest.approx(8 / 9)
    assert IDENTITY.predict(np.array([0.1, 0.7])) == pytest.approx([0.1, 0.7])


@pytest.mark.parametrize("shift", SHIFT_LINES)
def test_standard_models_lose_under_every_shift(shift):
    line = SHIFT_LINES[shift]
    predicted = line.predict(np.array([0.6, 0.7, 0.8]))
    assert (np.diff(predicted) > 0).all() and (predicted < [0.6, 0.7, 0.8]).all()
    assert effective_robustness(shift, 0.7, float(predicted[1])) == pytest.approx(0)
    assert effective_robustness(shift, 0.7, float(predicted[1]) + 0.1) == pytest.approx(0.1)


def test_interval_of_effective_robustness_by_hand():
    # Independent samples of 400: the standard errors of 0.8 and 0.6 are combined.
    half = 1.96 * np.sqrt(0.16 / 400 + 0.24 / 400)
    low, high = effective_robustness_interval(IDENTITY, (320, 400), (240, 400))
    assert (low, high) == pytest.approx((-0.2 - half, -0.2 + half), abs=0.005)
    # The line takes the uncertainty on ImageNet to that of the prediction, and the ends are no error.
    flat = ShiftLine(0.1, 0.0, 3, 1.0, 0.0)
    assert np.diff(effective_robustness_interval(flat, (320, 400), (240, 400))) < 1.6 * half
    assert effective_robustness_interval("ObjectNet", (50, 50), (50, 50))[1] <= 1
    with pytest.raises(ValueError, match="shift='noise'"):
        effective_robustness_interval("noise", (1, 2), (1, 2))


def test_the_fit_recovers_a_line(rng):
    line = SHIFT_LINES["ObjectNet"]
    x = rng.uniform(0.5, 0.85, 30)
    fit = fit_shift_line(x, line.predict(x), 113)
    assert (fit.slope, fit.intercept) == pytest.approx((0.981, -1.928))
    assert fit.r2 == pytest.approx(1) and fit.residual == pytest.approx(0, abs=1e-9)
    assert (fit.models, fit.classes) == (30, 113)
    noisy = 1 / (1 + np.exp(-(np.log(x / (1 - x)) + rng.normal(size=30) * 0.2)))
    assert fit_shift_line(x, noisy).residual == pytest.approx(0.2, rel=0.3)
    assert effective_robustness(fit, 0.7, 0.5) == pytest.approx(effective_robustness("ObjectNet", 0.7, 0.5))


def test_gaps_by_hand():
    standard, robust = {"ImageNet": 0.8, "a": 0.4, "b": 0.6}, {"ImageNet": 0.7, "a": 0.6, "b": 0.75, "c": 0.1}
    assert robustness_gaps(standard) == pytest.approx({"a": 0.4, "b": 0.2})
    # The robust model has the gaps 0.1 and -0.05, with the mean 0.025; the standard model's mean is 0.3.
    assert gap_closed(standard, robust) == pytest.approx({"a": 0.75, "b": 1.25, "mean": 1 - 0.025 / 0.3})


def test_adaptation_by_hand():
    before, after = {"ImageNet": 0.7, "a": 0.5, "b": 0.4, "c": 0.1}, {"ImageNet": 0.8, "a": 0.4, "b": 0.45}
    expected = {"ImageNet": 0.1, "a": -0.1, "b": 0.05, "mean of shifts": -0.025}
    assert adaptation(before, after) == pytest.approx(expected)


def test_few_shot_robustness_by_hand():
    curve = {16: {"ImageNet": 0.7, "a": 0.5, "b": 0.3}, 0: {"ImageNet": 0.6, "a": 0.6, "b": 0.4}}
    rows = few_shot_robustness(curve, {"a": IDENTITY})
    assert [row["shots"] for row in rows] == [0, 16]
    assert [row["imagenet"] for row in rows] == [0.6, 0.7]
    assert [row["shifted"] for row in rows] == pytest.approx([0.5, 0.4])
    assert [row["effective_robustness"] for row in rows] == pytest.approx([0, -0.2])
    assert np.isnan(few_shot_robustness(curve, {})[0]["effective_robustness"])


def test_restricted_by_hand():
    scores = np.array([[9, 1, 2, 3], [0, 1, 5, 3], [9, 1, 2, 3]], float)
    labels = np.array([3, 1, 0])
    restricted, kept_labels, kept = restrict_to_classes(scores, labels, [3, 1])
    assert kept.tolist() == [True, True, False]
    assert restricted.tolist() == [[3, 1], [3, 1]]
    assert kept_labels.tolist() == [0, 1]
    assert accuracy(scores, labels) == pytest.approx(1 / 3)
    assert accuracy(restricted, kept_labels) == 0.5


def test_all_classes_restrict_nothing(rng):
    scores, labels = rng.normal(size=(20, 4)), rng.integers(0, 4, 20)
    restricted, kept_labels, kept = restrict_to_classes(scores, labels, range(4))
    assert kept.all() and (restricted == scores).all() and (kept_labels == labels).all()


def test_pooled_by_hand():
    scores = np.array([[1, 5, 3, 9], [4, 2, 8, 0]], float)
    assert pool_classes(scores, [[0, 1], [2]]).tolist() == [[5, 3], [4, 8]]
    assert pool_classes(scores, [[0, 1], [2]], "mean").tolist() == [[3, 3], [3, 8]]


X, Y = np.eye(3), np.arange(3)
GOOD = {"ImageNet": 0.7, "a": 0.5}
BAD_INPUT = {
    "unknown shift": (lambda: effective_robustness("ImageNet-Z", 0.7, 0.5), "shift='ImageNet-Z'"),
    "per cent": (lambda: effective_robustness("ObjectNet", 76.2, 72.3), "divided by 100"),
    "share of 1": (lambda: fit_shift_line([0.5, 0.6, 1.0], [0.1, 0.2, 0.3]), r"\(0, 1\)"),
    "two models": (lambda: fit_shift_line([0.5, 0.6], [0.1, 0.2]), "at least three"),
    "no ImageNet": (lambda: robustness_gaps({"a": 0.5}), "ImageNet"),
    "no common shift": (lambda: gap_closed(GOOD, {"ImageNet": 0.7, "b": 0.5}), "one shift that both"),
    "nothing adapted": (lambda: adaptation(GOOD, {"ImageNet": 0.8}), "one shift that both"),
    "other shifts": (lambda: few_shot_robustness({0: GOOD, 1: {"ImageNet": 0.7, "b": 0.1}}), "same shifts"),
    "no shots": (lambda: few_shot_robustness({}), "same shifts"),
    "class twice": (lambda: restrict_to_classes(X, Y, [0, 0]), "each once"),
    "class too high": (lambda: restrict_to_classes(X, Y, [3]), "below 3"),
    "no class": (lambda: restrict_to_classes(X, Y, []), "each once"),
    "no member": (lambda: pool_classes(X, [[0], []]), r"\[1\] of 2"),
    "member below 0": (lambda: pool_classes(X, [[-1]]), r"\[0\] of 1"),
    "pooling": (lambda: pool_classes(X, [[0]], "median"), "pooling='median'"),
}


@pytest.mark.parametrize("call, message", BAD_INPUT.values(), ids=BAD_INPUT)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
