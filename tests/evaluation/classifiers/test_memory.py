"""Classifiers in blocks: equal to the direct computation over all rows, in memory that does not grow with them."""

import tracemalloc

import numpy as np
import pytest

from keras_clip.evaluation.classifiers import inputs, logistic_loss, nearest_neighbours, tuning
from keras_clip.evaluation.classifiers.linear_probe import LinearProbe, search_C
from keras_clip.evaluation.classifiers.nearest_neighbours import NearestNeighbours, tune_nearest_neighbours
from keras_clip.evaluation.classifiers.tip_adapter import TipAdapter, tune_tip_adapter
from keras_clip.evaluation.classifiers.wise_ft import tune_wise_ft
from keras_clip.evaluation.metrics.classification import METRICS
from keras_clip.evaluation.rows import Rows

pytestmark = pytest.mark.backend_free
CLASSES = 5
MIB = 2**20


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few rows, none of which divides the numbers of images."""
    monkeypatch.setattr(inputs, "KEYS_PER_BLOCK", 7)
    monkeypatch.setattr(nearest_neighbours, "_QUERIES_PER_PASS", 11)
    monkeypatch.setattr(nearest_neighbours, "_QUERIES", 4)
    monkeypatch.setattr(tuning, "BLOCK_AREA", 6 * CLASSES)
    monkeypatch.setattr(logistic_loss, "MOST_BYTES_KEPT", 0)


def split(seed, size=61, classes=CLASSES):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(size) % classes)
    means = np.random.default_rng(9).normal(size=(classes, 6))
    return (means[labels] + generator.normal(size=(size, 6))).astype("float32"), labels


def unit(rows):
    rows = rows.astype("float64")
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_neighbours_are_those_of_all_similarities(small_blocks):
    (train, labels), (test, _) = split(0), split(1)
    similarities = (unit(test) @ unit(train).T).astype("float32").astype("float64")
    nearest = np.argsort(-similarities, axis=1, kind="stable")[:, :10]
    weights = np.exp((np.take_along_axis(similarities, nearest, axis=1) - 1) / 0.07)
    votes = np.stack([(weights * (labels[nearest] == k)).sum(axis=1) for k in range(CLASSES)], axis=1)
    found = NearestNeighbours(10, 0.07).fit(train, labels).decision_function(test)
    np.testing.assert_allclose(found, votes, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("k", [1, 3, 5, 9, 40])
def test_of_equal_images_the_first_are_the_neighbours(k, small_blocks):
    train = np.repeat(np.eye(2, 6, dtype="float32"), 20, axis=0)[np.arange(40) * 7 % 40]
    similarities, indices = NearestNeighbours(k).fit(train, np.arange(40) % CLASSES)._nearest(train[:3])
    order = np.argsort(-(train[:3] @ train.T), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(indices, order)
    assert similarities.shape == (3, k)


def test_cache_of_tip_adapter_is_that_of_all_images(small_blocks):
    (train, labels), (test, _), classes = split(0), split(1), split(2, CLASSES)[0]
    affinities = np.exp(2 * (unit(test) @ unit(train).T - 1))
    expected = 100 * unit(test) @ unit(classes).T + 3 * affinities @ np.eye(CLASSES)[labels]
    found = TipAdapter(classes, np.log(100), 2.0, 3.0).fit(train, labels).decision_function(test)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("metric", [None, "accuracy", "top5_accuracy", "mean_top1_top5", "mean_per_class"])
def test_metrics_in_blocks_are_those_of_all_rows(metric, small_blocks):
    scores, labels = np.random.default_rng(0).normal(size=(61, 7)), np.random.default_rng(1).integers(0, 7, 61)
    function = metric and METRICS[metric]
    sizes = []

    def scores_of(rows):
        sizes.append(len(scores[rows]))
        return [("a", scores[rows]), ("b", -scores[rows])]

    found = tuning.metric_of_choices(scores_of, labels, 7, function)
    direct = METRICS[metric or "accuracy"]
    assert found == pytest.approx({"a": direct(scores, labels), "b": direct(-scores, labels)}, abs=1e-15)
    assert (len(sizes) == 1) == (metric == "mean_per_class") and sum(sizes) == 61


def test_an_undefined_metric_is_an_error_in_blocks_too(small_blocks):
    with pytest.raises(ValueError, match="at least five classes"):
        tuning.metric_of_choices(
            lambda rows: [("", np.zeros((4, 3))[rows])], np.zeros(4, int), 3, METRICS["top5_accuracy"]
        )


def test_tuning_in_blocks_chooses_as_without(request):
    train, validation, classes = split(0), split(1), split(2, CLASSES)[0]
    probe = LinearProbe(1.0).fit(*train)

    def tuned():
        return [
            tune_nearest_neighbours(train, validation, neighbours=(1, 5)),
            tune_tip_adapter(classes, 0.0, train, validation, betas=(1.0, 8.0), alphas=(0.0, 3.0)),
            tune_wise_ft(classes, 0.0, probe, validation, alphas=(0.0, 0.5, 1.0)),
        ]

    whole = [(found.choices, found.score) for found in tuned()]
    request.getfixturevalue("small_blocks")
    assert [(found.choices, found.score) for found in tuned()] == whole


@pytest.mark.parametrize("classes", [2, CLASSES])
def test_probe_on_features_that_are_read_in_each_pass(classes, request):
    train, validation = split(0, 200, classes), split(1, 61, classes)
    whole = search_C(train, validation, verbose=0)
    request.getfixturevalue("small_blocks")
    rows = np.random.default_rng(2).permutation(200)
    parts = Rows([train[0]], rows), train[1][rows]
    found = search_C(parts, (Rows([validation[0]]), validation[1]), verbose=0)
    assert found.C == whole.C and found.scores == whole.scores
    np.testing.assert_allclose(found.probe.coef, whole.probe.coef, rtol=1e-3, atol=1e-4)


def test_rows_are_indexed_like_an_array(rng):
    array = rng.normal(size=(20, 3)).astype("float32")
    chosen = rng.permutation(20)[:9]
    nested = Rows([Rows([array], chosen), array[:4]])
    direct = np.concatenate([array[chosen], array[:4]])
    assert nested.shape == direct.shape and nested.ndim == 2 and nested.size == direct.size
    for key in (slice(None), slice(3, 11), slice(12, 40), 5, -1, [12, 0, 9], direct[:, 0] > 0, (slice(2, 9), 1)):
        np.testing.assert_array_equal(nested[key], direct[key])
    np.testing.assert_array_equal(np.asarray(nested), direct)
    np.testing.assert_allclose(nested @ np.ones(3, "float32"), direct @ np.ones(3, "float32"), rtol=1e-6)


def peak(function):
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_training_split():
    """A copy of the keys in float64 would be 32 MiB, targets by class 500 MiB, all similarities 125 MiB."""
    generator = np.random.default_rng(0)
    keys = generator.normal(size=(131072, 32)).astype("float32")
    labels, queries = np.arange(131072) % 1000, keys[:250]
    neighbours = NearestNeighbours(20).fit(keys, labels)
    adapter = TipAdapter(keys[:1000], 0.0).fit(keys, labels)
    for head, limit in ((neighbours, 60), (adapter, 150)):
        assert peak(lambda head=head: head.decision_function(queries)) < limit * MIB, type(head)
