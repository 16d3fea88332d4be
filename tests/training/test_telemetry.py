"""`Telemetry`: its metrics by hand, the batches that it observes in `fit`, and its files."""

import csv
import os
import sys
import time
import types

import keras
import numpy as np
import pytest
import small_clip

import keras_clip
from keras_clip import distribution, flops
from keras_clip.step.batch_timing import BatchRead
from keras_clip.training import telemetry

FIGURES = ("pairs_per_second", "step_seconds", "data_wait", "mfu")


@pytest.fixture(scope="module")
def clip():
    clip = small_clip.build()
    clip.compile(keras.optimizers.SGD(0.01))
    return clip


def begin(callback, clip, monkeypatch, start=100.0, first=0):
    """Starts a training without a model step, whose clock and events the test sets."""
    clock = types.SimpleNamespace(now=start)
    monkeypatch.setattr(telemetry.time, "perf_counter", lambda: clock.now)
    callback.set_model(clip)
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    callback.on_train_batch_begin(first)
    return clock


@pytest.mark.backend_free
def test_metrics_by_hand(clip, monkeypatch):
    callback = telemetry.Telemetry(every=2, peak_flops=50.0, step_flops=lambda pairs, length: pairs * length)
    clock = begin(callback, clip, monkeypatch)
    # The device waits from 100 to 101, and computes until 104.
    clip.batch_listener(BatchRead(100.0, 101.0, [8], [10]))
    # The second batch is read while the device computes, the third until one second after that.
    clip.batch_listener(BatchRead(101.5, 103.0, [8], [10]))
    clip.batch_listener(BatchRead(103.0, 107.0, [4], [5]))
    logs = [{}, {"loss": 2.0}, {}]
    clock.now = 104.0
    callback.on_train_batch_end(0, logs[0])
    assert logs[0] == {"pairs_per_second": 2.0, "step_seconds": 4.0, "data_wait": 0.25, "mfu": 80 / 4 / 50}
    clock.now = 106.0
    callback.on_train_batch_end(1, logs[1])
    second = {"pairs_per_second": 16 / 6, "step_seconds": 3.0, "data_wait": 1 / 6, "mfu": 160 / 6 / 50}
    assert logs[1] == pytest.approx({**second, "loss": 2.0})
    clock.now = 110.0
    callback.on_train_batch_end(2, logs[2])
    # The logs keep the metrics of the first two steps until the next two are complete.
    assert logs[2] == pytest.approx(second)
    epoch = {}
    callback.on_epoch_end(0, epoch)
    assert epoch == pytest.approx(
        {"pairs_per_second": 2.0, "step_seconds": 10 / 3, "data_wait": 0.2, "mfu": 180 / 10 / 50}
    )
    callback.on_train_end()
    assert clip.batch_listener is None


@pytest.mark.backend_free
def test_callbacks_may_run_out_of_order_in_a_resumed_epoch(clip, monkeypatch):
    callback = telemetry.Telemetry(every=1)
    clock = begin(callback, clip, monkeypatch, first=5)
    for began in (100.0, 102.0):
        clip.batch_listener(BatchRead(began, began + 1, [8], [10]))
    clock.now = 104.0
    late = {}
    callback.on_train_batch_end(6, late)
    assert late == {}
    clock.now = 105.0
    callback.on_train_batch_end(5, late)
    # The first step ended no later than the second, so the second did not wait for data.
    callback.on_epoch_end(0, late)
    assert late == {"pairs_per_second": 4.0, "step_seconds": 2.0, "data_wait": 0.25}
    callback.on_train_end()


def batches(count, wait, sizes=(8, 6), lengths=(8, 7)):
    data = small_clip.pairs(8)
    for i in range(count):
        time.sleep(wait)
        images, token_ids = data["images"][: sizes[i % 2]], data["token_ids"][: sizes[i % 2], : lengths[i % 2]]
        yield {"images": images, "token_ids": token_ids}


def dataset(count, wait=0.0):
    import tensorflow as tf

    shapes = {"images": ((None, small_clip.SIDE, small_clip.SIDE, 3), "float32"), "token_ids": ((None, None), "int32")}
    signature = {key: tf.TensorSpec(*shape) for key, shape in shapes.items()}
    return tf.data.Dataset.from_generator(lambda: batches(count, wait), output_signature=signature)


