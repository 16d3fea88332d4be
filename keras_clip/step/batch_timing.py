"""Measures how long the steps of `fit` wait for each batch, and the sizes of the batches.

A step on JAX returns before it has finished, and a callback runs only between steps. So the reading itself is timed,
inside Keras' train function, when `model.batch_listener` is set. This reads nothing from a device.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras

from keras_clip import distribution


class BatchRead(NamedTuple):
    """The batches that one call of the train function read: one batch, unless `steps_per_execution` is greater than 1.

    Attributes:
        began, ended: seconds of `time.perf_counter`.
        pairs: list of int. Pairs of each batch, over all replicas.
        text_lengths: list of int. L of each batch's token ids (B, L); 0 where the model takes none.
    """

    began: float
    ended: float
    pairs: list[int]
    text_lengths: list[int]


def timed(model: keras.Model, function: Callable) -> Callable:
    """Returns a train function that calls `model.batch_listener`, if it is set, with a `BatchRead` of its batches.

    Args:
        model: `GlobalBatchTrainer`.
        function: Keras' train function, of (state, iterator) on JAX, of an iterator on TensorFlow, and of a list of
            batches on torch.

    Returns:
        A function of the same arguments.
    """
    call = {"jax": _call_jax, "tensorflow": _call_tensorflow, "torch": _TorchCall()}[keras.backend.backend()]

    def train_function(*args):
        if model.batch_listener is None:
            return function(*args)
        return call(model, function, *args)

    return train_function


class _TimedIterator:
    """An iterator that stores the batches that it returned, and the time at which each was read."""

    def __init__(self, iterator: Iterator):
        self._iterator = iterator
        self.batches, self.spans = [], []

    def __iter__(self):
        return self

    def __next__(self):
        began = time.perf_counter()
        self.batches.append(next(self._iterator))
        self.spans.append((began, time.perf_counter()))
        return self.batches[-1]

    def report(self, model):
        # If one call reads several batches, all but the first are read while the device is busy.
        model.batch_listener(_batch_read(model, self.batches, *self.spans[0]))


def _call_jax(model, function, state, iterator):
    reads = _TimedIterator(iterator)
    result = function(state, reads)
    reads.report(model)
    return result


def _call_tensorflow(model, function, iterator):
    reads = _TimedIterator(iter(iterator))
    # Keras reads within its graph, unless the iterator is not TensorFlow's; that one must not be empty.
    batches = [batch for _, batch in zip(range(model.steps_per_execution), reads, strict=False)]
    if not batches:
        raise StopIteration
    result = function(iter(batches))
    reads.report(model)
    return result


class _TorchCall:
    """Times batches on torch: Keras reads before this call, so all time since the last call counts as reading."""

    def __init__(self):
        self._last_return = -math.inf

    def __call__(self, model, function, batches):
        model.batch_listener(_batch_read(model, batches, self._last_return, time.perf_counter()))
        result = function(batches)
        self._last_return = time.perf_counter()
        return result


def _batch_read(model, batches, began, ended):
    pairs, lengths = [], []
    for batch in batches:
        x = keras.utils.unpack_x_y_sample_weight(batch)[0]
        parts, replicas = _local_parts(model, x[model.branches[0].input_name])
        # Each local part represents one replica of every process.
        pairs.append(replicas // len(parts) * sum(int(part.shape[0]) for part in parts))
        names = [branch.input_name for branch in model.branches if branch.has_tokens]
        tokens = [part for name in names for part in _local_parts(model, x[name])[0]]
        lengths.append(max((int(part.shape[1]) for part in tokens), default=0))
    return BatchRead(began, ended, pairs, lengths)


def _local_parts(model, x):
    """Returns the parts of a global tensor on the replicas of this process, and the number of replicas."""
    strategy = distribution.strategy_of(model)
    if strategy is None:
        return [x], distribution.replica_count()
    return strategy.experimental_local_results(x), strategy.num_replicas_in_sync
