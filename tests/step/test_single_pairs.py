"""Batches of one pair, which have nothing to be contrasted with, get a warning; others do not."""

import numpy as np
import pytest
from numbered_pairs import numbered, write_shards
from small_clip import build, pairs, sgd

import keras_clip

WARNING = "Received: a batch of one pair"


@pytest.fixture(scope="module")
def clip():
    model = build("convolution")
    model.compile(sgd())
    return model


def dataset(rows, batch_size):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(pairs(rows)).batch(batch_size, drop_remainder=True)


SINGLE = {
    "arrays one by one": lambda: {"x": pairs(2), "batch_size": 1},
    "a last batch of one": lambda: {"x": pairs(5), "batch_size": 2},
    "a dataset": lambda: {"x": dataset(2, 1)},
}
SEVERAL = {
    "arrays": lambda: {"x": pairs(4), "batch_size": 2},
    "a last batch of two": lambda: {"x": pairs(5), "batch_size": 3},
    "a dataset": lambda: {"x": dataset(4, 2)},
}


@pytest.mark.parametrize("data", SINGLE.values(), ids=SINGLE)
def test_a_batch_of_one_pair_has_a_warning(clip, data):
    with pytest.warns(UserWarning, match=WARNING):
        clip.fit(**data(), verbose=0)


@pytest.mark.parametrize("data", SEVERAL.values(), ids=SEVERAL)
def test_several_pairs_have_none(clip, data, recwarn):
    clip.fit(**data(), verbose=0)
    assert not [w for w in recwarn if WARNING in str(w.message)]


def test_what_the_warning_says_is_so(clip):
    with pytest.warns(UserWarning, match=WARNING):
        history = clip.fit(pairs(2), batch_size=1, verbose=0).history
    assert history["loss"] == [0.0] and history["image_to_text_accuracy"] == [1.0]


@pytest.mark.backend_free
def test_pairs_of_files(tmp_path):
    """The number of rows of their batches is known before the step runs."""
    source = write_shards(tmp_path, numbered(6))
    preprocessor = keras_clip.data.ImagePreprocessor(32)
    tokenizer = keras_clip.data.CLIPTokenizer(16)
    options = {"tokenizer": tokenizer, "image_preprocessor": preprocessor}
    batches = keras_clip.data.image_text_pairs(source, None, 1, **options)
    assert batches.element_spec["images"].shape[0] == 1
    assert np.shape(next(iter(batches))["images"])[0] == 1
