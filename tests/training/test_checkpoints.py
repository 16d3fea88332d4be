"""`Checkpoints`: a killed training ends like an uninterrupted one; damaged or foreign checkpoints are reported."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
import resumable
from numbered_pairs import numbered, write_shards
from small_clip import build
from subprocesses import REPOSITORY, free_ports

import keras_clip
from keras_clip.training import checkpoint_file, state
from keras_clip.training.checkpoint_file import Entry

BACKEND = keras.backend.backend()
STEPS, EPOCHS = 8, 2


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """70 pairs in three shards, one of them broken: eight batches of eight an epoch."""
    folder = tmp_path_factory.mktemp("shards")
    samples = numbered(70)
    samples[13] = (samples[13][0], b"broken", samples[13][2])
    return write_shards(folder, samples)


def trainer(source, folder, learning_rate=1e-3, seed=5, vocabulary_size=64, flip=False, **options):
    """A model, its data and its callback; `options` are those of the data that checkpoints compare."""
    clip = build(patch_dropout=0.5, vocabulary_size=vocabulary_size)
    pairs = resumable.read(source)
    pairs.epochs.seed = seed
    pairs.epochs.options = {**pairs.epochs.options, **options}
    clip.compile(keras_clip.training.adamw(clip, learning_rate, 4, EPOCHS * len(pairs), use_ema=True))
    return clip, pairs, keras_clip.training.Checkpoints(folder, pairs, every=3, keep=3, identity={"flip": flip})


def fit(clip, pairs, *callbacks, epochs=EPOCHS):
    return clip.fit(pairs, epochs=epochs, callbacks=list(callbacks), verbose=0)


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
    """The folder of a run of two epochs, its final state, and its history."""
    folder = tmp_path_factory.mktemp("run")
    clip, pairs, checkpoints = trainer(source, folder)
    history = fit(clip, pairs, checkpoints)
    return folder, [np.array(array) for array in state.values(clip)], history


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the folder of `trained`."""
    return Path(shutil.copytree(trained[0], tmp_path / "copy"))


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def damage(path):
    """Changes one bit of the tensors in a file."""
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def test_the_newest_are_kept_and_each_has_its_number_of_steps(trained):
    # Checkpoints are written every third step and at the end of each epoch: 3, 6, 8, 9, 12, 15, 16.
    assert files(trained[0]) == [f"step-{step:09d}.safetensors" for step in (12, 15, 16)]


def test_a_run_that_has_ended_is_not_trained_again(trained, source, copy, caplog):
    _, end, history = trained
    clip, pairs, checkpoints = trainer(source, copy)
    with caplog.at_level(logging.WARNING, "keras_clip"):
        again = fit(clip, pairs, checkpoints)
    assert "Nothing left to do" in caplog.text and "is the end of epoch 2, and `epochs` is 2" in caplog.text
    assert checkpoints.first_step == STEPS * EPOCHS
    assert (again.epoch, again.history) == (history.epoch, history.history) and again.epoch == [0, 1]
    for array, expected in zip(clip.variables, end, strict=False):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(array), expected)
    assert files(copy) == files(trained[0])


def test_a_damaged_checkpoint_falls_back_to_the_one_before(trained, source, copy):
    _, end, history = trained
    damage(copy / "step-000000016.safetensors")
    (copy / "step-000000015.safetensors").write_bytes((copy / "step-000000015.safetensors").read_bytes()[:-5])
    # A process that is killed while writing leaves such a file.
    (copy / ".step-000000018.safetensors.1").write_bytes(b"half")
    clip, pairs, checkpoints = trainer(source, copy)
    with pytest.warns(UserWarning, match="Received: .*step-0000000(16|15).* which is damaged") as caught:
        again = fit(clip, pairs, checkpoints)
    assert len([w for w in caught if "damaged" in str(w.message)]) == 2
    assert not any("ran out of data" in str(w.message) for w in caught)
    # The training resumes at step 12, in the middle of the second epoch, and ends equally.
    assert again.epoch == [0, 1] and again.history["skipped_steps"] == [0, 0]
    np.testing.assert_allclose(again.history["loss"], history.history["loss"], rtol=1e-6)
    for array, expected in zip(state.values(clip), end, strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-7)
    assert clip.optimizer.iterations == 16
    assert files(copy) == files(trained[0])


