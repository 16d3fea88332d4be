"""All similarities of two sets of embeddings, reduced tile by tile: the matrix itself never exists.

Each primitive takes rows (b, E) and columns (n, E) and forms the logits exp(log_scale) <row, column>, all of them but
the positives: row i belongs to column offset + i. The losses add those by plain arithmetic, which stays exact where a
softmax is nearly one. A tile is all rows by some columns, serves both directions, and is computed again for the
gradient: 8 n^2 E floating-point operations, where two softmaxes over stored matrices take 12, and memory linear in n.

One of the few places that ask which backend runs: each wants its own loop. Augmented assignments are on purpose: in
place on torch, where new tiles would cost as much as the arithmetic, and plain on the others.

Products are float32, also where a GPU would round factors to TF32 by default. TensorFlow has no such switch for one
product: there it is `tf.config.experimental.enable_tensor_float_32_execution(False)`.
"""

import keras
from keras import ops

from keras_clip.types import Tensor

# Numbers in a tile (16 MiB), as long as it gets that many columns at least: fewer make a slow product.
TILE_AREA = 2**22
LEAST_COLUMNS = 256
# Stands in for minus infinity, which would make NaN of a row that has no other column.
LOWEST = -1e30


def _compiled(function):
    """Compiles once for each set of shapes on JAX, where a loop outside of `jax.jit` would be compiled at each call."""
    if keras.backend.backend() != "jax":
        return function
    import jax

    return jax.jit(function)


def _scan(body, carry: tuple, count):
    """Runs `carry, outputs = body(carry, i)` for i < count.

    Returns:
        The last carry, and the outputs stacked along a new first axis.
    """
    backend = keras.backend.backend()
    if isinstance(count, int) and count == 1:
        carry, outputs = body(carry, 0)
        return carry, tuple(output[None] for output in outputs)
    if backend == "jax":
        import jax

        return jax.lax.scan(body, carry, jax.numpy.arange(count))
    if backend == "tensorflow":
        return _scan_tensorflow(body, carry, count)
    stacks = []
    for i in range(count):
        carry, outputs = body(carry, i)
        stacks.append(outputs)
    return carry, tuple(ops.stack(stack) for stack in zip(*stacks, strict=True))


def _scan_tensorflow(body, carry, count):
    import tensorflow as tf

    # The first step runs before the loop and tells the shapes.
    carry, outputs = body(carry, tf.constant(0))
    stacks = tuple(tf.TensorArray(x.dtype, size=count, element_shape=x.shape).write(0, x) for x in outputs)

    def step(i, carry, stacks):
        carry, outputs = body(carry, i)
        return i + 1, carry, tuple(stack.write(i, x) for stack, x in zip(stacks, outputs, strict=True))

    _, carry, stacks = tf.while_loop(
        lambda i, *_: i < count,
        step,
        (tf.constant(1), carry, stacks),
        shape_invariants=(
            tf.TensorShape([]),
            tuple(x.shape for x in carry),
            tuple(tf.TensorShape(None) for _ in stacks),
        ),
        parallel_iterations=1,
    )
    return carry, tuple(stack.stack() for stack in stacks)


def size(x: Tensor, axis: int = 0) -> int | Tensor:
    """The length of an axis: a Python number where it is known, else a scalar tensor."""
    return x.shape[axis] if x.shape[axis] is not None else ops.shape(x)[axis]


def _cut(x, count, width):
    """The first axis as (count, width), zeros added at the end."""
    missing = count * width - size(x)
    if not (isinstance(missing, int) and missing == 0):
        x = ops.concatenate([x, ops.zeros((missing, *x.shape[1:]), x.dtype)], axis=0)
    return ops.reshape(x, (count, width, *x.shape[1:]))


def _join(x, n):
    """Undoes `_cut`."""
    return ops.reshape(x, (-1, *x.shape[2:]))[:n]


