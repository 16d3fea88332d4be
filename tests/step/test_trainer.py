"""The step under `fit`: its logs, skipped steps, and configurations that are refused instead of trained wrongly."""

import keras
import numpy as np
import pytest
from keras import ops
from small_clip import build, pairs, reference, state, train

BACKEND = keras.backend.backend()
SGD = keras.optimizers.SGD


def test_the_norm_of_the_gradient_is_logged():
    from gradients import loss_and_gradients

    clip, data = build(), pairs(24)

    def loss():
        embeddings = clip({key: ops.convert_to_tensor(value) for key, value in data.items()}, training=True)
        return ops.mean(clip.contrast(embeddings["image_embeddings"], embeddings["text_embeddings"]))

    _, gradients = loss_and_gradients(loss, clip.trainable_variables)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in gradients))
    logs = reference(rows=24, epochs=1)[0]
    assert logs["gradient_norm"][0] == pytest.approx(norm, rel=1e-5)
    assert logs["skipped_steps"] == [0]


OPTIMIZERS = {"momentum": lambda: SGD(0.1, momentum=0.9), "AdamW": lambda: keras.optimizers.AdamW(1e-3)}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_step_that_is_not_finite_changes_nothing(optimizer):
    # The compared weights include the statistics of BatchNorm, which must not change either.
    clip, data = build("convolution"), pairs(24)
    bad = {**data, "images": data["images"].copy()}
    bad["images"][3, 0, 0] = np.inf
    clip.compile(optimizer())
    clip.fit(data, batch_size=24, shuffle=False, verbose=0)
    before = state(clip)
    moments = [np.array(ops.convert_to_tensor(v)) for v in clip.optimizer.variables]
    logs = clip.fit(bad, batch_size=24, shuffle=False, verbose=0).history
    assert logs["skipped_steps"] == [1]
    assert logs["loss"] == [0] or np.isnan(logs["loss"][0])
    np.testing.assert_equal(state(clip), before)
    for variable, value in zip(clip.optimizer.variables, moments, strict=True):
        np.testing.assert_array_equal(np.array(ops.convert_to_tensor(variable)), value, err_msg=variable.path)
    # The next step is applied again.
    logs = clip.fit(data, batch_size=24, shuffle=False, verbose=0).history
    assert logs["skipped_steps"] == [0] and np.isfinite(logs["loss"][0])
    assert any(not np.array_equal(value, before[key]) for key, value in state(clip).items())


def test_skipped_steps_are_counted_within_an_epoch_and_do_not_spoil_the_mean():
    clip, data = build("convolution"), pairs(48)
    good = reference(rows=24, epochs=1)[0]["loss"][0]
    data["images"][:12] = np.nan
    logs = train(clip, data, 12, epochs=1)[0]
    assert logs["skipped_steps"] == [1]
    assert np.isfinite(logs["loss"][0]) and logs["loss"][0] < 2 * good


def test_accumulated_gradients_are_refused():
    with pytest.raises(ValueError, match="another objective.*gradient_accumulation_steps=2.*microbatch_size"):
        build().compile(SGD(0.1, gradient_accumulation_steps=2))


def test_another_loss_is_refused():
    with pytest.raises(ValueError, match="The loss is the model's own. Received: loss='mse'"):
        build().compile("sgd", loss="mse")


@pytest.mark.skipif(BACKEND == "tensorflow", reason="backend unable: keras.distribution")
def test_a_distribution_that_does_nothing_is_refused(monkeypatch):
    if BACKEND == "torch":
        monkeypatch.setattr(keras.distribution, "distribution", type("DataParallel", (), {}))
        expected = "does nothing on torch.*DataParallel.*torchrun"
    else:
        monkeypatch.setattr("jax.process_count", lambda: 2)
        expected = "each process would train alone. Received: 2 processes"
    with pytest.raises(RuntimeError, match=expected):
        build().compile("sgd")


STRATEGY = """
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
import warnings
import keras, keras_clip, numpy as np
from small_clip import build, pairs, state
with strategy.scope():
    clip = build()
    for optimizer, options, words in [
        (keras.optimizers.SGD(0.1), {"steps_per_execution": 2}, "steps_per_execution=2"),
        (keras.optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=3), {}, "ema_overwrite_frequency=3"),
        (keras.optimizers.SGD(0.1, gradient_accumulation_steps=3), {}, "gradient_accumulation_steps=3"),
    ]:
        try:
            clip.compile(optimizer, **options)
        except ValueError as error:
            assert f"{words}" in str(error), error
        else:
            raise AssertionError(words)
    plain = [keras.layers.Flatten(), keras.layers.Dense(8), keras.layers.BatchNormalization(name="odd_one")]
    encoder = keras.Sequential([keras.Input((32, 32, 3)), *plain])
    odd = keras_clip.CLIPModel(encoder, clip.text_encoder, 16, tokenizer=clip.tokenizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        odd.compile("sgd")
        odd.image_encoder.trainable = False
        odd.compile("sgd")
    assert ["odd_one" in str(warning.message) for warning in caught] == [True], caught
    clip.compile(keras.optimizers.AdamW(1e-3))
    data = pairs(24)
    history = clip.fit(pairs(25), batch_size=25, shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"]).all(), history
    clip.fit(data, batch_size=24, shuffle=False, verbose=0)
    before = state(clip)
    data["images"][20, 0] = np.nan
    logs = clip.fit(data, batch_size=24, shuffle=False, verbose=0).history
    assert logs["skipped_steps"] == [1], logs
    np.testing.assert_equal(state(clip), before)
print("kept")
"""


@pytest.mark.skipif(BACKEND != "tensorflow", reason="backend unable: tf.distribute")
def test_refusals_and_skipped_steps_under_a_strategy(distributed):
    assert "kept" in distributed(STRATEGY)
