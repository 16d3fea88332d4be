"""Antialiased bicubic resizing inside tf.data, as PIL does it.

Each pass multiplies by a banded matrix. It goes through the outputs in blocks, each of which needs few rows of the
input only: small dense products, at the full speed of the processor.
"""

from keras_clip.types import Tensor

_BLOCK = 32
# What PIL's fixed-point weights are multiples of.
_PRECISION = 2.0**-22


def resize(
    image: Tensor,
    sides: tuple[int, int],
    full: tuple[Tensor, Tensor] | None = None,
    offset: tuple[Tensor, Tensor] | tuple[int, int] = (0, 0),
    dtype: str = "float64",
) -> Tensor:
    """Resizes in two passes, width then height, with rounding between them.

    Args:
        image: uint8 tensor (H, W, 3).
        sides: height and width of the result, pixels.
        full: height and width that the whole image would get, of which the result is a part; None: `sides`.
        offset: top and left of that part.
        dtype: "float64" gives PIL's very numbers; "float32", in half the time, differs by a grey level where a sum lies
            close to a half.

    Returns:
        uint8 tensor (height, width, 3).
    """
    import tensorflow as tf

    full = sides if full is None else full
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    columns = tf.reshape(tf.transpose(image, (1, 0, 2)), (width, height * 3))
    columns = tf.reshape(_resize_rows(columns, full[1], offset[1], sides[1], dtype), (sides[1], height, 3))
    rows = tf.reshape(tf.transpose(columns, (1, 0, 2)), (height, sides[1] * 3))
    resized = _resize_rows(rows, full[0], offset[0], sides[0], dtype)
    return tf.reshape(resized, (*sides, 3))


def _resize_rows(pixels, full, offset, count, dtype):
    """uint8 (length, m) -> (count, m): the rows from `offset` on of the `full` ones."""
    import tensorflow as tf

    first, weights = _weights(tf.shape(pixels)[0], full, offset, count)
    weights, needed = tf.cast(weights, dtype), tf.shape(weights)[2]
    blocks = []
    for block in range(weights.shape[0]):
        rows = tf.cast(pixels[first[block] : first[block] + needed], dtype)
        blocks.append(tf.matmul(weights[block, : count - block * _BLOCK], rows))
    # Halves go up, as in PIL.
    rounded = tf.floor(tf.concat(blocks, axis=0) + 0.5)
    return tf.cast(tf.clip_by_value(rounded, 0.0, 255.0), tf.uint8)


def _weights(length, full, offset, count):
    """The first row that each block of outputs needs, (blocks,), and its weights, (blocks, outputs, rows)."""
    import tensorflow as tf

    blocks = -(-count // _BLOCK)
    scale = tf.cast(length, tf.float64) / tf.cast(full, tf.float64)
    stretch = tf.maximum(scale, 1.0)
    centers = (tf.cast(offset + tf.range(blocks * _BLOCK), tf.float64) + 0.5) * scale
    # From two stretches before the first centre to two behind the last one, and a row for each rounding.
    needed = tf.cast(tf.math.ceil((_BLOCK - 1) * scale + 4.0 * stretch), tf.int32) + 2
    needed = tf.minimum(needed, length)
    first = tf.cast(tf.floor(centers[::_BLOCK] - 2.0 * stretch), tf.int32)
    first = tf.clip_by_value(first, 0, length - needed)
    rows = tf.cast(first[:, None] + tf.range(needed), tf.float64) + 0.5
    x = tf.abs(rows[:, None, :] - tf.reshape(centers, (blocks, _BLOCK, 1))) / stretch
    # Keys' cubic with a = -0.5.
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    weights = tf.where(x < 1.0, near, tf.where(x < 2.0, far, 0.0))
    # Outputs past the end, in a last block that is not full, may weigh nothing.
    weights = tf.math.divide_no_nan(weights, tf.reduce_sum(weights, axis=2, keepdims=True))
    return first, tf.round(weights / _PRECISION) * _PRECISION
