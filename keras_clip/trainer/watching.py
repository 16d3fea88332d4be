"""What the steps of `fit` were fed: how long each batch was waited for, and how large it was.

A step on JAX returns before it is done, and a callback sees the main thread's clock only between steps. So the reading
itself is watched, inside Keras' train function, where one listens; nothing is read from a device for it.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras

from keras_clip import distribution
from keras_clip.trainer import keras_repairs


class BatchRead(NamedTuple):
    """What one call of the train function read, which is one batch as long as `steps_per_execution` is 1.

    Attributes:
        began, ended: seconds of `time.perf_counter`.
        pairs: list of int. Pairs of each batch, over all replicas.
        text_lengths: list of int. Tokens of each batch's texts.
    """

    began: float
    ended: float
    pairs: list[int]
    text_lengths: list[int]


def replicas_and_devices(model: keras.Model) -> tuple[int, int]:
    """How many parts a global batch is cut into, and how many devices compute a step; from outside of a step.

    Args:
        model: `GlobalBatchTrainer`.

    Returns:
        Two ints, which differ only under `keras.distribution.ModelParallel`.
    """
    strategy = keras_repairs.strategy_of(model)
    if strategy is not None:
        return (strategy.num_replicas_in_sync,) * 2
    layout = keras.distribution.distribution() if keras.backend.backend() == "jax" else None
    if layout is not None:
        return distribution.row_shards(), layout.device_mesh.devices.size
    return (distribution.replica_count(),) * 2


def watched(model: keras.Model, function: Callable) -> Callable:
    """A train function that tells `model.batch_listener` what it read, where there is one.

    Args:
        model: `GlobalBatchTrainer`.
        function: Keras' train function: on JAX of (state, iterator), on TensorFlow of an iterator, on torch of a list
            of batches.

    Returns:
        A function of the same arguments.
    """
    call = {"jax": _call_jax, "tensorflow": _call_tensorflow, "torch": _TorchCall()}[keras.backend.backend()]

    def train_function(*args):
        if model.batch_listener is None:
            return function(*args)
        return call(model, function, *args)

    return train_function


class _Watched:
    """An iterator that notes what it gave, and how long that took."""

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

    def tell(self, model):
        # Of several batches the later ones are read while the device is busy.
        model.batch_listener(_described(model, self.batches, *self.spans[0]))


def _call_jax(model, function, state, iterator):
    watched = _Watched(iterator)
    result = function(state, watched)
    watched.tell(model)
    return result


def _call_tensorflow(model, function, iterator):
    watched = _Watched(iter(iterator))
    # Keras would read within its graph. From an iterator that is not TensorFlow's it reads outside, but must find a
    # batch there.
    batches = [batch for _, batch in zip(range(model.steps_per_execution), watched, strict=False)]
    if not batches:
        raise StopIteration
    result = function(iter(batches))
    watched.tell(model)
    return result


class _TorchCall:
    """Keras reads the batch before it calls: all that passed since the last call counts as reading."""

    def __init__(self):
        self._last_return = -math.inf

    def __call__(self, model, function, batches):
        model.batch_listener(_described(model, batches, self._last_return, time.perf_counter()))
        result = function(batches)
        self._last_return = time.perf_counter()
        return result


def _described(model, batches, began, ended):
    strategy = keras_repairs.strategy_of(model)
    inputs = [keras.utils.unpack_x_y_sample_weight(batch)[0] for batch in batches]
    pairs, lengths = [], []
    for x in inputs:
        images, texts = [x["images"]], [x["token_ids"]]
        processes = distribution.replica_count()
        if strategy is not None:
            images, texts = map(strategy.experimental_local_results, (x["images"], x["token_ids"]))
            processes = strategy.num_replicas_in_sync // len(images)
        pairs.append(processes * sum(int(part.shape[0]) for part in images))
        lengths.append(max(int(part.shape[1]) for part in texts))
    return BatchRead(began, ended, pairs, lengths)
