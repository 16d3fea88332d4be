"""Zero-shot compared with training on labels: differences, curves and summaries by hand, refusals."""

import math

import pytest

from keras_clip.evaluation import (
    Score,
    by_dataset,
    few_shot_curve,
    score_differences,
    summarise_shots,
    transfer_correlation,
    wins,
)

pytestmark = pytest.mark.backend_free


def score(dataset, method, value, **details):
    return Score(dataset, method, "accuracy", value, 0.0, 1.0, 10, "test", details=details)


def test_by_dataset():
    scores = [
        score("a", "few_shot/4", 0.5, seed=0),
        score("a", "few_shot/4", 0.7, seed=1),
        score("b", "few_shot/4", 0.2),
        score("b", "few_shot/40", 0.9),
    ]
    assert by_dataset(scores, "few_shot/4") == pytest.approx({"a": 0.6, "b": 0.2})
    assert by_dataset(scores, "few_shot") == {}


def test_differences_are_sorted():
    differences = score_differences({"a": 0.5, "b": 0.9, "c": 0.1}, {"b": 0.6, "a": 0.6, "d": 0.5})
    assert list(differences) == ["b", "a"]
    assert differences == pytest.approx({"b": 0.3, "a": -0.1})
    assert wins(differences) == (1, 2)
    assert wins(score_differences({"a": 0.1 + 0.2, "b": 0.3}, {"a": 0.3, "b": 0.3})) == (0, 2)


def test_few_shot_curve_by_hand():
    scores = [score("a", f"few_shot/{k}", k / 10 + seed / 10, seed=seed) for k in (1, 2) for seed in (0, 1)] + [
        score("b", f"few_shot/{k}", k / 10 + 0.2, seed=seed) for k in (1, 2) for seed in (0, 1)
    ]
    scores += [score("c", "few_shot/1", 0.9, seed=0), score("a", "tip_adapter/1", 0.9), score("a", "few_shot/all", 1.0)]
    curve = few_shot_curve(scores)
    # Dataset c lacks 2 shots. With one shot, seed 0 has (0.1 + 0.3) / 2 and seed 1 has (0.2 + 0.3) / 2.
    assert curve == [pytest.approx((1, 0.225, 0.2, 0.25)), pytest.approx((2, 0.325, 0.3, 0.35))]
    assert few_shot_curve(scores, "tip_adapter") == [(1, 0.9, 0.9, 0.9)]


def test_shots_with_some_that_never_match():
    summary = summarise_shots({"a": 0.9, "b": 3.0, "c": math.inf})
    assert (summary.median, summary.mean, summary.n, summary.never) == (3, math.inf, 3, 1)
    assert summarise_shots({"a": 1, "b": 2, "c": 6, "d": math.inf}).median == 4
    assert summarise_shots({"a": 1, "b": math.inf}).median == math.inf
    assert summarise_shots({"a": 1, "b": 4}).mean == 2.5


def test_correlation_by_hand():
    found = transfer_correlation({"a": 0.1, "b": 0.4, "c": 0.67}, {"a": 0.5, "b": 0.6, "c": 0.7, "d": 0.9})
    assert found.points == {"a": (0.5, 0.1), "b": (0.6, 0.4), "c": (0.7, 0.67)}
    assert found.line.slope == pytest.approx((0.67 - 0.1) / 0.2)
    assert found.near_optimal() == ["c"]
    assert found.near_optimal(0.2) == ["b", "c"]


BAD_INPUT = {
    "nothing shared": (lambda: score_differences({"a": 0.1}, {"b": 0.1}), "both have"),
    "NaN": (lambda: score_differences({"a": math.nan}, {"a": 0.1}), "no NaN"),
    "two points": (lambda: transfer_correlation({"a": 0.1, "b": 0.2}, {"a": 0.1, "b": 0.3}), "three"),
    "no shots": (lambda: few_shot_curve([score("a", "linear_probe", 0.5)]), "few_shot/1"),
    "no full row": (lambda: few_shot_curve([score("a", "few_shot/1", 0.5), score("b", "few_shot/2", 0.5)]), "all of"),
    "no datasets": (lambda: summarise_shots({}), "at least one"),
    "shots are NaN": (lambda: summarise_shots({"a": math.nan}), "shots >= 0"),
    "below 0": (lambda: summarise_shots({"a": -1}), "shots >= 0"),
}


@pytest.mark.parametrize("call, message", BAD_INPUT.values(), ids=BAD_INPUT)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
