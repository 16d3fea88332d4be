"""Reductions over all similarities of two sets of embeddings, computed tile by tile without forming the matrix.

Each primitive takes rows (b, E) and columns (n, E) and computes the logits exp(log_scale) <row, column> of all pairs
but the positives: row i belongs to column offset + i. The losses add the positives separately, which stays exact where
a softmax is nearly one. A tile is used in both directions and computed again for the gradient: 8 b n E floating-point
operations, where two softmaxes over stored matrices take 12. Beside its arguments and their gradients, a primitive
holds two or three tiles.

The loop is implemented for each backend. Augmented assignments are deliberate: they are in place on torch, where new
tiles would cost as much as the arithmetic, and ordinary operations on the other backends.

Matrix products are float32, also on GPUs that round factors to TF32 by default. TensorFlow has no such switch for a
single product; set `tf.config.experimental.enable_tensor_float_32_execution(False)` there.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import keras
from keras import ops

from keras_clip import distribution
from keras_clip.custom_gradient import custom_gradient
from keras_clip.types import Tensor

# Largest number of rows and of elements of a tile on each device. If a quarter of the elements of the columns is more,
# this is the limit instead, since large batches are computed on large devices.
TILE_ROWS = 1024
TILE_AREA = 2**20
# Replaces minus infinity, which would give NaN for a row without negatives.
LOWEST = -1e30


class _Axis(NamedTuple):
    """The division of rows or columns into blocks.

    Attributes:
        blocks: number of blocks.
        width: number of rows of a block.
        is_padded: whether the blocks together may have more rows than the tensor.
    """

    blocks: int | Tensor
    width: int | Tensor
    is_padded: bool

    def cut(self, x):
        """Divides (n, ...) into (blocks, width, ...), with zeros added at the end."""
        shape = x.shape[1:]
        if self.is_padded:
            missing = self.blocks * self.width - size(x)
            x = ops.concatenate([x, ops.zeros((missing, *shape), x.dtype)])
        return ops.reshape(x, (self.blocks, self.width, *shape))

    def join(self, x, n):
        """Undoes `cut`."""
        return ops.reshape(x, (self.blocks * self.width, *x.shape[2:]))[:n]


def _compiled(function):
    """Compiles once for each set of shapes on JAX, where a loop outside of `jax.jit` would be compiled at each call."""
    if keras.backend.backend() != "jax":
        return function
    import jax

    compiled = jax.jit(lambda _, *args: function(*args), static_argnums=0)

    @functools.wraps(function)
    def call(*args):
        # The compiled function depends on these values too.
        return compiled((keras.distribution.distribution(), TILE_ROWS, TILE_AREA), *args)

    return call


def _loop(body, count, state: tuple):
    """Runs `state = body(i, state)` for i < count; `body` reads and writes blocks of the state by `_get` and `_put`."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.lax.fori_loop(0, count, body, state)
    if backend == "tensorflow":
        return _loop_tensorflow(body, count, state)
    for i in range(count):
        state = body(i, state)
    return state


def _loop_tensorflow(body, count, state):
    import tensorflow as tf

    # TensorArrays avoid a copy of the whole tensor for each block that is set.
    arrays = [tf.TensorArray(x.dtype, size=size(x), element_shape=x.shape[1:], clear_after_read=False) for x in state]
    arrays = tuple(array.unstack(x) for array, x in zip(arrays, state, strict=True))
    _, *arrays = tf.while_loop(
        lambda i, *_: i < count, lambda i, *state: (i + 1, *body(i, state)), (0, *arrays), parallel_iterations=1
    )
    return [array.stack() for array in arrays]


def _get(x, i):
    return x.read(i) if hasattr(x, "read") else x[i]


def _put(x, i, block):
    """Sets a block in place."""
    if hasattr(x, "write"):
        return x.write(i, block)
    if keras.backend.backend() == "jax":
        return x.at[i].set(block)
    x[i] = block
    return x


def size(x: Tensor, axis: int = 0) -> int | Tensor:
    """Returns the length of an axis: a Python int if it is known statically, else a scalar tensor."""
    return x.shape[axis] if x.shape[axis] is not None else ops.shape(x)[axis]


