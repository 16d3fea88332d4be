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


class Batches(keras.utils.PyDataset):
    """Two batches; `begun` is the number of epochs that Keras began."""

    def __init__(self, batches):
        super().__init__()
        self.batches, self.begun = batches, 0

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return (self.batches[index],)

    def on_epoch_begin(self):
        self.begun += 1


def dataset(batches):
    import tensorflow as tf

    spec = tf.nest.map_structure(lambda x: tf.TensorSpec((None, *np.shape(x)[1:]), x.dtype), batches[0])
    return tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=spec).apply(
        tf.data.experimental.assert_cardinality(len(batches))
    )


# {name: function of two batches that returns what `fit`, `evaluate` and `predict` take}
SOURCES = {
    "tf.data": dataset,
    "PyDataset": Batches,
    "a generator": lambda batches: ((batch,) for batch in batches),
}


@pytest.fixture(scope="module")
def clip():
    clip = small_clip.build()
    clip.compile("sgd")
    return clip


@pytest.fixture(scope="module")
def data():
    """Images of 0 to 255 as floats, and token ids."""
    pairs = small_clip.pairs(4)
    return {**pairs, "images": np.random.default_rng(0).uniform(0, 255, pairs["images"].shape).astype("float32")}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_sources_of_batches(clip, data, make):
    """Each is read once: what `predict` returns is that of the arrays."""
    images = data["images"]
    with pytest.warns(UserWarning, match="normalised"):
        found = clip.image_embedder.predict(make([images, images[:2]]), verbose=0)
    expected = clip.image_embedder.predict(np.concatenate([images, images[:2]]), batch_size=4, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    pixel_range._warn.cache_clear()
    with pytest.warns(UserWarning, match="normalised"):
        clip.fit(make([data, data]), epochs=1, verbose=0)
    pixel_range._warn.cache_clear()
    with pytest.warns(UserWarning, match="normalised"):
        clip.evaluate(make([data, data]), verbose=0)
    pixel_range._warn.cache_clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Float images", UserWarning)
        source = make([{**data, "images": data["images"].astype("uint8")}] * 2)
        clip.evaluate(source, verbose=0)
    # A source of bytes is not changed.
    assert pixel_range._watched(source, clip) is source or not hasattr(source, "element_spec")


def test_a_dataset_of_images_and_labels(data):
    """As a `ZeroShotClassifier` is fine-tuned on; only the first batch is looked at."""
    labelled = [(data["images"] / 64 - 2, np.arange(4)), (data["images"], np.arange(4))]
    seen = []
    for images, _ in pixel_range._watched(dataset(labelled), keras.Model()):
        seen.append(np.array(images))
    assert not pixel_range._has_warned() and len(seen) == 2
    with pytest.warns(UserWarning, match="normalised"):
        list(pixel_range._watched(dataset(labelled[::-1]), keras.Model()))


@pytest.mark.parametrize("method", ["predict", "predict_on_batch", "evaluate", "train_on_batch", "test_on_batch"])
def test_arrays(clip, data, method):
    model, x = (clip.image_embedder, data["images"]) if method.startswith("predict") else (clip, data)
    model._has_seen_images = False
    with pytest.warns(UserWarning, match="normalised"):
        getattr(model, method)(x)


def test_epochs_of_a_dataset_are_told(clip, data):
    batches = Batches([data, data])
    with pytest.warns(UserWarning, match="normalised"):
        clip.fit(batches, epochs=2, verbose=0)
    assert batches.begun == 2
