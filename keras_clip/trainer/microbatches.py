"""A batch of any size through an encoder, a few rows at a time, with the gradient of the whole batch.

The forward pass keeps the embeddings and nothing else. The backward pass computes one micro-batch again, with the
random numbers it had, adds its gradients, and goes on to the next: the memory of one micro-batch for 4/3 of the work
(Gao et al., 2021, call it a gradient cache). The encoder runs as a pure function of its variables' values, so that
statistics are updated once.
"""

import functools

import keras
from keras import ops

from keras_clip import distribution
from keras_clip.layers.pure_call import PureCall
from keras_clip.types import Tensor


def embed(embedder: keras.Model, x: Tensor, size: int | None, training: bool, compiled: bool = False) -> Tensor:
    """The embeddings of all rows, computed `size` at a time on each device.

    Statistics of the embedder, as of BatchNorm, move once, by the mean of what the micro-batches would have done.

    Args:
        embedder: model of rows (B, ...) -> float32 embeddings (B, E).
        x: tensor (B, ...).
        size: rows of a micro-batch; the last one may be smaller. None: all.
        training: bool.
        compiled: whether XLA compiles the embedder; TensorFlow only.

    Returns:
        float32 (B, E) and a float32 scalar: what `add_loss` was given inside, the mean over rows of the micro-batches'.
    """

    def embed_alone(rows):
        # A micro-batch sees its own moments, on every replica.
        with distribution.alone():
            return embedder(rows, training=training)

    pure = PureCall(embed_alone, [embedder])
    values = pure.values()
    map_rows = {"jax": _map_jax, "tensorflow": _map_tensorflow, "torch": _map_torch}[keras.backend.backend()]
    options = {"compiled": compiled} if compiled else {}
    embeddings, penalty, counters, statistics = map_rows(pure, values, x, size, **options)
    pure.assign(counters, statistics)
    return embeddings, penalty


def _cuts(rows, size):
    """(start, stop) of each micro-batch."""
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def _weighted(parts, weights):
    """The mean of each of several tensors over the micro-batches."""
    return [sum(w * x for w, x in zip(weights, column, strict=True)) for column in zip(*parts, strict=True)]


def _map_torch(pure, values, x, size):
    import torch

    learned, counters, others = values
    cuts = _cuts(len(x), size)
    shares = [(stop - start) / len(x) for start, stop in cuts]
    states, moved = [counters], []

    class Embed(torch.autograd.Function):
        """Not one of torch's checkpoints for each part: what autograd notes of them scatters the heap, which grows."""

        @staticmethod
        def forward(_, *learned):
            embeddings, penalties = [], []
            for start, stop in cuts:
                part, penalty, state, statistics = pure(learned, states[-1], others, x[start:stop])
                embeddings.append(part)
                penalties.append([penalty])
                states.append(state)
                moved.append(statistics)
            return ops.concatenate(embeddings), _weighted(penalties, shares)[0]

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(_, d_embeddings, d_penalty):
            sums = [None] * len(learned)
            for (start, stop), share, state in zip(cuts, shares, states, strict=False):
                with torch.enable_grad():
                    part, penalty, *_ = pure(learned, state, others, x[start:stop])
                results, upstream = [part], [d_embeddings[start:stop]]
                if penalty.requires_grad:
                    results, upstream = [part, penalty], [*upstream, share * d_penalty]
                more = torch.autograd.grad(results, learned, upstream, allow_unused=True)
                sums = [_added(total, gradient) for total, gradient in zip(sums, more, strict=True)]
                # Not while the next part is embedded.
                del part, penalty, results, more
            return tuple(sums)

    embeddings, penalty = Embed.apply(*learned)
    return embeddings, penalty, states[-1], _weighted(moved, shares)


def _added(total, gradient):
    return gradient if total is None else total if gradient is None else total.add_(gradient)