def test_no_whole_checkpoint_is_an_error(source, copy):
    for path in copy.iterdir():
        damage(path)
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="with 3 damaged ones. Remove"):
        fit(*trainer(source, copy))


FOREIGN = {
    "data": ({"seed": 6}, "data's seed 5, and here 6"),
    "crop": ({"crop": "random_resized"}, "data's crop 'paper', and here 'random_resized'"),
    "area of crops": ({"crop_scale": (0.5, 1.0)}, r"data's crop_scale None, and here \[0.5, 1.0\]"),
    "preprocessing": ({"preprocessing": {"image_size": 16}}, r"data's preprocessing .* and here \{'image_size': 16\}"),
    "options": ({"flip": True}, "run's flip False, and here True"),
    "optimizer": ({"learning_rate": 2e-3}, "optimizer's learning_rate"),
    "model": (
        {"vocabulary_size": 80},
        r"the variable \('[^)]*', \(64, 32\), 'float32'\), and here \('[^)]*', \(80, 32\)",
    ),
}


@pytest.mark.parametrize("change, words", FOREIGN.values(), ids=FOREIGN)
def test_what_differs_is_named(source, copy, change, words):
    clip, pairs, checkpoints = trainer(source, copy, **change)
    with pytest.raises(keras_clip.training.DifferentTrainingError, match=words):
        fit(clip, pairs, checkpoints)


@pytest.mark.parametrize("part", [1, 2], ids=["images", "captions"])
def test_other_pairs_of_the_same_number_are_refused(copy, tmp_path, part):
    (tmp_path / "other").mkdir()
    samples = [list(sample) for sample in numbered(70)]
    # 64 of 70 are compared.
    for sample in samples[::2]:
        sample[part] = samples[1][part]
    clip, pairs, checkpoints = trainer(write_shards(tmp_path / "other", samples), copy)
    with pytest.raises(keras_clip.training.DifferentTrainingError, match="data's source '[0-9a-f]{64}', and here"):
        fit(clip, pairs, checkpoints)


def test_the_same_pairs_may_have_moved(copy, source, tmp_path, caplog):
    moved = tmp_path / "moved"
    moved.mkdir()
    samples = numbered(70)
    samples[13] = (samples[13][0], b"broken", samples[13][2])
    clip, pairs, checkpoints = trainer(write_shards(moved, samples), copy)
    with caplog.at_level(logging.WARNING, "keras_clip"):
        fit(clip, pairs, checkpoints)
    assert "Nothing left to do" in caplog.text


def test_a_checkpoint_of_an_earlier_version_is_resumed(source, copy):
    """It knows neither the samples nor the options; its crops were random resized ones."""
    new = [f"data's {name}" for name in ("source", "crop", "crop_scale", "preprocessing", "context_length")]
    for path in copy.iterdir():
        record, entries, arrays = checkpoint_file.read(path)
        arrays = [np.array(array) for array in arrays]
        record["identity"] = {
            key: value for key, value in record["identity"].items() if key not in (*new, "run's flip")
        }
        checkpoint_file.write(path, entries, arrays, record)
    clip, pairs, checkpoints = trainer(source, copy, flip=True)
    with pytest.raises(keras_clip.training.DifferentTrainingError, match="crop 'random_resized', and here 'paper'"):
        fit(clip, pairs, checkpoints)
    clip, pairs, checkpoints = trainer(source, copy, flip=True, crop="random_resized")
    fit(clip, pairs, checkpoints)
    assert checkpoints.first_step == STEPS * EPOCHS


