"""The private and undocumented names of Keras, TensorFlow and torch that the library relies on, and nothing else.

Each function or class below wraps one of them, names it, and says why no public name would do. No other module uses a
private name of these packages. `tests/test_compat.py` checks every entry against the installed versions, and fails with
the name of the entry when upstream has renamed or changed a name that the entry uses.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import keras

# Layers and models.


def all_layers(layer: keras.layers.Layer, include_self: bool = True) -> list[keras.layers.Layer]:
    """Returns a layer and every layer inside it, at any depth, each once.

    Relies on `keras.layers.Layer._flatten_layers`. The public `keras.Model.layers` has the direct children only, and a
    layer that is not a model has no such attribute.

    Args:
        layer: a layer or a model.
        include_self: whether the layer itself is in the list.

    Returns:
        List of layers.
    """
    return list(layer._flatten_layers(include_self=include_self))


class BatchNormMoments(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` whose moments a subclass computes, by overriding `moments`.

    Relies on `BatchNormalization._moments`, which its `call` uses in training, and on `_reduction_axes`, which `build`
    sets. The alternative is a copy of `call`, which would have to follow Keras' casts, moving statistics and batch
    renormalisation.
    """

    def moments(self, inputs, axes: Sequence[int], mask=None) -> tuple[Any, Any]:
        """Returns mean and variance (C,) of a tensor (B, ..., C) over `axes`; here those of Keras."""
        return super()._moments(inputs, mask)

    def _moments(self, inputs, mask):
        return self.moments(inputs, self._reduction_axes, mask)


class StatelessResult(NamedTuple):
    """The result of `call_stateless`.

    Attributes:
        output: the result of the function.
        losses: list of scalars that layers passed to `add_loss`, without regularizers of weights.
        values: list of tensors. The value of each variable after the call.
        assigned: list of bool. Whether the call assigned a new value to the variable.
    """

    output: Any
    losses: list
    values: list
    assigned: list[bool]


def call_stateless(
    function: Callable, variables: Sequence[keras.Variable], values: Sequence, *inputs
) -> StatelessResult:
    """Calls a function of layers with other values of their variables, without changing the variables.

    Relies on `keras.StatelessScope(collect_losses=True)` and its attribute `losses`. `Layer.stateless_call` returns the
    losses too, but those of regularizers among them, and it takes a single layer, not a function.

    Args:
        function: function of `inputs`, which reads and assigns no other variables than these.
        variables: Keras variables.
        values: the value of each variable, a tensor.
        inputs: arguments of the function.

    Returns:
        A `StatelessResult`.
    """
    with keras.StatelessScope(list(zip(variables, values, strict=True)), collect_losses=True) as scope:
        # The scope may convert the given values to other tensors.
        before = [scope.get_current_value(variable) for variable in variables]
        output = function(*inputs)
        losses = list(scope.losses)
    after = [scope.get_current_value(variable) for variable in variables]
    return StatelessResult(output, losses, after, [new is not old for new, old in zip(after, before, strict=True)])


# Training with `fit`.


class FitHooks(keras.Model):
    """A model with two hooks around the step that `fit` compiles, and without Keras' symbolic build.

    Relies on `make_train_function` and the attribute `train_function`, which exist on every backend and are documented
    on none: `fit` calls the former once, and looks the latter up at every step.

    It also replaces `_maybe_symbolic_build`, which TensorFlow's `fit` calls under a `tf.distribute` strategy to build
    what has no weights yet: it adds up the batches of the replicas for that, and fails over several workers. So
    everything must be built before `fit`.
    """

    def prepare_training(self, is_first: bool) -> None:
        """Is called before a train function is made or reused; `is_first`: before the first step after `compile`."""

    def wrap_train_function(self, function: Callable) -> Callable:
        """Is called with each new train function of Keras; returns the one of the same arguments that `fit` calls."""
        return function

    def make_train_function(self, force=False):
        is_new = force or self.train_function is None
        self.prepare_training(is_first=is_new and not force)
        super().make_train_function(force)
        if is_new:
            self.train_function = self.wrap_train_function(self.train_function)
        return self.train_function

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        pass


def retrace_step(model: keras.Model) -> None:
    """Compiles the training step again, also during `fit`, after a change of attributes that are constants in a trace.

    Relies on `make_train_function`, see `FitHooks`. `compile` would reset the metrics and the optimizer.
    """
    model.make_train_function(force=True)


def forget_step(model: keras.Model, evaluation: bool = False) -> None:
    """Discards the compiled training step, and with `evaluation` those of `evaluate` and `predict`.

    The next `fit` compiles a new one. Relies on the attributes `train_function`, `test_function` and
    `predict_function`, see `FitHooks`; `compile` would reset the metrics and the optimizer.
    """
    model.train_function = None
    if evaluation:
        model.test_function = model.predict_function = None


