"""Fingerprints of images: a digest, equal for exact copies, and a hash with nearly the same bits for altered copies.

The embedding of an image encoder is a fingerprint too; `nearest.nearest_vectors` compares both kinds.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_clip.data.image_files import MAX_PIXELS, open_image

HASH_BITS = 64
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
