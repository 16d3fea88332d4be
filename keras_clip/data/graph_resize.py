"""Antialiased bicubic resizing inside tf.data, equal to PIL's.

Each pass multiplies by a banded matrix. The outputs are computed in blocks, each of which depends on few rows of the
input, so that the products are small, dense and fast.
"""

from keras_clip.types import Tensor

_BLOCK = 32
# PIL's fixed-point weights are multiples of this number.
_PRECISION = 2.0**-22


def resize(
    image: Tensor,
    sides: tuple[int, int],
    full: tuple[Tensor, Tensor] | None = None,
    offset: tuple[Tensor, Tensor] | tuple[int, int] = (0, 0),
    dtype: str = "float64",
    height_first: bool = False,
) -> Tensor:
    """Resizes in two passes, with rounding between them.

    Args:
        image: uint8 tensor (H, W, 3).
        sides: height and width of the result, pixels.
        full: height and width of the whole resized image, of which the result is a crop; None: `sides`.
        offset: top and left of the crop.
        dtype: "float64" equals PIL exactly; "float32" takes half the time and differs by one grey level where a sum is
            close to a half.
        height_first: whether to resize the height before the width, which changes the rounding.

    Returns:
        uint8 tensor (height, width, 3).
    """
    import tensorflow as tf

    full = sides if full is None else full
    lengths = tf.shape(image)[0], tf.shape(image)[1]
    # The first pass must not compute what the second does not need: without this, images of extreme aspects grow.
    (top, bottom), (left, right) = (
        _needed(length, *place) for length, *place in zip(lengths, full, offset, sides, strict=True)
    )
    image, read = image[top:bottom, left:right], ((top, bottom), (left, right))
    # Channels first: both passes are then matrix products without transposition in memory.
    planes = tf.reshape(tf.transpose(tf.reshape(image, (-1, 3))), (3, tf.shape(image)[0], tf.shape(image)[1]))
    for axis in (0, 1) if height_first else (1, 0):
        blocks = _blocks(lengths[axis], read[axis], full[axis], offset[axis], sides[axis], dtype)
        planes = _resize_planes(planes, axis, blocks, sides[axis])
    return tf.reshape(tf.transpose(tf.reshape(planes, (3, -1))), (*sides, 3))


def _needed(length, full, offset, count):
    """The first input that the outputs from `offset` on depend on, and the one after the last."""
    import tensorflow as tf

    scale = tf.cast(length, tf.float64) / tf.cast(full, tf.float64)
    # Two inputs more than the filter reaches, for its rounding.
    reach = 2.0 * tf.maximum(scale, 1.0) + 2.0
    first, last = (scale * (tf.cast(offset, tf.float64) + position) for position in (0.5, count - 0.5))
    first, last = tf.cast(tf.floor(first - reach), tf.int32), tf.cast(tf.math.ceil(last + reach), tf.int32)
    return tf.maximum(first, 0), tf.minimum(last, length)


def _resize_planes(planes, axis, blocks, count):
    """Resizes uint8 planes (3, H, W) to `count` rows (axis 0) or columns (axis 1)."""
    import tensorflow as tf

    height, width = tf.shape(planes)[1], tf.shape(planes)[2]
    levels = []
    if axis == 0:
        for first, weights in blocks:
            needed = planes[:, first : first + tf.shape(weights)[1]]
            levels.append(tf.matmul(weights, tf.cast(needed, weights.dtype)))
    else:
        planes = tf.reshape(planes, (3 * height, width))
        for first, weights in blocks:
            needed = planes[:, first : first + tf.shape(weights)[1]]
            levels.append(tf.matmul(tf.cast(needed, weights.dtype), weights, transpose_b=True))
    levels = _grey_levels(tf.concat(levels, axis=1))
    return tf.reshape(levels, (3, count, width) if axis == 0 else (3, height, count))


def _grey_levels(x):
    """Rounds to uint8, with halves rounded up as in PIL."""
    import tensorflow as tf

    if x.dtype == tf.float64:
        return tf.cast(tf.clip_by_value(x + 0.5, 0.0, 255.0), tf.uint8)
    # The fastest way, since it is a single operation, which exists in float32 only.
    rounding = {"mode": "MIN_COMBINED", "round_mode": "HALF_AWAY_FROM_ZERO"}
    levels = tf.raw_ops.QuantizeV2(input=x, min_range=0.0, max_range=255.0, T=tf.quint8, **rounding).output
    return tf.bitcast(levels, tf.uint8)


def _blocks(length, read, full, offset, count, dtype):
    """Returns the first input and the weights (outputs, inputs) of each block of outputs.

    The inputs are those from the first of `read` to before the last; the first input of a block is counted from there.
    """
    import tensorflow as tf

    start, stop = read
    blocks = -(-count // _BLOCK)
    scale = tf.cast(length, tf.float64) / tf.cast(full, tf.float64)
    filter_scale = tf.maximum(scale, 1.0)
    centers = (tf.cast(offset, tf.float64) + tf.cast(tf.range(count), tf.float64) + 0.5) * scale
    # The filter reaches from two scales before the first center to two after the last; each rounding adds one input.
    needed = tf.cast(tf.math.ceil((_BLOCK - 1) * scale + 4.0 * filter_scale), tf.int32) + 2
    # The last block may be shorter, and then it does not need all of these.
    needed = tf.minimum(needed, stop - start)
    first = tf.cast(tf.floor(centers[::_BLOCK] - 2.0 * filter_scale), tf.int32)
    first = tf.clip_by_value(first, start, stop - needed)
    centers -= tf.repeat(tf.cast(first, tf.float64), _BLOCK)[:count] + 0.5
    inputs = tf.cast(tf.range(needed), tf.float64)
    x = tf.abs(tf.cast(inputs / filter_scale, dtype) - tf.cast(centers / filter_scale, dtype)[:, None])
    # The cubic kernel of Keys with a = -0.5: the outer piece, plus a correction in the inner interval.
    outer, inner = tf.nn.relu(2.0 - x), tf.nn.relu(1.0 - x)
    weights = 0.5 * (outer - 1.0) * outer * outer + (1.0 - 2.0 * inner) * inner * inner
    weights /= tf.reduce_sum(weights, axis=1, keepdims=True)
    weights = tf.round(weights / _PRECISION) * _PRECISION
    first -= start
    return [(first[block], weights[block * _BLOCK : (block + 1) * _BLOCK]) for block in range(blocks)]