def _grid(b, n, embed_dim):
    """Divides b rows and n columns into blocks of nearly equal size, so that little padding is needed."""
    maximum = max if isinstance(n, int) and isinstance(b, int) else ops.maximum
    area = maximum(TILE_AREA, n * embed_dim // 4)

    def axis(n, most):
        blocks = -(-n // most)
        width = -(-n // blocks)
        return _Axis(blocks, width, not isinstance(n, int) or blocks * width != n)

    rows = axis(b, TILE_ROWS)
    return rows, axis(n, maximum(1, area // rows.width))


def _matmul(a, b):
    if keras.backend.backend() == "jax":
        import jax

        with jax.default_matmul_precision("float32"):
            return ops.matmul(a, b)
    return ops.matmul(a, b)


def _exp(x):
    """Returns `ops.exp(x)`, computed in place on torch."""
    return x.exp_() if keras.backend.backend() == "torch" else ops.exp(x)


def _mask_positives_and_padding(logits, row_numbers, column_numbers, is_padded, are_groups):
    """Sets the logits of positives, whose numbers are equal, and of padding, whose number is zero, to `LOWEST`.

    Numbers are those of pairs, of which a row has one positive at most, or of groups.
    """
    if keras.backend.backend() == "torch" and not are_groups:
        # One index for each row instead of a mask as large as the tile.
        at = (row_numbers - column_numbers[0]).clamp(0, len(column_numbers) - 1).long()[:, None]
        is_positive = column_numbers[at] == row_numbers[:, None]
        logits.scatter_(1, at, ops.where(is_positive, LOWEST, logits.gather(1, at)))
        if is_padded:
            logits[row_numbers == 0] = LOWEST
            logits[:, column_numbers == 0] = LOWEST
        return logits
    row_numbers, column_numbers = row_numbers[:, None], column_numbers[None]
    others = row_numbers != column_numbers
    if is_padded:
        others = ops.logical_and(others, ops.logical_and(row_numbers > 0, column_numbers > 0))
    return ops.where(others, logits, LOWEST)


def _each_tile(step: Callable, merge: Callable, rows, columns, row_state, column_state, scale, bias, offset):
    """Reduces all tiles of scale * rows @ columns.T + bias.

    Args:
        step: `row_state, column_state = step(logits, rows, columns, row_state, column_state)`, called with the blocks
            of each tile; the first of its `columns` is scaled.
        merge: returns the state of the columns (n, ...) from a tuple of the states (R, n, ...) of several devices, each
            of which has seen other rows and began with `column_state`.
        rows: tuple of tensors (b, ...), the embeddings first.
        columns: tuple of tensors (n, ...), the embeddings first.
        row_state: tuple of tensors (b, ...). Initial values.
        column_state: tuple of tensors (n, ...). Initial values.

    Returns:
        Both states after the last tile.
    """
    b, n = size(rows[0]), size(columns[0])
    if len(offset.shape) > 0:
        numbers = ops.cast(offset, "int32")
        row_numbers, column_numbers = numbers[:b], numbers[b:]
    else:
        row_numbers = ops.cast(offset, "int32") + ops.arange(1, b + 1, dtype="int32")
        column_numbers = ops.arange(1, n + 1, dtype="int32")

    def reduce(by_row, by_column):
        return _own_tiles(step, *by_row, *by_column, scale, bias, len(offset.shape) > 0)

    by_row, by_column = (rows, row_state, row_numbers), (columns, column_state, column_numbers)
    shards = distribution.row_shards()
    if shards == 1 or not isinstance(b, int) or b % shards:
        return reduce(by_row, by_column)
    row_state, column_states = distribution.map_row_shards(reduce, by_row, by_column)
    return row_state, merge(column_states)


def _own_tiles(step, rows, row_state, row_numbers, columns, column_state, column_numbers, scale, bias, are_groups):
    """Reduces the tiles of the rows of one device; arguments as of `_each_tile`."""
    b, n = size(rows[0]), size(columns[0])
    by_row, by_column = _grid(b, n, rows[0].shape[1])
    row_numbers, column_numbers = by_row.cut(row_numbers), by_column.cut(column_numbers)
    rows, columns = [by_row.cut(x) for x in rows], [by_column.cut(x) for x in columns]
    split = len(row_state)

    def body(k, state):
        i, j = k % by_row.blocks, k // by_row.blocks
        row_parts, (embeddings, *others) = [x[i] for x in rows], [x[j] for x in columns]
        embeddings = scale * embeddings
        logits = _matmul(row_parts[0], ops.transpose(embeddings))
        if bias is not None:
            logits += bias
        logits = _mask_positives_and_padding(
            logits, row_numbers[i], column_numbers[j], by_row.is_padded or by_column.is_padded, are_groups
        )
        states = [_get(x, i) for x in state[:split]], [_get(x, j) for x in state[split:]]
        row_parts_after, column_parts_after = step(logits, row_parts, [embeddings, *others], *states)
        return (
            *(_put(x, i, part) for x, part in zip(state[:split], row_parts_after, strict=True)),
            *(_put(x, j, part) for x, part in zip(state[split:], column_parts_after, strict=True)),
        )

    first = *map(by_row.cut, row_state), *map(by_column.cut, column_state)
    last = _loop(body, by_row.blocks * by_column.blocks, first)
    return [by_row.join(x, b) for x in last[:split]], [by_column.join(x, n) for x in last[split:]]


def _add_logsumexp(logits, state, axis):
    """Updates `state`: the maximum so far, and the sum of exponentials relative to it."""
    highest, total = state
    new_highest = ops.maximum(highest, ops.max(logits, axis=axis))
    exponentials = _exp(logits - ops.expand_dims(new_highest, axis))
    return new_highest, total * ops.exp(highest - new_highest) + ops.sum(exponentials, axis=axis)


def _merge_logsumexp(states):
    # Gathered together: a maximum and a sum would be two reductions over the devices.
    highest, total = ops.split(distribution.replicate(ops.concatenate(states, axis=1)), 2, axis=1)
    most = ops.max(highest, axis=0)
    return most, ops.sum(total * ops.exp(highest - most), axis=0)


def _largest(states):
    return tuple(ops.max(x, axis=0) for x in states)


def _sum(states):
    return tuple(ops.sum(x, axis=0) for x in states)


def _backward(pull, rows, columns, log_scale, bias, offset, by_row, by_column):
    """Returns the gradients of rows, columns, log_scale and bias.

    Args:
        pull: `pull(logits, by_row, by_column)` returns the gradient with respect to a tile of logits.
        by_row: tuple of tensors (b,), whose blocks `pull` receives.
        by_column: tuple of tensors (n,), likewise.
    """
    scale = ops.exp(log_scale)

    def step(logits, rows, columns, row_state, column_state):
        g = pull(logits, rows[1:], columns[1:])
        (d_rows, *d_bias), (d_columns,) = row_state, column_state
        d_rows += _matmul(g, columns[0])
        d_columns += _matmul(ops.transpose(g), rows[0])
        return (d_rows, *(x + ops.sum(g, axis=1) for x in d_bias)), (d_columns,)

    zeros = ops.zeros_like(rows), *(() if bias is None else (ops.zeros_like(rows[:, 0]),))
    (d_rows, *d_bias), (d_columns,) = _each_tile(
        step, _sum, (rows, *by_row), (columns, *by_column), zeros, (ops.zeros_like(columns),), scale, bias, offset
    )
    d_columns *= scale
    # Each logit is linear in its row, so the gradient of log_scale is the sum of gradient times logit.
    return d_rows, d_columns, ops.sum(rows * d_rows), *map(ops.sum, d_bias)


def _pack(*vectors):
    """Two results for rows (b,) and columns (n,), then two more: (2, b + n)."""
    # `ops.stack` would keep its list of tensors in a reference cycle on torch.
    return ops.reshape(ops.concatenate(vectors), (2, -1))


def _logsumexp_forward(rows, columns, log_scale, offset):
    def step(logits, _, __, row_state, column_state):
        return _add_logsumexp(logits, row_state, axis=1), _add_logsumexp(logits, column_state, axis=0)

    states = [(ops.full((size(x),), LOWEST, "float32"), ops.zeros((size(x),), "float32")) for x in (rows, columns)]
    states = _each_tile(step, _merge_logsumexp, (rows,), (columns,), *states, ops.exp(log_scale), None, offset)
    row_lse, column_lse = (highest + ops.log(total) for highest, total in states)
    result = _pack(row_lse, column_lse, *(highest for highest, _ in states))
    return result, (rows, columns, log_scale, offset, row_lse, column_lse)


def _logsumexp_backward(saved, upstream):
    rows, columns, log_scale, offset, row_lse, column_lse = saved

    def pull(logits, row, column):
        (row_lse, by_row), (column_lse, by_column) = row, column
        g = _exp(logits - row_lse[:, None])
        g *= by_row[:, None]
        logits -= column_lse
        h = _exp(logits)
        h *= by_column
        g += h
        return g

    b = size(rows)
    more = (row_lse, upstream[0, :b]), (column_lse, upstream[0, b:])
    return (*_backward(pull, rows, columns, log_scale, None, offset, *more), ops.zeros_like(offset))


def _softplus_forward(rows, columns, log_scale, bias, offset):
    def step(logits, _, __, row_state, column_state):
        (row_highest, total), (column_highest,) = row_state, column_state
        row_highest = ops.maximum(row_highest, ops.max(logits, axis=1))
        column_highest = ops.maximum(column_highest, ops.max(logits, axis=0))
        return (row_highest, total + ops.sum(ops.softplus(logits), axis=1)), (column_highest,)

    highest = [ops.full((size(x),), LOWEST, "float32") for x in (rows, columns)]
    first = (highest[0], ops.zeros_like(highest[0])), (highest[1],)
    (row_highest, total), (column_highest,) = _each_tile(
        step, _largest, (rows,), (columns,), *first, ops.exp(log_scale), bias, offset
    )
    result = _pack(total, ops.zeros_like(column_highest), row_highest, column_highest)
    return result, (rows, columns, log_scale, bias, offset)


def _softplus_backward(saved, upstream):
    rows, columns, log_scale, bias, offset = saved

    def pull(logits, row, _):
        g = ops.sigmoid(logits)
        g *= row[0][:, None]
        return g

    more = (upstream[0, : size(rows)],), ()
    return (*_backward(pull, rows, columns, log_scale, bias, offset, *more), ops.zeros_like(offset))


_logsumexp = _compiled(custom_gradient(_logsumexp_forward, _logsumexp_backward))
_softplus = _compiled(custom_gradient(_softplus_forward, _softplus_backward))


def bidirectional_logsumexp(rows: Tensor, columns: Tensor, log_scale: Tensor, offset: Tensor) -> Tensor:
    """Log-sum-exp of the logits of all non-matching pairs, by row and by column.

    Args:
        rows: float32 (b, E).
        columns: float32 (n, E).
        log_scale: float32 scalar.
        offset: float32 scalar. Column of the first row's positive. Or float32 (b + n,): the number of the group, from
            1, of each row and column; a row matches all columns of its group.

    Returns:
        float32 (2, b + n). First row: the log-sum-exp of each row, then of each column. Second row: the largest logit
        of each, without a gradient. Where the positive is the only pair, both are about -1e30.
    """
    return _logsumexp(rows, columns, log_scale, offset)


def sum_of_softplus(rows: Tensor, columns: Tensor, log_scale: Tensor, bias: Tensor, offset: Tensor) -> Tensor:
    """Sum over each row of softplus(logit + bias), non-matching pairs only.

    Args:
        rows, columns, log_scale, offset: as `bidirectional_logsumexp` takes them.
        bias: float32 scalar.

    Returns:
        float32 (2, b + n). First row: the sum of each row, then zeros. Second row: the largest logit + bias of each row
        and of each column, without a gradient.
    """
    return _softplus(rows, columns, log_scale, bias, offset)
