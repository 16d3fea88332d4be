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
    "images",
    [WIDE, WIDE[:1], WIDE.astype("float16"), -WIDE, np.concatenate([np.zeros_like(WIDE), WIDE])],
    ids=["batch", "one", "half", "sign", "black first"],
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


METHODS = ["fit", "evaluate", "predict"]


class Reader:
    """Stands for `keras.Model`: it reads what it is given, once."""

    def __init__(self):
        self.read = []

    def fit(self, x=None, *args, **kwargs):
        if isinstance(x, keras.utils.PyDataset):
            x.on_epoch_begin()
            x = [x[i] for i in range(x.num_batches)]
        batches = [x] if isinstance(x, np.ndarray | dict) else x
        self.read = [np.array(pixel_range._images_of(batch)) for batch in batches]

    evaluate = predict = train_on_batch = test_on_batch = predict_on_batch = fit


class Model(pixel_range.ChecksPixelRange, Reader):
    pass


@pytest.mark.backend_free
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_sources_of_batches(make, method, monkeypatch):
    """Only the first batch is looked at, and each is read once."""
    monkeypatch.setattr(pixel_range.distribution, "strategy_of", lambda _: None)
    wide, normalised, model = WIDE, WIDE / 64 - 2, Model()
    with pytest.warns(UserWarning, match="normalised"):
        getattr(model, method)(make([wide, wide[:1]]))
    assert [len(images) for images in model.read] == [2, 1]
    pixel_range._warn.cache_clear()
    for quiet in ([normalised, wide], [wide.astype("uint8")] * 2):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Float images", UserWarning)
            getattr(model, method)(make(quiet))
        for images, expected in zip(model.read, quiet, strict=True):
            np.testing.assert_array_equal(images.reshape(expected.shape), expected)


@pytest.mark.backend_free
def test_a_dataset_of_bytes_is_the_one_that_was_given():
    source = dataset([WIDE.astype("uint8")])
    assert pixel_range._watched(source, keras.Model()) is source


@pytest.mark.backend_free
def test_a_dataset_of_images_and_labels():
    """As a `ZeroShotClassifier` is fine-tuned on."""
    for images in (WIDE, {"images": WIDE}):
        pixel_range._warn.cache_clear()
        with pytest.warns(UserWarning, match="normalised"):
            ((found, labels),) = pixel_range._watched_dataset(dataset([(images, np.arange(2))]))
        assert type(found) is dict or found.shape == WIDE.shape
        assert labels.numpy().tolist() == [0, 1]


@pytest.mark.backend_free
@pytest.mark.parametrize("method", [*METHODS, "train_on_batch", "test_on_batch", "predict_on_batch"])
@pytest.mark.parametrize("x", [WIDE, {"images": WIDE}], ids=["array", "dict"])
def test_arrays(method, x):
    with pytest.warns(UserWarning, match="normalised"):
        getattr(Model(), method)(x)


@pytest.mark.backend_free
def test_epochs_of_a_dataset_are_told():
    batches = Batches([WIDE])
    watched = pixel_range._WatchedPyDataset(batches)
    watched.on_epoch_begin()
    assert (batches.begun, len(watched), watched.num_batches) == (1, 1, 1)


def test_a_compiled_model_on_a_dataset():
    """What `predict` returns is that of the arrays."""
    embedder = small_clip.build().image_embedder
    images = np.random.default_rng(0).uniform(0, 255, (6, *embedder.image_preprocessor.sides, 3)).astype("float32")
    with pytest.warns(UserWarning, match="normalised"):
        found = embedder.predict(dataset([images[:4], images[4:]]), verbose=0)
    np.testing.assert_allclose(found, embedder.predict(images, batch_size=4, verbose=0), atol=1e-5)


def test_predict_of_a_compiled_model():
    clip = small_clip.build()
    size = clip.image_preprocessor.sides
    images = np.full((2, *size, 3), 200.0, "float32")
    with pytest.warns(UserWarning, match="normalised"):
        clip.image_embedder.predict(images, verbose=0)
