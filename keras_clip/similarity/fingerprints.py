"""Fingerprints of images: a digest, equal for exact copies, and a hash with nearly the same bits for altered copies.

The hash is one of shades of grey; the mean colours of a few parts of the image verify what it finds.

The embedding of an image encoder is a fingerprint too; `nearest.nearest_vectors` compares both kinds.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_clip.data.image_files import MAX_PIXELS, open_image

HASH_BITS = 64
# Parts of an image in each direction whose mean colours are compared.
COLOUR_SIDE = 8
# The shorter side, in pixels, to which a JPEG may be reduced while it is decoded for a hash (`shortest` of
# `data.image_files.open_header`). At 500 x 375, decoding and hashing then take 0.7 ms instead of 1.6 ms. On 250
# photographs 0.25 bits change on average, and at most 4.
HASH_SHORTEST = 64
_SIDE, _FREQUENCIES = 32, 8
_COSINES = np.cos(np.pi / _SIDE * np.outer(np.arange(_FREQUENCIES), np.arange(_SIDE) + 0.5))


def pixel_digest(image: Any, max_pixels: int = MAX_PIXELS) -> str:
    """Returns a digest of the decoded pixels, which does not depend on the lossless format of the file.

    Args:
        image: path, bytes, PIL image or uint8 array, as `ImagePreprocessor` accepts them.
        max_pixels: int. A larger image raises a ValueError.

    Returns:
        SHA-256 of height, width and the decoded RGB pixels, as 64 hexadecimal digits.

    Raises:
        ValueError: an image that is corrupt or too large.
        FileNotFoundError: a path without a file.
    """
    pixels = np.asarray(open_image(image, "image", max_pixels))
    return hashlib.sha256(np.array(pixels.shape[:2], "<i8").tobytes() + pixels.tobytes()).hexdigest()


def perceptual_hash(image: Any, max_pixels: int = MAX_PIXELS, shortest: float | None = None) -> np.ndarray:
    """Returns a hash of 64 bits that is robust to recompression, scaling and small changes in color.

    The image is converted to greyscale and resized to 32 x 32. Each bit states whether one of the 8 x 8 lowest
    frequencies of the discrete cosine transform is above their median. Crops, rotations and reflections change the hash
    as much as a different image does; embeddings cover these (`keras_clip.evaluation.duplicate_detector`).

    Args:
        image: path, bytes, PIL image or uint8 array, as `ImagePreprocessor` accepts them.
        max_pixels: int. A larger image raises a ValueError.
        shortest: pixels or None. A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if its shorter side keeps at least
            this length. `HASH_SHORTEST` halves the time and changes few bits: compare hashes of one setting.

    Returns:
        uint8 array (8,): 64 bits in row-major order. `hash_vectors` converts hashes to vectors.

    Raises:
        ValueError: an image that is corrupt or too large.
        FileNotFoundError: a path without a file.
    """
    bits = hash_of_decoded(open_image(image, "image", max_pixels, shortest))
    return np.frombuffer(bits.to_bytes(8, "big"), np.uint8).copy()


def hash_of_decoded(image: Any) -> int:
    """Returns the bits of `perceptual_hash` for an image that is decoded already.

    Args:
        image: PIL image, upright, in RGB or greyscale, as `keras_clip.data.image_files.decode` returns it.

    Returns:
        int in [0, 2**64): the first bit is the most significant one.
    """
    from PIL import Image

    grey = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    # Rounding makes the bits of zero coefficients independent of floating-point error, and so of the platform.
    lowest = np.round(_COSINES @ np.asarray(grey, np.float64) @ _COSINES.T, 3)
    middle = np.sort(lowest, axis=None)[HASH_BITS // 2 - 1 : HASH_BITS // 2 + 1]
    return int.from_bytes(np.packbits(lowest > middle.mean()).tobytes(), "big")


def colours_of_decoded(image: Any) -> bytes:
    """Returns the mean colours of 8 x 8 parts of an image, by which images of one perceptual hash are told apart.

    Args:
        image: PIL image, as of `hash_of_decoded`.

    Returns:
        192 bytes: red, green and blue of each part, row by row.
    """
    from PIL import Image

    size = (COLOUR_SIDE, COLOUR_SIDE)
    # A box filter would depend on how the parts fall on whole pixels, so that a copy of another size would differ.
    return image.convert("RGB").resize(size, Image.Resampling.HAMMING, reducing_gap=3.0).tobytes()


def colour_differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the largest difference of the colours of images, after their brightness is made equal.

    Both are multiplied by a factor, such that their root mean squares are equal, as far as factors between 3/4 and 4/3
    allow: a copy may be brighter or darker as a whole, but a part of another colour counts.

    Args:
        first: uint8 (N, 192), from `colours_of_decoded`.
        second: uint8 (N, 192).

    Returns:
        float32 (N,), in [0, 300).
    """
    one, other = np.asarray(first, np.float32), np.asarray(second, np.float32)
    # Black images stay as they are.
    norms = np.maximum(np.linalg.norm(one, axis=1), 1), np.maximum(np.linalg.norm(other, axis=1), 1)
    factor = np.sqrt(np.clip(norms[1] / norms[0], 3 / 4, 4 / 3))[:, None]
    return np.abs(one * factor - other / factor).max(axis=1, initial=0)


def hash_vectors(hashes: Sequence[np.ndarray]) -> np.ndarray:
    """Returns hashes as vectors of unit length whose cosine is 1 - (number of different bits) / 32.

    Args:
        hashes: N hashes of 64 bits, uint8 (8,) each.

    Returns:
        float32 array (N, 64), 256 bytes per hash.

    Raises:
        ValueError: a shape or dtype that does not match.
    """
    hashes = np.asarray(hashes)
    if hashes.ndim != 2 or hashes.shape[1] != 8 or hashes.dtype != np.uint8:
        raise ValueError(
            f"Hashes must be uint8 (N, 8). Received: {hashes.dtype} of shape {hashes.shape}. `perceptual_hash` "
            "returns them."
        )
    return (np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1) / np.float32(8)