def test_fit_is_measured_and_written(clip, tmp_path):
    seen = []
    callback = telemetry.Telemetry(
        tmp_path / "new" / "steps.csv",
        tmp_path / "events",
        every=3,
        peak_flops=1e9,
        step_flops=lambda *x: seen.append(x) or 1e6,
    )
    clip.compile(keras.optimizers.SGD(0.01))
    history = clip.fit(dataset(8, wait=0.3), steps_per_epoch=4, epochs=2, callbacks=[callback], verbose=0).history
    # The sizes and lengths of the batches in order, counted once per epoch.
    assert seen == 2 * [(8, 8), (6, 7)]
    product = np.multiply(history["pairs_per_second"], history["step_seconds"])
    np.testing.assert_allclose(product, 7.0)
    np.testing.assert_allclose(np.multiply(history["mfu"], history["step_seconds"]), 1e-3, rtol=1e-6)
    # In the second epoch nothing is compiled, so a part of the 0.3 s per batch is counted as waiting.
    assert 0 < history["data_wait"][1] < 1
    with open(tmp_path / "new" / "steps.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["epoch"]) for row in rows] == [("3", "0"), ("4", "0"), ("7", "1"), ("8", "1")]
    assert set(FIGURES) | {"loss", "logit_scale", "gradient_norm", "skipped_steps"} <= set(rows[0])
    assert float(rows[0]["gradient_norm"]) > 0 and all(0 <= float(row["data_wait"]) <= 1 for row in rows)
    events = events_of(tmp_path / "events")
    assert events[7, "pairs_per_second"] == pytest.approx(float(rows[2]["pairs_per_second"]))
    assert events[8, "loss"] == pytest.approx(float(rows[3]["loss"]))
    assert clip.batch_listener is None


def events_of(folder):
    import tensorflow as tf

    (file,) = folder.iterdir()
    found = {}
    for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
        event = tf.compat.v1.Event.FromString(record)
        found |= {(event.step, v.tag): float(tf.make_ndarray(v.tensor)) for v in event.summary.value}
    return found


def test_training_is_the_same_with_it():
    results = []
    for callbacks in ([], [telemetry.Telemetry()]):
        clip = small_clip.build("convolution")
        clip.compile(keras.optimizers.SGD(0.1))
        clip.fit(small_clip.pairs(24), batch_size=8, shuffle=False, callbacks=callbacks, verbose=0)
        results.append(small_clip.state(clip))
    for key, value in results[0].items():
        np.testing.assert_allclose(value, results[1][key], atol=1e-6, err_msg=key)


def test_pairs_are_those_of_all_replicas(clip, monkeypatch):
    if keras.backend.backend() != "torch":
        pytest.skip("backend unable: replicas need a process with several devices, as in the test with `distributed`")
    monkeypatch.setattr(distribution, "replica_count", lambda: 3)
    callback = telemetry.Telemetry(peak_flops=1.0)
    begin(callback, clip, monkeypatch)
    assert callback._peak == 3.0
    clip.make_train_function()
    monkeypatch.setattr(clip, "train_step", lambda data: {})
    clip.train_function([small_clip.pairs(8)])
    assert callback._reads[0].pairs == [24] and callback._reads[0].text_lengths == [small_clip.LENGTH]
    callback.on_train_end()


REPLICAS = """
import keras, small_clip, keras_clip
name = {"tensorflow": "mirrored", "jax": "jax_data_parallel"}[keras.backend.backend()]
with keras_clip.training.strategy(name):
    clip = small_clip.build()
    clip.compile(keras.optimizers.SGD(0.1), microbatch_size=4)
    telemetry = keras_clip.training.Telemetry(peak_flops=1e9)
    logs = clip.fit(small_clip.pairs(32), batch_size=16, callbacks=[telemetry], verbose=0).history
    done = keras_clip.flops.train_step(clip, 16, small_clip.LENGTH, replicas=2)
    seconds = logs["step_seconds"][0]
    print(logs["pairs_per_second"][0] * seconds, logs["mfu"][0] * seconds * 2e9 / done)
"""


@pytest.mark.slow
def test_pairs_are_those_of_all_devices(distributed):
    if keras.backend.backend() == "torch":
        pytest.skip("backend unable: torch has one device a process")
    pairs, share = map(float, distributed(REPLICAS, timeout=600).split()[-2:])
    assert pairs == pytest.approx(16) and share == pytest.approx(1)


@pytest.mark.backend_free
def test_a_resumed_training_keeps_its_rows(clip, tmp_path, monkeypatch):
    path = tmp_path / "steps.csv"
    # Rows after the checkpoint are written again; a kill truncated the last row.
    path.write_text("step,epoch,pairs_per_second,step_seconds,data_wait\n2,0,1.0,8.0,0.0\n4,0,1.0,8.0,0.0\n6,0,1.")
    callback = telemetry.Telemetry(path, every=1)
    clip.optimizer.build(clip.trainable_variables)
    clip.optimizer.iterations.assign(3)
    clock = begin(callback, clip, monkeypatch)
    clip.batch_listener(BatchRead(100.0, 101.0, [8], [10]))
    clock.now = 102.0
    callback.on_train_batch_end(0, {"loss": 1.0})
    callback.on_train_end()
    assert path.read_text().splitlines()[1:] == ["2,0,1.0,8.0,0.0", "4,0,4.0,2.0,0.5"]
    assert os.listdir(tmp_path) == ["steps.csv"]
    clip.optimizer.iterations.assign(0)


@pytest.mark.backend_free
def test_invalid_uses_are_refused(clip, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`every` must be positive. Received: every=0"):
        telemetry.Telemetry(every=0)
    with pytest.raises(ValueError, match="`peak_flops` must be positive. Received: peak_flops=-1"):
        telemetry.Telemetry(peak_flops=-1)
    callback = telemetry.Telemetry()
    callback.set_model(keras.Sequential([keras.Input((2,))]))
    with pytest.raises(TypeError, match="requires a `CLIPModel`. Received: Sequential"):
        callback.on_train_begin()
    callback = telemetry.Telemetry(peak_flops=1e12)
    callback.set_model(clip)
    monkeypatch.setattr(flops, "train_step", lambda *_: None)
    with pytest.raises(ValueError, match="Pass `step_flops`"):
        callback.on_train_begin()
    for name in ("tensorflow", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="Install `tensorflow` or `tensorboard`"):
        keras_clip.training.Telemetry(tensorboard=tmp_path)
