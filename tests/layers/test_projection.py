"""The custom gradient of the normalisation against the automatic one, and its loop over large embeddings on JAX."""

import numpy as np
import pytest
from gradients import value_and_gradients
from keras import ops

from keras_clip.layers import projection
from keras_clip.layers.projection import unit_length


def plain(x):
    return x * ops.rsqrt(ops.maximum(ops.sum(ops.square(x), axis=-1, keepdims=True), 1e-12))


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(projection, "LOOP_MIN_ELEMENTS", 1)


@pytest.mark.parametrize("shape", [(1, 3), (4, 3), (5, 3), (2, 4, 3), (3,)])
def test_value_and_gradient(large, rng, shape):
    x, weights = rng.normal(size=(2, *shape)).astype("float32")

    def both(function):
        value, (gradient,) = value_and_gradients(
            lambda x: ops.sum(ops.exp(function(x)) * ops.convert_to_tensor(weights)), [x]
        )
        return value, gradient

    np.testing.assert_allclose(np.linalg.norm(ops.convert_to_numpy(unit_length(x)), axis=-1), 1, rtol=1e-6)
    for ours, theirs in zip(both(unit_length), both(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_short_rows(large):
    """A row below the bound is multiplied by a constant, and its gradient as well; a zero row stays zero."""
    x = np.array([[0, 0], [3e-7, 4e-7], [3e-6, 4e-6], [3, 4]], "float32")
    upstream = np.array([1, 2], "float32")
    result, (gradient,) = value_and_gradients(lambda x: ops.sum(unit_length(x) * ops.convert_to_tensor(upstream)), [x])
    np.testing.assert_allclose(ops.convert_to_numpy(unit_length(x)), [[0, 0], [0.3, 0.4], [0.6, 0.8], [0.6, 0.8]], 1e-5)
    across = upstream - np.array([0.6, 0.8]) * (0.6 + 1.6)
    np.testing.assert_allclose(gradient, [1e6 * upstream, 1e6 * upstream, 2e5 * across, 0.2 * across], 1e-4)
    assert np.isfinite(result)
