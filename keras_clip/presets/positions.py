"""Resizes position embeddings to image sizes and context lengths for which they were not trained."""

import math

import numpy as np


def resize_positions(table: np.ndarray, trained: tuple[int, ...], wanted: tuple[int, ...]) -> np.ndarray:
    """Resizes the position embeddings of a grid of patches, or of a text.

    A grid is resized like an image, bicubic (a = -0.5) with antialiasing; the first row, of the class token or of the
    mean token, is unchanged. open_clip does the same for Vision Transformers; here it also applies to the attention
    pool of a ResNet. The embeddings of a text are truncated, so that short texts keep their exact embeddings, or
    interpolated linearly.

    Args:
        table: (1 + rows * columns, D), or (L, D).
        trained: rows and columns of the grid of `table`, or (L,).
        wanted: rows and columns of the grid of the result, or (L,).

    Returns:
        float32 array (1 + rows * columns, D), or (L, D); `table` itself if the sizes are equal.
    """
    if trained == wanted:
        return table
    table = table.astype(np.float32)
    if len(wanted) == 1:
        return _stretched(table, *wanted) if wanted > trained else table[: wanted[0]]
    return np.concatenate([table[:1], _resized(table[1:].reshape(*trained, -1), wanted)])


def row_count(sides: tuple[int, ...]) -> int:
    """Returns the number of position embeddings of a grid (with one for the class token) or of a text."""
    return math.prod(sides) + (len(sides) == 2)


def _stretched(table, length):
    # Each position is the centre of an interval; all intervals have equal length.
    places = (np.arange(length) + 0.5) * len(table) / length - 0.5
    places = places.clip(0, len(table) - 1)
    left = np.minimum(places.astype(np.int64), len(table) - 2)
    share = (places - left)[:, None]
    return ((1 - share) * table[left] + share * table[left + 1]).astype(np.float32)


def _resized(grid, wanted):
    from PIL import Image

    channels = [
        Image.fromarray(np.ascontiguousarray(grid[..., i])).resize(wanted[::-1], Image.Resampling.BICUBIC)
        for i in range(grid.shape[-1])
    ]
    return np.stack([np.asarray(channel).ravel() for channel in channels], axis=-1)
