"""Image files to pixels inside tf.data, without Python per sample; equal to PIL's, as `images` gives them."""

import math

from keras_clip.data.images import MAX_PIXELS
from keras_clip.types import Tensor

# What PIL's fixed-point weights are multiples of.
_PRECISION = 2.0**22


def decode_image(data: Tensor, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decodes JPEG, PNG, GIF (first frame), BMP or WebP.

    Orientation is honoured in JPEG's EXIF; that of PNG and WebP files, which almost none has, is not.

    Args:
        data: scalar string tensor, the bytes of a file.
        max_pixels: int. More are refused before decoding.

    Returns:
        uint8 tensor (H, W, 3), transparency laid on white.

    Raises:
        InvalidArgumentError, when the graph runs: bytes of no known format, too many pixels, a broken file.
    """
    import tensorflow as tf

    start = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 0, 32), tf.uint8), tf.int32)
    start = tf.pad(start, [[0, 32 - tf.shape(start)[0]]])

    def begins(text, at=0):
        return tf.reduce_all(start[at : at + len(text)] == tf.constant(list(text)))

    def checked(sides):
        pixels = tf.reduce_prod(tf.cast(sides, tf.int64))
        message = f"pixel limit: an image may have {max_pixels} pixels"
        return tf.debugging.assert_less_equal(pixels, tf.constant(max_pixels, tf.int64), message=message)

    def number(at, count, big=False):
        digits = start[at : at + count]
        weights = [256**i for i in range(count)]
        return tf.reduce_sum(digits * tf.constant(weights[::-1] if big else weights))

    def jpeg():
        with tf.control_dependencies([checked(tf.image.extract_jpeg_shape(data)[:2])]):
            pixels = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
        return _oriented(pixels, _jpeg_orientation(data))

    def png():
        with tf.control_dependencies([checked([number(16, 4, big=True), number(20, 4, big=True)])]):
            return _of_any_depth(tf.io.decode_png(data))

    def gif():
        with tf.control_dependencies([checked([number(6, 2), number(8, 2)])]):
            return tf.io.decode_image(data, channels=3, expand_animations=False)

    def bmp():
        with tf.control_dependencies([checked([number(18, 4), tf.abs(number(22, 4))])]):
            return _of_any_depth(tf.io.decode_bmp(data))

    def webp():
        lossless = number(21, 4)
        sides = tf.case(
            [
                (begins(b"VP8X", 12), lambda: tf.stack([number(24, 3) + 1, number(27, 3) + 1])),
                (
                    begins(b"VP8L", 12),
                    lambda: tf.stack([lossless % 2**14 + 1, tf.bitwise.right_shift(lossless, 14) % 2**14 + 1]),
                ),
            ],
            default=lambda: tf.stack([number(26, 2) % 2**14, number(28, 2) % 2**14]),
        )
        with tf.control_dependencies([checked(sides)]):
            # TensorFlow decodes an animation to four channels, writes past its buffer if that has three, and refuses
            # four where the header tells of no alpha. So the header tells of it.
            animated = begins(b"VP8X", 12) & (start[20] // 2 % 2 == 1)
            flag = tf.constant([bytes([flags | 16]) for flags in range(256)])[start[20]]
            with_alpha = tf.strings.join([tf.strings.substr(data, 0, 20), flag, tf.strings.substr(data, 21, 2**31 - 1)])
            frames = tf.cond(
                animated, lambda: tf.image.decode_webp(with_alpha, channels=4), lambda: tf.image.decode_webp(data)
            )
            return _of_any_depth(frames[0])

    def unknown():
        message = "not an image: these bytes begin like no JPEG, PNG, GIF, BMP or WebP file"
        with tf.control_dependencies([tf.debugging.Assert(False, [message])]):
            return tf.zeros((1, 1, 3), tf.uint8)

    pixels = tf.case(
        [
            (begins(b"\xff\xd8"), jpeg),
            (begins(b"\x89PNG\r\n\x1a\n"), png),
            (begins(b"GIF8"), gif),
            (tf.logical_and(begins(b"RIFF"), begins(b"WEBP", 8)), webp),
            (begins(b"BM"), bmp),
        ],
        default=unknown,
    )
    return tf.ensure_shape(pixels, (None, None, 3))


def _of_any_depth(pixels):
    """Grey or colour, with alpha or without, to three channels."""
    import tensorflow as tf

    channels = tf.shape(pixels)[2]

    def on_white():
        colours, alpha = tf.cast(pixels[:, :, :-1], tf.int32), tf.cast(pixels[:, :, -1:], tf.int32)
        total = colours * alpha + 255 * (255 - alpha) + 128
        # x / 255, rounded, in integers.
        return tf.cast((total + total // 256) // 256, tf.uint8)

    opaque = tf.cond(channels % 2 == 0, on_white, lambda: pixels)
    return tf.cond(channels <= 2, lambda: tf.repeat(opaque, 3, axis=2), lambda: opaque)


def _jpeg_orientation(data):
    """EXIF orientation, 1 to 8: walks the segments to the EXIF one, then through its first directory."""
    import tensorflow as tf

    head = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 0, 2**17), tf.uint8), tf.int32)
    size = tf.shape(head)[0]
    head = tf.concat([head, tf.zeros([16], tf.int32)], 0)

    def big(at):
        return head[at] * 256 + head[at + 1]

    def is_segment(at):
        # Application segments and comments come first; the tables of the picture end the search.
        return (at + 4 < size) & (head[at] == 255) & ((head[at + 1] // 16 == 14) | (head[at + 1] == 254))

    def is_exif(at):
        return (at + 18 < size) & tf.reduce_all(head[at + 4 : at + 10] == tf.constant(list(b"Exif\x00\x00")))

    (at,) = tf.while_loop(
        lambda at: is_segment(at) & ~is_exif(at), lambda at: (at + 2 + big(at + 2),), (tf.constant(2),)
    )

    def read():
        tiff = at + 10
        little = head[tiff] == ord("I")

        def two(position):
            position = tf.minimum(position, size)
            low, high = head[position], head[position + 1]
            return tf.where(little, low + 256 * high, high + 256 * low)

        directory = tiff + tf.where(little, two(tiff + 4), two(tiff + 6))
        count = tf.minimum(two(directory), (size - directory) // 12)
        (entry,) = tf.while_loop(
            lambda i: (i < count) & (two(directory + 2 + 12 * i) != 0x0112), lambda i: (i + 1,), (tf.constant(0),)
        )
        value = two(directory + 2 + 12 * entry + 8)
        return tf.where((entry < count) & (value >= 1) & (value <= 8), value, 1)

    return tf.cond(is_segment(at) & is_exif(at), read, lambda: tf.constant(1))


def _oriented(pixels, orientation):
    import tensorflow as tf

    def turned():
        upright = tf.cond(orientation >= 5, lambda: tf.transpose(pixels, (1, 0, 2)), lambda: pixels)
        # As seen after the transposition: which sides are still mirrored.
        rows = tf.reduce_any(orientation == tf.constant([3, 4, 7, 8]))
        columns = tf.reduce_any(orientation == tf.constant([2, 3, 6, 7]))
        upright = tf.cond(rows, lambda: upright[::-1], lambda: upright)
        return tf.cond(columns, lambda: upright[:, ::-1], lambda: upright)

    return tf.cond(orientation == 1, lambda: pixels, turned)


def _weights(length, resized, first, count):
    """PIL's bicubic weights (count, length) of the outputs from `first` on, float64, in units of 2^-22."""
    import tensorflow as tf

    length_, resized_ = tf.cast(length, tf.float64), tf.cast(resized, tf.float64)
    scale = length_ / resized_
    stretch = tf.maximum(scale, 1.0)
    support = 2.0 * stretch
    taps = tf.cast(tf.math.ceil(support), tf.int32) * 2 + 1
    center = (tf.cast(first + tf.range(count), tf.float64) + 0.5) * scale
    lowest = tf.cast(tf.maximum(tf.floor(center - support + 0.5), 0.0), tf.int32)
    highest = tf.minimum(tf.cast(tf.floor(center + support + 0.5), tf.int32), length)
    index = lowest[:, None] + tf.range(taps)[None]
    x = tf.abs((tf.cast(index, tf.float64) - center[:, None] + 0.5) / stretch)
    # Keys' cubic with a = -0.5.
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    weights = tf.where(x < 1.0, near, tf.where(x < 2.0, far, 0.0))
    weights = tf.where(index < highest[:, None], weights, 0.0)
    weights = tf.round(weights / tf.reduce_sum(weights, axis=1, keepdims=True) * _PRECISION)
    row = tf.broadcast_to(tf.range(count)[:, None], tf.shape(index))
    # Taps past the end weigh nothing and may fall anywhere.
    place = tf.stack([row, tf.minimum(index, length - 1)], axis=2)
    return tf.scatter_nd(tf.reshape(place, (-1, 2)), tf.reshape(weights, (-1,)), tf.stack([count, length]))


def _pass(pixels, weights):
    """One rounded pass over the first axis: (length, m) -> (count, m)."""
    import tensorflow as tf

    # Whole numbers below 2^53: the product is exact.
    total = tf.matmul(weights, tf.cast(pixels, tf.float64))
    return tf.clip_by_value(tf.floor(total / _PRECISION + 0.5), 0.0, 255.0)


def resize_and_center_crop(image: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resizes the shortest side to `size` with PIL's antialiased bicubic, and cuts out the centre.

    Two passes, width then height, in PIL's fixed-point arithmetic with its rounding between them.

    Args:
        image: uint8 tensor (H, W, 3).
        size: int or (height, width), pixels.

    Returns:
        uint8 tensor (size, size, 3).
    """
    import tensorflow as tf

    sides = (size, size) if isinstance(size, int) else tuple(size)
    shape = tf.shape(image)
    height, width = shape[0], shape[1]
    by_height = tf.cast(height, tf.int64) * sides[1] <= tf.cast(width, tf.int64) * sides[0]
    height_, width_ = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    resized_height = tf.where(by_height, sides[0], tf.cast(sides[1] * height_ / width_, tf.int32))
    resized_width = tf.where(by_height, tf.cast(sides[0] * width_ / height_, tf.int32), sides[1])
    # Ties to even, as Python rounds.
    top = tf.cast(tf.round(tf.cast(resized_height - sides[0], tf.float64) / 2), tf.int32)
    left = tf.cast(tf.round(tf.cast(resized_width - sides[1], tf.float64) / 2), tf.int32)
    across = tf.reshape(tf.transpose(image, (1, 0, 2)), (width, height * 3))
    across = _pass(across, _weights(width, resized_width, left, sides[1]))
    down = tf.reshape(tf.transpose(tf.reshape(across, (sides[1], height, 3)), (1, 0, 2)), (height, sides[1] * 3))
    down = _pass(down, _weights(height, resized_height, top, sides[0]))
    return tf.cast(tf.reshape(down, (*sides, 3)), tf.uint8)


def random_resized_crop(
    image: Tensor,
    size: int | tuple[int, int],
    seed: Tensor,
    scale: tuple[float, float] = (0.9, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Cuts out a random part and resizes it: the only augmentation of the paper (Radford et al., 2021, section 2.4).

    Args:
        image: uint8 tensor (H, W, 3).
        size: int or (height, width), pixels.
        seed: int tensor (2,). The same seed gives the same crop.
        scale: lowest and highest share of the image's area.
        ratio: lowest and highest width over height of the part.

    Returns:
        uint8 tensor (size, size, 3), bicubic with antialiasing.
    """
    import tensorflow as tf

    sides = (size, size) if isinstance(size, int) else tuple(size)
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    tries = 10
    draws = tf.random.stateless_uniform((4, tries), seed)
    area = shape[0] * shape[1] * (scale[0] + (scale[1] - scale[0]) * draws[0])
    aspect = tf.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * draws[1])
    heights, widths = tf.round(tf.sqrt(area / aspect)), tf.round(tf.sqrt(area * aspect))
    fits = (heights <= shape[0]) & (widths <= shape[1])
    # The first try that lies inside; if none does, as much as the ratios allow.
    chosen, inside = tf.argmax(tf.cast(fits, tf.int32)), tf.reduce_any(fits)
    height = tf.where(inside, heights[chosen], tf.minimum(shape[0], tf.round(shape[1] / ratio[0])))
    width = tf.where(inside, widths[chosen], tf.minimum(shape[1], tf.round(shape[0] * ratio[1])))
    height, width = tf.maximum(height, 1.0), tf.maximum(width, 1.0)
    top = tf.cast(tf.floor(draws[2, chosen] * (shape[0] - height + 1)), tf.int32)
    left = tf.cast(tf.floor(draws[3, chosen] * (shape[1] - width + 1)), tf.int32)
    part = image[top : top + tf.cast(height, tf.int32), left : left + tf.cast(width, tf.int32)]
    resized = tf.image.resize(part, sides, method="bicubic", antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0.0, 255.0), tf.uint8)
