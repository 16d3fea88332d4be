"""Decodes and preprocesses images with PIL, without TensorFlow; `graph_images` does the same inside tf.data."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
RESIZE_MODES = ("shortest", "squash", "longest")
INTERPOLATIONS = ("bicubic", "bilinear")
# Half a gigabyte once decoded: more than any photograph needs, and safe for the memory of a host.
MAX_PIXELS = 178_956_970
# The EXIF tag of the orientation.
_ORIENTATION = 0x0112


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
        if min(self.sides) < 1:
            raise ValueError(f"`image_size` must be positive. Received: image_size={image_size}.")
        self.interpolation = interpolation
        self.resize_mode = resize_mode
        self.max_pixels = max_pixels

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the output, in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    def __call__(self, images: Any) -> np.ndarray:
        return self.normalize(self.to_uint8(images))

    def to_uint8(self, images: Any) -> np.ndarray:
        """Returns the images before normalisation, uint8 (B, H, W, 3), which `CLIPModel` also accepts."""
        if isinstance(images, np.ndarray) and images.ndim == 4:
            images = list(images)
        elif not isinstance(images, list | tuple):
            images = [images]
        pixels = np.empty((len(images), *self.sides, 3), np.uint8)
        for i, image in enumerate(images):
            name = f"images[{i}]"
            pixels[i] = np.asarray(self._resize(open_image(image, name, self.max_pixels)))
        return pixels

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Returns (pixels / 255 - mean) / std in float32, for uint8 pixels (..., 3)."""
        scaled = np.asarray(pixels, np.float32) / np.float32(255)
        return (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def _resize(self, image):
        from PIL import Image

        filter_ = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[self.interpolation]
        height, width = self.sides
        if self.resize_mode == "squash":
            return image.resize((width, height), filter_)
        resized = resized_sides(image.height, image.width, self.sides, self.resize_mode)
        image = image.resize(resized[::-1], filter_)
        top, left = (int(round((before - after) / 2)) for before, after in zip(resized, self.sides, strict=True))
        # PIL fills the area outside of the image with black.
        return image.crop((left, top, left + width, top + height))

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
        }

    @classmethod
    def from_config(cls, config: dict) -> "ImagePreprocessor":
        return cls(**config)


def resized_sides(height: int, width: int, target: tuple[int, int], resize_mode: str) -> tuple[int, int]:
    """Returns height and width before the crop: one side as in `target`, the other in proportion and rounded down."""
    by_height = height * target[1] <= width * target[0]
    if (resize_mode == "longest") == by_height:
        return max(1, int(target[1] * height / width)), target[1]
    return target[0], max(1, int(target[0] * width / height))


def open_image(image: Any, name: str, max_pixels: int):
    """Opens any input of `ImagePreprocessor` as an upright PIL image in RGB, composited on white.

    Raises:
        ValueError: an unsupported type, a corrupt file, or too many pixels; the message refers to the image by `name`.
        FileNotFoundError: the path does not exist.
    """
    from PIL import Image

    if isinstance(image, str | os.PathLike):
        name = f"{name}={os.fspath(image)!r}"
        image = Path(image).read_bytes()
    elif not isinstance(image, bytes | io.BytesIO | Image.Image):
        return _to_rgb(from_array(image, name))
    try:
        image = io.BytesIO(image) if isinstance(image, bytes) else image
        image = Image.open(image) if isinstance(image, io.BytesIO) else image
        is_small = image.width * image.height <= max_pixels
        if is_small:
            return _to_rgb(upright(image))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{error} Received: {name}. Raise `max_pixels` for images that you trust.") from None
    except Exception as error:  # PIL raises many types of exceptions for corrupt files.
        raise ValueError(f"Not an image that PIL can read: {error}. Received: {name}.") from error
    raise ValueError(_too_large(name, image.width, image.height, max_pixels))


def upright(image):
    """Applies the EXIF orientation to a PIL image, and returns it unchanged if the EXIF data cannot be read."""
    from PIL import Image

    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # PIL raises many types of exceptions for corrupt EXIF data.
        return image
    turn = Image.Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _too_large(name: str, width: int, height: int, max_pixels: int) -> str:
    return (
        f"An image may have at most {max_pixels:,} pixels. Received: {name} of {width} x {height}. "
        "Raise `max_pixels` for images that you trust."
    )


def from_array(array, name: str):
    """Converts a uint8 array to a PIL image.

    Raises:
        ValueError: another dtype or shape; the message refers to the array by `name`.
    """
    from PIL import Image

    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(
            "An image must be a path, bytes, a PIL image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). "
            f"Received: {name} of dtype {array.dtype}, shape {array.shape}. Convert floats in [0, 1] by "
            "`(255 * image).round().astype('uint8')`; pass images that are already normalised directly to the model."
        )
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _to_rgb(image):
    from PIL import Image

    if image.mode.startswith("I"):
        # PIL would clip 16-bit values at 255 instead of scaling them.
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError(
            "The scale of floating-point pixels is unknown. Received: an image of mode 'F'. Convert it to 8 bits."
        )
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
