"""The private and undocumented names of Keras, TensorFlow and torch that the library relies on, and nothing else.

Each function or class below wraps one of them, names it, and says why no public name would do. No other module uses a
private name of these packages. `tests/test_compat.py` checks every entry against the installed versions, and fails with
the name of the entry when upstream has renamed or changed a name that the entry uses.
"""

import contextlib
import functools
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


def sublayers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers directly inside a layer, in the order in which they became attributes.

    Relies on `keras.layers.Layer._flatten_layers`; see `all_layers`.
    """
    return list(layer._flatten_layers(include_self=False, recursive=False))


def trainable_by_nature(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The weights of a layer alone that were made to be trained, whether or not they are locked now.

    Relies on `keras.layers.Layer._trainable_variables`. The public `trainable_variables` leaves out what is locked, and
    includes the layers inside.
    """
    return list(layer._trainable_variables)


def set_trainable_flag(layer: keras.layers.Layer, value: bool) -> None:
    """Sets the flag `trainable` of a layer alone.

    Relies on `keras.layers.Layer._trainable`. The public attribute also sets the flags of the weights and of all layers
    inside, of which some may have others.
    """
    layer._trainable = value


def forget_removed_weights(layer: keras.layers.Layer) -> None:
    """Frees weights that were removed from layers inside; on other backends than torch nothing holds them.

    Relies on `_track_variables`, which `keras.Model.quantize` calls for the same purpose.
    """
    if keras.backend.backend() == "torch":
        for part in all_layers(layer):
            part._track_variables()


class BuildHook:
    """Mixin before a Keras layer, with a hook that is called once, when the layer has been built.

    Relies on `keras.layers.Layer._post_build`, which Keras calls after `build`, and a model's also in every `fit`. A
    subclass that overrides `build` would have to call the hook itself, at its end.
    """

    _is_finished = False

    def finish_build(self) -> None:
        """Called when the weights exist."""

    def mark_built(self) -> None:
        """For constructors that make all weights, so that there is nothing for `build` to do."""
        self.built = True
        self._finish_once()

    def _finish_once(self):
        if not self._is_finished:
            self._is_finished = True
            self.finish_build()

    def _post_build(self):
        super()._post_build()
        self._finish_once()


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


class CompiledFunctions(keras.Model):
    """A model whose compiled functions follow its locks, and which an exception leaves as it was.

    Keras compiles the functions of `fit`, `evaluate` and `predict` once. On TensorFlow they go on training a weight
    that has been locked since; on JAX they pair values with variables by their order, which a lock changes. So each is
    made anew when a variable or a flag `trainable` differs from when it was made. Relies on `make_train_function`,
    `make_test_function` and `make_predict_function`, which `fit`, `evaluate` and `predict` call first, and which are
    documented on no backend.

    On JAX, Keras takes the values out of the variables before the first step, and has nowhere to take them from if that
    step fails: a wrong shape in `predict` would destroy the model. Relies on `_purge_model_variables`, which does
    nothing here: steps of `fit` donate the arrays, which frees them as well. After an exception the newest values are
    put back by `jax_state_sync` and the attribute `_jax_state`.
    """

    _made_for = None

    def _must_remake(self, name):
        variables = [(id(variable), variable.trainable) for variable in self.variables]
        now = hash((*variables, *(layer.trainable for layer in all_layers(self))))
        # A tuple, which Keras does not track.
        made_for = dict(self._made_for or ())
        is_changed = made_for.get(name) != now
        self._made_for = tuple({**made_for, name: now}.items())
        return is_changed

    def make_train_function(self, force=False):
        return super().make_train_function(self._must_remake("train") or force)

    def make_test_function(self, force=False):
        return super().make_test_function(self._must_remake("test") or force)

    def make_predict_function(self, force=False):
        return super().make_predict_function(self._must_remake("predict") or force)

    def _purge_model_variables(self, **_):
        pass

    def call_after_fit(self, function: Callable[[], None]) -> None:
        """Calls a function when the running `fit` ends, also by an exception, for which Keras has no callback."""
        self._after_fit = (*getattr(self, "_after_fit", ()), function)

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        try:
            return super().fit(*args, **kwargs)
        finally:
            functions, self._after_fit = getattr(self, "_after_fit", ()), ()
            for function in functions:
                function()
            if keras.backend.backend() == "torch":
                # Otherwise layers of torch would stay in training mode.
                self.eval()

    @contextlib.contextmanager
    def _state_kept(self):
        """Discards stale JAX state, so that a later call does not write it to the variables."""
        self._end_jax_state()
        try:
            yield
        except BaseException:
            self._end_jax_state()
            raise

    def _end_jax_state(self):
        if keras.backend.backend() == "jax":
            self.jax_state_sync()
            self._jax_state, self._jax_state_synced = None, True

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args, **kwargs):
        with self._state_kept():
            return super().evaluate(*args, **kwargs)

    @functools.wraps(keras.Model.predict)
    def predict(self, *args, **kwargs):
        with self._state_kept():
            return super().predict(*args, **kwargs)

    @functools.wraps(keras.Model.train_on_batch)
    def train_on_batch(self, *args, **kwargs):
        with self._state_kept():
            return super().train_on_batch(*args, **kwargs)

    @functools.wraps(keras.Model.test_on_batch)
    def test_on_batch(self, *args, **kwargs):
        with self._state_kept():
            return super().test_on_batch(*args, **kwargs)

    @functools.wraps(keras.Model.predict_on_batch)
    def predict_on_batch(self, *args, **kwargs):
        with self._state_kept():
            return super().predict_on_batch(*args, **kwargs)


