"""Few-shot subsets, the scores of probes on them, and the shots at which a probe matches zero-shot."""

import math

import numpy as np
import pytest

from keras_clip.evaluation import LinearProbe, accuracy, few_shot_scores, few_shot_subset, search_C, shots_to_match
from keras_clip.evaluation.classifiers import few_shot

pytestmark = pytest.mark.backend_free


def labelled(rows=60, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, classes, rows), np.array([f"image-{i}" for i in range(rows)])


def test_each_class_has_the_given_number_of_shots():
    labels, ids = labelled()
    for shots in (1, 2, 4, 8):
        assert np.bincount(labels[few_shot_subset(labels, ids, shots)]).tolist() == [shots] * 4


def test_nested_in_shots():
    labels, ids = labelled()
    subsets = [set(few_shot_subset(labels, ids, shots, seed=3)) for shots in (1, 2, 4, 8, 16, None)]
    assert all(small < large for small, large in zip(subsets, subsets[1:], strict=False))


def test_the_order_of_the_images_does_not_matter(rng):
    labels, ids = labelled()
    order = rng.permutation(len(labels))
    expected = set(ids[few_shot_subset(labels, ids, 4)])
    assert set(ids[order][few_shot_subset(labels[order], ids[order], 4)]) == expected


def test_without_a_chosen_image_only_that_one_is_replaced():
    labels, ids = labelled()
    before = few_shot_subset(labels, ids, 4)
    kept = np.delete(np.arange(len(labels)), before[0])
    after = set(ids[kept][few_shot_subset(labels[kept], ids[kept], 4)])
    assert len(set(ids[before]) - after) == len(after - set(ids[before])) == 1


def test_seeds_differ():
    labels, ids = labelled()
    assert few_shot_subset(labels, ids, 4, seed=0).tolist() != few_shot_subset(labels, ids, 4, seed=1).tolist()


def test_the_subset_is_the_same_in_every_version():
    """Published scores state shots and seed only, so the images that these select must never change."""
    ids = [f"image-{i}" for i in range(20)]
    assert few_shot_subset(np.zeros(20, int), ids, 4, seed=7).tolist() == [9, 14, 18, 19]


def test_all_images_of_a_small_class_are_taken():
    labels = np.array([0, 1, 1, 0, 1, 1])
    assert np.bincount(labels[few_shot_subset(labels, list("abcdef"), 3)]).tolist() == [2, 3]


def test_a_class_without_images_is_left_out():
    labels = np.array([2, 0, 0, 2])
    assert np.bincount(labels[few_shot_subset(labels, list("abcd"), 1)]).tolist() == [1, 0, 1]


def test_several_labels():
    labels = np.array([[1, 0], [1, 1], [0, 1], [255, 0], [1, 0], [0, 1]], "uint8")
    for shots in (1, 2):
        rows = few_shot_subset(labels, list("abcdef"), shots)
        assert shots <= len(rows) <= 2 * shots and ((labels[rows] == 1).sum(axis=0) >= shots).all()
    assert 3 not in few_shot_subset(labels, list("abcdef"), 6)


REFUSED = {
    "equal ids": ([0, 1], ["a", "a"], 1, "1 of them distinct"),
    "too few ids": ([0, 1], ["a"], 1, "2 labels"),
    "no shot": ([0, 1], ["a", "b"], 0, "shots=0"),
}


@pytest.mark.parametrize("labels, ids, shots, message", REFUSED.values(), ids=REFUSED)
def test_subset_refuses(labels, ids, shots, message):
    with pytest.raises(ValueError, match=f"Received.*{message}"):
        few_shot_subset(np.array(labels), ids, shots)


def test_scores_are_those_of_probes_on_the_subsets():
    rng = np.random.default_rng(0)
    labels, ids = labelled(90, 3)
    features = (np.eye(3)[labels] + rng.normal(size=(90, 3))).astype("float32")
    train, validation, test = ((features[i : i + 30], labels[i : i + 30]) for i in (0, 30, 60))
    found = few_shot_scores((*train, ids[:30]), validation, test, shots=(1, None), seeds=(0, 5))
    assert [(one.shots, one.seed, one.images) for one in found] == [(1, 0, 3), (1, 5, 3), (None, 0, 30)]
    rows = few_shot_subset(train[1], ids[:30], 1, 5)
    C = search_C((train[0][rows], train[1][rows]), validation, refit=False, verbose=0).C
    probe = LinearProbe(C).fit(train[0][rows], train[1][rows])
    assert found[1].C == C
    np.testing.assert_allclose(found[1].scores, probe.decision_function(test[0]), rtol=1e-2, atol=1e-3)
    assert found[1].value == accuracy(found[1].scores, test[1])