def _map_jax(pure, values, x, size):
    import jax
    from jax import numpy as jnp

    learned, counters, others = values
    shards = distribution.row_shards()
    shards = shards if len(x) % shards == 0 else 1
    rows = len(x) // shards
    count = rows // size
    # Each device cuts its own rows, so that none have to move.
    x = x.reshape(shards, rows, *x.shape[1:])

    @functools.partial(jax.checkpoint, static_argnums=3)
    def embed_part(learned, counters, start, size):
        # Cut here and not handed over by the loop, whose gradient would keep a copy of every part.
        part = jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)
        embeddings, *rest = pure(learned, counters, others, part.reshape(-1, *part.shape[2:]))
        return embeddings.reshape(shards, size, -1), *rest

    def step(counters, i):
        embeddings, penalty, counters, statistics = embed_part(learned, counters, i * size, size)
        return counters, (embeddings, penalty, statistics)

    counters, (embeddings, penalties, statistics) = jax.lax.scan(step, counters, jnp.arange(count))
    share = count * size / rows
    embeddings = embeddings.swapaxes(0, 1).reshape(shards, count * size, -1)
    penalty, statistics = share * jnp.mean(penalties), [share * jnp.mean(stack, axis=0) for stack in statistics]
    if count * size < rows:
        rest, more, counters, moved = embed_part(learned, counters, count * size, rows - count * size)
        embeddings = jnp.concatenate([embeddings, rest], axis=1)
        penalty += (1 - share) * more
        statistics = [a + (1 - share) * b for a, b in zip(statistics, moved, strict=True)]
    return embeddings.reshape(shards * rows, -1), penalty, counters, statistics


def _map_tensorflow(pure, values, x, size, compiled=False):
    import tensorflow as tf

    learned, counters, others = values
    function = tf.function(pure, jit_compile=compiled, autograph=False)
    if size is None:
        return function(learned, counters, others, x)
    rows = tf.shape(x)[0]
    count = -(-rows // size)
    signature = [[tf.TensorSpec(v.shape, v.dtype) for v in group] for group in values]
    # Traced here, once for both passes, to know which statistics there are.
    function = function.get_concrete_function(*signature, tf.TensorSpec((None, *x.shape[1:]), x.dtype))

    def part(i):
        return x[i * size : (i + 1) * size]

    # TensorFlow wants to know of every variable behind it.
    @tf.custom_gradient
    def embed_all(*values):
        learned, others = list(values[: len(pure.learned)]), list(values[len(pure.learned) :])

        def run(counters, i):
            return function(learned, list(counters), others, part(i))

        embeddings, penalty, states, counters_after, statistics = _forward(run, counters, count, rows, pure)

        def gradient(d_embeddings, d_penalty, *_):
            def add(i, *gradients):
                with tf.GradientTape() as tape:
                    tape.watch(learned)
                    now, penalty, *_ = run([state[i] for state in states], i)
                begin, end = i * size, (i + 1) * size
                share = tf.cast(tf.shape(now)[0], "float32") / tf.cast(rows, "float32")
                more = tape.gradient([now, penalty], learned, [d_embeddings[begin:end], share * d_penalty])
                return i + 1, *(g if m is None else g + m for g, m in zip(gradients, more, strict=True))

            zeros = [tf.zeros_like(value) for value in learned]
            sums = tf.while_loop(lambda i, *_: i < count, add, [0, *zeros], parallel_iterations=1)[1:]
            return [*sums, *(None for _ in others)]

        return (embeddings, penalty, *counters_after, *statistics), gradient

    embeddings, penalty, *rest = embed_all(*learned, *others)
    embeddings.set_shape((x.shape[0], *function.structured_outputs[0].shape[1:]))
    return embeddings, penalty, rest[: len(counters)], rest[len(counters) :]


def _forward(run, counters, count, rows, pure):
    """All micro-batches without gradient: what they give, and the counters before each."""
    import tensorflow as tf

    def step(i, stack, penalty, states, counters, statistics):
        states = [state.write(i, counter) for state, counter in zip(states, counters, strict=True)]
        now, more, counters, moved = run(counters, i)
        share = tf.cast(tf.shape(now)[0], "float32") / tf.cast(rows, "float32")
        statistics = [s + tf.cast(share, m.dtype) * m for s, m in zip(statistics, moved, strict=True)]
        return i + 1, stack.write(i, now), penalty + share * more, states, counters, statistics

    first = (
        0,
        tf.TensorArray("float32", size=count, infer_shape=False),
        tf.zeros(()),
        [tf.TensorArray(c.dtype, size=count, element_shape=c.shape) for c in counters],
        counters,
        [tf.zeros(v.shape, v.dtype) for v in pure.statistics],
    )
    _, stack, penalty, states, counters, statistics = tf.while_loop(
        lambda i, *_: i < count, step, first, parallel_iterations=1
    )
    return stack.concat(), penalty, [state.stack() for state in states], counters, statistics
