"""Two models on the same images: counts and intervals by hand, coverage, a test that fits the metric, refusals."""

import dataclasses
import itertools
import logging

import numpy as np
import pytest

from keras_clip.evaluation import (
    METRICS,
    Examples,
    Results,
    Score,
    blaker_interval,
    compare,
    compare_models,
    compare_over_datasets,
    compare_scores,
    mcnemar_test,
    retrieval_ranks,
    softmax,
)
from keras_clip.evaluation.metrics import calibration, classification
from keras_clip.evaluation.metrics.metric import Metric, Statistic

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


def score(metric="accuracy", labels=None, groups=None, dataset="digits", method="knn", images="pixels", **more):
    arrays = [more[name] for name in ("correct", "outcomes") if more.get(name) is not None]
    examples = Examples("ids", images, labels, groups)
    return Score(dataset, method, metric, 0.5, 0.4, 0.6, len(arrays[0]), "", **{"examples": examples, **more})


def of_scores(metric, scores, labels):
    examples = Examples("ids", "pixels", labels)
    return METRICS[metric].measure(scores, labels, "digits", "knn", "", examples=examples)


def of_confidence(scores, labels):
    examples = Examples("ids", "pixels", labels)
    metric = calibration.METRICS["expected_calibration_error"]
    return metric.measure(softmax(scores), labels, "digits", "knn", "", examples=examples)


def labels_of(metric, rng, size=60):
    if metric == "map_11pt":
        labels = (rng.random((size, 6)) < 0.3).astype(np.uint8)
        labels[:6] = np.eye(6)
        labels[7, 2] = classification.IGNORED
        return labels
    return np.arange(size) % (2 if metric == "roc_auc" else 6)


@pytest.mark.parametrize("metric", METRICS)
def test_both_values_are_those_of_the_metric(rng, metric):
    labels = labels_of(metric, rng)
    both = [rng.normal(size=(60, 2 if metric == "roc_auc" else 6)) for _ in range(2)]
    # Models with other temperatures.
    both[1] *= 30
    compared = compare_scores(*(of_scores(metric, scores, labels) for scores in both), resamples=50)
    values = [METRICS[metric](scores, labels) for scores in both]
    assert (compared.first, compared.second) == pytest.approx(values, abs=1e-6)
    assert compared.difference == pytest.approx(values[1] - values[0], abs=1e-6)
    assert compared.low <= compared.difference <= compared.high
    assert (compared.test == "McNemar") == (metric in ("accuracy", "top5_accuracy"))


def test_both_values_of_calibration_and_retrieval(rng):
    labels, both = np.arange(60) % 6, [3 * rng.normal(size=(60, 6)) for _ in range(2)]
    compared = compare_scores(*(of_confidence(scores, labels) for scores in both), resamples=50)
    values = [calibration.expected_calibration_error(softmax(scores), labels) for scores in both]
    assert (compared.first, compared.second) == pytest.approx(values) and compared.test == "permutation"
    image_of_text = np.repeat(np.arange(20), 3)
    ranks = [retrieval_ranks(rng.normal(size=(20, 4)), rng.normal(size=(60, 4)), image_of_text) for _ in range(2)]
    scores = [of_model.scores("flowers", "", examples=Examples("ids", "pixels")) for of_model in ranks]
    for one, other in zip(*scores, strict=True):
        compared = compare_scores(one, other, resamples=50)
        assert (compared.first, compared.second) == pytest.approx((one.value, other.value))
        is_fraction = one.method == "retrieval/image_to_text" and one.metric != "median_rank"
        assert (compared.test == "McNemar") == is_fraction