def test_a_known_search_on_all_images_is_not_made_again(monkeypatch):
    labels, ids = labelled(60, 3)
    features = (np.eye(3)[labels] + np.random.default_rng(0).normal(size=(60, 3))).astype("float32")
    train, rest = (features[:30], labels[:30]), (features[30:], labels[30:])
    expected = few_shot_scores((*train, ids[:30]), rest, rest, shots=(1, None), seeds=(0,))
    whole, sizes = search_C(train, rest, refit=False, verbose=0), []
    monkeypatch.setattr(
        few_shot, "search_C", lambda train, *a, **k: sizes.append(len(train[1])) or search_C(train, *a, **k)
    )
    found = few_shot_scores((*train, ids[:30]), rest, rest, shots=(1, None), seeds=(0,), whole=whole)
    assert sizes == [3]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)


# Each case: {shots: score} of the probe, score of zero-shot; expected shots, censored, crossings.
CURVES = {
    "linear in the logarithm of the shots": ({1: 0.2, 4: 0.4}, 0.3, 2.0, "", [2.0]),
    "a third of the way": ({1: 0.1, 8: 0.4}, 0.2, 2.0, "", [2.0]),
    "between later points": ({1: 0.1, 2: 0.2, 4: 0.3, 16: 0.5}, 0.4, 8.0, "", [8.0]),
    "at a point": ({1: 0.1, 2: 0.2, 4: 0.3}, 0.2, 2.0, "", [2.0]),
    "at the last point": ({1: 0.1, 2: 0.2}, 0.2, 2.0, "", [2.0]),
    "at the first point": ({1: 0.1, 2: 0.2}, 0.1, 1.0, "below", []),
    "never": ({1: 0.1, 2: 0.2, 16: 0.3}, 0.31, math.inf, "above", []),
    "from the start": ({1: 0.5, 2: 0.6}, 0.4, 1.0, "below", []),
    "twice": ({1: 0.2, 4: 0.4, 8: 0.2, 32: 0.4}, 0.3, 2.0, "", [2.0, 16.0]),
    "from the start, and once more": ({1: 0.4, 2: 0.2, 8: 0.4}, 0.3, 1.0, "below", [4.0]),
    "falls": ({1: 0.4, 2: 0.3}, 0.5, math.inf, "above", []),
    "constant at the score of zero-shot": ({1: 0.1, 2: 0.3, 4: 0.3, 8: 0.4}, 0.3, 2.0, "", [2.0]),
    "points in any order": ({4: 0.4, 1: 0.2}, 0.3, 2.0, "", [2.0]),
    "a mean number of images": ({16: 0.2, 20.25: 0.4}, 0.3, 18.0, "", [18.0]),
}


@pytest.mark.parametrize("curve, target, shots, censored, crossings", CURVES.values(), ids=CURVES)
def test_shots_to_match(curve, target, shots, censored, crossings):
    found = shots_to_match(curve, target)
    assert found.shots == pytest.approx(shots) and found.censored == censored
    assert found.crossings == pytest.approx(crossings)


@pytest.mark.parametrize("curve, target", [({1: 0.5}, 0.4), ({0: 0.1, 1: 0.2}, 0.1), ({1: 0.1, 2: math.nan}, 0.1)])
def test_shots_to_match_refuses(curve, target):
    with pytest.raises(ValueError, match="Received: curve="):
        shots_to_match(curve, target)


@pytest.mark.backend_free
@pytest.mark.parametrize("shots", [(1, 12), (1, 16, None), (1, None, 16, 100)], ids=str)
def test_all_images_are_no_number_of_shots(shots):
    """Classes of 12 images have no subset of 16; their whole split is one score of `shots=None` for all seeds."""
    labels = np.arange(24) % 2
    features = labels[:, None] + np.random.default_rng(0).normal(size=(24, 3))
    found = few_shot_scores(
        (features, labels, [str(i) for i in range(24)]), (features, labels), (features, labels), shots, seeds=(0, 5)
    )
    assert [(one.shots, one.seed, one.images) for one in found] == [(1, 0, 2), (1, 5, 2), (None, 0, 24)]
