"""Measures the throughput of training and its waiting for data, for the progress bar, TensorBoard and a CSV file."""

import csv as csv_files
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import keras

from keras_clip import compat, distribution, flops


class _Totals:
    """Sums over several steps."""

    def __init__(self):
        self.steps = self.pairs = self.flops = 0
        self.seconds = self.waited = 0.0

    def add(self, steps, pairs, seconds, waited, flops):
        self.steps += steps
        self.pairs += pairs
        self.seconds += seconds
        self.waited += waited
        self.flops += flops

    def metrics(self, peak):
        """Returns the logged metrics; `peak` is the peak FLOP/s of all devices, or None."""
        metrics = {
            "pairs_per_second": self.pairs / self.seconds,
            "step_seconds": self.seconds / self.steps,
            "data_wait": self.waited / self.seconds,
        }
        return metrics if peak is None else {**metrics, "mfu": self.flops / self.seconds / peak}


class Telemetry(compat.AsyncCallback):
    """Measures the steps of `fit`. With any strategy, pass it in the process that shows the progress bar.

    It adds to the progress bar and to `History`:

    - "pairs_per_second": pairs of the global batches per second, over all replicas and processes;
    - "step_seconds": time from the end of one step on the device to the end of the next;
    - "data_wait": fraction of the time, in [0, 1], in which the device is idle because a batch is still being read;
    - "mfu": the executed FLOPs (at the text length of each batch, including the recomputation of micro-batches and of
      rematerialised blocks; see `keras_clip.flops`) divided by the peak FLOPs of the devices in the same time.

    The logs of a step are means over the last `every` steps; those of an epoch are means over all its steps, including
    steps that compile. The files get a row every `every` steps and at the end of an epoch, which also has the logs of
    the model: loss, "logit_scale", "gradient_norm", accuracies, "skipped_steps". A run that is resumed at a step keeps
    the rows of the CSV file up to that step.

    The callback reads nothing from the device in addition to the logs of Keras, and no step waits for it. Put it before
    callbacks that store logs, such as `Checkpoints` and `CSVLogger`. On torch the time to read a batch always counts as
    waiting for data, since Keras reads batches internally.

    Args:
        csv: path of a CSV file, or None.
        tensorboard: folder for TensorBoard's event files, or None.
        every: int > 0. Number of steps per row.
        peak_flops: float or None. Peak FLOP/s of one device in the compute dtype, such as 989e12 for bfloat16 on an
            H100. None: no "mfu".
        step_flops: function (pairs, tokens per text) -> FLOPs of a step, for encoders that are unknown to
            `keras_clip.flops`. None: `keras_clip.flops.train_step`.

    Raises:
        ValueError: a number is not positive or, when `fit` begins, `peak_flops` is given and the FLOPs of the encoders
            are unknown.
        TypeError: when `fit` begins, the model is not a `CLIPModel`.
        ImportError: `tensorboard` is given, and neither TensorFlow nor the package tensorboard is installed.
    """

    def __init__(
        self,
        csv: str | os.PathLike | None = None,
        tensorboard: str | os.PathLike | None = None,
        every: int = 10,
        peak_flops: float | None = None,
        step_flops: Callable[[int, int], float] | None = None,
    ):
        super().__init__()
        for name, value in (("every", every), ("peak_flops", peak_flops)):
            if value is not None and value <= 0:
                raise ValueError(f"`{name}` must be positive. Received: {name}={value}.")
        self.every = every
        self.peak_flops = peak_flops
        self.step_flops = step_flops
        self._csv = None if csv is None else _CsvFile(Path(csv))
        self._board = None if tensorboard is None else _event_file(Path(tensorboard))
        self._lock = threading.Lock()

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Registers the listener for the batches that the model reads."""
        if not hasattr(self.model, "batch_listener"):
            raise TypeError(f"`Telemetry` requires a `CLIPModel`. Received: {type(self.model).__name__}.")
        if self.peak_flops is not None and self.step_flops is None and flops.train_step(self.model, 1) is None:
            encoders = [self.model.image_encoder.name, self.model.text_encoder.name]
            raise ValueError(
                f"The FLOPs are known for the encoders of this library only. Received: encoders {encoders}, peak_flops="
                f"{self.peak_flops}. Pass `step_flops`, a function (pairs, tokens per text) -> FLOPs of a step, or "
                "omit `peak_flops`."
            )
        # On JAX each access to `self.model` fetches its state, which would block the steps.
        self._measured_model = self.model
        self._replicas, devices = distribution.replicas_and_devices(self.model)
        self._peak = None if self.peak_flops is None else devices * self.peak_flops
        self._reads = deque()
        self._step = None
        self.model.batch_listener = self._reads.append
        # After an exception in `fit`, too.
        self.model.call_after_fit(self._close)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Starts the clock. Arguments as in `keras.callbacks.Callback`."""
        if self._step is None:
            # Counted on the host from here on, as reading it later would wait for the device.
            iterations = keras.ops.convert_to_tensor(self.model.optimizer.iterations)
            self._step = int(keras.ops.convert_to_numpy(iterations))
            if self._csv is not None:
                self._csv.open(self._step)
        self._epoch, self._known_flops = epoch, {}
        self._in_epoch, self._recent, self._shown = _Totals(), _Totals(), {}
        self._reads.clear()
        self._ends, self._next = {}, None
        self._last_end = time.perf_counter()

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Stores the first batch of the epoch, which a resumed run enters later. Arguments as in Keras' callbacks."""
        if self._next is None:
            self._next = batch + self._measured_model.steps_per_execution - 1

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Adds the metrics to `logs`. Arguments as in `keras.callbacks.Callback`."""
        now = time.perf_counter()
        with self._lock:
            self._ends[batch] = now, dict(logs or {})
            while self._next in self._ends:
                # Threads may report out of order, but no step ends later than its successors.
                end = min(end for end, _ in self._ends.values())
                self._add(end, self._ends.pop(self._next)[1])
                self._next += self._measured_model.steps_per_execution
            if logs is not None:
                logs.update(self._shown or self._recent_metrics())

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Adds the metrics of the epoch to `logs`. Arguments as in `keras.callbacks.Callback`."""
        if not self._in_epoch.steps:
            return
        if self._recent.seconds > 0:
            self._write({key: value for key, value in (logs or {}).items() if not key.startswith("val_")})
        if logs is not None:
            logs.update(self._in_epoch.metrics(self._peak))

    def on_train_end(self, logs: dict | None = None) -> None:
        """Closes the files."""
        self._close()

    def _close(self):
        self._measured_model.batch_listener = None
        for file in (self._csv, self._board):
            if file is not None:
                file.close()

    def _add(self, end, logs):
        read = self._reads.popleft()
        waited = max(0.0, read.ended - max(read.began, self._last_end))
        done = 0 if self._peak is None else sum(map(self._flops, read.pairs, read.text_lengths))
        for totals in (self._in_epoch, self._recent):
            totals.add(len(read.pairs), sum(read.pairs), end - self._last_end, waited, done)
        self._step += len(read.pairs)
        self._last_end = end
        if self._recent.steps >= self.every and self._recent.seconds > 0:
            self._write(logs)

    def _flops(self, pairs, length):
        key = pairs, length
        if key not in self._known_flops:
            if self.step_flops is not None:
                self._known_flops[key] = self.step_flops(pairs, length)
            else:
                self._known_flops[key] = flops.train_step(self._measured_model, pairs, length, self._replicas)
        return self._known_flops[key]

    def _recent_metrics(self):
        return self._recent.metrics(self._peak) if self._recent.seconds > 0 else {}

    def _write(self, logs):
        """Writes a row for the steps since the last row."""
        self._shown = self._recent_metrics()
        self._recent = _Totals()
        row = {**logs, **self._shown}
        if self._csv is not None:
            self._csv.write({"step": self._step, "epoch": self._epoch, **row})
        if self._board is not None:
            self._board.write(self._step, row)


