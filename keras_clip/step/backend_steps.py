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


def _statistics(model):
    """Returns the moving statistics of BatchNorm, which a forward pass updates."""
    layers = compat.all_layers(model, include_self=False)
    norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable]
    return [variable for norm in norms for variable in norm.non_trainable_variables]


def _norm(model, gradients):
    """Returns the norm of all gradients together, without the factor by which the optimizer scales the loss."""
    squares = [ops.sum(ops.square(ops.cast(g, "float32"))) for g in gradients if g is not None]
    norm = ops.sqrt(sum(squares, ops.zeros((), "float32")))
    return norm / model.optimizer.scale_loss(1.0)


def _scales_loss(model):
    return isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


def _is_usable(model, loss, norm):
    # With dynamic loss scaling, infinite gradients are normal, and the optimizer itself skips the step.
    return ops.isfinite(loss) if _scales_loss(model) else ops.logical_and(ops.isfinite(loss), ops.isfinite(norm))


def _track(model, rows, loss, norm=None, usable=None):
    """Updates the metrics of the step."""
    if norm is not None:
        model.gradient_norm.update_state(norm)
        model.skipped_steps.update_state(model.skipped_steps.latest + ops.cast(~usable, "float32"))
        rows, loss = ops.where(usable, rows, 0), ops.where(usable, loss, 0.0)
    _loss_metric(model).update_state(loss, sample_weight=rows)


def _loss_metric(model):
    """Returns the metric of the mean loss, which `compile` creates."""
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

    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    variables, statistics = model.trainable_variables, _statistics(model)
    before = [tf.identity(v.value) for v in statistics]
    with tf.GradientTape() as tape:
        y_pred = model.embed(x, training=True)
        loss = model.compute_loss(x, y, y_pred, sample_weight, training=True)
        scaled = model.optimizer.scale_loss(loss)
    gradients = tape.gradient(scaled, variables)
    # In sparse form, rows of a table that occur twice would count twice in a norm.
    gradients = [tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in gradients]
    gradients = distribution.sum_gradients(gradients)
    loss, norm = loss * distribution.replica_count(), _norm(model, gradients)
    usable = _is_usable(model, loss, norm)
    for variable, value in zip(statistics, before, strict=True):
        variable.assign(tf.where(usable, variable.value, value))
    _apply_tensorflow(model.optimizer, gradients, variables, usable)
    _track(model, _row_count(model, x), loss, norm, usable)
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
    loss = model.compute_loss(x, y, model.embed(x, training=False), sample_weight, training=False)
    _track(model, _row_count(model, x), loss * distribution.replica_count())
    return _logs(model, training=False)


def _loss_jax(trainable, fixed, metrics, optimizer, model, data, training):
    """Returns the loss as scaled by the optimizer, and (loss, fixed variables, metrics) after the call."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)

    def compute_loss():
        return model.compute_loss(x, y, model.embed(x, training=training), sample_weight, training=training)

    variables = [*model.trainable_variables, *model.non_trainable_variables, *model.metrics_variables]
    result = compat.call_stateless(compute_loss, variables, [*trainable, *fixed, *metrics])
    first, last = len(trainable), len(trainable) + len(fixed)
    loss, fixed, metrics = result.output, result.values[first:last], result.values[last:]
    scaled = loss
    if training:
        with keras.StatelessScope(list(zip(model.optimizer.variables, optimizer, strict=True))):
            scaled = model.optimizer.scale_loss(loss)
    return scaled, (loss, fixed, metrics)


def _logs_jax(model, metrics, *tracked, **more):
    with keras.StatelessScope(list(zip(model.metrics_variables, metrics, strict=True))) as scope:
        _track(model, *tracked, **more)
        logs = _logs(model, training=bool(more))
    return logs, [scope.get_current_value(v) for v in model.metrics_variables]


def train_jax(model, state, data):
    import jax
    from jax import numpy as jnp

    trainable, fixed, optimizer, metrics = state
    (_, (loss, new_fixed, metrics)), gradients = jax.value_and_grad(_loss_jax, has_aux=True)(
        trainable, fixed, metrics, optimizer, model, data, True
    )
    with keras.StatelessScope(list(zip(model.optimizer.variables, optimizer, strict=True))):
        norm = _norm(model, gradients)
    usable = _is_usable(model, loss, norm)
    new_trainable, new_optimizer = model.optimizer.stateless_apply(optimizer, gradients, trainable)

    def kept(new, old):
        return [jnp.where(usable, a, b) for a, b in zip(new, old, strict=True)]

    if not _scales_loss(model):
        new_trainable, new_optimizer = kept(new_trainable, trainable), kept(new_optimizer, optimizer)
    rows = _row_count(model, keras.utils.unpack_x_y_sample_weight(data)[0])
    logs, metrics = _logs_jax(model, metrics, rows, loss, norm=norm, usable=usable)
    return logs, (new_trainable, kept(new_fixed, fixed), new_optimizer, metrics)


def test_jax(model, state, data):
    trainable, fixed, metrics = state
    _, (loss, fixed, metrics) = _loss_jax(trainable, fixed, metrics, None, model, data, False)
    rows = _row_count(model, keras.utils.unpack_x_y_sample_weight(data)[0])
    logs, metrics = _logs_jax(model, metrics, rows, loss)
    return logs, (trainable, fixed, metrics)


def train_torch(model, data):
    import torch

    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    statistics = _statistics(model)
    before = [v.value.detach().clone() for v in statistics]
    model.zero_grad()
    loss = model.compute_loss(x, y, model.embed(x, training=True), sample_weight, training=True)
    model.optimizer.scale_loss(loss).backward()
    variables = model.trainable_variables[:]
    with torch.no_grad():
        gradients = distribution.sum_gradients([v.value.grad for v in variables])
        loss, norm = loss.detach() * distribution.replica_count(), _norm(model, gradients)
        usable = _is_usable(model, loss, norm)
        if usable or _scales_loss(model):
            model.optimizer.apply(gradients, variables)
            distribution.average(statistics)
        else:
            for variable, value in zip(statistics, before, strict=True):
                variable.assign(value)
        _track(model, distribution.replica_count() * _row_count(model, x), loss, norm, usable)
    return _logs(model, training=True)


def test_torch(model, data):
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    # Each process evaluates its own data, since other processes may have another number of batches.
    with distribution.alone():
        loss = model.compute_loss(x, y, model.embed(x, training=False), sample_weight, training=False)
        _track(model, _row_count(model, x), loss)
    return _logs(model, training=False)


TRAIN = {"tensorflow": train_tensorflow, "jax": train_jax, "torch": train_torch}
TEST = {"tensorflow": test_tensorflow, "jax": test_jax, "torch": test_torch}
