"""Decodes and resizes images inside tf.data, without Python per sample, to the same pixels as PIL and `images`."""

import math

import numpy as np

from keras_clip.data.graph_resize import resize
from keras_clip.data.images import MAX_PIXELS, open_image
from keras_clip.types import Tensor

# Leading bytes of a file that are searched for EXIF data and for the transparent colour of a PNG.
_HEADER = 2**16
# Smallest and largest aspect ratio (width / height) of a random crop.
CROP_RATIO = (3 / 4, 4 / 3)


def decode_image(data: Tensor, max_pixels: int = MAX_PIXELS, shortest: float | None = None) -> Tensor:
    """Decodes JPEG, PNG, GIF (first frame), BMP or WebP in a graph: in tf.data or a `tf.function`.

    Rare formats that TensorFlow decodes incorrectly or not at all are decoded by PIL: GIF, BMP with other than 24 bits,
    animated WebP, PNG with a transparent colour, and files other than JPEG with EXIF data.

    Args:
        data: scalar string tensor, the bytes of a file.
        max_pixels: int. Images with more pixels are rejected before decoding.
        shortest: pixels or None. A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if its shorter side keeps at least
            this length; this is much faster, as high frequencies are skipped. None: at full size.

    Returns:
        uint8 tensor (H, W, 3), with transparency composited on white.

    Raises:
        RuntimeError: an eager call, in which nested branches can deadlock.
        InvalidArgumentError: at run time, an unknown format, too many pixels, or a corrupt file.
    """
    import tensorflow as tf

    if tf.executing_eagerly():
        raise RuntimeError(
            "`decode_image` must be called in a graph. Received: an eager call. Wrap it in a `tf.function`."
        )
    branches = {
        b"\xff\xd8": lambda data: _decode_jpeg(data, max_pixels, shortest),
        b"\x89PNG\r\n\x1a\n": lambda data: _decode_png(data, max_pixels),
        b"GIF8": lambda data: _decode_by_pil(data, max_pixels),
        b"RIFF": lambda data: _decode_webp(data, max_pixels),
        b"BM": lambda data: _decode_bmp(data, max_pixels),
        b"": _reject_unknown,
    }
    matches = [tf.strings.substr(data, 0, len(start)) == start for start in list(branches)[:-1]]
    known = tf.cast(tf.stack([*matches, True]), tf.int32)
    return _switch(tf.argmax(known, output_type=tf.int32), list(branches.values()), data)


def _switch(index, branches, *inputs):
    """Applies the branch of this index to the inputs and returns its image.

    `tf.case` would inline all branches into the graph, whose dead nodes take more time than the decoding.
    """
    import tensorflow as tf

    specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in inputs]
    functions = [tf.function(branch).get_concrete_function(*specs) for branch in branches]
    (pixels,) = tf.raw_ops.Case(
        branch_index=index, input=inputs, Tout=[tf.uint8], branches=functions, output_shapes=[[None, None, 3]]
    )
    return tf.ensure_shape(pixels, (None, None, 3))


def _head(data):
    """Returns the first 32 bytes as int32 (32,), padded with zeros."""
    import tensorflow as tf

    start = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 0, 32), tf.uint8), tf.int32)
    return tf.ensure_shape(tf.pad(start, [[0, 32 - tf.shape(start)[0]]]), (32,))


def _number(digits, big=False):
    import tensorflow as tf

    weights = [256**i for i in range(digits.shape[0])]
    return tf.reduce_sum(digits * tf.constant(weights[::-1] if big else weights))


def _within_limit(sides, max_pixels):
    import tensorflow as tf

    pixels = tf.reduce_prod(tf.cast(sides, tf.int64))
    message = f"pixel limit: an image may have at most {max_pixels} pixels"
    return tf.control_dependencies(
        [tf.debugging.assert_less_equal(pixels, tf.constant(max_pixels, tf.int64), message=message)]
    )


