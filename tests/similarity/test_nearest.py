"""The nearest vector: by hand, in blocks, and refusals."""

import numpy as np
import pytest

from keras_clip.similarity import nearest

pytestmark = pytest.mark.backend_free


def test_nearest_by_hand():
    index = np.array([[1, 0], [0.6, 0.8], [0, 1]], "float32")
    queries = np.array([[0.8, 0.6], [0, 1], [-1, 0]], "float32")
    cosines, places = nearest.nearest_vectors(queries, index)
    np.testing.assert_allclose(cosines, [0.96, 1, 0], atol=1e-6)
    np.testing.assert_array_equal(places, [1, 2, 2])
    cosines, places = nearest.nearest_vectors(queries, index, own=np.array([1, 2, 0]))
    np.testing.assert_allclose(cosines, [0.8, 0.8, 0], atol=1e-6)
    np.testing.assert_array_equal(places, [0, 1, 2])


def test_nearest_in_blocks(monkeypatch, rng):
    queries, index = rng.normal(size=(13, 4)), rng.normal(size=(70_000, 4))
    own = np.argmax(queries @ index.T, axis=1)
    monkeypatch.setattr(nearest, "_BLOCK", 2**17)
    for left_out in (None, own):
        products = queries @ index.T
        if left_out is not None:
            products[np.arange(13), left_out] = -np.inf
        cosines, places = nearest.nearest_vectors(queries, index, left_out)
        np.testing.assert_array_equal(places, products.argmax(axis=1))
        np.testing.assert_allclose(cosines, products.max(axis=1), rtol=1e-5)


REFUSED = {
    "vectors of other lengths": lambda: nearest.nearest_vectors(np.zeros((2, 3)), np.zeros((2, 4))),
    "an empty index": lambda: nearest.nearest_vectors(np.zeros((2, 3)), np.zeros((0, 3))),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_refusals(call):
    with pytest.raises(ValueError, match="Received: "):
        call()
