"""The global batch, seen from one replica.

On TensorFlow under a `tf.distribute` strategy each replica holds its own part, and the functions here ask the others.
On JAX the trainer works on the global arrays, so there is nothing to gather.

This module does not start processes and does not place data.
"""

import keras
from keras import ops

from keras_clip.types import Tensor


def _replica_context():
    """TensorFlow's replica context if there are several replicas, else None."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        return context if context is not None and context.num_replicas_in_sync > 1 else None
    if backend == "torch":
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise NotImplementedError(
                "The loss of the global batch is not gathered over torch processes yet; a loss of each process's own "
                f"pairs would be another objective. Received: world_size={dist.get_world_size()}. Train in one "
                "process, or on the TensorFlow or JAX backend."
            )
    return None


def replica_count() -> int:
    """R: how many replicas share the global batch, as seen from inside of one; 1 without a strategy."""
    context = _replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def gather(x: Tensor) -> Tensor:
    """Joins the replicas' tensors along the first axis, in the order of their indices.

    Its gradient is the sum over replicas of what each one asks for its own part.

    Args:
        x: tensor (B, ...); B may differ between replicas.

    Returns:
        Tensor (sum of all B, ...).
    """
    context = _replica_context()
    if context is None:
        return x
    joined = context.all_gather(x, axis=0)
    # TensorFlow forgets all lengths.
    joined.set_shape((None, *x.shape[1:]))
    return joined


def replica_offset(size: int | Tensor) -> Tensor | int:
    """How many rows the replicas before this one hold, if this one holds `size`: int32 scalar, or 0 without a strategy.

    Asks every replica, since the last batch of an epoch may be cut unequally.
    """
    context = _replica_context()
    if context is None:
        return 0
    sizes = gather(ops.reshape(ops.cast(size, "int32"), (1,)))
    return ops.sum(sizes[: context.replica_id_in_sync_group])
