"""`Unmask`: the epochs that use all patches, also after resuming, and the restored model."""

import keras
import numpy as np
import pytest
from small_clip import FEW_STEPS

import keras_clip
from keras_clip.training import Unmask

PARTS, WHOLE = 3, 5  # class token and patches


class Seen(keras.callbacks.Callback):
    """Records the number of rows of the transformer in each epoch, and the rate in the configuration of the encoder."""

    def __init__(self):
        super().__init__()
        self.rows, self.rates = {}, []

    def on_train_begin(self, logs=None):
        self.norm = self.model.image_encoder.norm_pre
        self.call = self.norm.call
        self.rows, self.rates, self.epoch = {}, [], None

        def call(x):
            # Python runs this only while tracing, not in later steps of the compiled function.
            if self.epoch is not None:
                self.rows[self.epoch] = x.shape[1]
            return self.call(x)

        self.norm.call = call

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        self.rows.setdefault(epoch, self.rows.get(epoch - 1))
        self.rates.append(self.model.image_encoder.get_config()["patch_dropout"])

    def on_train_end(self, logs=None):
        self.norm.call = self.call


@pytest.fixture(scope="module")
def clip():
    """A model with a learning rate of zero, so that all tests can train it."""
    model = keras_clip.CLIPModel(
        keras_clip.encoders.VisionTransformer(8, 4, 8, 1, 2, patch_dropout=0.5, seed=0),
        keras_clip.encoders.TextTransformer(8, 1, 2, context_length=4),
        embed_dim=4,
    )
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    return model


@pytest.fixture
def without_graph(clip):
    """The model, without a graph on TensorFlow: other tests hold that the graph is the right one."""
    clip.compile(optimizer=keras.optimizers.SGD(0.0), **FEW_STEPS)
    yield clip
    clip.compile(optimizer=keras.optimizers.SGD(0.0))


@pytest.fixture
def batch(clip, rng):
    images = rng.integers(0, 256, (4, 8, 8, 3), np.uint8)
    return {"images": images, "token_ids": clip.tokenizer(["a", "b", "c", "d"])}


def rows_seen(clip, batch, unmask, **options):
    seen = Seen()
    history = clip.fit(batch, batch_size=4, verbose=0, callbacks=[unmask, seen], **options)
    assert set(seen.rates) == {0.5}
    assert clip.image_encoder.patch_dropout.rate == 0.5
    return seen.rows, history.history["loss"]


def test_the_last_epochs_see_all(clip, batch):
    rows, losses = rows_seen(clip, batch, Unmask(epochs=2), epochs=4)
    assert rows == {0: PARTS, 1: PARTS, 2: WHOLE, 3: WHOLE}
    # Weights do not change: all patches give the loss of `evaluate`, a subset gives another loss.
    whole = clip.evaluate(batch, batch_size=4, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(losses[2:], whole, rtol=1e-5)
    assert np.abs(np.subtract(losses[:2], whole)).min() > 1e-4

    # The next `fit` begins with patch dropout again.
    assert rows_seen(clip, batch, Unmask(), epochs=2)[0] == {0: PARTS, 1: WHOLE}


def test_resumed_in_the_epochs_with_all_patches(clip, batch):
    # This compiles a step with patch dropout beforehand.
    clip.fit(batch, batch_size=4, epochs=1, verbose=0)
    rows, losses = rows_seen(clip, batch, Unmask(epochs=2), initial_epoch=3, epochs=4)
    assert rows == {3: WHOLE}
    whole = clip.evaluate(batch, batch_size=4, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(losses, whole, rtol=1e-5)


def test_a_resumed_run_unmasks_in_its_last_epochs(without_graph, batch):
    assert rows_seen(without_graph, batch, Unmask(), initial_epoch=2, epochs=4)[0] == {2: PARTS, 3: WHOLE}


def test_an_interrupted_fit_restores_patch_dropout(without_graph, batch):
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    unmask = Unmask()
    with pytest.raises(KeyboardInterrupt):
        without_graph.fit(batch, batch_size=4, epochs=1, verbose=0, callbacks=[unmask, Interrupt()])
    assert rows_seen(without_graph, batch, unmask, epochs=2)[0] == {0: PARTS, 1: WHOLE}


def test_refusals(batch):
    with pytest.raises(ValueError, match="Received: epochs=0"):
        Unmask(epochs=0)
    model = keras_clip.CLIPModel(
        keras_clip.encoders.VisionTransformer(8, 4, 8, 1, 2),
        keras_clip.encoders.TextTransformer(8, 1, 2, context_length=4),
        embed_dim=4,
        name="whole",
    )
    model.compile(optimizer="sgd")
    with pytest.raises(ValueError, match="Received: model='whole'"):
        model.fit(batch, verbose=0, callbacks=[Unmask()])
