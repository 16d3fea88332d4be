"""Values and gradients on the current backend, as NumPy arrays."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import ops


def value_and_gradients(function: Callable, arrays: Sequence) -> tuple[np.ndarray, list[np.ndarray]]:
    """Computes the value of a pure function of tensors and its gradient with respect to each of them.

    Args:
        function: takes as many tensors as `arrays` has; returns a scalar tensor.
        arrays: float arrays.

    Returns:
        The value, and one gradient per array in its shape; zeros where the function does not use it.
    """
    tensors = [ops.convert_to_tensor(array) for array in arrays]
    if keras.backend.backend() == "jax":
        import jax

        # Compiling the whole function takes far less time than running its operations one by one.
        value, gradients = jax.jit(jax.value_and_grad(function, argnums=tuple(range(len(tensors)))))(*tensors)
    elif keras.backend.backend() == "torch":
        tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
        value = function(*tensors)
        gradients = _torch_gradients(value, tensors)
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        gradients = tape.gradient(value, tensors, unconnected_gradients="zero")
    return _numpy(value), [_numpy(gradient) for gradient in gradients]


def loss_and_gradients(function: Callable, variables: Sequence, *args) -> tuple[np.ndarray, list[np.ndarray]]:
    """Computes the value of `function(*args)` and its gradient with respect to Keras variables that it uses.

    Args:
        function: returns a scalar tensor, e.g. a layer's output reduced to one number.
        variables: trainable `keras.Variable`s, e.g. `model.trainable_variables`.
        args: passed on.

    Returns:
        The value, and one gradient per variable in its shape; zeros where the function does not use it.
    """
    values = [variable.value for variable in variables]
    if keras.backend.backend() == "jax":
        import jax

        def stateless(values):
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                return function(*args)

        value, gradients = jax.jit(jax.value_and_grad(stateless))(values)
    elif keras.backend.backend() == "torch":
        value = function(*args)
        gradients = _torch_gradients(value, values)
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = function(*args)
        gradients = tape.gradient(value, values, unconnected_gradients="zero")
    return _numpy(value), [_numpy(gradient) for gradient in gradients]


def _torch_gradients(value, tensors):
    import torch

    gradients = torch.autograd.grad(value, tensors, allow_unused=True)
    return [
        torch.zeros_like(x) if gradient is None else gradient for x, gradient in zip(tensors, gradients, strict=True)
    ]


def _numpy(tensor):
    # The result is dense, also where TensorFlow returns the gradient of an embedding as slices.
    return ops.convert_to_numpy(ops.convert_to_tensor(tensor))
