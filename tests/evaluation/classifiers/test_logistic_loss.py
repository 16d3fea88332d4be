"""`LogisticLoss`: value and gradient against NumPy in float64, over several tiles, and extreme inputs."""

import numpy as np
import pytest
from scipy.special import expit, logsumexp, softmax

from keras_clip.evaluation.classifiers import matmul
from keras_clip.evaluation.classifiers.logistic_loss import LogisticLoss
from keras_clip.evaluation.metrics.classification import IGNORED

KINDS = {"softmax": 4, "two classes": 2, "several labels": 3}


def problem(kind, rng, rows=23):
    """Returns features, labels and K; with several labels, some labels of the last class are ignored."""
    classes = KINDS[kind]
    features = rng.normal(2.0, 3.0, (rows, 5)).astype("float32")
    if kind == "several labels":
        labels = rng.integers(0, 2, (rows, classes)).astype("uint8")
        labels[::4, -1] = IGNORED
        return features, labels, classes
    return features, rng.integers(0, classes, rows), classes


def reference(features, labels, weights, bias):
    """Returns the sum of losses in float64, by definition."""
    logits = features.astype("float64") @ weights + bias
    if labels.ndim == 2:
        return (np.logaddexp(0, logits) - logits * labels)[labels != IGNORED].sum()
    if logits.shape[1] == 1:
        return (np.logaddexp(0, logits[:, 0]) - logits[:, 0] * labels).sum()
    return (logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]).sum()


def differences(function, at, step=1e-5):
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        ends = []
        for sign in (1, -1):
            moved = at.copy()
            moved[index] += sign * step
            ends.append(function(moved))
        gradient[index] = (ends[0] - ends[1]) / (2 * step)
    return gradient


@pytest.mark.parametrize("dtype, close", [("float64", 1e-14), ("float32", 2e-6)])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient(kind, dtype, close, rng, monkeypatch):
    """Tests each backend, with float64 exact to its last digits, over several tiles of which the last is shorter."""
    monkeypatch.setattr(matmul, "LEAST_ROWS", 10)
    monkeypatch.setattr(matmul, "TILE_AREA", 1)
    features, labels, classes = problem(kind, rng)
    loss = LogisticLoss(features, labels, classes)
    weights, bias = rng.normal(size=(5, loss.columns)), rng.normal(size=loss.columns)
    value, d_weights, d_bias = loss(weights, bias, dtype)
    rows = len(features)
    assert loss.columns == (1 if kind == "two classes" else classes)
    assert value == pytest.approx(reference(features, labels, weights, bias) / rows, rel=close)
    expected = differences(lambda w: reference(features, labels, w, bias) / rows, weights)
    np.testing.assert_allclose(d_weights, expected, rtol=1e-5, atol=1e-6)
    expected = differences(lambda b: reference(features, labels, weights, b) / rows, bias)
    np.testing.assert_allclose(d_bias, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_has_the_digits_of_float64(kind, rng):
    """Compares with probabilities in float64: finite differences are not precise enough."""
    features, labels, classes = problem(kind, rng)
    loss = LogisticLoss(features, labels, classes)
    weights, bias = rng.normal(size=(5, loss.columns)), rng.normal(size=loss.columns)
    logits = features.astype("float64") @ weights + bias
    if kind == "softmax":
        residual = softmax(logits, axis=1) - np.eye(classes)[labels]
    else:
        targets = labels.reshape(len(labels), -1)
        residual = np.where(targets == IGNORED, 0, expit(logits) - targets)
    _, d_weights, d_bias = loss(weights, bias, "float64")
    np.testing.assert_allclose(d_weights, features.T.astype("float64") @ residual / len(labels), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(d_bias, residual.mean(axis=0), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype, close", [("float64", 1e-6), ("float32", 1e-4)])
@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives(kind, dtype, close, rng, monkeypatch):
    """The product with a direction is the change of the gradient; the curvature its mean over the columns."""
    monkeypatch.setattr(matmul, "LEAST_ROWS", 10)
    monkeypatch.setattr(matmul, "TILE_AREA", 1)
    features, labels, classes = problem(kind, rng)
    loss = LogisticLoss(features, labels, classes)
    weights, bias = rng.normal(size=(5, loss.columns)) / 5, rng.normal(size=loss.columns)

    def product(d_weights, d_bias):
        ends = [loss(weights + step * d_weights, bias + step * d_bias, "float64")[1:] for step in (1e-5, -1e-5)]
        return [(above - below) / 2e-5 for above, below in zip(*ends, strict=True)]

    direction = rng.normal(size=weights.shape), rng.normal(size=bias.shape)
    found = loss.hessian_product(weights, bias, *direction, dtype)
    for change, expected in zip(found, product(*direction), strict=True):
        np.testing.assert_allclose(change, expected, rtol=close, atol=close)
    by_bias, mean, matrix = loss.curvature(weights, bias)
    ones = [product(np.zeros_like(weights), column)[1] @ column for column in np.eye(loss.columns)]
    assert by_bias == pytest.approx(np.mean(ones), rel=1e-6)
    for j in range(5):
        columns = [np.outer(np.eye(5)[j], column) for column in np.eye(loss.columns)]
        changes = [product(column, np.zeros_like(bias)) for column in columns]
        ofs = np.mean([change[0] @ column for change, column in zip(changes, np.eye(loss.columns), strict=True)], 0)
        np.testing.assert_allclose(matrix[j] + by_bias * mean * mean[j], ofs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("margin, expected", [(20.0, 2 * np.exp(-20)), (300.0, 0.0), (-300.0, 300 + np.log(2))])
def test_extremes_of_a_softmax(margin, expected, dtype):
    """A loss far below the float32 rounding error of 1 keeps its digits, and nothing overflows."""
    weights = np.array([[margin, 0.0, 0.0]])
    loss, d_weights, _ = LogisticLoss(np.ones((2, 1), "float32"), np.zeros(2, "int64"), 3)(weights, np.zeros(3), dtype)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert d_weights[0, 0] == pytest.approx(-min(expected, 1.0), rel=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("margin, expected", [(20.0, np.exp(-20)), (800.0, 0.0), (-800.0, 800.0)])
def test_extremes_of_a_sigmoid(margin, expected, dtype):
    loss = LogisticLoss(np.ones((2, 1), "float32"), np.ones(2, "int64"), 2)
    value, d_weights, _ = loss(np.array([[margin]]), np.zeros(1), dtype)
    assert value == pytest.approx(expected, rel=1e-6)
    assert d_weights[0, 0] == pytest.approx(-min(expected, 1.0), rel=1e-6)


@pytest.mark.backend_free
@pytest.mark.parametrize("rows", [1, 511, 512, 5000])
def test_tiles_are_all_rows_once(rows):
    parts = matmul.tiles(rows, 2**18)
    assert np.concatenate([np.arange(rows)[part] for part in parts]).tolist() == list(range(rows))
    assert max(part.stop - part.start for part in parts) <= 512


def test_multiply(rng, monkeypatch):
    monkeypatch.setattr(matmul, "LEAST_ROWS", 3)
    monkeypatch.setattr(matmul, "TILE_AREA", 1)
    rows, columns = rng.normal(size=(7, 4)), rng.normal(size=(5, 4))
    np.testing.assert_allclose(matmul.multiply(rows, columns, "float64"), rows @ columns.T, rtol=1e-13, atol=1e-14)
    assert matmul.multiply(rows, columns).dtype == np.float32
