"""Opens untrusted images, here only: an allowlist of formats, limits checked in the header, a budget of pixels.

An image file is untrusted. It is opened by decoders that are part of Pillow, for the formats in `FORMATS` alone, never
by another program (as Pillow would start Ghostscript for EPS) and never by a plugin that another package registered.
Its size is read from its header and checked before a pixel is decoded, and `PixelBudget` bounds how many pixels are
decoded at the same time. `docs/security.md` describes what is refused.
"""

import contextlib
import functools
import importlib
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# Pillow's names of the formats, and its modules that decode them.
_PLUGINS = {
    "JPEG": "JpegImagePlugin",
    "PNG": "PngImagePlugin",
    "WEBP": "WebPImagePlugin",
    "GIF": "GifImagePlugin",
    "BMP": "BmpImagePlugin",
    "TIFF": "TiffImagePlugin",
    "AVIF": "AvifImagePlugin",
    "PPM": "PpmImagePlugin",
}
FORMATS = tuple(_PLUGINS)
# Half a gigabyte once decoded: more than any photograph needs.
MAX_PIXELS = 178_956_970
# Larger images must have at least one byte per 32 pixels. Photographs have one per 1 to 20, a flat PNG one per 350.
_UNSUSPICIOUS_PIXELS, _PIXELS_PER_BYTE = 2**24, 32
# Bytes of memory for each pixel of the default budget: decoding takes up to 16, and most of the memory is for the rest.
_MEMORY_PER_PIXEL = 128
# Tags of TIFF: orientation, width and height of a tile.
_ORIENTATION, _TILE = 0x0112, (322, 323)
# Entries of a PNG with an orientation. Pillow decodes the whole file to look for them.
_PNG_METADATA = (b"eXIf", b"iTXt", b"zTXt", b"tEXtRaw profile", b"tEXtXML:com", b"tEXtexif")


class _InFlight:
    """The pixels that all threads of this process decode now."""

    def __init__(self):
        self.pixels, self.changed = 0, threading.Condition()
        # The waiting image holds this lock, so that smaller images cannot overtake it indefinitely.
        self.next = threading.Lock()


