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

# Smallest and largest aspect ratio (width / height) of a random crop.
CROP_RATIO = (3 / 4, 4 / 3)
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
        view_of: graph function (shape int32 (2,), sides, seed) -> int32 (8,), the fields of a `View`.
        max_pixels: int. Images with more pixels are rejected before decoding: see `image_files.open_header`.
        shortest: pixels or None. A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if its shorter side keeps at least
            this length; this is much faster, as high frequencies are skipped. None: at full size.
        budget: `PixelBudget`, one half for TensorFlow's decoder, the other for PIL's. None: that of the process.
        parallel: int. How many images are decoded at the same time.
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
        pixels = _try_jpeg(data, max_pixels, shortest, half // parallel)

        def cut(data, seed, pixels):
            return take_view_in_graph(pixels, view_of(tf.shape(pixels)[:2], sides, seed), sides, dtype)

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
            return np.array(upright_sides(header), np.int32)

    def pixels(self, data: bytes, view: np.ndarray) -> np.ndarray:
        header = open_header(data, "an image", *self._options)
        with self._budget.hold(header.width * header.height):
            return take_view(decode(header, "an image"), View(*view.tolist()), self._sides)


def _decode_by_pil(data, seed, sides, view_of, files):
    import tensorflow as tf

    shape = tf.ensure_shape(tf.numpy_function(files.sides, [data], tf.int32), (2,))
    pixels = tf.numpy_function(files.pixels, [data, view_of(shape, sides, seed)], tf.uint8)
    return tf.ensure_shape(pixels, (*sides, 3))


def take_view_in_graph(image: Tensor, view: Tensor, sides: tuple[int, int], dtype: str = "float64") -> Tensor:
    """What `images.take_view` does, in graph.

    Args:
        image: uint8 tensor (H, W, 3).
        view: int32 tensor (8,), the fields of a `View`.
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


def centered_view_in_graph(shape: Tensor, sides: tuple[int, int], seed: Tensor | None = None) -> Tensor:
    """`images.centered_view` in graph, of the mode "shortest".

    Args:
        shape: int32 tensor (2,), height and width of the image.
        sides: height and width of the crop.
        seed: unused.

    Returns:
        int32 tensor (8,), the fields of a `View`.
    """
    import tensorflow as tf

    height, width = shape[0], shape[1]
    by_height = tf.cast(height, tf.int64) * sides[1] <= tf.cast(width, tf.int64) * sides[0]
    height_, width_ = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    full_height = tf.where(by_height, sides[0], tf.cast(sides[1] * height_ / width_, tf.int32))
    full_width = tf.where(by_height, tf.cast(sides[0] * width_ / height_, tf.int32), sides[1])
    # Rounds half to even, as Python does.
    down = tf.cast(tf.round(tf.cast(full_height - sides[0], tf.float64) / 2), tf.int32)
    right = tf.cast(tf.round(tf.cast(full_width - sides[1], tf.float64) / 2), tf.int32)
    return tf.stack([0, 0, height, width, full_height, full_width, down, right])


def random_resized_view(
    shape: Tensor,
    sides: tuple[int, int],
    seed: Tensor,
    scale: tuple[float, float] = (0.9, 1.0),
    ratio: tuple[float, float] = CROP_RATIO,
) -> Tensor:
    """The view of a random region that is resized to `sides` (Radford et al., 2021, section 2.4).

    Args:
        shape: int32 tensor (2,), height and width of the image.
        sides: height and width of the result, pixels.
        seed: int tensor (2,). Equal seeds produce equal views.
        scale: smallest and largest fraction of the image's area.
        ratio: smallest and largest aspect ratio (width / height) of the region.

    Returns:
        int32 tensor (8,), the fields of a `View`.
    """
    import tensorflow as tf

    shape = tf.cast(shape, tf.float32)
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
    return tf.stack([*region, *sides, 0, 0])