def test_the_permutation_test_by_enumeration():
    """The mean of a class of two images and of one of ten: McNemar would count all images alike."""
    labels = np.repeat([0, 1], [2, 10])
    first, second = np.zeros(12, bool), np.zeros(12, bool)
    second[:2] = second[2:5] = True
    first[5:10] = True
    compared = compare_scores(*(score("mean_per_class", labels, correct=c) for c in (first, second)), resamples=20000)
    assert compared.difference == pytest.approx(1 / 2 - 2 / 20)
    weights = np.where(labels == 0, 1 / 4, 1 / 20)[first != second]
    sums = np.array([weights @ signs for signs in itertools.product([-1, 1], repeat=len(weights))])
    exact = (np.abs(sums) >= 0.4 - 1e-9).mean()
    assert compared.p_value == pytest.approx(exact, abs=0.01)
    assert (compared.only_first, compared.only_second) == (5, 5)
    assert compare_scores(*(score(correct=c) for c in (first, second))).p_value == 1


@pytest.mark.slow
def test_equal_models_seldom_differ(rng):
    """5 % of the tests of models that are equally good have a p-value of at most 0.05."""
    found = {"mean_per_class": 0, "expected_calibration_error": 0}
    for _ in range(200):
        labels = rng.choice(4, 80, p=[0.55, 0.2, 0.15, 0.1])
        labels[:4] = range(4)
        truth = np.eye(4)[labels]
        both = [truth + rng.normal(size=(80, 4)) for _ in range(2)]
        found["mean_per_class"] += (
            compare_scores(*(of_scores("mean_per_class", scores, labels) for scores in both), resamples=99).p_value
            <= 0.05
        )
        found["expected_calibration_error"] += (
            compare_scores(*(of_confidence(scores, labels) for scores in both), resamples=99).p_value <= 0.05
        )
    assert all(2 <= count <= 20 for count in found.values()), found


def test_better_models_are_found(rng):
    labels = rng.integers(0, 5, 300)
    first, second = (strength * np.eye(5)[labels] + rng.normal(size=(300, 5)) for strength in (0.5, 2))
    for metric in ("accuracy", "mean_per_class"):
        compared = compare_scores(*(of_scores(metric, scores, labels) for scores in (first, second)))
        assert compared.p_value < 0.01 and compared.low > 0
    # Probabilities that are far too sure.
    compared = compare_scores(of_confidence(2 * second, labels), of_confidence(40 * second, labels))
    assert compared.p_value < 0.01 and compared.low > 0


def test_examples_of_one_group_count_once():
    """Ten captions of each of eight images, of which the second model finds those of six more."""
    groups = np.repeat(np.arange(8), 10)
    first, second = np.zeros(80, bool), groups < 6
    pair = [score("recall_at_1", groups=groups, correct=c, method="retrieval/text_to_image") for c in (first, second)]
    compared = compare_scores(*pair)
    # Both signs of six differences: 2 in 64.
    assert compared.p_value == pytest.approx(2 / 64, abs=0.015) and compared.test == "permutation"
    assert compare_models(first, second).p_value < 1e-10
    assert compared.high - compared.low > 0.3
    # Groups that the scores do not know.
    alone = [score("accuracy", correct=c) for c in (first, second)]
    assert compare_scores(*alone).test == "McNemar"
    assert compare_scores(*alone, groups=[f"video {g}" for g in groups]).p_value == compared.p_value
    with pytest.raises(ValueError, match="a group for each of 80 examples. Received: 2"):
        compare_scores(*alone, groups=["a", "b"])


def test_equal_outcomes_are_not_certainty():
    labels, correct = np.arange(12) % 3, np.arange(12) < 8
    compared = compare_scores(*(score("mean_per_class", labels, correct=correct) for _ in range(2)), resamples=99)
    assert compared.p_value == 1 and compared.low < 0 < compared.high


def test_a_metric_of_your_own_is_compared_by_correct_images():
    correct = np.arange(12) < 8
    compared = compare_scores(*(score("cost", correct=c) for c in (correct, ~correct)))
    assert (compared.first, compared.second, compared.test) == (8 / 12, 4 / 12, "McNemar")