def _decode_jpeg(data, max_pixels, shortest):
    import tensorflow as tf

    def at(ratio):
        return lambda data: tf.io.decode_jpeg(data, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")

    sides = tf.image.extract_jpeg_shape(data)[:2]
    with _within_limit(sides, max_pixels):
        if shortest is None:
            pixels = at(1)(data)
        else:
            halvings = tf.math.log(tf.cast(tf.reduce_min(sides), tf.float32) / shortest) / math.log(2.0)
            halvings = tf.clip_by_value(tf.cast(tf.floor(halvings), tf.int32), 0, 3)
            pixels = _switch(halvings, [at(1), at(2), at(4), at(8)], data)
    has_exif = _contains(data, r"Exif\x00\x00")
    turn = [lambda pixels, data: pixels, lambda pixels, data: _oriented(pixels, _jpeg_orientation(data))]
    return _switch(tf.cast(has_exif, tf.int32), turn, pixels, data)


def _decode_by_pil(data, max_pixels):
    import tensorflow as tf

    return tf.ensure_shape(tf.numpy_function(_pil_pixels, [data, max_pixels], tf.uint8), (None, None, 3))


def _pil_pixels(data, max_pixels):
    return np.asarray(open_image(data, "an image", int(max_pixels)))


def _native_or_pil(is_rare, native, data, max_pixels):
    """Decodes the bytes by PIL if their format is rare, otherwise by `native`."""
    import tensorflow as tf

    return _switch(tf.cast(is_rare, tf.int32), [native, lambda data: _decode_by_pil(data, max_pixels)], data)


def _contains(data, pattern):
    import tensorflow as tf

    # In RE2, \C matches any byte.
    return tf.strings.regex_full_match(tf.strings.substr(data, 0, _HEADER), rf"\C*{pattern}\C*")


def _decode_png(data, max_pixels):
    import tensorflow as tf

    start = _head(data)
    # A transparent colour, which TensorFlow supports in palettes only, or EXIF data.
    is_rare = _contains(data, "(tRNS|eXIf)")
    with _within_limit([_number(start[16:20], big=True), _number(start[20:24], big=True)], max_pixels):
        return _native_or_pil(is_rare, lambda data: _to_three_channels(tf.io.decode_png(data)), data, max_pixels)


def _decode_bmp(data, max_pixels):
    import tensorflow as tf

    start = _head(data)
    # TensorFlow decodes palette indices as grey levels, and the unused byte of 32-bit pixels as alpha.
    is_rare = _number(start[28:30]) != 24
    with _within_limit([_number(start[18:22]), tf.abs(_number(start[22:26]))], max_pixels):
        return _native_or_pil(is_rare, lambda data: tf.io.decode_bmp(data, channels=3), data, max_pixels)


def _decode_webp(data, max_pixels):
    import tensorflow as tf

    start, form = _head(data), tf.strings.substr(data, 8, 8)
    is_webp = tf.debugging.Assert(tf.strings.substr(form, 0, 4) == b"WEBP", ["not an image: a RIFF file, but not WebP"])
    lossless, extended = _number(start[21:25]), form == b"WEBPVP8X"
    sides = tf.case(
        [
            (extended, lambda: tf.stack([_number(start[24:27]) + 1, _number(start[27:30]) + 1])),
            (
                form == b"WEBPVP8L",
                lambda: tf.stack([lossless % 2**14 + 1, tf.bitwise.right_shift(lossless, 14) % 2**14 + 1]),
            ),
        ],
        default=lambda: tf.stack([_number(start[26:28]) % 2**14, _number(start[28:30]) % 2**14]),
    )
    # The flags of animations, for which TensorFlow can write past its buffer, and of EXIF data.
    is_rare = extended & (tf.bitwise.bitwise_and(start[20], 2 + 8) > 0)
    with tf.control_dependencies([is_webp]), _within_limit(sides, max_pixels):
        return _native_or_pil(is_rare, lambda data: _to_three_channels(tf.image.decode_webp(data)[0]), data, max_pixels)


def _reject_unknown(data):
    import tensorflow as tf

    message = "not an image: the bytes do not begin like a JPEG, PNG, GIF, BMP or WebP file"
    with tf.control_dependencies([tf.debugging.Assert(False, [message, tf.strings.length(data)])]):
        return tf.zeros((1, 1, 3), tf.uint8)


def _to_three_channels(pixels):
    """Converts grey or colour pixels, with or without alpha, to three channels."""
    import tensorflow as tf

    channels = tf.shape(pixels)[2]

    def on_white():
        colours, alpha = tf.cast(pixels[:, :, :-1], tf.int32), tf.cast(pixels[:, :, -1:], tf.int32)
        total = colours * alpha + 255 * (255 - alpha) + 128
        # Integer arithmetic for x / 255, rounded.
        return tf.cast((total + total // 256) // 256, tf.uint8)

    opaque = tf.cond(channels % 2 == 0, on_white, lambda: pixels)
    return tf.cond(channels <= 2, lambda: tf.repeat(opaque, 3, axis=2), lambda: opaque)


def _jpeg_orientation(data):
    """Returns the EXIF orientation, 1 to 8, from the first directory of the EXIF segment."""
    import tensorflow as tf

    head = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 0, _HEADER), tf.uint8), tf.int32)
    size = tf.shape(head)[0]
    head = tf.concat([head, tf.zeros([16], tf.int32)], 0)

    def big(at):
        return head[at] * 256 + head[at + 1]

    def is_segment(at):
        # Application segments and comments come first; the search ends at the tables of the image.
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
        # The axes that are still mirrored after the transposition.
        rows = tf.reduce_any(orientation == tf.constant([3, 4, 7, 8]))
        columns = tf.reduce_any(orientation == tf.constant([2, 3, 6, 7]))
        upright = tf.cond(rows, lambda: upright[::-1], lambda: upright)
        return tf.cond(columns, lambda: upright[:, ::-1], lambda: upright)

    return tf.cond(orientation == 1, lambda: pixels, turned)


