"""Decodes and resizes images inside tf.data, to the same pixels as `images`.

Plain JPEGs, which most photographs are, are decoded by TensorFlow, without Python per image. PIL decodes everything
else: other formats, and the JPEGs that TensorFlow would decode otherwise or not at all.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

from keras_clip.data.graph_resize import resize
from keras_clip.data.image_files import (
    MAX_PIXELS,
    PixelBudget,
    decode,
    default_budget,
    open_header,
    suspicious_above,
    upright_sides,
)
from keras_clip.data.images import View, take_view
from keras_clip.types import Tensor

# Smallest and largest aspect ratio (width / height) of the region of a random resized crop.
CROP_RATIO = (3 / 4, 4 / 3)
# Pipelines whose images TensorFlow decodes at the same time: of training and of validation.
_PIPELINES = 2
# Bytes of a JPEG that may turn it: a tag of EXIF's orientation, in either byte order, of another type than a short or
# with a value from 2 to 8; and XMP's. Where the pattern occurs by chance, PIL decodes the file.
_MAY_TURN = (
    r"\C*(?:\x12\x01(?:\x03\x00\C{4}[\x02-\x08]|[\x01\x02\x04-\x12]\x00)"
    r"|\x01\x12\x00(?:\x03\C{5}[\x02-\x08]|[\x01\x02\x04-\x12])"
    r"|tiff:Orientation(?:=\"|>)[2-8])\C*"
)


def decode_view(
    data: Tensor,
    seed: Tensor,
    size: int | tuple[int, int],
    view_of: Callable,
    *,
    max_pixels: int = MAX_PIXELS,
    shortest: float | None = None,
    budget: PixelBudget | None = None,
    parallel: int = 1,
    dtype: str = "float64",
) -> Tensor:
    """Decodes an image file and takes a view of it, in a graph: in tf.data or a `tf.function`.

    Args:
        data: scalar string tensor, the bytes of a file of one of `image_files.FORMATS`.
        seed: int tensor (2,), for `view_of`.
        size: int or (height, width), pixels.
        view_of: graph function (shape int64 (2,), sides, seed) -> int64 (8,), the fields of a `View`.
        max_pixels: int. Images with more pixels are rejected before decoding: see `image_files.open_header`.
        shortest: pixels or None. A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if its shorter side keeps at least
            this length; this is much faster, as high frequencies are skipped. None: at full size.
        budget: `PixelBudget`. None: that of the process. One half is for PIL's decoder, whose images wait for each
            other in the whole process. The other is for TensorFlow's, which cannot wait: it is divided by `parallel`
            and by two pipelines, of training and validation. PIL decodes a JPEG that takes more than such a part.
        parallel: int. How many images the pipeline decodes at the same time.
        dtype: arithmetic of the resizing after TensorFlow's decoder: see `graph_resize.resize`.

    Returns:
        uint8 tensor (height, width, 3), with transparency composited on white.

    Raises:
        RuntimeError: an eager call, in which nested branches can deadlock.
        InvalidArgumentError: at run time, an unknown format, too many pixels, or a corrupt file.
    """
    import tensorflow as tf

    if tf.executing_eagerly():
        raise RuntimeError(
            "`decode_view` must be called in a graph. Received: an eager call. Wrap it in a `tf.function`."
        )
    sides = (size, size) if isinstance(size, int) else tuple(size)
    budget = budget or default_budget()
    half = max(1, budget.pixels // 2)
    by_pil = functools.partial(
        _decode_by_pil, sides=sides, view_of=view_of, files=_PilFiles(max_pixels, shortest, PixelBudget(half), sides)
    )

    def natively(data, seed):
        pixels = _try_jpeg(data, max_pixels, shortest, half // (_PIPELINES * parallel))

        def cut(data, seed, pixels):
            return take_view_in_graph(pixels, view_of(tf.shape(pixels, tf.int64)[:2], sides, seed), sides, dtype)

        failed = tf.cast(tf.size(pixels) == 0, tf.int32)
        return _switch(failed, [cut, lambda data, seed, pixels: by_pil(data, seed)], data, seed, pixels)

    is_jpeg = tf.strings.substr(data, 0, 3) == b"\xff\xd8\xff"
    is_plain = is_jpeg & ~tf.strings.regex_full_match(data, _MAY_TURN)
    pixels = _switch(tf.cast(is_plain, tf.int32), [by_pil, natively], data, seed)
    return tf.ensure_shape(pixels, (*sides, 3))


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


def _try_jpeg(data, max_pixels, shortest, most):
    """The pixels of a JPEG; (0, 0, 3) if TensorFlow cannot decode it, or if it is so large that PIL must.

    A dataset of one element is what graphs have for `try`.
    """
    import tensorflow as tf

    def attempt(data):
        shape = tf.image.extract_jpeg_shape(data)
        pixels = tf.reduce_prod(tf.cast(shape[:2], tf.int64))
        ratio = _ratio(tf.reduce_min(shape[:2]), shortest)
        # A progressive file keeps all of its coefficients, whatever the ratio.
        held = tf.maximum(pixels // tf.cast(ratio, tf.int64) ** 2, pixels // 4)
        # TensorFlow takes four channels for CMYK in one of its two forms.
        is_fit = (shape[2] != 4) & (pixels <= min(max_pixels, suspicious_above(max_pixels))) & (held <= most)
        with tf.control_dependencies([tf.raw_ops.Assert(condition=is_fit, data=[pixels])]):
            data = tf.identity(data)
        if shortest is None:
            return _decode_jpeg(1)(data)
        branches = [_decode_jpeg(ratio) for ratio in (1, 2, 4, 8)]
        return _switch(tf.cast(tf.math.log(tf.cast(ratio, tf.float32)) / math.log(2.0) + 0.5, tf.int32), branches, data)

    failure = tf.data.Dataset.from_tensors(tf.zeros((0, 0, 3), tf.uint8))
    attempts = tf.data.Dataset.from_tensors(data).map(attempt).ignore_errors()
    return attempts.concatenate(failure).take(1).get_single_element()


def _ratio(side, shortest):
    """`image_files.jpeg_ratio` in graph."""
    import tensorflow as tf

    if shortest is None:
        return tf.constant(1)
    fits = [tf.cast(tf.cast(side, tf.float64) >= ratio * shortest, tf.int32) for ratio in (2, 4, 8)]
    return 2 ** tf.add_n(fits)


def _decode_jpeg(ratio):
    import tensorflow as tf

    return lambda data: tf.io.decode_jpeg(data, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")


class _PilFiles:
    """The Python half of `decode_view`: sides from the header, then pixels of the view, within the budget."""

    def __init__(self, max_pixels: int, shortest: float | None, budget: PixelBudget, sides: tuple[int, int]):
        self._options, self._budget, self._sides = (max_pixels, shortest), budget, sides

    def sides(self, data: bytes) -> np.ndarray:
        header = open_header(data, "an image", *self._options)
        with self._budget.hold(header.width * header.height):
            return np.array(upright_sides(header), np.int64)

    def pixels(self, data: bytes, view: np.ndarray) -> np.ndarray:
        header = open_header(data, "an image", *self._options)
        with self._budget.hold(header.width * header.height):
            return take_view(decode(header, "an image"), View(*view.tolist()), self._sides)


def _decode_by_pil(data, seed, sides, view_of, files):
    import tensorflow as tf

    shape = tf.ensure_shape(tf.numpy_function(files.sides, [data], tf.int64), (2,))
    pixels = tf.numpy_function(files.pixels, [data, view_of(shape, sides, seed)], tf.uint8)
    return tf.ensure_shape(pixels, (*sides, 3))


def take_view_in_graph(image: Tensor, view: Tensor, sides: tuple[int, int], dtype: str = "float64") -> Tensor:
    """What `images.take_view` does, in graph.

    Args:
        image: uint8 tensor (H, W, 3).
        view: int32 or int64 tensor (8,), the fields of a `View`.
        sides: height and width of the result, pixels.
        dtype: see `graph_resize.resize`.

    Returns:
        uint8 tensor (height, width, 3), bicubic with antialiasing.
    """
    import PIL
    import tensorflow as tf

    top, left, height, width, full_height, full_width, down, right = tf.unstack(view)
    image = image[top : top + height, left : left + width]

    def resized(height_first):
        return lambda image, *place: resize(image, sides, place[:2], place[2:], dtype, height_first)

    place = full_height, full_width, down, right
    if int(PIL.__version__.partition(".")[0]) < 13:
        return resized(False)(image, *place)
    # As `images.height_first`.
    is_tall = (height > full_height) & (height - full_height > 2 * (width - full_width))
    order = [resized(height_first=False), resized(height_first=True)]
    return tf.ensure_shape(_switch(tf.cast(is_tall, tf.int32), order, image, *place), (*sides, 3))


def centered_view_in_graph(
    shape: Tensor,
    sides: tuple[int, int],
    seed: Tensor | None = None,
    resize_sides: tuple[int, int] | None = None,
    crop_rounding: str = "even",
) -> Tensor:
    """`images.centered_view` in graph, of the mode "shortest".

    Args:
        shape: int32 or int64 tensor (2,), height and width of the image. A side of an extreme aspect may be beyond
            int32 once it is resized.
        sides: height and width of the crop.
        seed: unused.
        resize_sides: height and width, at least `sides`, that the shorter side is resized to; None: `sides`.
        crop_rounding: "even" or "down", as of `ImagePreprocessor`.

    Returns:
        Tensor (8,) of the dtype of `shape`, the fields of a `View`.
    """
    import tensorflow as tf

    full = _resized_sides(shape, resize_sides or sides)
    # As `images.crop_offset`. `tf.round` rounds half to even, as Python does.
    halved = tf.floor if crop_rounding == "down" else tf.round
    offset = tf.cast(halved(tf.cast(full - sides, tf.float64) / 2), shape.dtype)
    return tf.concat([[0, 0], shape, full, offset], axis=0)


def _resized_sides(shape, target):
    """`images.resized_sides` in graph, of the mode "shortest": (2,) of the dtype of `shape`."""
    import tensorflow as tf

    rounded = tf.floor if target[0] == target[1] else tf.round
    height, width = shape[0], shape[1]
    by_height = tf.cast(height, tf.int64) * target[1] <= tf.cast(width, tf.int64) * target[0]
    height_, width_ = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    by_ratio = tf.cast(rounded(target[1] * height_ / width_), shape.dtype)
    full_height = tf.where(by_height, tf.cast(target[0], shape.dtype), by_ratio)
    by_ratio = tf.cast(rounded(target[0] * width_ / height_), shape.dtype)
    full_width = tf.where(by_height, by_ratio, tf.cast(target[1], shape.dtype))
    return tf.stack([full_height, full_width])


def random_crop_view(shape: Tensor, sides: tuple[int, int], seed: Tensor) -> Tensor:
    """The view of a random crop of the whole image, resized so that one side fits (Radford et al., 2021, section 2.4).

    All offsets have the same probability. An image with the aspect ratio of `sides` has only one crop, the whole.

    Args:
        shape: int32 or int64 tensor (2,), height and width of the image. A side of an extreme aspect may be beyond
            int32 once it is resized.
        sides: height and width of the crop, pixels.
        seed: int tensor (2,). Equal seeds produce equal views.

    Returns:
        Tensor (8,) of the dtype of `shape`, the fields of a `View`.
    """
    import tensorflow as tf

    full = _resized_sides(shape, sides)
    room = full - sides
    # One side fits, so that only the other has room.
    count, most = tf.cast(tf.reduce_sum(room), tf.int64) + 1, tf.int32.max
    offset = tf.random.stateless_uniform((), seed, 0, tf.cast(tf.minimum(count, most), tf.int32), tf.int32)
    # An image that is longer than int32 is cropped at one of 2 ** 31 places, evenly spaced.
    offset = tf.cast(offset, tf.int64) * tf.maximum(count // most, 1)
    return tf.concat([[0, 0], shape, full, tf.minimum(tf.cast(offset, shape.dtype), room)], axis=0)


def random_resized_view(
    shape: Tensor,
    sides: tuple[int, int],
    seed: Tensor,
    scale: tuple[float, float] = (0.9, 1.0),
    ratio: tuple[float, float] = CROP_RATIO,
) -> Tensor:
    """The view of a random region that is resized to `sides`, which changes its aspect ratio, as open_clip does.

    Args:
        shape: int32 or int64 tensor (2,), height and width of the image. A side of an extreme aspect may be beyond
            int32 once it is resized.
        sides: height and width of the result, pixels.
        seed: int tensor (2,). Equal seeds produce equal views.
        scale: smallest and largest fraction of the image's area.
        ratio: smallest and largest aspect ratio (width / height) of the region.

    Returns:
        Tensor (8,) of the dtype of `shape`, the fields of a `View`.
    """
    import tensorflow as tf

    shape, integer = tf.cast(shape, tf.float32), shape.dtype
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
    region = [top, left, tf.cast(height, tf.int32), tf.cast(width, tf.int32)]
    return tf.cast(tf.stack([*region, *sides, 0, 0]), integer)
