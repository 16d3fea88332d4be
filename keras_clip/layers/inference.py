"""The call of a model for inference, compiled on the backends that have a compiler worth waiting for."""

import operator
import weakref
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_clip import compat
from keras_clip.types import Tensor

# JAX compiles a program for each number of rows, which is rounded up to a power of two, or from here on to a multiple.
_ROWS = 16


class Inference:
    """Calls a model as `model(inputs, training=False)` does, by a program that is compiled at the first call.

    TensorFlow traces one graph for batches of any size. JAX compiles a program for each of a few sizes, to which it
    fills batches; otherwise it would compile every operation by itself for each size. torch calls the model, and so do
    all backends within a graph that the caller traces. Gradients are those of the call.

    The program belongs to the variables with which it was traced, and is traced anew once the model has others: after
    `quantize` or `enable_lora`.

    Args:
        model: a Keras model of one input, an array whose first axis is the batch.
    """

    def __init__(self, model: keras.Model):
        # Without a cycle of references, the memory of a model is free when the last reference to it is gone.
        self._model = weakref.ref(model)
        self._variables: list[keras.Variable] = []
        self._programs: dict[Any, Any] = {}

    def __call__(self, inputs: Any) -> Tensor:
        """Returns the outputs (B, ...) of the model for inputs (B, ...)."""
        model, backend = self._model(), keras.backend.backend()
        is_array = hasattr(inputs, "dtype") and hasattr(inputs, "shape") and not isinstance(inputs, keras.KerasTensor)
        if backend not in ("tensorflow", "jax") or not is_array or not len(inputs.shape):
            return model(inputs, training=False)
        variables = model.variables
        if len(variables) != len(self._variables) or any(map(operator.is_not, variables, self._variables)):
            self._variables, self._programs = variables, {}
        return self._by_tensorflow(model, inputs) if backend == "tensorflow" else self._by_jax(inputs)

    def _by_tensorflow(self, model, inputs):
        import tensorflow as tf

        if not tf.executing_eagerly():
            return model(inputs, training=False)
        inputs = ops.convert_to_tensor(inputs)
        key = (inputs.dtype, tuple(inputs.shape[1:]))
        if key not in self._programs:
            reference = self._model
            self._programs[key] = tf.function(
                lambda x: reference()(x, training=False), [tf.TensorSpec([None, *inputs.shape[1:]], inputs.dtype)]
            )
        return self._programs[key](inputs)

    def _by_jax(self, inputs):
        import jax

        # Not `stateless_call`, which orders variables by what is locked now.
        variables, reference = self._variables, self._model
        if not self._programs:

            def run(values, x):
                return compat.call_stateless(lambda x: reference()(x, training=False), variables, values, x).output

            self._programs["jax"] = jax.jit(run)
        rows = inputs.shape[0]
        size = padded_size(rows)
        if size != rows:
            pad = np.pad if isinstance(inputs, np.ndarray) else jax.numpy.pad
            inputs = pad(inputs, [(0, size - rows)] + [(0, 0)] * (len(inputs.shape) - 1))
        return self._programs["jax"]([variable.value for variable in variables], inputs)[:rows]


def padded_size(rows: int) -> int:
    """Returns the number of rows that JAX compiles for: a power of two up to 16, then a multiple of 16.

    Args:
        rows: int >= 0.

    Returns:
        int >= `rows`.
    """
    return -(-rows // _ROWS) * _ROWS if rows > _ROWS else 1 << max(rows - 1, 0).bit_length() if rows else 0
