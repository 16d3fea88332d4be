"""Assigns large weights in place: `assign` would hold the old and the new value and copies at the same time."""

import functools
from collections.abc import Callable

import keras
import numpy as np

# Elements that are assigned at a time: 16 MiB in float32.
_PART = 2**22


def assign_in_place(variable: keras.Variable, read: Callable[[int, int], np.ndarray]) -> None:
    """Assigns a variable, some rows at a time.

    Args:
        variable: Keras variable of at least one axis. On JAX its old value is deleted, so no other object may use it.
        read: function of (first, last) that returns the rows from `first` to before `last`, a float array.
    """
    count = variable.shape[0]
    step = max(1, _PART * count // max(1, int(np.prod(variable.shape))))
    for first in range(0, count, step):
        last = min(first + step, count)
        _WRITE[keras.backend.backend()](variable, first, last, np.asarray(read(first, last), np.float32))


def _write_tensorflow(variable, first, last, rows):
    import tensorflow as tf

    # `value[first:last].assign` reads the whole value first, which makes a copy of it.
    tf.raw_ops.ResourceStridedSliceAssign(
        ref=variable.value.handle, begin=[first], end=[last], strides=[1], value=tf.cast(rows, variable.dtype)
    )


def _write_jax(variable, first, last, rows):
    variable.assign(_jax_update()(variable.value, rows, first))
    # JAX returns before an update has finished, and each unfinished update would hold its rows.
    variable.value.block_until_ready()


@functools.cache
def _jax_update():
    import jax

    def update(value, rows, first):
        return jax.lax.dynamic_update_slice_in_dim(value, rows.astype(value.dtype), first, axis=0)

    return jax.jit(update, donate_argnums=0)


def _write_torch(variable, first, last, rows):
    import torch

    variable.value.data[first:last] = torch.from_numpy(rows)


_WRITE = {"tensorflow": _write_tensorflow, "jax": _write_jax, "torch": _write_torch}
