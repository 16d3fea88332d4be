"""Calls layers as functions of the values of their variables, and computes them a second time in the backward pass.

A call returns the changed state of layers (random generators, moving statistics) as values. So a second call with the
same values gives the same result, and the state is updated once.
"""

from collections.abc import Callable, Sequence

import keras
from keras import ops

from keras_clip import compat
from keras_clip.types import Tensor


class PureCall:
    """A function of inputs that calls layers, as a function of the values of their variables too.

    Args:
        function: function of inputs that returns one tensor.
        layers: the layers whose variables it reads and assigns; it may use no other variables.

    Attributes:
        trainable: list of the trainable variables.
        rng_state: list of the integer variables: the states of random generators.
        non_trainable: list of the other variables.
        statistics: list of the variables of `non_trainable` that a call assigns, known after the first call.
        adds_losses: whether layers call `add_loss`, known after the first call.
    """

    def __init__(self, function: Callable[..., Tensor], layers: Sequence[keras.layers.Layer]):
        self._function = function
        self.trainable = [v for layer in layers for v in layer.trainable_variables]
        fixed = [v for layer in layers for v in layer.non_trainable_variables]
        self.rng_state = [v for v in fixed if "int" in keras.backend.standardize_dtype(v.dtype)]
        integers = set(map(id, self.rng_state))
        self.non_trainable = [v for v in fixed if id(v) not in integers]
        self.statistics = []
        self.adds_losses = False

    def values(self) -> list[list[Tensor]]:
        """The current values of `trainable`, `rng_state` and `non_trainable`."""
        groups = (self.trainable, self.rng_state, self.non_trainable)
        trainable, rng_state, non_trainable = ([ops.convert_to_tensor(v.value) for v in group] for group in groups)
        # On torch, variables change in place before the backward pass calls the function again.
        return [trainable, [ops.copy(state) for state in rng_state], non_trainable]

    def assign(self, rng_state: Sequence[Tensor], statistics: Sequence[Tensor]) -> None:
        """Assigns the values that a call returned to the variables; arguments as a call returns them."""
        for variable, value in zip([*self.rng_state, *self.statistics], [*rng_state, *statistics], strict=True):
            variable.assign(value)

    def __call__(self, trainable, rng_state, non_trainable, *inputs):
        """Returns the output, the scalar sum of the added losses, and `rng_state` and `statistics` after the call."""
        variables = [*self.trainable, *self.rng_state, *self.non_trainable]
        values = [*trainable, *rng_state, *non_trainable]
        result = compat.call_stateless(self._function, variables, values, *inputs)
        first = len(self.trainable)
        last = first + len(self.rng_state)
        rest = list(zip(self.non_trainable, result.values[last:], result.assigned[last:], strict=True))
        self.statistics = [variable for variable, _, assigned in rest if assigned]
        self.adds_losses = bool(result.losses)
        penalty = sum((ops.sum(ops.cast(loss, "float32")) for loss in result.losses), ops.zeros((), "float32"))
        return result.output, penalty, result.values[first:last], [value for _, value, assigned in rest if assigned]


def remat(function: Callable) -> Callable:
    """`keras.remat` of a function without side effects, which may call Keras layers on torch too.

    Args:
        function: function of tensors.

    Returns:
        A function of the same arguments that stores only these for the backward pass, and calls `function` again there.
    """
    if keras.backend.backend() != "torch":
        return keras.remat(function)

    def called(*args):
        from torch.utils import checkpoint

        # Early stopping would leave a layer by an exception in the middle of its call.
        with checkpoint.set_checkpoint_early_stop(False):
            # The argument is one list, because torch forbids in-place changes of tensors (statistics) among arguments.
            return checkpoint.checkpoint(
                lambda args: function(*args), args, use_reentrant=False, preserve_rng_state=False
            )

    return called


def rematerialize(owner: keras.layers.Layer, function: Callable[..., Tensor], layers: Sequence, x: Tensor) -> Tensor:
    """Computes `function(x)` and stores only `x` for the backward pass, which computes the function again.

    Radford et al. (2021), section 2.5: "gradient checkpointing" (Chen et al., 2016).

    Args:
        owner: the layer that is being called; the losses that `layers` add are added to it.
        function: function of a tensor that returns a tensor.
        layers: the built layers that it calls.
        x: float tensor.

    Returns:
        The value of `function(x)`, with the same gradients.
    """
    pure = PureCall(function, layers)
    groups = pure.values()
    ends = [len(groups[0]), len(groups[0]) + len(groups[1])]

    def flat(x, *values):
        values = values[: ends[0]], values[ends[0] : ends[1]], values[ends[1] :]
        output, penalty, rng_state, statistics = pure(*values, x)
        return output, penalty, *rng_state, *statistics

    output, penalty, *rest = remat(flat)(x, *(value for group in groups for value in group))
    pure.assign(rest[: len(pure.rng_state)], rest[len(pure.rng_state) :])
    if pure.adds_losses:
        owner.add_loss(penalty)
    return output