def test_an_epoch_that_began_in_another_order_is_not_continued(source, copy):
    """Earlier versions held a permutation in memory: half an epoch of each would repeat samples."""
    for path in copy.iterdir():
        record, entries, arrays = checkpoint_file.read(path)
        arrays = [np.array(array) for array in arrays]
        assert record["identity"].pop("data's order") == "keyed permutation by samples"
        checkpoint_file.write(path, entries, arrays, record)
    clip, pairs, checkpoints = trainer(source, copy, flip=True)
    with pytest.raises(keras_clip.training.DifferentTrainingError, match="order 'permutation in memory', and here"):
        fit(clip, pairs, checkpoints)


def test_an_epoch_of_another_length_is_refused(source, tmp_path):
    clip, pairs, checkpoints = trainer(source, tmp_path)
    with pytest.raises(ValueError, match="Received: 5 steps per epoch, and data of 8 batches"):
        clip.fit(pairs.repeat(), steps_per_epoch=5, callbacks=[checkpoints], verbose=0)


@pytest.mark.backend_free
def test_arguments(source, tmp_path):
    with pytest.raises(TypeError, match="Received: pairs of type dict"):
        keras_clip.training.Checkpoints(tmp_path, {})
    pairs = resumable.read(source)
    with pytest.raises(ValueError, match="Received: every=0, keep=3"):
        keras_clip.training.Checkpoints(tmp_path, pairs, every=0)


