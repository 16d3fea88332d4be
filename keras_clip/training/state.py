"""The state of a training on every process: variables as whole arrays, and numbers of all processes."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_clip import compat, distribution
from keras_clip.training.checkpoint_file import Entry


def variables(model: keras.Model) -> list[keras.Variable]:
    """Weights, statistics, random states and metrics of a model and variables of its optimizer, in a fixed order."""
    found = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    return list({id(variable): variable for variable in found}.values())


def entries(model: keras.Model) -> list[Entry]:
    """Descriptions of the variables, named by their order and by their path without the numbers that Keras appends."""
    return [
        Entry(
            f"{number:05d} {re.sub(r'_[0-9]+(?=[/_]|$)', '', v.path)}",
            tuple(v.shape),
            keras.backend.standardize_dtype(v.dtype),
        )
        for number, v in enumerate(variables(model))
    ]


def values(model: keras.Model) -> Iterator[np.ndarray]:
    """The variables as arrays, reduced or gathered over replicas; all processes must call it and iterate together."""
    compat.synchronize_variables(model)
    read = _read_jax if keras.backend.backend() == "jax" else _read
    yield from map(read, variables(model))


def _read(variable):
    return keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(variable))


def _read_jax(variable):
    value = variable.value
    if value.is_fully_addressable:
        return np.asarray(value)
    if value.is_fully_replicated:
        return np.asarray(value.addressable_data(0))
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(value, tiled=True)


def assign(targets: Iterable[keras.Variable], arrays: Iterable[np.ndarray]) -> None:
    """Assigns values to variables, on every replica."""
    for variable, array in zip(targets, arrays, strict=True):
        # A copy: backends may keep a reference to the array, which is memory-mapped.
        variable.assign(np.array(array))


def identity(model: keras.Model) -> dict[str, Any]:
    """The backend and the configuration of the optimizer as JSON data, which a resumed training must share."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    config = {"class": type(optimizer).__name__, **optimizer.get_config()}
    del config["name"]
    if isinstance(config["learning_rate"], float):
        # Callbacks may change a learning rate that is a variable.
        del config["learning_rate"]
    plain = {"backend": keras.backend.backend()} | {f"optimizer's {key}": value for key, value in config.items()}
    return json.loads(json.dumps(plain, default=lambda value: type(value).__name__))


class Processes(NamedTuple):
    """The numbers of all processes.

    Attributes:
        index: int. Index of this process.
        numbers: list of ints, one for each process.
    """

    index: int
    numbers: list[int]


def each_process(number: int, model: keras.Model) -> Processes:
    """Gathers a number of each process on all of them; all processes must call it.

    Args:
        number: int. The number of this process.
        model: the model in training.

    Returns:
        `Processes`.
    """
    gather = {"tensorflow": _each_tensorflow, "jax": _each_jax, "torch": _each_torch}[keras.backend.backend()]
    return gather(number, model)


def _each_tensorflow(number, model):
    import tensorflow as tf

    strategy = distribution.strategy_of(model)
    if not distribution.is_multi_worker(strategy):
        return Processes(0, [number])
    replicas = []

    def value(context):
        replicas.append(context.replica_id_in_sync_group)
        return tf.constant([number], tf.int64)

    own = strategy.experimental_distribute_values_from_function(value)
    numbers = strategy.gather(own, axis=0).numpy()
    # Each device of a process has the same number.
    return Processes(replicas[0] // len(replicas), numbers[:: len(replicas)].tolist())


def _each_jax(number, model):
    import jax

    if jax.process_count() == 1:
        return Processes(0, [number])
    from jax.experimental import multihost_utils

    return Processes(jax.process_index(), multihost_utils.process_allgather(np.int32(number)).tolist())


def _each_torch(number, model):
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return Processes(0, [number])
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    own = torch.tensor([number], dtype=torch.int64, device=device)
    numbers = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(numbers, own)
    return Processes(dist.get_rank(), torch.cat(numbers).tolist())