class _CsvFile:
    """A CSV file that is flushed after every row, and continued by a resumed run."""

    def __init__(self, path):
        self._path = path
        self._file = self._writer = None

    def open(self, step):
        """Opens the file and keeps its rows up to `step`; none, if that is 0."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        rows, names = [], None
        if step and self._path.exists():
            with open(self._path, newline="", encoding="utf-8") as file:
                reader = csv_files.DictReader(file)
                # A row that was truncated when the process was killed lacks some of its values.
                rows = [row for row in reader if None not in row.values() and int(row["step"]) <= step]
                names = reader.fieldnames
        temporary = self._path.with_name(f"{self._path.name}.new")
        self._file = open(temporary, "w", newline="", encoding="utf-8")
        if names:
            self._write_header(names)
            self._writer.writerows(rows)
            self._file.flush()
        os.replace(temporary, self._path)

    def _write_header(self, names):
        self._writer = csv_files.DictWriter(self._file, names, extrasaction="ignore", restval="")
        self._writer.writeheader()

    def write(self, row):
        if self._writer is None:
            self._write_header(list(row))
        self._writer.writerow(row)
        self._file.flush()

    def close(self):
        if self._file is not None:
            self._file.close()
        self._file = self._writer = None


class _TensorFlowEvents:
    """Event files written by TensorFlow, which needs no other package for it."""

    def __init__(self, folder):
        import tensorflow as tf

        self._writer = tf.summary.create_file_writer(str(folder))
        self._metadata = tf.compat.v1.SummaryMetadata()
        self._metadata.plugin_data.plugin_name = "scalars"

    def write(self, step, row):
        import tensorflow as tf

        with tf.device("CPU"), self._writer.as_default(step):
            for name, value in row.items():
                tf.summary.write(name, tf.constant(value, "float32"), metadata=self._metadata)
            self._writer.flush()

    def close(self):
        self._writer.flush()


class _TorchEvents:
    """Event files written by torch, for which the package `tensorboard` must be installed."""

    def __init__(self, folder):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def write(self, step, row):
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self):
        self._writer.flush()


def _event_file(folder):
    for event_file in (_TensorFlowEvents, _TorchEvents):
        try:
            return event_file(folder)
        except ImportError:
            continue
    raise ImportError(
        "TensorBoard files require TensorFlow, or torch with the package tensorboard. Received: "
        f"tensorboard='{folder}', with neither installed. Install `tensorflow` or `tensorboard`, or use `csv`, which "
        "requires neither."
    )
