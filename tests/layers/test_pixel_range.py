"""Float images in 0..255 are told of, once, with the cure; normalised ones and bytes are not."""

import warnings

import keras
import numpy as np
import pytest
import small_clip

from keras_clip.layers import pixel_range
from keras_clip.layers.embeddings import PixelNormalization

WIDE = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)).astype("float32")


@pytest.fixture(autouse=True)
def first_time():
    pixel_range._warn.cache_clear()


def layer():
    return PixelNormalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.mark.parametrize(
    "images", [WIDE, WIDE[:1], WIDE.astype("float16"), -WIDE], ids=["batch", "one", "half", "sign"]
)
def test_called(images):
    with pytest.warns(UserWarning, match="(?s)normalised.*Received: values up to 2.*uint8.*image_preprocessor"):
        layer()(keras.ops.convert_to_tensor(images))


def test_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            layer()(WIDE)
    assert len([warning for warning in caught if "normalised" in str(warning.message)]) == 1


QUIET = {"uint8": WIDE.astype("uint8"), "normalised": WIDE / 64 - 2, "of 0 to 1": WIDE / 255, "none": WIDE[:0]}


@pytest.mark.parametrize("images", QUIET.values(), ids=QUIET)
def test_quiet(images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer()(keras.ops.convert_to_tensor(images))


def test_predict_of_a_compiled_model():
    clip = small_clip.build()
    size = clip.image_preprocessor.sides
    images = np.full((2, *size, 3), 200.0, "float32")
    with pytest.warns(UserWarning, match="normalised"):
        clip.image_embedder.predict(images, verbose=0)
