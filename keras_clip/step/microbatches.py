"""Encodes a batch of any size a few rows at a time, with the gradient of the whole batch.

The forward pass stores the embeddings only. The backward pass computes each micro-batch again, with the random numbers
of the forward pass, and accumulates its gradients: a step takes the memory of one micro-batch and 4/3 of the
computation (a gradient cache; Gao et al., 2021). The encoder runs as a pure function of the values of its variables, so
that its statistics are updated once.
"""

import functools

import keras
from keras import ops

from keras_clip import distribution
from keras_clip.layers.pure_call import PureCall
from keras_clip.types import Tensor


def embed(
    embedder: keras.Model,
    x: Tensor,
    size: int | None,
    training: bool,
    head: keras.layers.Layer | None = None,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Computes the embeddings of all rows, `size` rows at a time on each device.

    Moving statistics of the embedder, such as those of BatchNorm, are updated once, to the mean of the values that the
    micro-batches would give. Features without trainable weights before them are computed once, and only `head` in both
    passes.

    Args:
        embedder: model that maps rows (B, ...) to float32 embeddings (B, E).
        x: tensor (B, ...).
        size: int or None. Rows of a micro-batch; the last one may be smaller. None: all rows.
        training: bool.
        head: the layer that `embedder` applies last, to the output of its method `features(rows, training)`; or None.
        compiled: whether XLA compiles the embedder; TensorFlow only.

    Returns:
        Embeddings, float32 (B, E), and a float32 scalar: the mean over micro-batches, weighted by their rows, of the
        losses that layers added.
    """
    learning = {id(variable) for variable in embedder.trainable_variables}
    is_locked = head is not None and learning <= {id(variable) for variable in head.trainable_variables}
    function = embedder.features if is_locked else embedder
    rows, penalty = _map_rows(function, embedder, x, size, training, is_locked, compiled)
    return (head(rows) if is_locked else rows), penalty


def _map_rows(function, embedder, x, size, training, is_locked, compiled):
    def alone(rows):
        # BatchNorm uses the moments of the micro-batch alone, on every replica.
        with distribution.alone():
            return function(rows, training=training)

    pure = PureCall(alone, [embedder])
    values = pure.values()
    if is_locked:
        values[0] = [ops.stop_gradient(value) for value in values[0]]
    map_rows = {"jax": _map_jax, "tensorflow": _map_tensorflow, "torch": _map_torch}[keras.backend.backend()]
    options = {"compiled": compiled} if compiled else {}
    embeddings, penalty, rng_state, statistics = map_rows(pure, values, x, size, **options)
    pure.assign(rng_state, statistics)
    return embeddings, penalty


def _cuts(rows, size):
    """Returns the (start, stop) rows of each micro-batch."""
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def _weighted(parts, weights):
    """Returns the weighted mean of each of several tensors over the micro-batches."""
    return [sum(w * x for w, x in zip(weights, column, strict=True)) for column in zip(*parts, strict=True)]


def _map_torch(pure, values, x, size):
    trainable, rng_state, non_trainable = values
    passes = _TorchPasses(pure, non_trainable, x, _cuts(len(x), size), [rng_state])
    embeddings, penalty = _torch_function().apply(passes, *trainable)
    return embeddings, penalty, passes.states[-1], _weighted(passes.statistics, passes.shares)


class _TorchPasses:
    """The forward and the backward pass over all micro-batches on torch."""

    def __init__(self, pure, non_trainable, x, cuts, states):
        self.pure, self.non_trainable, self.x, self.cuts = pure, non_trainable, x, cuts
        self.shares = [(stop - start) / len(x) for start, stop in cuts]
        # Of the random generators: before each micro-batch, and after the last.
        self.states = states
        self.statistics = []

    def forward(self, trainable):
        embeddings, penalties = [], []
        for start, stop in self.cuts:
            part, penalty, state, statistics = self.pure(
                trainable, self.states[-1], self.non_trainable, self.x[start:stop]
            )
            embeddings.append(part)
            penalties.append([penalty])
            self.states.append(state)
            self.statistics.append(statistics)
        return ops.concatenate(embeddings), _weighted(penalties, self.shares)[0]

    def backward(self, trainable, d_embeddings, d_penalty):
        import torch

        sums = [None] * len(trainable)
        for (start, stop), share, state in zip(self.cuts, self.shares, self.states, strict=False):
            with torch.enable_grad():
                part, penalty, *_ = self.pure(trainable, state, self.non_trainable, self.x[start:stop])
            results, upstream = [part], [d_embeddings[start:stop]]
            if penalty.requires_grad:
                results, upstream = [part, penalty], [*upstream, share * d_penalty]
            more = torch.autograd.grad(results, trainable, upstream, allow_unused=True)
            sums = [_added(total, gradient) for total, gradient in zip(sums, more, strict=True)]
            # Free the activations before the next micro-batch is embedded.
            del part, penalty, results, more
        return sums


@functools.cache
def _torch_function():
    """One function for all micro-batches: with a checkpoint for each, autograd's records fragment the heap."""
    import torch

    class Embed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, passes, *trainable):
            ctx.passes = passes
            ctx.save_for_backward(*trainable)
            return passes.forward(trainable)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, d_embeddings, d_penalty):
            return (None, *ctx.passes.backward(ctx.saved_tensors, d_embeddings, d_penalty))

    return Embed


