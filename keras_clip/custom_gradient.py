"""Functions with a gradient of their own, which keep nothing alive after their step.

On torch, the gradient function of `keras.ops.custom_gradient` may keep the function's output. The output keeps the
graph, and the graph keeps the gradient function: such a cycle, with all activations of the forward pass, lives until
the garbage collector runs. Here tensors are handed from the forward to the backward pass through
`save_for_backward`, which knows outputs.
"""

import functools
from collections.abc import Callable

import keras
from keras import ops

from keras_clip.types import Tensor


def custom_gradient(forward: Callable, backward: Callable) -> Callable[..., Tensor]:
    """A differentiable function of tensors, from its two passes.

    Args:
        forward: of tensors, returns the output, one tensor, and a tuple of the tensors that `backward` needs: inputs,
            the output, or others. It must not refer to tensors that are not arguments.
        backward: of that tuple and the upstream gradient, a tensor of the output's shape. Returns a tuple of the
            gradients of all inputs. It is not differentiable itself.

    Returns:
        A function of the arguments of `forward` that returns the output.
    """
    if keras.backend.backend() == "torch":
        return functools.partial(_apply_torch, forward, backward)

    @ops.custom_gradient
    @functools.wraps(forward)
    def function(*inputs):
        output, saved = forward(*inputs)

        def gradient(*args, upstream=None):
            return backward(saved, args[0] if upstream is None else upstream)

        return output, gradient

    return function


def _apply_torch(forward, backward, *inputs):
    return _torch_function().apply(forward, backward, *inputs)


@functools.cache
def _torch_function():
    """One class for all functions, since a class is itself a cycle, which the garbage collector has to find."""
    import torch

    class CustomGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, forward, backward, *inputs):
            output, saved = forward(*inputs)
            ctx.backward_function = backward
            ctx.save_for_backward(*saved)
            return output

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, upstream):
            return (None, None, *ctx.backward_function(ctx.saved_tensors, upstream))

    return CustomGradient
