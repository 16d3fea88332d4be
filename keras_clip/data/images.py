"""Image files to pixels, equal to PIL's, without TensorFlow; `graph_images` does the same inside tf.data."""

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
# Half a gigabyte once decoded: above every photograph, below what would take a host down.
MAX_PIXELS = 178_956_970
# The EXIF tag.
_ORIENTATION = 0x0112


@keras.saving.register_keras_serializable(package="keras_clip")
class ImagePreprocessor:
    """Image files or arrays to the pixels that an image encoder was trained on.

    Decoded as PIL does, EXIF orientation applied, transparency laid on white, 16 bits scaled to 8; resized with
    antialiasing, cut to the centre, scaled by mean and standard deviation (Radford et al., 2021, section 2.4).

    Args:
        image_size: int or (height, width), pixels.
        mean: three floats: mean of red, green and blue in [0, 1].
        std: three floats > 0: their standard deviation.
        interpolation: "bicubic" or "bilinear".
        resize_mode: "shortest": the shortest side gets the image size, then the centre is cut out. "squash": both
            sides get it. "longest": the longest side gets it, and black fills what is missing.
        max_pixels: int. An image with more is refused before it is decoded: a small file can hold gigabytes.

    Call arguments:
        images: a path, bytes, PIL image or uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); a list of such, in
            any mixture; or a uint8 array (B, H, W, 3).

    Returns:
        float32 array (B, H, W, 3), normalised.

    Raises:
        ValueError: a broken image, one of too many pixels, or an array of another shape or dtype.
        FileNotFoundError: no file at a path.
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
                "`mean` and `std` must have three numbers, those of `std` above zero. "
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
        """Height and width of what comes out, in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    def __call__(self, images: Any) -> np.ndarray:
        return self.normalize(self.to_uint8(images))

    def to_uint8(self, images: Any) -> np.ndarray:
        """The same before normalisation: uint8 array (B, H, W, 3). `CLIPModel` takes it as it is."""
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
        """uint8 (..., 3) to float32: (pixels / 255 - mean) / std."""
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
        top, left = (int(round((have - want) / 2)) for have, want in zip(resized, self.sides, strict=True))
        # PIL fills with black what lies outside.
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


def resized_sides(height: int, width: int, wanted: tuple[int, int], resize_mode: str) -> tuple[int, int]:
    """Height and width before the cut: one side as wanted, the other in proportion and rounded down."""
    by_height = height * wanted[1] <= width * wanted[0]
    if (resize_mode == "longest") == by_height:
        return max(1, int(wanted[1] * height / width)), wanted[1]
    return wanted[0], max(1, int(wanted[0] * width / height))


def open_image(image: Any, name: str, max_pixels: int):
    """Any of the things that `ImagePreprocessor` accepts, as a PIL image in RGB, upright, on white.

    Raises:
        ValueError: no such thing, a broken file, or too many pixels; it calls the image by `name`.
        FileNotFoundError: no file at that path.
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
    except Exception as error:  # a damaged file makes PIL raise whatever it comes to
        raise ValueError(f"Not an image that can be read: {error}. Received: {name}.") from error
    raise ValueError(_too_large(name, image.width, image.height, max_pixels))


def upright(image):
    """A PIL image turned as its EXIF orientation says; as it is, if that cannot be read."""
    from PIL import Image

    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # PIL's parser of damaged EXIF raises whatever it comes to
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
        f"An image may have {max_pixels:,} pixels. Received: {name} of {width} x {height}. "
        "Raise `max_pixels` for images that you trust."
    )


def from_array(array, name: str):
    """A PIL image of a uint8 array.

    Raises:
        ValueError: another dtype or shape; it calls the array by `name`.
    """
    from PIL import Image

    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(
            "An image must be a path, bytes, a PIL image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). "
            f"Received: {name} of dtype {array.dtype}, shape {array.shape}. Floats in [0, 1] become pixels by "
            "`(255 * image).round().astype('uint8')`; images that are normalised already go to the model as they are."
        )
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _to_rgb(image):
    from PIL import Image

    if image.mode.startswith("I"):
        # PIL would cut 16 bits off at 255 instead of scaling them.
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError(
            f"Images of floating-point pixels have no known scale. Received: an image of mode {image.mode}."
        )
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