def resize_and_center_crop(image: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resizes the shorter side to `size` with PIL's antialiased bicubic filter, and crops the centre.

    Args:
        image: uint8 tensor (H, W, 3).
        size: int or (height, width), pixels.

    Returns:
        uint8 tensor (size, size, 3).
    """
    import PIL
    import tensorflow as tf

    sides = (size, size) if isinstance(size, int) else tuple(size)
    shape = tf.shape(image)
    height, width = shape[0], shape[1]
    by_height = tf.cast(height, tf.int64) * sides[1] <= tf.cast(width, tf.int64) * sides[0]
    height_, width_ = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    resized_height = tf.where(by_height, sides[0], tf.cast(sides[1] * height_ / width_, tf.int32))
    resized_width = tf.where(by_height, tf.cast(sides[0] * width_ / height_, tf.int32), sides[1])
    # Rounds half to even, as Python does.
    top = tf.cast(tf.round(tf.cast(resized_height - sides[0], tf.float64) / 2), tf.int32)
    left = tf.cast(tf.round(tf.cast(resized_width - sides[1], tf.float64) / 2), tf.int32)

    def resized(height_first):
        return lambda image, *place: resize(image, sides, place[:2], place[2:], height_first=height_first)

    # Since version 13, Pillow resizes the height first if it loses more than twice as many pixels as the width.
    is_tall = (height > resized_height) & (height - resized_height > 2 * (width - resized_width))
    is_tall &= int(PIL.__version__.partition(".")[0]) >= 13
    order = [resized(height_first=False), resized(height_first=True)]
    cut = _switch(tf.cast(is_tall, tf.int32), order, image, resized_height, resized_width, top, left)
    return tf.ensure_shape(cut, (*sides, 3))


def random_resized_crop(
    image: Tensor,
    size: int | tuple[int, int],
    seed: Tensor,
    scale: tuple[float, float] = (0.9, 1.0),
    ratio: tuple[float, float] = CROP_RATIO,
) -> Tensor:
    """Crops a random region and resizes it: the only augmentation of the paper (Radford et al., 2021, section 2.4).

    Args:
        image: uint8 tensor (H, W, 3).
        size: int or (height, width), pixels.
        seed: int tensor (2,). Equal seeds produce equal crops.
        scale: smallest and largest fraction of the image's area.
        ratio: smallest and largest aspect ratio (width / height) of the crop.

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
    # The first draw that fits into the image; if none fits, the largest crop that the ratios allow.
    chosen, inside = tf.argmax(tf.cast(fits, tf.int32)), tf.reduce_any(fits)
    height = tf.where(inside, heights[chosen], tf.minimum(shape[0], tf.round(shape[1] / ratio[0])))
    width = tf.where(inside, widths[chosen], tf.minimum(shape[1], tf.round(shape[0] * ratio[1])))
    height, width = tf.maximum(height, 1.0), tf.maximum(width, 1.0)
    top = tf.cast(tf.floor(draws[2, chosen] * (shape[0] - height + 1)), tf.int32)
    left = tf.cast(tf.floor(draws[3, chosen] * (shape[1] - width + 1)), tf.int32)
    crop = image[top : top + tf.cast(height, tf.int32), left : left + tf.cast(width, tf.int32)]
    return resize(crop, sides, dtype="float32")