class _Loading:
    """Locks of PIL images that are being decoded, one for several images each."""

    def __init__(self):
        self._locks = [threading.Lock() for _ in range(64)]

    def lock_of(self, image: Any) -> threading.Lock:
        return self._locks[id(image) // 16 % len(self._locks)]


_IN_FLIGHT, _LOADING = _InFlight(), _Loading()
if hasattr(os, "register_at_fork"):
    # The threads of the parent, and what they hold, are not in the child.
    os.register_at_fork(after_in_child=_IN_FLIGHT.__init__)
    os.register_at_fork(after_in_child=_LOADING.__init__)


class PixelBudget:
    """Bounds how many pixels the threads of this process decode at the same time.

    All budgets of a process count the same pixels: those of a training and a validation pipeline, of feature stores and
    of preprocessors. What is decoded waits until all of them together leave room in its own budget.

    Args:
        pixels: int >= 1, or None: one for each 128 bytes of the machine's memory, or of the limit of its container. An
            image with more pixels than this is decoded alone.

    Raises:
        ValueError: not a positive number.
    """

    def __init__(self, pixels: int | None = None):
        if pixels is not None and (isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < 1):
            raise ValueError(
                "`max_pixels_in_flight` must be a positive integer, or None for a number that fits the memory. "
                f"Received: max_pixels_in_flight={pixels!r}."
            )
        self.pixels = pixels or max(_UNSUSPICIOUS_PIXELS, memory_bytes() // _MEMORY_PER_PIXEL)

    @contextlib.contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Waits until the budget has room for this number of pixels, and reserves it until the end of the block."""
        with _IN_FLIGHT.next, _IN_FLIGHT.changed:
            _IN_FLIGHT.changed.wait_for(lambda: not _IN_FLIGHT.pixels or _IN_FLIGHT.pixels + pixels <= self.pixels)
            _IN_FLIGHT.pixels += pixels
        try:
            yield
        finally:
            with _IN_FLIGHT.changed:
                _IN_FLIGHT.pixels -= pixels
                _IN_FLIGHT.changed.notify_all()


def memory_bytes() -> int:
    """The memory of the machine in bytes, or the limit of the container if that is lower."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        memory = 2**32
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            memory = min(memory, int(Path(limit).read_text()))
    return memory


@functools.cache
def default_budget() -> PixelBudget:
    """Returns the default budget of this process, for decoding without a budget of its own."""
    return PixelBudget()


@functools.cache
def _decoders() -> tuple[str, ...]:
    """Returns the formats of the allowlist that this version of Pillow decodes itself."""
    from PIL import Image

    for module in _PLUGINS.values():
        # Older versions lack some.
        with contextlib.suppress(ImportError):
            importlib.import_module(f"PIL.{module}")
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _is_own(name: str) -> bool:
    """Whether Pillow's own decoder is registered for the format: another package can replace it at any time."""
    from PIL import Image

    factory = Image.OPEN[name][0]
    return getattr(factory, "__module__", "") == f"PIL.{_PLUGINS[name]}"


def open_header(image: Any, name: str, max_pixels: int, shortest: float | None = None):
    """Opens any input of `ImagePreprocessor` without decoding it.

    Args:
        image: a path, bytes, PIL image or uint8 array.
        name: str, how messages refer to the image.
        max_pixels: int. Images with more pixels are refused, and so are images of more than an eighth of it (and of 17
            megapixels) whose file has less than a byte for 32 pixels.
        shortest: pixels or None. A JPEG will be decoded at 1/2, 1/4 or 1/8 of its size if its shorter side keeps at
            least this length.

    Returns:
        PIL image. Its pixels are those of the file: neither upright nor RGB.

    Raises:
        ValueError: an unsupported type or format, a corrupt header, or too many pixels.
        FileNotFoundError: the path does not exist.
    """
    from PIL import Image

    if isinstance(image, str | os.PathLike):
        name = f"{name}={os.fspath(image)!r}"
        image = _file_bytes(Path(image), name)
    if isinstance(image, io.BytesIO):
        image = image.getvalue()
    if isinstance(image, Image.Image):
        if getattr(image, "tile", None) and image.format not in (*FORMATS, "MPO"):
            raise ValueError(
                f"A PIL image that is not loaded must be of a format among {', '.join(FORMATS)}. "
                f"Received: {name} of format {image.format}. Call its `load()` if you trust the file."
            )
        size = None
    elif isinstance(image, bytes):
        image, size = _open_bytes(image, name), len(image)
    else:
        return from_array(image, name)
    _check_pixels(image, size, name, max_pixels)
    if shortest is not None:
        reduce_jpeg(image, shortest)
    return image


def reduce_jpeg(image, shortest: float) -> None:
    """Lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size if its shorter side keeps at least a length.

    Args:
        image: PIL image that is not decoded yet, as of `open_header`.
        shortest: pixels.
    """
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        ratio = jpeg_ratio(min(image.size), shortest)
        image.draft(image.mode, (max(1, image.width // ratio), max(1, image.height // ratio)))


def _file_bytes(path: Path, name: str) -> bytes:
    # A device or a pipe may have no end.
    if path.exists() and not path.is_file():
        what = ", a folder" if path.is_dir() else ""
        raise ValueError(f"An image must be a regular file. Received: {name}{what}.")
    return path.read_bytes()


def _open_bytes(data: bytes, name: str):
    from PIL import Image

    formats = [form for form in _decoders() if _is_own(form)]
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{error} Received: {name}. Raise `max_pixels` and `PIL.Image.MAX_IMAGE_PIXELS` for images that you trust."
        ) from None
    except Image.UnidentifiedImageError:
        raise ValueError(
            f"Not an image that is read here: it must be {', '.join(formats)}, and its header whole. "
            f"Received: {name}, {len(data)} bytes that begin with {data[:12]!r}. Convert other formats, e.g. to PNG."
        ) from None
    except Exception as error:  # PIL raises many types of exceptions for corrupt files.
        raise ValueError(f"Not an image that PIL can read: {error}. Received: {name}.") from error


def _check_pixels(image, size: int | None, name: str, max_pixels: int) -> None:
    pixels = image.width * image.height
    if image.format == "TIFF":
        # A decoder holds a whole tile, which may be larger than the image.
        sides = [image.tag_v2.get(tag, 1) for tag in _TILE]
        pixels = max(pixels, *sides, int(np.prod([side for side in sides if isinstance(side, int)], dtype=object)))
    if pixels > max_pixels:
        raise ValueError(
            f"An image may have at most {max_pixels:,} pixels. Received: {name} of {image.width} x {image.height}. "
            "Raise `max_pixels` for images that you trust."
        )
    if size is not None and pixels > max(suspicious_above(max_pixels), _PIXELS_PER_BYTE * size):
        raise ValueError(
            f"An image of more than {suspicious_above(max_pixels):,} pixels must have at least a byte for "
            f"{_PIXELS_PER_BYTE} pixels: otherwise it is taken for a decompression bomb. Received: {name} of "
            f"{image.width} x {image.height} in {size:,} bytes. Raise `max_pixels` to eight times its pixels for "
            "images that you trust."
        )


def suspicious_above(max_pixels: int) -> int:
    """Returns the number of pixels that an image may have whatever the length of its file."""
    return max(_UNSUSPICIOUS_PIXELS, max_pixels // 8)


def jpeg_ratio(side: int, shortest: float) -> int:
    """Returns the largest factor (1, 2, 4, 8) to decode a JPEG smaller with a shorter side of at least `shortest`."""
    return next((ratio for ratio in (8, 4, 2) if side >= ratio * shortest), 1)


def open_image(image: Any, name: str, max_pixels: int, shortest: float | None = None):
    """Opens any input of `ImagePreprocessor` as an upright PIL image in RGB, composited on white.

    Args:
        image: a path, bytes, PIL image or uint8 array.
        name: str, how messages refer to the image.
        max_pixels: int, as of `open_header`.
        shortest: pixels or None, as of `open_header`.

    Returns:
        PIL image in RGB.

    Raises:
        ValueError: an unsupported type or format, a corrupt file, or too many pixels.
        FileNotFoundError: the path does not exist.
    """
    return decode(open_header(image, name, max_pixels, shortest), name)


def decode(image, name: str):
    """Decodes an image that `open_header` returned: upright, in RGB, composited on white.

    Raises:
        ValueError: a corrupt file.
    """
    try:
        load(image)
        return _to_rgb(upright(image))
    except Exception as error:  # PIL raises many types of exceptions for corrupt files.
        raise ValueError(f"Not an image that PIL can read: {error}. Received: {name}.") from error


def load(image) -> None:
    """Decodes a PIL image that has been opened but not loaded.

    The image may be the caller's, and be read by several threads at the same time, as those of two epochs. PIL decodes
    an image at its first use, and two threads that do so give broken pixels or an error.

    Raises:
        Exception: one of many types, for a corrupt file.
    """
    with _LOADING.lock_of(image):
        image.load()


def reason_of(error: ValueError) -> str:
    """Returns the reason by which `SkippedSamples` counts an image that `open_header` or `decode` refused."""
    return "image too large" if "max_pixels" in str(error) else "undecodable image"


def upright(image):
    """Applies the orientation that PIL finds in EXIF, XMP or the tags of TIFF; none if these cannot be read."""
    from PIL import Image

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
    # PIL turns a TIFF while it loads it, and deletes its tag.
    image.load()
    orientation = _orientation(image)
    return image.transpose(turns[orientation]) if orientation in turns else image


def upright_sides(image) -> tuple[int, int]:
    """Height and width of `upright(image)`. It is not decoded, except a TIFF."""
    if image.format == "TIFF":
        return upright(image).size[::-1]
    return image.size if _orientation(image) in (5, 6, 7, 8) else image.size[::-1]


def _orientation(image) -> int | None:
    """Returns the orientation, 1 to 8, or None."""
    try:
        if image.format == "PNG" and isinstance(getattr(image, "fp", None), io.BytesIO):
            data = image.fp.getvalue()
            if not any(mark in data for mark in _PNG_METADATA):
                return None
        return image.getexif().get(_ORIENTATION)
    except Exception:  # PIL raises many types of exceptions for corrupt metadata.
        return None


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