class FitHooks(CompiledFunctions):
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
        is_first = self.train_function is None and not force
        before = self.train_function
        self.prepare_training(is_first=is_first)
        super().make_train_function(force)
        if self.train_function is not before:
            self.train_function = self.wrap_train_function(self.train_function)
        return self.train_function

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        pass

    def _get_jax_state(self, **names):
        """Relies on `_get_jax_state`, with which `fit` begins: at its end, averages and weights are the same arrays."""
        if names.get("optimizer_variables"):
            arrays = set()
            for variable in (*self.variables, *self.optimizer.variables):
                if id(variable.value) in arrays:
                    variable.assign(keras.ops.copy(variable.value))
                arrays.add(id(variable.value))
        return super()._get_jax_state(**names)


def has_compiled_metrics(model: keras.Model) -> bool:
    """Whether `compile` was given metrics.

    Relies on the attribute `_compile_metrics`. In the public `metrics` they are one of many.
    """
    return model._compile_metrics is not None


def build_metrics(model: keras.Model, y_true, y_pred) -> None:
    """Makes the metrics that `compile(metrics=...)` was given, for these targets and predictions.

    Relies on the attribute `_compile_metrics` and its method `build`. Keras makes them from the first batch, of which
    it knows the targets.
    """
    metrics = model._compile_metrics
    if metrics is not None and not metrics.built:
        metrics.build(y_true, y_pred)


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


def keep_averages_apart(optimizer: keras.optimizers.Optimizer) -> None:
    """Gives the weights copies of their averages when `fit` ends with `use_ema=True`; on JAX only.

    Keras lets the weight and its average share one array there. The next `fit` or `evaluate` donates it, and what
    remains of the other is an array that has been deleted. Relies on `finalize_variable_values`, which `fit` looks up
    on the optimizer and which is replaced.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if keras.backend.backend() != "jax" or not getattr(inner, "use_ema", False):
        return
    finalize = optimizer.finalize_variable_values

    def finalize_by_copies(variables):
        finalize(variables)
        for variable in variables:
            variable.assign(keras.ops.copy(variable.value))

    optimizer.finalize_variable_values = finalize_by_copies


def variable_index(optimizer: keras.optimizers.Optimizer, variable) -> int:
    """Returns the index of a variable among those that an optimizer was built with.

    Relies on `_get_variable_index`. On TensorFlow the variable may be the copy of a replica, which has another path
    and which only Keras can identify.
    """
    return optimizer._get_variable_index(variable)


def optimized_weights(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The weights that an optimizer was built for, in its order; none before.

    Relies on `_trainable_variables`. The public `variables` are the optimizer's own.
    """
    return list(getattr(optimizer, "inner_optimizer", optimizer)._trainable_variables)


def rebuild_optimizer(optimizer: keras.optimizers.Optimizer, weights: Sequence[keras.Variable]) -> None:
    """Builds an optimizer again, for other weights. It keeps its step, and the moments of weights that it had before.

    Keras builds an optimizer once. A new one would be another object than the one that the user holds.

    Relies on `_variables`, which begins with the step and, unless it is a schedule, the learning rate of
    `_learning_rate`; on `_tracker.untrack` and `_trainable_variables_indices`; and on lists with one variable or None
    for each weight, such as `_momentums` of `keras.optimizers.Adam`.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)

    def state(count):
        """The variables by attribute: those of all weights together, and lists of those of each."""
        single = {name: value for name, value in vars(inner).items() if isinstance(value, keras.Variable)}
        lists = {name: value for name, value in vars(inner).items() if isinstance(value, list) and len(value) == count}
        for name in ("_variables", "_trainable_variables"):
            lists.pop(name, None)
        return single, {name: list(value) for name, value in lists.items()}

    old = {id(weight): i for i, weight in enumerate(inner._trainable_variables)}
    old_single, old_lists = state(len(old))
    made_at_construction = 1 + isinstance(inner._learning_rate, keras.Variable)
    for variable in inner._variables[made_at_construction:]:
        inner._tracker.untrack(variable)
    inner._trainable_variables_indices.clear()
    inner.built = False
    inner.build(list(weights))
    single, lists = state(len(weights))
    pairs = [(variable, old_single.get(name)) for name, variable in single.items()]
    for name, variables in lists.items():
        for weight, variable in zip(weights, variables, strict=True):
            # The average of a new weight begins with its value, as those of all do at the first step.
            first = weight if name == "_model_variables_moving_average" else None
            is_old = id(weight) in old and name in old_lists
            pairs.append((variable, old_lists[name][old[id(weight)]] if is_old else first))
    for variable, source in pairs:
        if isinstance(variable, keras.Variable) and source is not None and variable is not source:
            # A copy: JAX would keep one array for both, which a step cannot donate twice.
            variable.assign(keras.ops.copy(keras.ops.convert_to_tensor(source)))
    if inner is not optimizer:
        # In place: an optimizer tracks the variables that become attributes.
        optimizer._trainable_variables.clear()
        optimizer._trainable_variables.extend(weights)
        optimizer._trainable_variables_indices.clear()
        optimizer._trainable_variables_indices.update(inner._trainable_variables_indices)


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