def _added(total, gradient):
    return gradient if total is None else total if gradient is None else total.add_(gradient)


def _map_jax(pure, values, x, size):
    import jax
    from jax import numpy as jnp

    trainable, rng_state, non_trainable = values
    shards = distribution.row_shards()
    shards = shards if len(x) % shards == 0 else 1
    rows = len(x) // shards
    count = rows // size
    # Each device divides its own rows, so that no rows move between devices.
    x = x.reshape(shards, rows, *x.shape[1:])

    @functools.partial(jax.checkpoint, static_argnums=3)
    def embed_part(trainable, rng_state, start, size):
        # The slice is taken here, because the gradient of a loop over slices would store a copy of each.
        part = jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)
        embeddings, *rest = pure(trainable, rng_state, non_trainable, part.reshape(-1, *part.shape[2:]))
        return embeddings.reshape(shards, size, -1), *rest

    def step(rng_state, i):
        embeddings, penalty, rng_state, statistics = embed_part(trainable, rng_state, i * size, size)
        return rng_state, (embeddings, penalty, statistics)

    rng_state, (embeddings, penalties, statistics) = jax.lax.scan(step, rng_state, jnp.arange(count))
    share = count * size / rows
    embeddings = embeddings.swapaxes(0, 1).reshape(shards, count * size, -1)
    penalty, statistics = share * jnp.mean(penalties), [share * jnp.mean(stack, axis=0) for stack in statistics]
    if count * size < rows:
        rest, more, rng_state, moved = embed_part(trainable, rng_state, count * size, rows - count * size)
        embeddings = jnp.concatenate([embeddings, rest], axis=1)
        penalty += (1 - share) * more
        statistics = [a + (1 - share) * b for a, b in zip(statistics, moved, strict=True)]
    return embeddings.reshape(shards * rows, -1), penalty, rng_state, statistics


def _map_tensorflow(pure, values, x, size, compiled=False):
    import tensorflow as tf

    trainable, rng_state, non_trainable = values
    function = tf.function(pure, jit_compile=compiled, autograph=False)
    if size is None:
        return function(trainable, rng_state, non_trainable, x)
    rows = tf.shape(x)[0]
    count = -(-rows // size)
    signature = [[tf.TensorSpec(v.shape, v.dtype) for v in group] for group in values]
    # The function is traced here, once for both passes, because tracing determines the statistics.
    function = function.get_concrete_function(*signature, tf.TensorSpec((None, *x.shape[1:]), x.dtype))
    dtype = function.structured_outputs[0].dtype

    def part(i):
        return x[i * size : (i + 1) * size]

    # Every tensor that the result depends on must be an argument.
    @tf.custom_gradient
    def embed_all(*values):
        trainable, non_trainable = list(values[: len(pure.trainable)]), list(values[len(pure.trainable) :])

        def run(rng_state, i):
            return function(trainable, list(rng_state), non_trainable, part(i))

        embeddings, penalty, states, rng_state_after, statistics = _forward(run, rng_state, count, rows, pure, dtype)

        def gradient(d_embeddings, d_penalty, *_):
            def add(i, *gradients):
                with tf.GradientTape() as tape:
                    tape.watch(trainable)
                    now, penalty, *_ = run([state[i] for state in states], i)
                begin, end = i * size, (i + 1) * size
                share = tf.cast(tf.shape(now)[0], "float32") / tf.cast(rows, "float32")
                more = tape.gradient([now, penalty], trainable, [d_embeddings[begin:end], share * d_penalty])
                return i + 1, *(g if m is None else g + m for g, m in zip(gradients, more, strict=True))

            zeros = [tf.zeros_like(value) for value in trainable]
            sums = tf.while_loop(lambda i, *_: i < count, add, [0, *zeros], parallel_iterations=1)[1:]
            return [*sums, *(None for _ in non_trainable)]

        return (embeddings, penalty, *rng_state_after, *statistics), gradient

    embeddings, penalty, *rest = embed_all(*trainable, *non_trainable)
    embeddings.set_shape((x.shape[0], *function.structured_outputs[0].shape[1:]))
    return embeddings, penalty, rest[: len(rng_state)], rest[len(rng_state) :]


def _forward(run, rng_state, count, rows, pure, dtype):
    """Embeds all micro-batches without gradient; also returns the state of the generators before each."""
    import tensorflow as tf

    def step(i, stack, penalty, states, rng_state, statistics):
        states = [state.write(i, value) for state, value in zip(states, rng_state, strict=True)]
        now, more, rng_state, moved = run(rng_state, i)
        share = tf.cast(tf.shape(now)[0], "float32") / tf.cast(rows, "float32")
        statistics = [s + tf.cast(share, m.dtype) * m for s, m in zip(statistics, moved, strict=True)]
        return i + 1, stack.write(i, now), penalty + share * more, states, rng_state, statistics

    first = (
        0,
        tf.TensorArray(dtype, size=count, infer_shape=False),
        tf.zeros(()),
        [tf.TensorArray(state.dtype, size=count, element_shape=state.shape) for state in rng_state],
        rng_state,
        [tf.zeros(v.shape, v.dtype) for v in pure.statistics],
    )
    _, stack, penalty, states, rng_state, statistics = tf.while_loop(
        lambda i, *_: i < count, step, first, parallel_iterations=1
    )
    return stack.concat(), penalty, [state.stack() for state in states], rng_state, statistics
