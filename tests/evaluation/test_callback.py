"""Evaluation during training: the scores are correct and reach the logs, and training is unchanged."""

import keras
import numpy as np
import pytest
from small_clip import SIDE, build, pairs, state

from keras_clip.evaluation import EvaluateDuringTraining
from keras_clip.zero_shot import embed_classes

NAMES = ["cat", "dog", "car"]


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (count, SIDE, SIDE, 3), "uint8")


def callback(every=2, **more):
    labels = np.arange(10) % 3
    probe = {"train_images": images(12, 1), "train_labels": np.arange(12) % 3}
    return EvaluateDuringTraining(images(10), labels, NAMES, every=every, batch_size=4, **{**probe, **more})


def compiled():
    clip = build(vocabulary_size=49408, patch_dropout=0.5)
    clip.compile(keras.optimizers.Adam(1e-2))
    return clip


def fit(clip, *callbacks, epochs=2, verbose=0):
    """Trains on shuffled pairs with patch dropout, for 3 steps per epoch."""
    keras.utils.set_random_seed(5)
    return clip.fit(pairs(48), batch_size=16, epochs=epochs, verbose=verbose, callbacks=list(callbacks)).history


@pytest.fixture(scope="module")
def trained():
    watcher, clip = callback(), compiled()
    return watcher, clip, fit(clip, watcher)


@pytest.fixture(scope="module")
def plain():
    """A model trained without the callback, its weights after that, and its history. Tests may train it further."""
    clip = compiled()
    history = fit(clip)
    return clip, state(clip), history


def test_training_is_not_disturbed(trained, plain):
    _, clip, history = trained
    _, plain_state, plain_history = plain
    np.testing.assert_equal(state(clip), plain_state)
    for name in plain_history:
        np.testing.assert_equal(history[name], plain_history[name])


def test_numbers_are_those_of_the_weights_at_that_step(trained):
    watcher, clip, history = trained
    assert [row["step"] for row in watcher.history] == [2, 4, 6]
    # The sixth step is the last one, so its weights are the current ones.
    embeddings = keras.ops.convert_to_numpy(clip.encode_image(watcher.images))
    similarities = embeddings @ embed_classes(clip.text_embedder, NAMES).T
    last = watcher.history[-1]
    assert last["zero_shot_accuracy"] == (similarities.argmax(axis=1) == watcher.labels).mean()
    assert 0 <= last["probe_accuracy"] <= 1
    assert history["zero_shot_accuracy"] == [watcher.history[0]["zero_shot_accuracy"], last["zero_shot_accuracy"]]
    assert history["probe_accuracy"][-1] == last["probe_accuracy"]


@pytest.mark.backend_free
def test_a_model_that_is_not_finite_does_not_end_the_training():
    watcher, clip = callback(every=1), compiled()
    clip.image_projection.weights[0].assign(np.full(clip.image_projection.weights[0].shape, np.nan))
    watcher.set_model(clip)
    watcher.on_train_begin()
    watcher.on_train_batch_end(0, logs := {})
    assert np.isnan(logs["zero_shot_accuracy"]) and 0 <= logs["probe_accuracy"] <= 1
    clip.image_embedder.encoder.weights[0].assign(np.full(clip.image_embedder.encoder.weights[0].shape, np.nan))
    watcher.on_train_batch_end(1, logs)
    assert np.isnan(list(logs.values())).all()


def test_a_csv_has_it_from_the_first_epoch_on(plain, tmp_path):
    path = tmp_path / "log.csv"
    fit(plain[0], callback(every=4, train_images=None), keras.callbacks.CSVLogger(path))
    lines = path.read_text().splitlines()
    column = lines[0].split(",").index("zero_shot_accuracy")
    values = [float(line.split(",")[column]) for line in lines[1:]]
    assert np.isnan(values[0]) and 0 <= values[1] <= 1
    assert "probe_accuracy" not in lines[0]


def test_the_progress_bar_shows_it(plain, capfd):
    fit(plain[0], callback(every=1), epochs=1, verbose=2)
    assert "zero_shot_accuracy: " in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.backend_free
def test_tensorboard_writes_it(plain, tmp_path):
    tensorflow = pytest.importorskip("tensorflow", reason="backend unable: no TensorFlow")
    fit(plain[0], callback(), keras.callbacks.TensorBoard(tmp_path, update_freq=1), epochs=1)
    files = [str(path) for path in tmp_path.rglob("events*")]
    events = [event for path in files for event in tensorflow.compat.v1.train.summary_iterator(path)]
    tags = {value.tag for event in events for value in event.summary.value}
    assert {"epoch_zero_shot_accuracy", "epoch_probe_accuracy"} <= tags


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "bad",
    [{"every": 0}, {"train_labels": np.full(12, 3)}, {"train_images": np.zeros((12, 4, 4, 3), "float32")}],
    ids=["every", "label", "floats"],
)
def test_invalid_arguments_are_refused(bad):
    with pytest.raises(ValueError, match="Received: (every=0|images)"):
        callback(**bad)
