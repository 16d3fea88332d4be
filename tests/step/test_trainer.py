"""The step under `fit`: its logs, skipped steps, and configurations that are refused instead of trained wrongly."""

import keras
import numpy as np
import pytest
from keras import ops
from small_clip import FEW_STEPS, build, pairs, reference, state, train

import keras_clip

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
    assert np.isnan(logs["loss"][0]) and np.isnan(logs["image_to_text_accuracy"][0])
    np.testing.assert_equal(state(clip), before)
    for variable, value in zip(clip.optimizer.variables, moments, strict=True):
        np.testing.assert_array_equal(np.array(ops.convert_to_tensor(variable)), value, err_msg=variable.path)
    # The next step is applied again.
    logs = clip.fit(data, batch_size=24, shuffle=False, verbose=0).history
    assert logs["skipped_steps"] == [0] and np.isfinite(logs["loss"][0])
    assert any(not np.array_equal(value, before[key]) for key, value in state(clip).items())


class Moving(keras.layers.Layer):
    """Has state of all kinds that a call may change, and leaves its inputs as they are."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(0)

    def build(self, x_shape):
        self.mean = self.add_weight(shape=(x_shape[-1],), initializer="zeros", trainable=False, name="mean")
        self.count = self.add_weight(shape=(), initializer="zeros", dtype="int32", trainable=False, name="count")
        self.largest = self.add_weight(shape=(), initializer="ones", name="largest")

    def call(self, x, training=False):
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * ops.mean(x, axis=0))
            self.count.assign_add(1)
            self.largest.assign(ops.maximum(self.largest, ops.max(x)))
            x = x + 0.0 * keras.random.uniform((1,), seed=self.seed_generator)
        return x


def test_a_skipped_step_leaves_the_state_of_any_layer():
    images = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(8, 8, strides=8)(images)
    x = keras.layers.BatchNormalization()(keras.layers.GlobalAveragePooling2D()(x))
    encoder = keras.Model(images, Moving(name="moving")(keras.layers.Dropout(0.1, seed=1)(x)))
    whole, data = build("convolution"), pairs(24)
    clip = keras_clip.CLIPModel(encoder, whole.text_encoder, 16, tokenizer=whole.tokenizer)
    clip.compile(keras.optimizers.Adam(1e-3))

    def variables():
        every = [*clip.variables, *clip.optimizer.variables]
        return {f"{i} {v.path}": np.array(ops.convert_to_numpy(ops.copy(v.value))) for i, v in enumerate(every)}

    clip.fit(data, batch_size=24, verbose=0)
    before = variables()
    moving = encoder.get_layer("moving")
    assert int(ops.convert_to_numpy(moving.count.value)) == 1
    assert np.abs(ops.convert_to_numpy(moving.mean.value)).max() > 0
    for bad in (np.nan, np.inf):
        broken = {**data, "images": np.where(np.arange(24)[:, None, None, None] == 5, bad, data["images"])}
        assert clip.fit(broken, batch_size=24, verbose=0).history["skipped_steps"] == [1]
        for name, value in variables().items():
            np.testing.assert_array_equal(value, before[name], err_msg=name)
    clip.fit(data, batch_size=24, verbose=0)
    changed = {name.split("/")[-1] for name, value in variables().items() if not np.array_equal(value, before[name])}
    assert {"mean", "count", "moving_mean", "seed_generator_state", "iteration", "kernel"} <= changed


def test_numbers_of_an_epoch_without_a_usable_step(tmp_path):
    clip, data = build("convolution"), pairs(24)
    good, data["images"] = data["images"].copy(), np.full_like(data["images"], np.nan)
    clip.compile("sgd")
    stop = keras.callbacks.TerminateOnNaN()
    save = keras.callbacks.ModelCheckpoint(tmp_path / "best.weights.h5", "loss", save_best_only=True)
    save.save_weights_only = True
    logs = clip.fit({**data, "images": good}, batch_size=12, verbose=0, callbacks=[save]).history
    assert np.isfinite(logs["loss"]).all() and save.best == logs["loss"][0]
    (tmp_path / "best.weights.h5").unlink()
    logs = clip.fit(data, batch_size=12, epochs=2, verbose=0, callbacks=[save, stop]).history
    assert np.isnan(logs["loss"]).all() and len(logs["loss"]) == 1
    assert not (tmp_path / "best.weights.h5").exists()
    # Weights that are not finite.
    clip.logit_scale.assign(np.nan)
    logs = clip.fit({**data, "images": good}, batch_size=12, verbose=0).history
    assert np.isnan(logs["loss"][0]) and logs["skipped_steps"] == [2]


def test_a_first_epoch_of_nan_is_not_the_best(tmp_path):
    clip, data = build("convolution"), pairs(24)
    clip.compile(keras.optimizers.SGD(0.01))
    path = tmp_path / "best.weights.h5"
    callbacks = (
        keras.callbacks.ModelCheckpoint(path, "loss", save_best_only=True, save_weights_only=True),
        keras.callbacks.EarlyStopping("loss", patience=1),
        keras.callbacks.ReduceLROnPlateau("loss", patience=1),
    )

    def batches():
        for scale in (np.nan, 1.0, 1.0):
            yield ({**data, "images": scale * data["images"]},)

    losses = clip.fit(batches(), steps_per_epoch=1, epochs=3, verbose=0, callbacks=callbacks).history["loss"]
    # Without a best value the second epoch is better than nothing; compared with NaN it would be the last.
    assert np.isnan(losses[0]) and len(losses) == 3
    assert {float(callback.best) for callback in callbacks} == {min(losses[1:])} and path.exists()


def test_an_overflow_of_the_loss_scale_is_a_skipped_step():
    clip, data = build("convolution"), pairs(24)
    optimizer = keras.optimizers.LossScaleOptimizer(SGD(0.1), initial_scale=2.0**127)
    clip.compile(optimizer)
    before = state(clip)
    clip.contrast.trainable = False
    logs = clip.fit({**data, "images": 1e4 * data["images"]}, batch_size=24, verbose=0).history
    if np.isfinite(logs["gradient_norm"][0]):
        optimizer.dynamic_scale.assign(np.inf)
        before = state(clip)
        logs = clip.fit(data, batch_size=24, verbose=0).history
    assert logs["skipped_steps"] == [1] and not np.isfinite(logs["gradient_norm"][0])
    assert np.isfinite(logs["loss"][0])
    np.testing.assert_equal(state(clip), before)


def similarity(image_embeddings, text_embeddings):
    return ops.sum(image_embeddings * text_embeddings, axis=1)


def test_metrics_compare_the_embeddings(tmp_path):
    clip, data = build("convolution", vocabulary_size=49408), pairs(24)
    metrics = [keras.metrics.CosineSimilarity(name="cosine"), keras.metrics.MeanSquaredError(name="distance")]
    clip.compile(SGD(0.0), metrics=metrics)
    expected = np.mean(np.sum(np.multiply(*clip.predict(data, verbose=0).values()), axis=1))
    for logs in (
        clip.evaluate(data, batch_size=12, return_dict=True, verbose=0),
        {key: value[0] for key, value in clip.fit(data, batch_size=12, verbose=0).history.items()},
    ):
        if "gradient_norm" not in logs:
            assert logs["cosine"] == pytest.approx(expected, abs=1e-5)
            assert logs["distance"] == pytest.approx((2 - 2 * expected) / 16, rel=1e-4)
        assert {"loss", "cosine", "distance", "image_to_text_accuracy"} <= set(logs)
    clip.save(tmp_path / "clip.keras")
    again = keras.saving.load_model(tmp_path / "clip.keras")
    expected = clip.evaluate(data, verbose=0, return_dict=True)["cosine"]
    assert again.evaluate(data, verbose=0, return_dict=True)["cosine"] == pytest.approx(expected, abs=1e-6)


def test_metrics_as_functions_and_of_classes():
    clip, data = build("convolution"), pairs(24)
    clip.compile(SGD(0.0), metrics=[similarity])
    assert "similarity" in clip.evaluate(data, verbose=0, return_dict=True)
    with pytest.raises(ValueError, match="no classes. Received: metrics with 'accuracy'"):
        clip.compile("sgd", metrics=["accuracy"])


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "metric",
    [
        keras.metrics.Mean(),
        keras.metrics.Sum,
        keras.metrics.SparseCategoricalAccuracy(),
        "sparse_categorical_accuracy",
        lambda embeddings: 0.0,
        lambda embeddings, *, other: 0.0,
    ],
    ids=["of values", "a class", "of labels", "its name", "a function of one", "a keyword"],
)
def test_metrics_that_do_not_take_two_embeddings(metric):
    clip = build()
    for given in ([metric], {"similarity": metric}):
        with pytest.raises(ValueError, match=r"A metric must take the image and the text embeddings.*Received: metr"):
            clip.compile("sgd", metrics=given)


@pytest.mark.backend_free
def test_metrics_that_take_two_embeddings():
    metrics = [keras.metrics.MeanSquaredError, "cosine_similarity", lambda *both: 0.0, lambda a, b, c=1: 0.0]
    build().compile("sgd", metrics=metrics)


@pytest.mark.parametrize("name", ["sample_weight", "class_weight", "y"])
def test_targets_and_weights_are_refused(name):
    clip, data = build("convolution"), pairs(4)
    clip.compile("sgd")
    with pytest.raises(ValueError, match=f"without targets or sample weights.*Received: {name}.*repeat them"):
        clip.fit(data, **{name: {0: 1.0} if name == "class_weight" else np.ones(4)})
    if name != "class_weight":
        with pytest.raises(ValueError, match=f"Received: {name}"):
            clip.evaluate(data, **{name: np.ones(4)})


class Stop(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        raise KeyboardInterrupt


def failing_data():
    yield pairs(8)
    raise OSError("the disk is gone")


def test_an_interrupted_fit_leaves_the_model_as_any_other(tmp_path):
    clip, data = build("vit", patch_dropout=0.5), pairs(8)
    clip.compile(SGD(0.1))
    clip.fit(data, batch_size=8, verbose=0)
    telemetry = keras_clip.training.Telemetry(csv=tmp_path / "steps.csv")
    before = None
    for options, error in (
        ({"x": data, "batch_size": 8, "callbacks": [Stop()]}, KeyboardInterrupt),
        ({"x": failing_data(), "steps_per_epoch": 3}, Exception),
        ({"x": {**data, "images": data["images"][:, :16]}, "batch_size": 8}, ValueError),
    ):
        callbacks = [keras_clip.training.Unmask(), telemetry, *options.pop("callbacks", [])]
        before = state(clip)
        with pytest.raises(error):
            clip.fit(**options, verbose=0, callbacks=callbacks)
        assert clip.batch_listener is None
        assert clip.image_encoder.get_config()["patch_dropout"] == 0.5
        assert all(np.isfinite(value).all() for value in state(clip).values())
    # The last one failed before its first step.
    np.testing.assert_equal(state(clip), before)
    assert np.isfinite(clip.fit(data, batch_size=8, verbose=0).history["loss"]).all()
    assert np.isfinite(clip.predict(data, verbose=0)["image_embeddings"]).all()


def test_a_published_sigmoid_scale_is_kept():
    clip, data = build("convolution", loss="sigmoid"), pairs(8)
    clip.compile(SGD(1e-6))
    clip.logit_scale.assign(4.72)
    clip.fit(data, batch_size=8, verbose=0)
    assert float(ops.convert_to_numpy(clip.logit_scale.value)) == pytest.approx(4.72, abs=1e-3)
    clip.logit_scale.assign(9.0)
    clip.train_on_batch(data)
    assert float(ops.convert_to_numpy(clip.logit_scale.value)) == pytest.approx(np.log(1000), abs=1e-4)


@pytest.mark.parametrize("is_scaled", [False, True], ids=["plain", "loss scale"])
def test_skipped_steps_are_counted_within_an_epoch_and_do_not_spoil_the_mean(is_scaled):
    # A loss scale takes gradients that are not finite, to become smaller; the loss of such a step must not count.
    clip, data = build("convolution"), pairs(48)
    good = reference(rows=24, epochs=1)[0]["loss"][0]
    data["images"][:12] = np.nan
    optimizer = keras.optimizers.LossScaleOptimizer(SGD(0.1)) if is_scaled else None
    logs = train(clip, data, 12, 1, optimizer, **FEW_STEPS)[0]
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
