"""The colours of images, which verify what their perceptual hashes find: hashes are those of shades of grey."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_clip.similarity.fingerprints import COLOUR_SIDE, colour_differences

if TYPE_CHECKING:
    import pyarrow

# Of 255: with it, copies of photographs by JPEG of quality 30 and of a quarter of the size are found.
MOST_COLOURS = 16.0
# Pairs that are compared at a time: bounds the memory.
_BLOCK = 2**14


def check_colours(colours: Any) -> None:
    """Raises a ValueError unless the largest difference of colours is a number of at least 0, or None."""
    is_number = isinstance(colours, (int, float)) and not isinstance(colours, bool)
    if colours is not None and not (is_number and math.isfinite(colours) and colours >= 0):
        raise ValueError(f"`colours` must be a number of at least 0, or None. Received: colours={colours!r}.")


def colour_rows(column: "pyarrow.ChunkedArray", rows: np.ndarray) -> np.ndarray:
    """Returns the colours in some rows of the column `colours` of a profile.

    Args:
        column: the column.
        rows: int64 (N,), none of which is null.

    Returns:
        uint8 (N, 192).
    """
    values = column.combine_chunks()
    size = 3 * COLOUR_SIDE**2
    everything = np.frombuffer(values.buffers()[1], np.uint8)[values.offset * size :][: len(values) * size]
    return everything.reshape(-1, size)[rows]


def verifier(first: np.ndarray, second: np.ndarray, most: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Returns a function of rows of both, int64 (P,), that returns whether their colours differ by at most `most`.

    Args:
        first: uint8 (N, 192).
        second: uint8 (M, 192).
        most: as of `duplicates.DuplicateSettings.colours`.
    """

    def verify(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        found = np.empty(len(rows), bool)
        for start in range(0, len(rows), _BLOCK):
            block = slice(start, start + _BLOCK)
            found[block] = colour_differences(first[rows[block]], second[others[block]]) <= most
        return found

    return verify
