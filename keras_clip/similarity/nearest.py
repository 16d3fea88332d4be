"""The most similar vector of an index for each query."""

import numpy as np

_BLOCK = 2**22


def nearest_vectors(
    queries: np.ndarray, index: np.ndarray, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the most similar vector of an index for each query, by exhaustive search in blocks.

    Args:
        queries: float (N, E), unit vectors of the test images.
        index: float (M, E), unit vectors of the training images; may be memory-mapped.
        own: int (N,) or None. A row of the index to exclude for each query.

    Returns:
        Cosine similarities, float32 (N,), and rows of the index, int64 (N,).

    Raises:
        ValueError: no vectors, or vectors of different dimensions.
    """
    shapes = np.shape(queries), np.shape(index)
    if any(len(shape) != 2 or not shape[0] for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            f"`queries` must be (N, E) and `index` (M, E), none empty. Received: {shapes[0]} and {shapes[1]}."
        )
    best = np.full(len(queries), -np.inf, np.float32)
    nearest = np.zeros(len(queries), np.int64)
    columns = min(len(index), 2**16)
    rows = max(1, _BLOCK // columns)
    for column in range(0, len(index), columns):
        part = np.asarray(index[column : column + columns], np.float32)
        for row in range(0, len(queries), rows):
            block = slice(row, row + rows)
            cosines = np.asarray(queries[block], np.float32) @ part.T
            if own is not None:
                inside = np.flatnonzero((own[block] >= column) & (own[block] < column + len(part)))
                cosines[inside, own[block][inside] - column] = -np.inf
            position = cosines.argmax(axis=1)
            value = np.take_along_axis(cosines, position[:, None], axis=1)[:, 0]
            nearest[block] = np.where(value > best[block], position + column, nearest[block])
            best[block] = np.maximum(best[block], value)
    return best, nearest
