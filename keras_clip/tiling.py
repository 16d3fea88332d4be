"""All similarities of two sets of embeddings, reduced tile by tile: the matrix itself never exists.

Each primitive takes rows (b, E) and columns (n, E), forms logits exp(log_scale) <row, column> + bias, and leaves out the
positives: row i belongs to column offset + i. The losses add those by plain arithmetic, which stays exact where a
softmax is nearly one. The gradient computes each tile again, so forward and backward hold one tile at a time; and one
tile serves both directions, which is half of the work of two softmaxes.

One of the few places that ask which backend runs: each wants its own loop.
"""

import keras
from keras import ops

from keras_clip.types import Tensor

# Numbers in a tile (8 MiB): small beside the embeddings of a large batch, large enough for a matrix product.
TILE_AREA = 2**21
# Stands in for minus infinity, which would make NaN of a row that has no other column.
LOWEST = -1e30


def _scan(body, carry: tuple, count):
    """Runs `carry, output = body(carry, i)` for i < count.

    Returns:
        The last carry, and the outputs stacked along a new first axis.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.lax.scan(body, carry, jax.numpy.arange(count))
    if backend == "torch":
        outputs = []
        for i in range(count):
            carry, output = body(carry, i)
            outputs.append(output)
        return carry, tuple(ops.stack(parts) for parts in zip(*outputs, strict=True))
    return _scan_tensorflow(body, carry, count)


def _scan_tensorflow(body, carry, count):
    import tensorflow as tf

    first_carry, first = body(carry, tf.constant(0))
    arrays = tuple(tf.TensorArray(part.dtype, size=count, element_shape=part.shape).write(0, part) for part in first)

    def step(i, carry, arrays):
        carry, output = body(carry, i)
        return i + 1, carry, tuple(array.write(i, part) for array, part in zip(arrays, output, strict=True))

    shapes = (tf.TensorShape([]), tuple(part.shape for part in carry), tuple(tf.TensorShape(None) for _ in arrays))
    _, carry, arrays = tf.while_loop(
        lambda i, *_: i < count,
        step,
        (tf.constant(1), first_carry, arrays),
        shape_invariants=shapes,
        parallel_iterations=1,
    )
    return carry, tuple(array.stack() for array in arrays)


def _size(x, axis: int):
    """A Python number where it is known, else a tensor."""
    return x.shape[axis] if x.shape[axis] is not None else ops.shape(x)[axis]


def _cut(rows, columns):
    """Columns (n, E) as tiles (count, t, E), zeros added at the end."""
    b, n = _size(rows, 0), _size(columns, 0)
    if isinstance(b, int) and isinstance(n, int):
        width = min(n, max(32, TILE_AREA // b))
    else:
        width = ops.minimum(n, ops.maximum(32, TILE_AREA // b))
    count = (n + width - 1) // width
    missing = count * width - n
    if not (isinstance(missing, int) and missing == 0):
        columns = ops.concatenate([columns, ops.zeros((missing, columns.shape[1]), columns.dtype)], axis=0)
    return ops.reshape(columns, (count, width, columns.shape[1])), count, width


def _tile(tiles, i, rows, n, width, scale, bias, offset):
    """Columns of tile i, and its logits (b, t) without those of positives and of padding."""
    columns = tiles[i]
    logits = scale * ops.matmul(rows, ops.transpose(columns)) + bias
    column = i * width + ops.arange(width, dtype="int32")
    positive = ops.cast(offset, "int32") + ops.arange(_size(rows, 0), dtype="int32")
    others = ops.logical_and(column[None] != positive[:, None], (column < n)[None])
    return columns, ops.where(others, logits, LOWEST)


def _reduce(rows, columns, log_scale, bias, offset, first, update):
    tiles, count, width = _cut(rows, columns)
    scale = ops.exp(log_scale)
    n = _size(columns, 0)

    def body(carry, i):
        _, logits = _tile(tiles, i, rows, n, width, scale, bias, offset)
        return update(carry, logits)

    carry, outputs = _scan(body, first(_size(rows, 0)), count)
    return carry, [ops.reshape(output, (-1,))[:n] for output in outputs]


def _pull_back(rows, columns, log_scale, bias, offset, gradient_of_logits):
    """Gradients of rows, columns, log scale and bias, given that of a tile of logits."""
    tiles, count, width = _cut(rows, columns)
    scale = ops.exp(log_scale)
    n = _size(columns, 0)

    def body(carry, i):
        columns_i, logits = _tile(tiles, i, rows, n, width, scale, bias, offset)
        g = gradient_of_logits(logits, i * width, width)
        d_rows, d_log_scale, d_bias = carry
        d_rows = d_rows + ops.matmul(g, columns_i)
        d_log_scale = d_log_scale + ops.sum(g * (logits - bias))
        return (d_rows, d_log_scale, d_bias + ops.sum(g)), (ops.matmul(ops.transpose(g), rows),)

    zero = ops.zeros((), "float32")
    (d_rows, d_log_scale, d_bias), (d_columns,) = _scan(body, (ops.zeros_like(rows), zero, zero), count)
    d_columns = ops.reshape(d_columns, (-1, columns.shape[1]))[:n]
    return scale * d_rows, scale * d_columns, d_log_scale, d_bias, ops.zeros_like(offset)


def _lowest(count):
    return ops.full((count,), LOWEST, dtype="float32")


def _padded(x, extra):
    """A vector over columns, long enough for a slice that reaches into the padding of the last tile."""
    return ops.concatenate([x, ops.zeros((extra,), x.dtype)], axis=0)


def _update_logsumexp(carry, logits):
    highest, total = carry
    new_highest = ops.maximum(highest, ops.max(logits, axis=1))
    total = total * ops.exp(highest - new_highest) + ops.sum(ops.exp(logits - new_highest[:, None]), axis=1)
    column_highest = ops.max(logits, axis=0)
    column_total = ops.sum(ops.exp(logits - column_highest), axis=0)
    return (new_highest, total), (column_highest + ops.log(column_total), column_highest)


@ops.custom_gradient
def bidirectional_logsumexp(rows: Tensor, columns: Tensor, log_scale: Tensor, bias: Tensor, offset: Tensor):
    """Log-sum-exp of the logits of all non-matching pairs, by row and by column.

    Args:
        rows: float32 (b, E).
        columns: float32 (n, E).
        log_scale: float32 scalar.
        bias: float32 scalar.
        offset: float32 scalar. Column of the first row's positive.

    Returns:
        float32 (2, b + n): log-sum-exp of each row, then of each column; below them, the largest logit of each, which
        passes no gradient on. Where nothing is left but the positive, both are about -1e30.
    """

    def first(b):
        return _lowest(b), ops.zeros((b,), "float32")

    (highest, total), (column_lse, column_highest) = _reduce(
        rows, columns, log_scale, bias, offset, first, _update_logsumexp
    )
    row_lse = highest + ops.log(total)
    result = ops.stack(
        [ops.concatenate([row_lse, column_lse], axis=0), ops.concatenate([highest, column_highest], axis=0)]
    )

    def grad(*args, upstream=None):
        upstream = (args[0] if upstream is None else upstream)[0]
        b = _size(rows, 0)
        width = _cut(rows, columns)[2]
        row_upstream, column_upstream = upstream[:b], _padded(upstream[b:], width)
        padded_column_lse = _padded(column_lse, width)

        def gradient_of_logits(logits, start, width):
            lse = _slice(padded_column_lse, start, width)
            by_row = row_upstream[:, None] * ops.exp(logits - row_lse[:, None])
            return by_row + _slice(column_upstream, start, width) * ops.exp(logits - lse)

        return _pull_back(rows, columns, log_scale, bias, offset, gradient_of_logits)

    return result, grad


def _slice(x, start, width):
    if isinstance(start, int):
        return x[start : start + width]
    return ops.slice(x, (start,), (width,))


def _update_softplus(carry, logits):
    highest, total = carry
    carry = ops.maximum(highest, ops.max(logits, axis=1)), total + ops.sum(ops.softplus(logits), axis=1)
    return carry, (ops.max(logits, axis=0),)


@ops.custom_gradient
def sum_of_softplus(rows: Tensor, columns: Tensor, log_scale: Tensor, bias: Tensor, offset: Tensor):
    """Sum over each row of softplus(logit), non-matching pairs only.

    Args:
        rows, columns, log_scale, bias, offset: as `bidirectional_logsumexp` takes them.

    Returns:
        float32 (2, b + n): the sum of each row, then zeros; below them, the largest logit of each row and of each
        column, which passes no gradient on.
    """

    def first(b):
        return _lowest(b), ops.zeros((b,), "float32")

    (highest, total), (column_highest,) = _reduce(rows, columns, log_scale, bias, offset, first, _update_softplus)
    result = ops.stack(
        [
            ops.concatenate([total, ops.zeros_like(column_highest)], axis=0),
            ops.concatenate([highest, column_highest], axis=0),
        ]
    )

    def grad(*args, upstream=None):
        upstream = (args[0] if upstream is None else upstream)[0]
        row_upstream = upstream[: _size(rows, 0)]

        def gradient_of_logits(logits, start, width):
            return row_upstream[:, None] * ops.sigmoid(logits)

        return _pull_back(rows, columns, log_scale, bias, offset, gradient_of_logits)

    return result, grad
