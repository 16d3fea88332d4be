"""Stop and resume: saves the complete state of a training, so that it continues as if it had never stopped."""

import json
import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_clip import compat
from keras_clip.files import PART
from keras_clip.training import checkpoint_file, state
from keras_clip.training.background import Background

_NAME = re.compile(r"step-(\d{9,})\.safetensors")
# A true value for `model.stop_training` that differs from those that other callbacks set.
_END_OF_EPOCH = "the rest of the epoch is trained"


class DifferentTrainingError(ValueError):
    """The checkpoints found are of another training: of another model, optimizer, data or options."""


class Checkpoints(keras.callbacks.Callback):
    """Saves the state of a training every `every` steps, and resumes it when the same program is run again.

        pairs = keras_clip.data.image_text_pairs("shards/*.tar", model, batch_size)
        model.fit(pairs, epochs=32, callbacks=[keras_clip.training.Checkpoints("run/checkpoints", pairs)])

    A checkpoint holds weights and statistics, all variables of the optimizer (step, moments, averages), the states of
    the random generators in the model, the metrics of the current epoch, the history, and the position in the data.
    `fit` then begins in the epoch and at the step of the newest checkpoint, continues with the next sample, ends that
    epoch where it would have ended, and returns the history of the whole run. On the same machine the weights equal
    those of an uninterrupted run bit by bit, if the backend is deterministic (TensorFlow:
    `tf.config.experimental.enable_op_determinism`). The progress bar counts the steps of that epoch from one.

    A file gets its name once it is complete and on the disk, so a process may be killed at any moment. Each file has
    its SHA-256: for a damaged one there is a warning, and the one before it is used. Files are in the format
    safetensors.

    The step that saves only copies the state to the memory of the host; a thread writes it while the training goes on.
    Then an error of writing, such as a full disk, is raised by the next checkpoint or at the end of `fit`.

    Put it before callbacks that change weights at the end of an epoch. The state of other callbacks, such as the
    patience of `EarlyStopping`, and of the global generators of numpy and Python is not saved.

    With several processes all of them pass it, with a folder that all of them can read; the first one writes.

    Args:
        folder: directory of the files `step-<number of steps>.safetensors`; made if it does not exist.
        pairs: the training data as `image_text_pairs` returns it, of known length. `fit` may receive a dataset derived
            from it, such as `pairs.repeat()` with `steps_per_epoch=len(pairs)`, or the result of `own_part`.
        every: int > 0. Steps between two checkpoints. There is also one at the end of each epoch.
        keep: int > 0. Number of checkpoints to keep, the newest. With one only, no other is left if it is damaged.
        identity: {name: JSON data} that a resumed training must share beside the model, the optimizer and the data,
            such as the options of an augmentation of your own.
        background: bool. Whether a thread writes the files, which takes memory of the host for a copy of the state.
            False: the training waits.

    Attributes:
        first_step: int. Steps that were done before `fit` began, which it does not repeat; 0 of a new training.

    Raises:
        TypeError: data that cannot start in the middle of an epoch.
        ValueError: a number that is not positive; when `fit` begins: another number of steps per epoch than the data
            has, or damaged checkpoints only.
        DifferentTrainingError: when `fit` begins: other data (a digest of some samples, crops and preprocessing
            included), another model, optimizer or `identity` than those of the checkpoint; the error names each
            difference.
        RuntimeError: processes that find different checkpoints.
    """

    def __init__(
        self,
        folder: str | Path,
        pairs: Any,
        every: int = 1000,
        keep: int = 3,
        identity: Mapping[str, Any] | None = None,
        background: bool = True,
    ):
        super().__init__()
        if not hasattr(getattr(pairs, "epochs", None), "start_at"):
            raise TypeError(
                "Training can be resumed in data of `image_text_pairs` only. Received: pairs of type "
                f"{type(pairs).__name__}. Pass what `image_text_pairs` returned; `fit` may take a dataset made of it."
            )
        if int(pairs.cardinality()) < 1:
            raise ValueError(
                "The data must have a length. Received: pairs of unknown length. Set the length of the stream: "
                "`source.apply(tf.data.experimental.assert_cardinality(count))`, with `training=True`."
            )
        if every < 1 or keep < 1:
            raise ValueError(f"`every` and `keep` must be positive. Received: every={every}, keep={keep}.")
        self.folder = Path(folder)
        self.every, self.keep, self.background = every, keep, background
        self._writer = Background()
        # The copy of the state that is being written. Its memory is used for the next one.
        self._copy: list[np.ndarray] = []
        # Normalised by a JSON round trip.
        self._own_identity = json.loads(json.dumps(dict(identity or {})))
        self.first_step = 0
        self._epochs, self._length = pairs.epochs, len(pairs)
        self._resumed: dict[str, Any] | None = None
        # Variables and values.
        self._metrics: tuple[list[keras.Variable], list[Any]] = ([], [])
        self._epoch = self._first_step = self._saved = 0
        self._has_begun = False

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Restores the newest checkpoint, if there is one."""
        # The last one of a `fit` that was interrupted.
        self._writer.wait()
        self._copy = []
        if self.params.get("steps") != self._length:
            raise ValueError(
                f"An epoch of `fit` must be one of the data. Received: {self.params.get('steps')} steps per epoch, and "
                f"data of {self._length} batches. Leave `steps_per_epoch` out, or set it to `len(pairs)`."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if state.each_process(0, self.model).index == 0:
            # The second pattern is that of earlier versions.
            for pattern in (f".step-*{PART}.safetensors", ".step-*.safetensors.*"):
                for begun in self.folder.glob(pattern):
                    begun.unlink(missing_ok=True)
        self._resumed, self._has_begun = None, False
        self._first_step, self._metrics = 0, ([], [])
        self.first_step = 0
        path = self._newest()
        if path is not None:
            self._restore(path)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Arguments as of `keras.callbacks.Callback`."""
        self._epoch, step = epoch, self._first_step
        if self._has_begun:
            self._first_step = 0
            return
        self._has_begun = True
        # Otherwise the next `fit` would begin there too.
        compat.set_initial_epoch(self.model, None)
        index = state.each_process(0, self.model).index
        broken = self._resumed["broken"][index] if self._resumed else 0
        self._epochs.start_at(epoch, step, broken)
        self._saved = epoch * self._length + step
        self._restore_history()
        # Keras has just reset them.
        state.assign(*self._metrics)

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Saves the state after the steps before this one. Arguments as of `keras.callbacks.Callback`."""
        step = self._first_step + batch
        total = self._epoch * self._length + step
        if batch and total // self.every > self._saved // self.every:
            self._save(self._epoch, step)
        if self._first_step and step + self.model.steps_per_execution >= self._length and not self.model.stop_training:
            # Ends the epoch after this step, which is its last one.
            self.model.stop_training = _END_OF_EPOCH

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Arguments as of `keras.callbacks.Callback`."""
        if self.model.stop_training == _END_OF_EPOCH:
            self.model.stop_training = False
        self._save(epoch + 1, 0, logs)

    def on_train_end(self, logs: dict | None = None) -> None:
        """Waits for the last file, and restores the history of a run that had ended before."""
        self._writer.wait()
        self._copy = []
        compat.set_initial_epoch(self.model, None)
        if not self._has_begun:
            self._restore_history()

    def _files(self):
        """The checkpoints by their number of steps, the newest first."""
        found = [(int(match[1]), path) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        return dict(sorted(found, reverse=True))

    def _newest(self):
        """The newest undamaged checkpoint, which all processes must agree on; None if there are no checkpoints."""
        files, newest = self._files(), -1
        for number, path in files.items():
            try:
                checkpoint_file.check(path)
                newest = number
                break
            except (ValueError, OSError) as error:
                warnings.warn(f"{error} The checkpoint before it is used.", stacklevel=2)
        if len(set(found := state.each_process(newest, self.model).numbers)) > 1:
            raise RuntimeError(
                f"All processes must use the same folder. Received: folder={str(self.folder)!r}, where the newest "
                f"checkpoints that they find are those of the steps {found} (-1: none). Use one on a shared disk."
            )
        if files and newest < 0:
            raise ValueError(
                f"One of the checkpoints must be undamaged. Received: folder={str(self.folder)!r} with "
                f"{len(files)} damaged ones. Remove them to start a new training."
            )
        return files.get(newest)

    def _restore(self, path):
        record, entries, arrays = checkpoint_file.read(path)
        self._refuse_another(path, record["identity"], entries)
        variables = state.variables(self.model)
        self._resumed, self._first_step = record, record["step"]
        arrays = list(arrays)
        state.assign(variables, arrays)
        metrics = set(map(id, self.model.metrics_variables)) if record["step"] else ()
        chosen = [number for number, variable in enumerate(variables) if id(variable) in metrics]
        self._metrics = [variables[number] for number in chosen], [np.array(arrays[number]) for number in chosen]
        self.first_step = record["epoch"] * self._length + record["step"]
        # `fit` reads this after `on_train_begin`.
        compat.set_initial_epoch(self.model, record["epoch"])
        if record["epoch"] >= self.params.get("epochs", record["epoch"] + 1):
            logging.getLogger("keras_clip").warning(
                "Nothing left to do: %s is the end of epoch %s, and `epochs` is %s.",
                path,
                record["epoch"],
                self.params["epochs"],
            )

    def _refuse_another(self, path, identity, entries):
        own, differing = self._identity(), []
        if "data's crop" in own:
            # The only crop of the versions whose checkpoints do not tell it.
            identity = {"data's crop": "random_resized", **identity}
        if "data's order" in own:
            # Until then, the permutation of an epoch was held in memory. The two must not be mixed in one epoch.
            identity = {"data's order": "permutation in memory", **identity}
        # What checkpoints of earlier versions do not tell is not compared.
        unknown = {key for key in own if key not in identity and key.startswith(("data's ", "run's "))}
        for key in sorted({*identity, *own} - unknown):
            if identity.get(key) != own.get(key):
                differing.append(f"{key} {identity.get(key)!r}, and here {own.get(key)!r}")
        for there, here in zip([*entries, None], [*state.entries(self.model), None], strict=False):
            if there != here:
                differing.append(f"the variable {there and tuple(there)}, and here {here and tuple(here)}")
                break
        if differing:
            raise DifferentTrainingError(
                "A checkpoint can only be resumed with the same model, optimizer and data. Received: "
                f"{path} with {'; '.join(differing)}. Run the program that wrote it, or use another folder, or remove "
                "this one to begin anew."
            )

    def _identity(self):
        data = {f"data's {key}": value for key, value in self._epochs.identity.items()}
        run = {f"run's {key}": value for key, value in self._own_identity.items()}
        # Objects without a configuration are identified by their class.
        plain = json.loads(json.dumps(data, default=lambda value: type(value).__name__))
        return {**state.identity(self.model), **plain, **run}

    def _restore_history(self):
        if self._resumed and self.model.history is not None:
            self.model.history.epoch = list(self._resumed["history"]["epoch"])
            self.model.history.history = {key: list(column) for key, column in self._resumed["history"]["logs"].items()}

    def _save(self, epoch, step, logs=None):
        """Writes the checkpoint of a step; `logs` are those of an epoch that has just ended."""
        total = epoch * self._length + step
        record = {"epoch": epoch, "step": step, "identity": self._identity(), "history": self._history(epoch, logs)}
        index, record["broken"] = state.each_process(self._epochs.broken_before(epoch, step), self.model)
        values = state.values(self.model)
        if index:
            # Processes read the variables together, and the first one writes.
            for _ in values:
                pass
        elif self.background:
            self._writer.wait()
            self._writer.start(self._write, total, state.entries(self.model), self._copied(values), record)
        else:
            self._write(total, state.entries(self.model), values, record)
        self._saved = total

    def _copied(self, values):
        """The values in memory that the next step does not change."""
        if not self._copy:
            self._copy = [np.array(value) for value in values]
        else:
            for copy, value in zip(self._copy, values, strict=True):
                np.copyto(copy, value)
        return self._copy

    def _write(self, total, entries, values, record):
        checkpoint_file.write(self.folder / f"step-{total:09d}.safetensors", entries, values, record)
        for old in list(self._files().values())[self.keep :]:
            old.unlink(missing_ok=True)

    def _history(self, epoch, logs):
        """The history, with the epoch that has just ended, which the callback `History` may not have added yet."""
        history = self.model.history
        epochs, columns = list(history.epoch), {key: list(column) for key, column in history.history.items()}
        if logs is not None and epoch - 1 not in epochs:
            epochs.append(epoch - 1)
            for key, value in logs.items():
                columns.setdefault(key, []).append(value)
        return {"epoch": epochs, "logs": columns}
