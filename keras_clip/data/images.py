"""Decodes and preprocesses images with PIL, without TensorFlow; `graph_images` does the same inside tf.data."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_clip.data.image_files import MAX_PIXELS, PixelBudget, decode, default_budget, open_header

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
RESIZE_MODES = ("shortest", "squash", "longest")
INTERPOLATIONS = ("bicubic", "bilinear")
CROP_ROUNDINGS = ("even", "down")
# PIL resizes a whole image before it is cropped. If the resized image would have more than this number of times the
# pixels of the crop, only the crop is computed.
_MOST_RESIZED = 32
# PIL's fixed-point weights are multiples of 2 ** -22.
_PRECISION_BITS = 22


@keras.saving.register_keras_serializable(package="keras_clip")
class ImagePreprocessor:
    """Converts image files or arrays to the normalised images that an image encoder expects.

    Images are decoded by PIL, with EXIF orientation applied, transparency composited on white, and 16 bits scaled to 8.
    They are resized with antialiasing, centre-cropped, and normalised by mean and standard deviation (Radford et al.,
    2021, section 2.4).

    Args:
        image_size: int or (height, width), pixels.
        mean: three floats: mean of red, green and blue in [0, 1].
        std: three floats > 0: standard deviation of red, green and blue.
        interpolation: "bicubic" or "bilinear".
        resize_mode: "shortest" resizes the shorter side to the image size and crops the centre, "squash" resizes both
            sides to it, "longest" resizes the longer side to it and pads with black.
        max_pixels: int. Images with more pixels are rejected before decoding: a small file can decode to gigabytes.
        resize_size: int or (height, width), pixels, or None. The size to resize to, of which the centre of the image
            size is cropped; None: the image size. Where it is smaller than that, black is added.
        crop_rounding: "even" or "down": where half a pixel before the crop goes, to the nearest even number as in
            torchvision and open_clip, or down as in transformers.

    Call arguments:
        images: a path, bytes, PIL image or uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); a list of these, of
            any types; or a uint8 array (B, H, W, 3).

    Returns:
        float32 array (B, H, W, 3), normalised.

    Raises:
        ValueError: a corrupt image, an image with too many pixels, or an array of another shape or dtype.
        FileNotFoundError: a path does not exist.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        mean: Sequence[float] = OPENAI_MEAN,
        std: Sequence[float] = OPENAI_STD,
        interpolation: str = "bicubic",
        resize_mode: str = "shortest",
        max_pixels: int = MAX_PIXELS,
        resize_size: int | tuple[int, int] | None = None,
        crop_rounding: str = "even",
    ):
        self.image_size = image_size if isinstance(image_size, int) else tuple(image_size)
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                "`mean` and `std` must have three numbers each, and those of `std` must be positive. "
                f"Received: mean={self.mean}, std={self.std}."
            )
        if interpolation not in INTERPOLATIONS or resize_mode not in RESIZE_MODES:
            raise ValueError(
                f"`interpolation` must be one of {INTERPOLATIONS}, `resize_mode` one of {RESIZE_MODES}. "
                f"Received: interpolation={interpolation!r}, resize_mode={resize_mode!r}."
            )
        if crop_rounding not in CROP_ROUNDINGS:
            raise ValueError(f"`crop_rounding` must be one of {CROP_ROUNDINGS}. Received: {crop_rounding!r}.")
        # None if equal to the image size, so that equal preprocessors compare equal.
        self.resize_size = None if resize_size in (None, image_size) else resize_size
        if not isinstance(self.resize_size, int | None):
            self.resize_size = None if tuple(resize_size) == self.sides else tuple(resize_size)
        if min(*self.sides, *self.resize_sides) < 1:
            raise ValueError(
                "`image_size` and `resize_size` must be positive. "
                f"Received: image_size={image_size}, resize_size={resize_size}."
            )
        self.crop_rounding = crop_rounding
        self.interpolation = interpolation
        self.resize_mode = resize_mode
        self.max_pixels = max_pixels

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the output, in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def resize_sides(self) -> tuple[int, int]:
        """Height and width that images are resized to before the crop, in pixels."""
        size = self.image_size if self.resize_size is None else self.resize_size
        return (size, size) if isinstance(size, int) else size

    def __call__(self, images: Any) -> np.ndarray:
        return self.normalize(self.to_uint8(images))

    def to_uint8(self, images: Any, budget: PixelBudget | None = None) -> np.ndarray:
        """Returns the images before normalisation, which `CLIPModel` also accepts.

        Args:
            images: as of a call.
            budget: bounds how many pixels are decoded at the same time by all threads that use it. None: a budget of
                the process that fits the memory of the machine.

        Returns:
            uint8 array (B, H, W, 3).
        """
        if isinstance(images, np.ndarray) and images.ndim == 4:
            images = list(images)
        elif not isinstance(images, list | tuple):
            images = [images]
        pixels = np.empty((len(images), *self.sides, 3), np.uint8)
        for i, image in enumerate(images):
            name = f"images[{i}]"
            header = open_header(image, name, self.max_pixels)
            with (budget or default_budget()).hold(header.width * header.height):
                pixels[i] = self.resize_decoded(decode(header, name))
        return pixels

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Returns (pixels / 255 - mean) / std in float32, for uint8 pixels (..., 3)."""
        scaled = np.asarray(pixels, np.float32) / np.float32(255)
        return (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def resize_decoded(self, image: Any) -> np.ndarray:
        """Resizes and crops an image that is decoded already.

        Args:
            image: PIL image, upright, in RGB, as `keras_clip.data.image_files.decode` returns it.

        Returns:
            uint8 array (H, W, 3).
        """
        rule = self.resize_mode, self.resize_sides, self.crop_rounding
        view = centered_view(image.height, image.width, self.sides, *rule)
        return take_view(image, view, self.sides, self.interpolation)

    def __eq__(self, other) -> bool:
        return type(other) is type(self) and other.get_config() == self.get_config()

    def __hash__(self) -> int:
        return hash((type(self), tuple(self.get_config().values())))

    def get_config(self) -> dict:
        return {
            "image_size": self.image_size,
            "mean": self.mean,
            "std": self.std,
            "interpolation": self.interpolation,
            "resize_mode": self.resize_mode,
            "max_pixels": self.max_pixels,
            "resize_size": self.resize_size,
            "crop_rounding": self.crop_rounding,
        }

    @classmethod
    def from_config(cls, config: dict) -> "ImagePreprocessor":
        return cls(**config)


def resized_sides(height: int, width: int, target: tuple[int, int], resize_mode: str) -> tuple[int, int]:
    """Returns height and width before the crop: `target`, or one side as there and the other in proportion.

    The other side is rounded down for the shorter side of a square, and else to the nearest number, as in open_clip.
    """
    if resize_mode == "squash":
        return target
    by_height = height * target[1] <= width * target[0]
    rounded = int if resize_mode == "shortest" and target[0] == target[1] else round
    if (resize_mode == "longest") == by_height:
        return max(1, rounded(target[1] * height / width)), target[1]
    return target[0], max(1, rounded(target[0] * width / height))


def crop_offset(length: int, cropped: int, rounding: str) -> int:
    """Returns the pixels before a centred crop; negative (the padding) if the crop exceeds the image."""
    if length < cropped:
        return -((cropped - length) // 2)
    return round((length - cropped) / 2) if rounding == "even" else (length - cropped) // 2


class View(NamedTuple):
    """Which part of an image is resized, to which size, and which part of that is cropped; all in pixels.

    Attributes:
        top, left, height, width: int. The part of the image that is resized.
        full_height, full_width: int. Its size after that.
        down, right: int. Where the crop begins in the resized part.
    """

    top: int
    left: int
    height: int
    width: int
    full_height: int
    full_width: int
    down: int
    right: int


def centered_view(
    height: int,
    width: int,
    sides: tuple[int, int],
    resize_mode: str = "shortest",
    resize_sides: tuple[int, int] | None = None,
    crop_rounding: str = "even",
) -> View:
    """The view of the whole image that is resized, and cropped (or padded) in the centre."""
    resized = resized_sides(height, width, resize_sides or sides, resize_mode)
    offsets = (crop_offset(*pair, crop_rounding) for pair in zip(resized, sides, strict=True))
    return View(0, 0, height, width, *resized, *offsets)


def take_view(image, view: View, sides: tuple[int, int], interpolation: str = "bicubic") -> np.ndarray:
    """Resizes and crops with PIL's antialiased filters.

    Args:
        image: PIL image in RGB.
        view: `View` of it.
        sides: height and width of the result, pixels.
        interpolation: "bicubic" or "bilinear".

    Returns:
        uint8 array (height, width, 3). Outside of the resized image it is black.
    """
    from PIL import Image

    top, left, height, width, full_height, full_width, down, right = view
    if (top, left, height, width) != (0, 0, image.height, image.width):
        image = image.crop((left, top, left + width, top + height))
    is_inside = full_height >= sides[0] and full_width >= sides[1]
    if is_inside and full_height * full_width > _MOST_RESIZED * sides[0] * sides[1]:
        return _resized_part(np.asarray(image), view, sides, interpolation)
    resized = image.resize((full_width, full_height), Image.Resampling[interpolation.upper()])
    if (down, right, full_height, full_width) != (0, 0, *sides):
        # PIL fills the area outside of the image with black.
        resized = resized.crop((right, down, right + sides[1], down + sides[0]))
    return np.asarray(resized)


def height_first(height: int, width: int, full_height: int, full_width: int) -> bool:
    """Whether PIL resizes the height before the width, which changes the rounding.

    Since version 13, it does so if the height loses more than twice as many pixels as the width.
    """
    import PIL

    is_tall = height > full_height and height - full_height > 2 * (width - full_width)
    return is_tall and int(PIL.__version__.partition(".")[0]) >= 13


def _resized_part(pixels: np.ndarray, view: View, sides: tuple[int, int], interpolation: str) -> np.ndarray:
    """The crop of PIL's resized image, from uint8 (H, W, 3): both passes read only the pixels that they need."""
    full, offsets = (view.full_height, view.full_width), (view.down, view.right)
    passes = [_weights(pixels.shape[axis], full[axis], offsets[axis], sides[axis], interpolation) for axis in (0, 1)]
    for axis, (first, weights) in enumerate(passes):
        pixels = pixels.take(np.arange(first, first + weights.shape[1]), axis)
    order = (0, 1) if height_first(view.height, view.width, *full) else (1, 0)
    for axis in order:
        # Sums of integers below 2 ** 53 are exact.
        sums = np.tensordot(passes[axis][1], pixels.astype(np.float64), (1, axis))
        levels = np.floor(sums / 2**_PRECISION_BITS + 0.5).clip(0, 255).astype(np.uint8)
        pixels = np.moveaxis(levels, 0, axis)
    return pixels


def _weights(length: int, full: int, offset: int, count: int, interpolation: str) -> tuple[int, np.ndarray]:
    """The first input, and PIL's integer weights of `count` outputs from `offset` on, (count, inputs)."""
    scale = length / full
    filter_scale = max(scale, 1.0)
    reach = filter_scale * (2.0 if interpolation == "bicubic" else 1.0)
    centers = (offset + np.arange(count) + 0.5) * scale
    starts = np.maximum((centers - reach + 0.5).astype(int), 0)
    ends = np.minimum((centers + reach + 0.5).astype(int), length)
    first = int(starts.min())
    inputs = np.arange(first, int(ends.max()))
    x = np.abs((inputs - centers[:, None] + 0.5) / filter_scale)
    if interpolation == "bicubic":
        # The cubic kernel of Keys with a = -0.5.
        weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5)
        weights = np.where(x < 2, weights, 0.0)
    else:
        weights = np.maximum(1.0 - x, 0.0)
    weights[(inputs < starts[:, None]) | (inputs >= ends[:, None])] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    return first, np.sign(weights) * np.floor(np.abs(weights) * 2**_PRECISION_BITS + 0.5)
