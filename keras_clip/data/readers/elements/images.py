"""Turns the image of an element, in any of the forms that users have, into the bytes of an image file."""

import io
import os
import sys
from collections.abc import Callable
from typing import Any

from keras_clip.data.readers.reader import Captions, as_captions
from keras_clip.data.readers.storage.paths import file_bytes


def read_pair(elements: Any, index: int, pair: Callable) -> tuple[bytes, Captions]:
    """Returns the image file and the captions of one element.

    Args:
        elements: object from which `elements[index]` reads the element.
        index: number of the element.
        pair: function of an element that returns (image, caption or captions).

    Returns:
        (bytes, captions). If PIL cannot read the image, the bytes say why and are no image: the pipeline skips them.
    """
    try:
        image, caption = pair(elements[index])
        return as_image_file(image, f"element {index}"), as_captions(caption)
    except OSError as error:
        return f"{type(error).__name__}: {error}".encode(), [b"unknown"]


def as_image_file(image: Any, name: str, folder: str = "") -> bytes:
    """Returns the bytes of an image file, `b""` if there is no image.

    Args:
        image: bytes, path, Hugging Face's record of both, array, PIL image of any mode, None or NaN.
        name: name of the sample in error messages.
        folder: to which paths are relative.

    Returns:
        bytes.

    Raises:
        OSError: a PIL image that cannot be loaded.
        ValueError: something else than an image.
    """
    from PIL import Image

    from keras_clip.data.image_files import open_image

    if isinstance(image, dict) and {"bytes", "path"} >= set(image):
        image = image.get("bytes") or image.get("path")
    if image is None or (isinstance(image, float) and image != image):
        return b""
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, (str, os.PathLike)):
        return file_bytes(os.path.join(os.fsencode(folder), os.fsencode(image)))
    if isinstance(image, Image.Image):
        _load(image)
        # Pillow has no other conversion of premultiplied alpha.
        image = image.convert("LA") if image.mode == "La" else image
    elif not hasattr(image, "__array__"):
        raise ValueError(
            "An image must be the bytes of a file, a path, an array or a PIL image. "
            f"Received: {name} with an image of {type(image)}. Pass another `mapping`."
        )
    file = io.BytesIO()
    # Evaluation opens it in the same way: upright, composited on white, in RGB. A bitmap is only copied.
    open_image(image, name, sys.maxsize).save(file, "BMP")
    return file.getvalue()


def _load(image: Any) -> None:
    """Decodes a PIL image that has been opened but not loaded.

    Raises:
        OSError: it cannot be decoded.
    """
    from keras_clip.data.image_files import load

    try:
        load(image)
    except Exception as error:  # PIL raises many types of exceptions for corrupt files.
        raise OSError(f"{type(error).__name__}: {error}") from error