def set_initial_epoch(model: keras.Model, epoch: int | None) -> None:
    """Sets the epoch at which `fit` begins. A callback calls it in `on_train_begin`, and with None in the first epoch.

    Relies on `Trainer._initial_epoch`, which `keras.callbacks.BackupAndRestore` sets for the same purpose. The argument
    `initial_epoch` of `fit` is the user's, and a callback cannot change it.
    """
    model._initial_epoch = epoch


def synchronize_variables(model: keras.Model) -> None:
    """Updates the variables of a model in `fit` to their values after the last step; on JAX they are older.

    Relies on `jax_state_sync`, which Keras calls when a callback reads `self.model`. There is no public name, and a
    callback that reads `self.model` for this effect would hide its purpose.
    """
    if keras.backend.backend() == "jax":
        model.jax_state_sync()


class AsyncCallback(keras.callbacks.Callback):
    """A callback whose batch methods Keras may call from another thread, once the device has finished the step.

    Relies on the attribute `async_safe`. Without it Keras waits for the device after every step.
    """

    async_safe = True


# `tf.distribute`.


def strategy_of_model(model: keras.Model):
    """Returns the `tf.distribute` strategy of a model, or the default strategy without one; on TensorFlow only.

    Relies on `distribute_strategy` of Keras' TensorFlow trainer. `tf.distribute.get_strategy` returns the
    strategy inside its scope only, which users need not enter again to call `compile` and `fit`.
    """
    return model.distribute_strategy


def disable_gradient_sum(optimizer: keras.optimizers.Optimizer) -> None:
    """Keeps an optimizer of the TensorFlow backend from summing gradients over replicas.

    It is for a step that has already summed them. Keras clips before it sums, so that each replica clips the gradient
    of its own part, and the step is not that of the global batch. Relies on the method `_all_reduce_sum_gradients`,
    which is replaced. `apply` has no argument for it.
    """
    for part in (optimizer, getattr(optimizer, "inner_optimizer", None)):
        if part is not None:
            part._all_reduce_sum_gradients = list


def replicas_must_merge() -> bool:
    """Returns whether replicas of the current `tf.distribute` strategy must merge to update variables.

    Relies on `tf.__internal__.distribute.strategy_supports_no_merge_call`, which Keras' optimizers use as well.
    Where they merge, the optimizer cannot be called in a branch of `tf.cond`.
    """
    import tensorflow as tf

    return not tf.__internal__.distribute.strategy_supports_no_merge_call()


# Optimizers.


class UpdateHooks:
    """A mixin for Keras optimizers with hooks for the choice of decayed weights, for weight decay and for the update.

    Relies on `_use_weight_decay`, `_apply_weight_decay` and `_backend_update_step`, which `apply` calls on every
    backend. The public `update_step` updates one variable, and `exclude_from_weight_decay` is lost when an optimizer is
    saved.
    """

    def decays(self, variable) -> bool:
        """Returns whether weight decay applies to a variable."""
        return super()._use_weight_decay(variable)

    def decay_all(self, variables: Sequence) -> None:
        """Applies weight decay to all variables, before they are updated."""
        super()._apply_weight_decay(variables)

    def update_all(self, gradients: Sequence, variables: Sequence, learning_rate) -> None:
        """Updates all variables, each by `update_step`."""
        super()._backend_update_step(gradients, variables, learning_rate)

    def _use_weight_decay(self, variable):
        return self.decays(variable)

    def _apply_weight_decay(self, variables):
        self.decay_all(variables)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        self.update_all(grads, trainable_variables, learning_rate)


def variable_index(optimizer: keras.optimizers.Optimizer, variable) -> int:
    """Returns the index of a variable among those that an optimizer was built with.

    Relies on `_get_variable_index`. On TensorFlow the variable may be the copy of a replica, which has another path
    and which only Keras can identify.
    """
    return optimizer._get_variable_index(variable)


class AdamMoments(NamedTuple):
    """The moments of Adam for each weight, in the order of `variable_index`.

    Attributes:
        momentums: list of variables. First moments.
        velocities: list of variables. Second moments.
    """

    momentums: list
    velocities: list


def adam_moments(optimizer: keras.optimizers.Adam) -> AdamMoments:
    """Returns the moments of a built `keras.optimizers.Adam` or `AdamW`.

    Relies on the attributes `_momentums` and `_velocities`. In the public `optimizer.variables` they differ from other
    variables by their names only.
    """
    return AdamMoments(optimizer._momentums, optimizer._velocities)


# torch.

_LIST_OPERATIONS = ("add", "add_", "copy_", "div", "mul", "mul_", "sqrt", "sub_")


def list_operations() -> SimpleNamespace:
    """Returns element-wise operations of torch on lists of tensors, which use a few kernels for all of them.

    Relies on `torch._foreach_add` and so on, which torch documents as a beta interface, and which `torch.optim` and
    Keras' own optimizers for torch use. There is no public name.

    Returns:
        Functions `add`, `add_`, `copy_`, `div`, `mul`, `mul_`, `sqrt` and `sub_`, as the methods of a tensor.
    """
    import torch

    return SimpleNamespace(**{name: getattr(torch, f"_foreach_{name}") for name in _LIST_OPERATIONS})
