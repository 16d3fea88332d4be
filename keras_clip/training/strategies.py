"""Data-parallel training over devices and processes, by the distribution API of each backend."""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import NamedTuple

import keras

from keras_clip.types import Tensor

# The backend of each strategy.
STRATEGIES = {
    "mirrored": "tensorflow",
    "multi_worker": "tensorflow",
    "jax_data_parallel": "jax",
    "torch_ddp": "torch",
}


class Part(NamedTuple):
    """The part of the data that this process reads: the `shard` argument of `image_text_pairs`.

    Attributes:
        index: int. Index of this process.
        count: int. Number of processes.
    """

    index: int
    count: int


@contextlib.contextmanager
def strategy(name: str | None) -> Iterator[Part]:
    """Returns a context in which models are built and trained over several devices or processes.

        with keras_clip.training.strategy("torch_ddp") as part:
            model = ...
            pairs = keras_clip.data.image_text_pairs(source, model, batch_size // part.count, shard=part)

    Each step trains on one global batch, which is split over the devices.

    - "mirrored": all GPUs of this host, on TensorFlow; `fit` takes global batches.
    - "multi_worker": several hosts with one device each, on TensorFlow, configured by the environment variable
      TF_CONFIG; see `own_part`.
    - "jax_data_parallel": all devices of all hosts, on JAX. Several processes are configured by the environment
      variables MASTER_ADDR, MASTER_PORT, WORLD_SIZE and RANK, as for torch, and require a single text length:
      `text_lengths=(context_length,)`.
    - "torch_ddp": the processes that `torchrun` starts, each on the GPU of its LOCAL_RANK.

    Args:
        name: one of these, or None: one device.

    Returns:
        A context manager that yields the `Part` of this process.

    Raises:
        ValueError: an unknown name, or one of another backend.
        RuntimeError: "torch_ddp" or "multi_worker" without their environment variables.
    """
    if name is not None and STRATEGIES.get(name) != keras.backend.backend():
        raise ValueError(
            f"The strategy must be one of {', '.join(STRATEGIES)}, on its own backend. Received: {name!r} on "
            f"{keras.backend.backend()}. Set the environment variable KERAS_BACKEND"
            f"={STRATEGIES.get(name, 'tensorflow')}."
        )
    contexts = {None: _single, "mirrored": _mirrored, "multi_worker": _multi_worker, "torch_ddp": _torch}
    with contexts.get(name, _jax)() as part:
        yield part


@contextlib.contextmanager
def _single():
    yield Part(0, 1)


@contextlib.contextmanager
def _mirrored():
    import tensorflow as tf

    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    with tf.distribute.MirroredStrategy([device.name for device in devices]).scope():
        yield Part(0, 1)


@contextlib.contextmanager
def _multi_worker():
    import tensorflow as tf

    _require("TF_CONFIG", "multi_worker", "Set it to the cluster and the task of each worker; see docs/scale.md.")
    config = json.loads(os.environ["TF_CONFIG"])
    with tf.distribute.MultiWorkerMirroredStrategy().scope():
        yield Part(config["task"]["index"], len(config["cluster"]["worker"]))


@contextlib.contextmanager
def _jax():
    count, index = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if count > 1:
        coordinator = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        keras.distribution.initialize(coordinator, count, index)
    # Each process reads its own part.
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    try:
        yield Part(index, count)
    finally:
        keras.distribution.set_distribution(None)


@contextlib.contextmanager
def _torch():
    import torch

    _require("RANK", "torch_ddp", "Start it with `torchrun --nproc-per-node=<GPUs> <script> ...`.")
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Sizes are exchanged between CPUs, so that no process waits for its GPU.
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo")
    try:
        yield Part(torch.distributed.get_rank(), torch.distributed.get_world_size())
    finally:
        torch.distributed.destroy_process_group()


def _require(variable, name, cure):
    if variable not in os.environ:
        raise RuntimeError(
            f"The strategy {name!r} requires the environment variable {variable}. Received: none. {cure}"
        )


def own_part(pairs: Tensor) -> Tensor:
    """Returns the dataset for `fit` on a worker of "multi_worker" that reads its own part of the data.

    The dataset is not sharded again and repeats without end. Pass `steps_per_epoch=len(pairs)` to `fit`, the number of
    steps that all workers have agreed on.

    Args:
        pairs: `tf.data.Dataset` of this worker's part, in batches for one replica.

    Returns:
        `tf.distribute.DistributedDataset`.
    """
    import tensorflow as tf

    return tf.distribute.get_strategy().distribute_datasets_from_function(lambda _: pairs.repeat())
