"""`PatchDropout` keeps the class token and the given share of patches, in order, randomly for each image and step."""

import keras
import numpy as np
import pytest

from keras_clip.layers import PatchDropout


def numbered_patches(images, patches):
    """Returns (B, 1 + N, 1), in which the value of each row is its index."""
    rows = np.arange(1 + patches, dtype="float32")
    return np.tile(rows[None, :, None], (images, 1, 1))


def kept(layer, x):
    return keras.ops.convert_to_numpy(layer(x, training=True))[:, :, 0]


@pytest.mark.parametrize("rate, patches, expected", [(0.5, 10, 5), (0.75, 10, 2), (0.25, 9, 7), (0.99, 4, 1)])
def test_number_and_order_of_kept_patches(rate, patches, expected):
    rows = kept(PatchDropout(rate, seed=0), numbered_patches(30, patches))
    assert rows.shape == (30, 1 + expected)
    assert (rows[:, 0] == 0).all()
    assert (np.diff(rows, axis=1) > 0).all()
    # Each patch is kept in some image.
    assert set(rows[:, 1:].ravel()) == set(range(1, patches + 1))


def test_images_and_steps_differ():
    layer, x = PatchDropout(0.5, seed=0), numbered_patches(20, 16)
    first, second = kept(layer, x), kept(layer, x)
    assert len(np.unique(first, axis=0)) > 15
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(kept(PatchDropout(0.5, seed=0), x), first)


def test_all_stay_outside_of_training():
    x = numbered_patches(2, 6)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(PatchDropout(0.5)(x)), x)
    np.testing.assert_array_equal(kept(PatchDropout(0.0), x), x[:, :, 0])


def test_refusals():
    with pytest.raises(ValueError, match="rate.*Received: rate=1.0"):
        PatchDropout(1.0)