def _grid(b, n):
    """How many tiles, and of how many columns: as equal as can be, so that little is padded."""
    if isinstance(b, int) and isinstance(n, int):
        count = -(-n // max(LEAST_COLUMNS, TILE_AREA // b))
    else:
        count = -(-n // ops.maximum(LEAST_COLUMNS, TILE_AREA // b))
    return count, -(-n // count)


def _matmul(a, b):
    if keras.backend.backend() == "jax":
        import jax

        with jax.default_matmul_precision("float32"):
            return ops.matmul(a, b)
    return ops.matmul(a, b)


def _exp(x):
    """`ops.exp` of a tensor that is not needed any more."""
    return x.exp_() if keras.backend.backend() == "torch" else ops.exp(x)


def _hide(logits, start, n, offset):
    """Sets the logits of positives and of padding to `LOWEST`; `start` is the tile's first column."""
    b, width = size(logits), size(logits, 1)
    positive = ops.cast(offset, "int32") - start + ops.arange(b, dtype="int32")
    if keras.backend.backend() == "torch":
        logits[:, max(0, n - start) :] = LOWEST
        # One number a row instead of a mask as large as the tile.
        at = positive.clamp(0, width - 1).long()[:, None]
        return logits.scatter_(1, at, ops.where(at == positive[:, None], LOWEST, logits.gather(1, at)))
    column = ops.arange(width, dtype="int32")
    others = ops.logical_and(column[None] != positive[:, None], (start + column < n)[None])
    return ops.where(others, logits, LOWEST)


def _each_tile(rows, columns, bias, offset, carry, step, *by_column):
    """Runs `carry, outputs = step(carry, logits, columns of the tile, ...)` over the tiles of rows @ columns.T + bias.

    Args:
        by_column: tensors (n,), of which `step` gets the tile's part.

    Returns:
        The last carry, and the outputs, one row per column.
    """
    n = size(columns)
    count, width = _grid(size(rows), n)
    tiles = [_cut(x, count, width) for x in (columns, *by_column)]

    def body(carry, i):
        parts = [x[i] for x in tiles]
        logits = _matmul(rows, ops.transpose(parts[0]))
        if bias is not None:
            logits += bias
        return step(carry, _hide(logits, i * width, n, offset), *parts)

    carry, outputs = _scan(body, carry, count)
    return carry, tuple(_join(x, n) for x in outputs)


def _reduce(rows, columns, log_scale, bias, offset, step):
    b = size(rows)
    first = ops.full((b,), LOWEST, dtype="float32"), ops.zeros((b,), "float32")
    return _each_tile(ops.exp(log_scale) * rows, columns, bias, offset, first, step)


def _pull_back(rows, columns, log_scale, bias, offset, pull, *by_column):
    """Gradients of all arguments; `pull(logits, *by_column)` gives that of a tile of logits."""
    scale = ops.exp(log_scale)
    scaled = scale * rows

    def step(carry, logits, columns, *by_column):
        d_rows, d_bias = carry
        g = pull(logits, *by_column)
        d_rows += _matmul(g, columns)
        if bias is not None:
            d_bias = d_bias + ops.sum(g)
        return (d_rows, d_bias), (_matmul(ops.transpose(g), scaled),)

    first = ops.zeros_like(rows), ops.zeros((), "float32")
    (d_rows, d_bias), (d_columns,) = _each_tile(scaled, columns, bias, offset, first, step, *by_column)
    d_rows *= scale
    # Each logit is linear in its row, so that this is the sum of gradient times logit.
    d_log_scale = ops.sum(rows * d_rows)
    return d_rows, d_columns, d_log_scale, d_bias


@_compiled
@ops.custom_gradient
def bidirectional_logsumexp(rows: Tensor, columns: Tensor, log_scale: Tensor, offset: Tensor):
    """Log-sum-exp of the logits of all non-matching pairs, by row and by column.

    Args:
        rows: float32 (b, E).
        columns: float32 (n, E).
        log_scale: float32 scalar.
        offset: float32 scalar. Column of the first row's positive.

    Returns:
        float32 (2, b + n): log-sum-exp of each row, then of each column; below them, the largest logit of each, which
        passes no gradient on. Where nothing is left but the positive, both are about -1e30.
    """

    def step(carry, logits, _):
        highest, total = carry
        new_highest = ops.maximum(highest, ops.max(logits, axis=1))
        total = total * ops.exp(highest - new_highest) + ops.sum(_exp(logits - new_highest[:, None]), axis=1)
        column_highest = ops.max(logits, axis=0)
        logits -= column_highest
        return (new_highest, total), (column_highest + ops.log(ops.sum(_exp(logits), axis=0)), column_highest)

    (highest, total), (column_lse, column_highest) = _reduce(rows, columns, log_scale, None, offset, step)
    row_lse = highest + ops.log(total)
    result = ops.stack(
        [ops.concatenate([row_lse, column_lse], axis=0), ops.concatenate([highest, column_highest], axis=0)]
    )

    def grad(*args, upstream=None):
        upstream = (args[0] if upstream is None else upstream)[0]
        by_row, by_column = upstream[: size(rows)], upstream[size(rows) :]

        def pull(logits, column_lse, by_column):
            g = _exp(logits - row_lse[:, None])
            g *= by_row[:, None]
            logits -= column_lse
            h = _exp(logits)
            h *= by_column
            g += h
            return g

        gradients = _pull_back(rows, columns, log_scale, None, offset, pull, column_lse, by_column)
        return (*gradients[:3], ops.zeros_like(offset))

    return result, grad


@_compiled
@ops.custom_gradient
def sum_of_softplus(rows: Tensor, columns: Tensor, log_scale: Tensor, bias: Tensor, offset: Tensor):
    """Sum over each row of softplus(logit + bias), non-matching pairs only.

    Args:
        rows, columns, log_scale, offset: as `bidirectional_logsumexp` takes them.
        bias: float32 scalar.

    Returns:
        float32 (2, b + n): the sum of each row, then zeros; below them, the largest logit + bias of each row and of
        each column, which passes no gradient on.
    """

    def step(carry, logits, _):
        highest, total = carry
        highest = ops.maximum(highest, ops.max(logits, axis=1))
        return (highest, total + ops.sum(ops.softplus(logits), axis=1)), (ops.max(logits, axis=0),)

    (highest, total), (column_highest,) = _reduce(rows, columns, log_scale, bias, offset, step)
    result = ops.stack(
        [
            ops.concatenate([total, ops.zeros_like(column_highest)], axis=0),
            ops.concatenate([highest, column_highest], axis=0),
        ]
    )

    def grad(*args, upstream=None):
        upstream = (args[0] if upstream is None else upstream)[0]
        by_row = upstream[: size(rows)]

        def pull(logits):
            g = ops.sigmoid(logits)
            g *= by_row[:, None]
            return g

        return (*_pull_back(rows, columns, log_scale, bias, offset, pull), ops.zeros_like(offset))

    return result, grad
