"""Nearest neighbours, Tip-Adapter and WiSE-FT: values by hand, extremes, and the tuning on a validation split."""

import math

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from keras_clip.evaluation import (
    LinearProbe,
    NearestNeighbours,
    TipAdapter,
    WiseFT,
    accuracy,
    map_11pt,
    tune_nearest_neighbours,
    tune_tip_adapter,
    tune_wise_ft,
)

SCALE = math.log(100.0)
# Unit vectors of the plane, at 0, 90 and 180 degrees.
RIGHT, UP, LEFT = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]


def data(rows=60, classes=3, width=8, seed=0, noise=0.6):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, rows - classes)])
    embeddings = centres[labels] + noise * rng.normal(size=(rows, width)) * 2
    return (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype("float32"), labels


def classes_of(seed=1, noise=1.0):
    """Returns the class embeddings of a zero-shot head that makes some errors."""
    return np.random.default_rng(99).normal(size=(3, 8)) + noise * np.random.default_rng(seed).normal(size=(3, 8))


def test_neighbours_by_hand():
    """Similarities are 1, 0 and -1, weights exp(0) and exp(-1 / 0.5); the third is not among the nearest two."""
    head = NearestNeighbours(k=2, temperature=0.5).fit([RIGHT, UP, LEFT], np.array([0, 1, 1]))
    np.testing.assert_allclose(head.decision_function([RIGHT]), [[1.0, np.exp(-2)]], rtol=1e-6)


def test_neighbours_need_no_unit_length():
    head = NearestNeighbours(k=1).fit([[5.0, 0.0], [0.0, 0.1]], np.array([0, 1]))
    assert head.decision_function([[0.1, 0.2]]).argmax() == 1


@pytest.mark.backend_free
@pytest.mark.parametrize("k", [1, 5, 60])
def test_neighbours_equal_scikit_learn(k):
    (train, labels), (test, _) = data(), data(seed=1)
    reference = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(train.astype("float64"), labels)
    head = NearestNeighbours(k, math.inf).fit(train, labels)
    np.testing.assert_allclose(head.decision_function(test) / k, reference.predict_proba(test.astype("float64")))


@pytest.mark.backend_free
def test_more_neighbours_than_images_are_all_images():
    train, labels = data(20)
    many, all_of_them = (NearestNeighbours(k).fit(train, labels).decision_function(train) for k in (500, 20))
    np.testing.assert_array_equal(many, all_of_them)


@pytest.mark.backend_free
def test_neighbours_of_several_labels():
    labels = np.array([[1, 1, 0], [0, 255, 1], [1, 0, 0]])
    head = NearestNeighbours(k=1).fit([RIGHT, UP, LEFT], labels)
    np.testing.assert_allclose(head.decision_function([RIGHT, UP]), [[1, 1, 0], [0, 0, 1]], atol=1e-6)


def test_tip_adapter_by_hand():
    """Zero-shot is 100 (1, 0), the cache exp(-2 (1 - similarity)): class 0 has `UP`, class 1 `RIGHT` and `LEFT`."""
    head = TipAdapter([RIGHT, UP], SCALE, beta=2.0, alpha=3.0).fit([UP, RIGHT, LEFT], np.array([0, 1, 1]))
    expected = [[100 + 3 * np.exp(-2), 3 * (1 + np.exp(-4))]]
    np.testing.assert_allclose(head.decision_function([RIGHT]), expected, rtol=1e-6)


@pytest.mark.backend_free
def test_tip_adapter_with_alpha_zero_is_zero_shot():
    (train, labels), (test, _) = data(), data(seed=1)
    classes = classes_of()
    head = TipAdapter(classes, SCALE, alpha=0.0).fit(train, labels)
    unit = classes / np.linalg.norm(classes, axis=1, keepdims=True)
    expected = 100 * test.astype("float64") @ unit.T
    np.testing.assert_allclose(head.decision_function(test), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.backend_free
def test_wise_ft_is_between_zero_shot_and_probe():
    (train, labels), (test, _) = data(), data(seed=1)
    classes, probe = classes_of(), LinearProbe(1.0).fit(*data())
    zero_shot, middle, alone = (WiseFT(classes, SCALE, probe, s).decision_function(test) for s in (0, 0.25, 1))
    np.testing.assert_allclose(
        zero_shot, TipAdapter(classes, SCALE, alpha=0.0).fit(train, labels).decision_function(test)
    )
    np.testing.assert_allclose(alone, probe.decision_function(test), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(middle, 0.75 * zero_shot + 0.25 * alone, rtol=1e-9, atol=1e-9)


def tuned(name, validation):
    train = data(noise=0.8)
    if name == "neighbours":
        return tune_nearest_neighbours(train, validation, neighbours=(1, 5, 200), temperatures=(0.05, math.inf))
    if name == "tip_adapter":
        return tune_tip_adapter(classes_of(), SCALE, train, validation, betas=(1.0, 8.0), alphas=(0.0, 1.0, 30.0))
    return tune_wise_ft(classes_of(), SCALE, LinearProbe(1.0).fit(*train), validation, alphas=(0.0, 0.5, 1.0))


def candidates(name):
    train = data(noise=0.8)
    if name == "neighbours":
        grid = [(k, t) for k in (1, 5, 200) for t in (0.05, math.inf)]
        return {choice: NearestNeighbours(*choice).fit(*train) for choice in grid}
    if name == "tip_adapter":
        grid = [(b, a) for b in (1.0, 8.0) for a in (0.0, 1.0, 30.0)]
        return {choice: TipAdapter(classes_of(), SCALE, *choice).fit(*train) for choice in grid}
    probe = LinearProbe(1.0).fit(*train)
    return {(alpha,): WiseFT(classes_of(), SCALE, probe, alpha) for alpha in (0.0, 0.5, 1.0)}


@pytest.mark.backend_free
@pytest.mark.parametrize("name", ["neighbours", "tip_adapter", "wise_ft"])
def test_tuning_finds_the_best_on_validation(name):
    """Tuning equals trying every head by itself, and the returned head is the one with the reported score."""
    validation = data(seed=2, noise=0.8)
    found = tuned(name, validation)
    scores = {
        choice: accuracy(head.decision_function(validation[0]), validation[1])
        for choice, head in candidates(name).items()
    }
    assert tuple(found.choices.values()) == max(scores, key=scores.get)
    assert found.score == max(scores.values()) > min(scores.values())
    assert accuracy(found.head.decision_function(validation[0]), validation[1]) == found.score


@pytest.mark.backend_free
def test_tuning_of_several_labels_by_mean_precision():
    embeddings, labels = data()
    several = (np.arange(3) == labels[:, None]).astype("uint8")
    found = tune_nearest_neighbours((embeddings, several), (embeddings, several), neighbours=(1,), temperatures=(1.0,))
    assert found.score == map_11pt(found.head.decision_function(embeddings), several) == 1.0


REFUSED = {
    "k": (lambda: NearestNeighbours(0), "k=0"),
    "temperature": (lambda: NearestNeighbours(1, 0.0), "temperature=0"),
    "beta": (lambda: TipAdapter([RIGHT, UP], SCALE, beta=0), "beta=0"),
    "alpha of Tip-Adapter": (lambda: TipAdapter([RIGHT, UP], SCALE, alpha=-1), "alpha=-1"),
    "alpha of WiSE-FT": (lambda: WiseFT(classes_of(), SCALE, LinearProbe().fit(*data()), 1.5), "alpha=1.5"),
    "a probe of other features": (lambda: WiseFT([RIGHT, UP], SCALE, LinearProbe().fit(*data())), r"coef \(3, 8\)"),
    "an empty class": (lambda: TipAdapter(classes_of(), SCALE).fit(np.ones((2, 8)), np.array([0, 1])), "class .2."),
    "NaN": (lambda: NearestNeighbours().fit([[np.nan], [1.0]], np.array([0, 1])), "row 0"),
    "another width": (lambda: tuned("wise_ft", (np.ones((2, 3)), np.array([0, 1]))), r"features \(2, 3\)"),
    "another class": (lambda: tuned("neighbours", (np.ones((2, 8)), np.array([0, 3]))), "from 0 to 3"),
}


@pytest.mark.backend_free
@pytest.mark.parametrize("action, message", REFUSED.values(), ids=REFUSED)
def test_refuses(action, message):
    with pytest.raises(ValueError, match=f"(?s)Received.*{message}"):
        action()
