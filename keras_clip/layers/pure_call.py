"""Layers as functions of their variables' values, and what that is good for: computing them twice.

What layers do to their state when they are called (random generators, moving statistics) comes back as values, so that
a second call with the same values gives the same, and state moves once.
"""

from collections.abc import Callable, Sequence

import keras
from keras import ops

from keras_clip.types import Tensor


class _Scope(keras.StatelessScope):
    """Notes which variables get new values."""

    def __init__(self, mapping):
        super().__init__(state_mapping=mapping, collect_losses=True)
        self.updated = set()

    def add_update(self, update):
        self.updated.add(id(update[0]))
        super().add_update(update)


class PureCall:
    """A function of inputs that calls layers, as a function of the values of their variables too.

    Args:
        function: of inputs, gives one tensor.
        layers: whose variables it reads and changes; no others.

    Attributes:
        learned: variables that a gradient is wanted for.
        counters: integer variables: the states of random generators.
        others: what else is read.
        statistics: those of the others that a call changes, known after the first one.
        adds_losses: whether layers gave something to `add_loss`, known after the first call.
    """

    def __init__(self, function: Callable[..., Tensor], layers: Sequence[keras.layers.Layer]):
        self._function = function
        self.learned = [v for layer in layers for v in layer.trainable_variables]
        fixed = [v for layer in layers for v in layer.non_trainable_variables]
        self.counters = [v for v in fixed if "int" in keras.backend.standardize_dtype(v.dtype)]
        counted = set(map(id, self.counters))
        self.others = [v for v in fixed if id(v) not in counted]
        self.statistics = []
        self.adds_losses = False

    def values(self) -> list[list[Tensor]]:
        """The values that `learned`, `counters` and `others` have now."""
        groups = (self.learned, self.counters, self.others)
        learned, counters, others = ([ops.convert_to_tensor(v.value) for v in group] for group in groups)
        # On torch variables change in place, before the backward pass calls again.
        return [learned, [ops.copy(counter) for counter in counters], others]

    def assign(self, counters: Sequence[Tensor], statistics: Sequence[Tensor]) -> None:
        """Gives the variables the values that a call returned; arguments as it returns them."""
        for variable, value in zip([*self.counters, *self.statistics], [*counters, *statistics], strict=True):
            variable.assign(value)

    def __call__(self, learned, counters, others, *inputs):
        """The output, a scalar penalty, the counters and the statistics after the call."""
        variables = [*self.learned, *self.counters, *self.others]
        values = [*learned, *counters, *others]
        with _Scope(list(zip(variables, values, strict=True))) as scope:
            output = self._function(*inputs)
            penalties = [ops.sum(ops.cast(loss, "float32")) for loss in scope.losses]
        self.statistics = [v for v in self.others if id(v) in scope.updated]
        self.adds_losses = bool(penalties)
        penalty = sum(penalties, ops.zeros((), "float32"))
        return (
            output,
            penalty,
            [scope.get_current_value(v) for v in self.counters],
            [scope.get_current_value(v) for v in self.statistics],
        )


def remat(function: Callable) -> Callable:
    """`keras.remat` of a function without side effects, to which Keras layers may belong on torch too.

    Args:
        function: of tensors.

    Returns:
        A function of the same arguments that keeps nothing else for the backward pass, and calls again there.
    """
    if keras.backend.backend() != "torch":
        return keras.remat(function)

    def called(*args):
        from torch.utils import checkpoint

        # Else it would leave the layers by an exception once it has what it needs.
        with checkpoint.set_checkpoint_early_stop(False):
            # In one argument, since torch forbids tensors that are arguments to change in place, as statistics do.
            return checkpoint.checkpoint(
                lambda args: function(*args), args, use_reentrant=False, preserve_rng_state=False
            )

    return called


def rematerialize(owner: keras.layers.Layer, function: Callable[..., Tensor], layers: Sequence, x: Tensor) -> Tensor:
    """`function(x)`, of which nothing is kept for the backward pass but `x`: it is computed again there.

    Radford et al. (2021), section 2.5: "gradient checkpointing" (Chen et al., 2016).

    Args:
        owner: layer that is being called; gets what the layers give to `add_loss`.
        function: of a tensor, gives a tensor.
        layers: that it calls, built.
        x: float tensor.

    Returns:
        The same tensor, with the same gradients, as `function(x)`.
    """
    pure = PureCall(function, layers)
    groups = pure.values()
    ends = [len(groups[0]), len(groups[0]) + len(groups[1])]

    def flat(x, *values):
        values = values[: ends[0]], values[ends[0] : ends[1]], values[ends[1] :]
        output, penalty, counters, statistics = pure(*values, x)
        return output, penalty, *counters, *statistics

    output, penalty, *rest = remat(flat)(x, *(value for group in groups for value in group))
    pure.assign(rest[: len(pure.counters)], rest[len(pure.counters) :])
    if pure.adds_losses:
        owner.add_loss(penalty)
    return output
