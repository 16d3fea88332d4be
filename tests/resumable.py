"""Trains a small CLIP with checkpoints, killed and restarted as the arguments say, and writes its results.

    python resumable.py <folder of shards> [<folder> [<kill> ...] --] ...

Each folder gets one run, and each training of a run is a new process. A `<kill>` is "step-5", which kills the process
before its sixth step, or "write-2", which kills it while it writes its second checkpoint; the last process of a run
trains to the end. The folder then has `seen<part>.txt`, with a line for each batch (epoch, step, digest);
`end<part>.npz`, with all variables at the end; and `history<part>.json`.
"""

import gc
import hashlib
import json
import os
import signal
import sys
from pathlib import Path

if os.environ["KERAS_BACKEND"] == "torch":
    import torch  # noqa: F401  (the process can crash when TensorFlow comes first)
import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf
from small_clip import LENGTH, SIDE, build  # noqa: E402

import keras_clip  # noqa: E402
from keras_clip.training import checkpoint_file, state  # noqa: E402

EPOCHS, BATCH, EVERY = 4, 8, 3


class Tokenizer:
    """Encodes captions that are numbers as token ids of the small model."""

    context_length = LENGTH

    def __call__(self, texts, truncate=False, length=None):
        return np.array([[62, 1 + int(text) % 60, 63] + [0] * (LENGTH - 3) for text in texts], np.int32)


class Killer(keras.callbacks.Callback):
    """Kills the process before a step, as a cluster may do."""

    def __init__(self, steps):
        super().__init__()
        self.left = steps

    def on_train_batch_begin(self, batch, logs=None):
        if self.left == 0:
            kill()
        self.left -= 1


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_write(number):
    """Kills the process after it has written a few tensors of the checkpoint with this number."""
    write, left = checkpoint_file.write, [number]

    def cut(path, entries, arrays, record):
        left[0] -= 1
        write(path, entries, until(arrays, 9) if left[0] == 0 else arrays, record)

    def until(arrays, last):
        for i, array in enumerate(arrays):
            if i == last:
                kill()
            yield array

    checkpoint_file.write = cut


def read(source, shard=(0, 1)):
    preprocessor = keras_clip.data.ImagePreprocessor(SIDE)
    options = {"tokenizer": Tokenizer(), "image_preprocessor": preprocessor, "text_lengths": (LENGTH,)}
    return keras_clip.data.image_text_pairs(source, None, BATCH // shard[1], seed=5, shard=shard, **options)


def augment(numbered, file):
    """Mirrors some images, and records the result."""

    def note(epoch, step, *arrays):
        digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
        with open(file, "a") as lines:
            lines.write(f"{epoch} {step} {digest}\n")
        return np.int64(0)

    def change(place, batch):
        images = tf.image.stateless_random_flip_left_right(batch["images"], tf.stack(place))
        noted = tf.numpy_function(note, [*place, images, batch["token_ids"]], tf.int64)
        with tf.control_dependencies([noted]):
            return {**batch, "images": tf.identity(images)}

    return numbered.map(change)


def train(source, folder, callbacks=(), shard=(0, 1)):
    clip = build(patch_dropout=0.5)
    pairs = read(source, shard)
    optimizer = keras_clip.training.adamw(clip, 1e-3, 4, EPOCHS * len(pairs), use_ema=True)
    clip.compile(optimizer)
    checkpoints = keras_clip.training.Checkpoints(folder / "checkpoints", pairs, every=EVERY, keep=2)
    data = augment(pairs.numbered, folder / f"seen{shard[0]}.txt")
    history = clip.fit(data, epochs=EPOCHS, callbacks=[checkpoints, *callbacks], verbose=0)
    np.savez(folder / f"end{shard[0]}.npz", *state.values(clip))
    (folder / f"history{shard[0]}.json").write_text(json.dumps([history.epoch, history.history]))


def live(source, folder, kill):
    """One training."""
    if keras.backend.backend() == "tensorflow":
        tf.config.experimental.enable_op_determinism()
    kind, _, number = kill.partition("-")
    callbacks = [Killer(int(number))] if kind == "step" else []
    if kind == "write":
        kill_in_write(int(number))
    if "RANK" in os.environ:
        with keras_clip.training.strategy("torch_ddp") as part:
            train(source, folder, callbacks, part)
    else:
        train(source, folder, callbacks)


def main(source, *runs):
    # Otherwise each garbage collection scans all imported modules.
    gc.freeze()
    while runs:
        end = runs.index("--")
        folder, *kills = runs[:end]
        runs = runs[end + 1 :]
        train_to_the_end(source, folder, kills)
        if "RANK" in os.environ:
            # A process may be ahead of the others, whose previous run still listens on its port.
            os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)


def train_to_the_end(source, folder, kills):
    for kill in [*kills, "never"]:
        # The slow imports ran once, in this process, and no framework has started threads before the fork.
        child = os.fork()
        if child == 0:
            live(source, Path(folder), kill)
            sys.stdout.flush()
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(kill, status, *sorted(path.name for path in Path(folder, "checkpoints").iterdir()), flush=True)
        # With several processes, one may fail because another was killed first.
        if (status != 0) if kill == "never" else (status != -signal.SIGKILL and "RANK" not in os.environ):
            sys.exit(f"The training that was to be killed at {kill!r} ended with status {status}.")


if __name__ == "__main__":
    main(*sys.argv[1:])