@pytest.mark.parametrize("strata", [None, np.asarray], ids=["", "strata"])
def test_a_metric_of_your_own_is_compared_by_its_statistic(monkeypatch, rng, strata):
    """One entry of the table is enough: here a metric of another unit, whose outcomes are ranks."""

    def ranks(scores, labels):
        return (scores > scores[np.arange(len(labels)), labels][:, None]).sum(axis=1)

    metric = Metric(
        "mean_rank_below_ten",
        lambda scores, labels: 10 - ranks(scores, labels).mean(),
        lambda scores, labels, *_: (0.0, 10.0),
        unit="rank",
        outcomes=ranks,
        statistic=Statistic(lambda ranks, labels, counts: 10 - np.average(ranks, weights=counts), strata=strata),
    )
    monkeypatch.setitem(METRICS, metric.name, metric)
    labels = rng.integers(0, 6, 90)
    first, second = (strength * np.eye(6)[labels] + rng.normal(size=(90, 6)) for strength in (0.5, 2))
    pair = [of_scores(metric.name, scores, labels) for scores in (first, second)]
    compared = compare_scores(*pair, resamples=199)
    assert (compared.first, compared.second) == pytest.approx([metric(first, labels), metric(second, labels)])
    assert compared.test == "permutation" and compared.p_value == 1 / 200
    assert 0 < compared.low < compared.difference < compared.high and compared.only_first is None
    (row,) = compare(*(Results([one]) for one in pair), resamples=99)
    assert row["metric"] == metric.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "knn"}, "Expected scores of one metric"),
        ({"examples": Examples("ids", "other pixels")}, "Expected the same images"),
        ({"examples": Examples("other ids", "pixels")}, "Expected the same images"),
        ({"examples": Examples("ids", "pixels", np.ones(4, int))}, "Expected the same images"),
        ({"correct": None}, "outcome of each example"),
    ],
    ids=["metric", "pixels", "ids", "labels", "no outcomes"],
)
def test_scores_that_cannot_be_compared(change, message):
    one = score(labels=np.zeros(4, int), correct=np.ones(4, bool))
    with pytest.raises(ValueError, match=message):
        compare_scores(one, dataclasses.replace(one, **change))


def results(flip=False, images="pixels"):
    rng, made = np.random.default_rng(0), Results()
    for seed in range(3):
        made.add(score(method="few_shot/1", details={"seed": seed, "C": rng.random()}, correct=rng.random(40) < 0.5))
    for reference in ("a", "b"):
        correct = rng.random(40) < 0.5
        made.add(
            score(
                dataset="noise",
                method="shift/knn",
                details={"reference": reference},
                correct=correct != (flip and reference == "b"),
                images=images,
            )
        )
    return made


def test_every_seed_and_every_shift_has_its_row():
    rows = compare(results(), results(flip=True))
    assert [row.get("seed") for row in rows] == [0, 1, 2, None, None]
    assert [(row["reference"], row["difference"] == 0) for row in rows[3:]] == [("a", True), ("b", False)]
    assert rows[-1]["adjusted_p_value"] == pytest.approx(min(1, 5 * rows[-1]["p_value"]))
    assert {row["metric"] for row in rows} == {"accuracy"}


def test_other_images_with_equal_ids_are_refused_in_a_shift_too():
    with pytest.raises(ValueError, match=r"same images.*\['noise'\]"):
        compare(results(), results(images="other pixels"))
    with pytest.raises(ValueError, match=r"same images.*\['digits'\]"):
        compare(*(Results(results().scores, info={"images": {"digits": ids}}) for ids in "ab"))


def test_images_that_only_their_ids_identify_are_said(caplog):
    with caplog.at_level(logging.WARNING, "keras_clip"):
        assert compare(results(), results())
    assert not caplog.text
    with caplog.at_level(logging.WARNING, "keras_clip"):
        assert compare(results(), results(images=""))
    assert "The images of noise are compared by their ids only" in caplog.text


def test_results_that_cannot_be_compared():
    with pytest.raises(ValueError, match="that both results have. Received: .*few_shot"):
        compare(results(), Results())
    twice = Results([*results().scores, results().scores[0]])
    with pytest.raises(ValueError, match=r"Expected one score of each.*'seed=0'.* twice"):
        compare(twice, results())
