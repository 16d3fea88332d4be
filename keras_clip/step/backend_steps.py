"""The training and evaluation step on each backend, which differ in how gradients and state are handled.

All of them sum gradients over replicas before anything else uses them, and leave model and optimizer unchanged if the
loss or a gradient is not finite.
"""

import keras
from keras import ops

from keras_clip import compat, distribution


def _row_count(model, x):
    """Returns the number of rows of this replica's part of the batch."""
    return ops.shape(x[model.branches[0].input_name])[0]


def _loss(model, x, y, sample_weight, training):
    y_pred = model.embed(x, training=training)
    loss = model.compute_loss(x, y, y_pred, sample_weight, training=training)
    if compat.has_compiled_metrics(model):
        model.compute_metrics(x, y, {key: ops.stop_gradient(value) for key, value in y_pred.items()})
    return loss


class _Step:
    """The loss of a batch, computed without a change of any variable; what layers and metrics assign is kept here."""

    def __init__(self, model, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._variables = [*model.variables, *model.metrics_variables]
        self._metrics = set(map(id, model.metrics_variables))
        values = [variable.value for variable in self._variables]
        self._result = compat.call_stateless(lambda: _loss(model, x, y, sample_weight, True), self._variables, values)
        self.loss, self.rows = self._result.output, _row_count(model, x)

    def assigned(self):
        """(variable, new value) of those that were assigned: of metrics, and of all others, such as statistics."""
        metrics, states = [], []
        for variable, value, was_assigned in zip(
            self._variables, self._result.values, self._result.assigned, strict=True
        ):
            if was_assigned:
                (metrics if id(variable) in self._metrics else states).append((variable, value))
        return metrics, states


def _norm(model, gradients):
    """The norm of all gradients together, without the factor by which the optimizer scales the loss."""
    # Divided before they are squared: the squares of scaled gradients could be infinite.
    inverse = 1.0 / model.optimizer.scale_loss(ops.ones((), "float32"))
    squares = [ops.sum(ops.square(inverse * ops.cast(g, "float32"))) for g in gradients if g is not None]
    return ops.sqrt(sum(squares, ops.zeros((), "float32")))


class _Verdict:
    """Whether a step is applied and counted (bool scalars).

    Attributes:
        is_usable: loss and gradients are finite, so that the step may change variables.
        is_applied: the optimizer gets the gradients. One that scales the loss also gets those that are not finite, and
            lowers its scale.
        is_counted: the loss and the metrics of the step count in the means of the epoch. So do those of a step whose
            gradients became infinite by the scale alone.
    """

    def __init__(self, model, loss, norm):
        finite_loss, finite_norm = ops.isfinite(loss), ops.isfinite(norm)
        self.is_usable = self.is_applied = ops.logical_and(finite_loss, finite_norm)
        if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
            self.is_applied = ops.logical_or(self.is_usable, ops.logical_not(finite_norm))
        self.is_counted = ops.logical_and(finite_loss, self.is_applied)


def _track(model, rows, loss, norm=None, verdict=None):
    """Updates the metrics of the step."""
    if norm is not None:
        model.gradient_norm.update_state(norm)
        is_skipped = ops.cast(ops.logical_not(verdict.is_usable), "float32")
        model.skipped_steps.update_state(model.skipped_steps.latest + is_skipped)
        rows, loss = ops.where(verdict.is_counted, rows, 0), ops.where(verdict.is_counted, loss, 0.0)
    loss_metric(model).update_state(loss, sample_weight=rows)


def loss_metric(model):
    """The mean of the loss, which `compile` makes."""
    return next(metric for metric in model.metrics if metric.name == "loss")


def _logs(model, training):
    logs = model.get_metrics_result()
    if not training:
        logs = {key: value for key, value in logs.items() if key not in ("gradient_norm", "skipped_steps")}
    if distribution.is_multi_worker(distribution.strategy_of(model)):
        # Keras reduces the logs over workers along their first axis, which scalars do not have.
        logs = {key: value[None] for key, value in logs.items()}
    return logs


def train_tensorflow(model, data):
    import tensorflow as tf

    variables = model.trainable_variables
    with tf.GradientTape() as tape:
        step = _Step(model, data)
        scaled = model.optimizer.scale_loss(step.loss)
    gradients = tape.gradient(scaled, variables)
    # In sparse form, rows of a table that occur twice would count twice in a norm.
    gradients = [tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in gradients]
    gradients = distribution.sum_gradients(gradients)
    loss, norm = step.loss * distribution.replica_count(), _norm(model, gradients)
    verdict = _Verdict(model, loss, norm)
    for pairs, is_kept in zip(step.assigned(), (verdict.is_counted, verdict.is_usable), strict=True):
        for variable, value in pairs:
            variable.assign(tf.where(is_kept, value, variable.value))
    _apply_tensorflow(model.optimizer, gradients, variables, verdict.is_applied)
    _track(model, step.rows, loss, norm, verdict)
    return _logs(model, training=True)


def _apply_tensorflow(optimizer, gradients, variables, usable):
    import tensorflow as tf

    def apply(gradients):
        optimizer.apply(gradients, variables)
        return True

    context = tf.distribute.get_replica_context()
    if not compat.replicas_must_merge():
        tf.cond(usable, lambda: apply(gradients), lambda: False)
        return

    def apply_everywhere(strategy, usable, gradients):
        # `usable` is equal on all replicas. The branch is outside of them, because the optimizer merges replicas, which
        # is not possible inside a branch.
        tf.cond(
            strategy.experimental_local_results(usable)[0],
            lambda: strategy.extended.call_for_each_replica(apply, args=(gradients,)),
            lambda: strategy.extended.call_for_each_replica(lambda: False),
        )

    context.merge_call(apply_everywhere, args=(usable, gradients))


def test_tensorflow(model, data):
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    loss = _loss(model, x, y, sample_weight, False)
    _track(model, _row_count(model, x), loss * distribution.replica_count())
    return _logs(model, training=False)


def _loss_jax(trainable, fixed, metrics, optimizer, model, data, training):
    """The loss as the optimizer scales it, and (loss, trainable variables, fixed ones, metrics) after the call."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    variables = [*model.trainable_variables, *model.non_trainable_variables, *model.metrics_variables]
    result = compat.call_stateless(
        lambda: _loss(model, x, y, sample_weight, training), variables, [*trainable, *fixed, *metrics]
    )
    first, last = len(trainable), len(trainable) + len(fixed)
    after, loss = result.values, result.output
    scaled = loss
    if training:
        with keras.StatelessScope(list(zip(model.optimizer.variables, optimizer, strict=True))):
            scaled = model.optimizer.scale_loss(loss)
    return scaled, (loss, after[:first], after[first:last], after[last:])


def _logs_jax(model, metrics, *tracked, **more):
    with keras.StatelessScope(list(zip(model.metrics_variables, metrics, strict=True))) as scope:
        _track(model, *tracked, **more)
        logs = _logs(model, training=bool(more))
    return logs, [scope.get_current_value(v) for v in model.metrics_variables]


def train_jax(model, state, data):
    import jax
    from jax import numpy as jnp

    trainable, fixed, optimizer, metrics = state
    (_, (loss, called_trainable, new_fixed, new_metrics)), gradients = jax.value_and_grad(_loss_jax, has_aux=True)(
        trainable, fixed, metrics, optimizer, model, data, True
    )
    with keras.StatelessScope(list(zip(model.optimizer.variables, optimizer, strict=True))):
        norm = _norm(model, gradients)
    verdict = _Verdict(model, loss, norm)
    new_trainable, new_optimizer = model.optimizer.stateless_apply(optimizer, gradients, called_trainable)

    def kept(is_new, new, old):
        return [jnp.where(is_new, a, b) for a, b in zip(new, old, strict=True)]

    new_trainable = kept(verdict.is_usable, new_trainable, trainable)
    new_fixed = kept(verdict.is_usable, new_fixed, fixed)
    new_optimizer = kept(verdict.is_applied, new_optimizer, optimizer)
    new_metrics = kept(verdict.is_counted, new_metrics, metrics)
    rows = _row_count(model, keras.utils.unpack_x_y_sample_weight(data)[0])
    logs, metrics = _logs_jax(model, new_metrics, rows, loss, norm=norm, verdict=verdict)
    return logs, (new_trainable, new_fixed, new_optimizer, metrics)


def test_jax(model, state, data):
    trainable, fixed, metrics = state
    _, (loss, _, fixed, metrics) = _loss_jax(trainable, fixed, metrics, None, model, data, False)
    rows = _row_count(model, keras.utils.unpack_x_y_sample_weight(data)[0])
    logs, metrics = _logs_jax(model, metrics, rows, loss)
    return logs, (trainable, fixed, metrics)


def train_torch(model, data):
    import torch

    model.zero_grad()
    x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
    with distribution.batch(len(x[model.branches[0].input_name])):
        step = _Step(model, data)
    model.optimizer.scale_loss(step.loss).backward()
    variables = model.trainable_variables[:]
    with torch.no_grad():
        gradients = distribution.sum_gradients([v.value.grad for v in variables])
        loss, norm = step.loss.detach() * distribution.replica_count(), _norm(model, gradients)
        verdict = _Verdict(model, loss, norm)
        # Read together, since each reading waits for the device.
        is_counted, is_usable, is_applied = torch.stack(
            [verdict.is_counted, verdict.is_usable, verdict.is_applied]
        ).tolist()
        metrics, states = step.assigned()
        kept = (metrics if is_counted else []) + (states if is_usable else [])
        for variable, value in kept:
            variable.assign(value)
        if is_applied:
            model.optimizer.apply(gradients, variables)
        if is_usable:
            distribution.average([v for v, _ in states if keras.backend.is_float_dtype(v.dtype)])
        _track(model, distribution.replica_count() * step.rows, loss, norm, verdict)
    return _logs(model, training=True)


def test_torch(model, data):
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    # Each process evaluates its own data, since other processes may have another number of batches.
    with distribution.alone():
        loss = _loss(model, x, y, sample_weight, False)
        _track(model, _row_count(model, x), loss)
    return _logs(model, training=False)


TRAIN = {"tensorflow": train_tensorflow, "jax": train_jax, "torch": train_torch}
TEST = {"tensorflow": test_tensorflow, "jax": test_jax, "torch": test_torch}