@pytest.mark.backend_free
def test_the_file_is_safetensors_and_restores_its_tensors(tmp_path):
    import ml_dtypes
    from safetensors import safe_open

    arrays = [
        np.arange(6, dtype="float32").reshape(2, 3).T,
        np.array(1.5, ml_dtypes.bfloat16),
        np.zeros((0, 4), "int8"),
        np.array([2**32 - 1], "uint32"),
    ]
    entries = [Entry(str(i), array.shape, array.dtype.name) for i, array in enumerate(arrays)]
    path = tmp_path / "step-1.safetensors"
    checkpoint_file.write(path, entries, arrays, {"epoch": 3})
    checkpoint_file.check(path)
    record, found, values = checkpoint_file.read(path)
    assert record == {"epoch": 3} and found == entries
    for array, value in zip(arrays, values, strict=True):
        assert array.dtype == value.dtype
        np.testing.assert_array_equal(array, value)
    with safe_open(path, "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("0"), arrays[0])
    for cut in (0, 7, 40, 60, path.stat().st_size - 1):
        (tmp_path / "cut").write_bytes(path.read_bytes()[:cut])
        with pytest.raises(ValueError, match="damaged"):
            checkpoint_file.check(tmp_path / "cut")
    for flipped in range(0, path.stat().st_size, 7):
        content = bytearray(path.read_bytes())
        content[flipped] ^= 128
        (tmp_path / "flipped").write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            checkpoint_file.check(tmp_path / "flipped")


class Slow:
    """Replaces `checkpoint_file.write`: the first file is written when the training has made two more steps."""

    def __init__(self, error=None):
        self.write, self.error = checkpoint_file.write, error
        self.may_write, self.is_writing, self.steps = threading.Event(), threading.Event(), []

    def __call__(self, *args):
        self.is_writing.set()
        assert self.may_write.wait(60), "the training waited for the file"
        if self.error:
            raise self.error
        self.write(*args)

    def callback(self):
        def after_step(step, logs):
            if self.is_writing.is_set():
                self.steps.append(step)
                if len(self.steps) == 2:
                    self.may_write.set()

        return keras.callbacks.LambdaCallback(on_train_batch_end=after_step)


def test_the_training_goes_on_while_a_file_is_written(trained, source, tmp_path, monkeypatch):
    slow = Slow()
    monkeypatch.setattr(checkpoint_file, "write", slow)
    clip, pairs, checkpoints = trainer(source, tmp_path)
    fit(clip, pairs, checkpoints, slow.callback(), epochs=1)
    # The state of step 3, which has two more steps since.
    assert slow.steps[:2] == [3, 4]
    assert files(tmp_path) == [f"step-{step:09d}.safetensors" for step in (3, 6, 8)]
    monkeypatch.undo()
    for step in (6, 8):
        (tmp_path / f"step-{step:09d}.safetensors").unlink()
    clip, pairs, checkpoints = trainer(source, tmp_path)
    again = fit(clip, pairs, checkpoints)
    assert checkpoints.first_step == 3
    np.testing.assert_allclose(again.history["loss"], trained[2].history["loss"], rtol=1e-6)


def test_an_error_of_writing_is_raised(source, tmp_path, monkeypatch):
    slow = Slow(OSError("No space left on device"))
    monkeypatch.setattr(checkpoint_file, "write", slow)
    clip, pairs, checkpoints = trainer(source, tmp_path)
    with pytest.raises(OSError, match="No space left"):
        fit(clip, pairs, checkpoints, slow.callback(), epochs=1)
    # The callback can be used again.
    monkeypatch.undo()
    fit(clip, pairs, checkpoints, epochs=1)
    assert files(tmp_path)[-1] == "step-000000008.safetensors"


@pytest.mark.backend_free
def test_a_failed_write_does_not_change_the_file(tmp_path):
    path, entries = tmp_path / "step-1.safetensors", [Entry("a", (2,), "float32")]
    checkpoint_file.write(path, entries, [np.ones(2, "float32")], {})
    with pytest.raises(ValueError, match="shape"):
        checkpoint_file.write(path, entries, [np.ones(3, "float32")], {})
    assert files(tmp_path) == [path.name]
    checkpoint_file.check(path)


def start(source, runs, **env):
    """Starts a process that trains in each folder of `runs`, a dict of the kills by folder."""
    arguments = []
    for folder, kills in runs.items():
        folder.mkdir(exist_ok=True)
        arguments += [str(folder), *kills, "--"]
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    # With a persistent cache, JAX need not compile the same step again after each kill.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "jax"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = {**cache, **os.environ, "PYTHONPATH": paths, **env}
    command = [sys.executable, resumable.__file__, source, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes):
    try:
        outputs = [process.communicate(timeout=900)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n".join(outputs)
    return outputs


def outcome(folder, part=0):
    end = np.load(folder / f"end{part}.npz")
    lines = (folder / f"seen{part}.txt").read_text().splitlines()
    # The set removes duplicates: batches that were read ahead before a kill are read again.
    seen = {tuple(line.split()) for line in lines}
    return [end[name] for name in end.files], seen, json.loads((folder / f"history{part}.json").read_text())


def assert_same(one, other):
    for array, expected in zip(one[0], other[0], strict=True):
        np.testing.assert_array_equal(array, expected)
    assert one[1] == other[1] and len(one[1]) == resumable.EPOCHS * STEPS
    assert one[2] == other[2]


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_never_stopped(source, tmp_path):
    """Kills before there is a checkpoint, in the first epoch, in a later one, and while a checkpoint is written."""
    rng = np.random.default_rng()
    kills = ["step-1", f"step-{rng.integers(4, 8)}", f"step-{rng.integers(8, 16)}", "write-2"]
    (output,) = finish(start(source, {tmp_path / "whole": [], tmp_path / "killed": kills}))
    # After the kill during a write, the incomplete file exists beside the complete ones, under another name. After the
    # others there may be one, since files are written beside the training, but not at the end.
    lines = [line.split() for line in output.splitlines() if line.startswith(("step-", "write-", "never"))]
    assert [line[0] for line in lines] == ["never", *kills, "never"], output
    assert not lines[-2][2].startswith("step-")
    assert all(name.startswith("step-") for line in (lines[0], lines[-1]) for name in line[2:])
    assert_same(outcome(tmp_path / "killed"), outcome(tmp_path / "whole"))
    assert len(files(tmp_path / "killed" / "checkpoints")) == 2


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "torch", reason="backend unable: torch.distributed")
def test_two_processes_resume_together(source, tmp_path):
    runs = {tmp_path / "whole": [], tmp_path / "killed": ["step-13"]}
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(len(runs)))}
    finish(*(start(source, runs, RANK=str(rank), LOCAL_RANK=str(rank), **env) for rank in range(2)))
    for part in range(2):
        assert_same(outcome(tmp_path / "killed", part), outcome(tmp_path / "whole", part))
