"""Files of float32 rows that only grow, and are read through memory maps.

How many rows count is kept elsewhere (`database`). What lies behind them was left by a process that was killed before
it committed, and is overwritten by the next one.
"""

import os
from pathlib import Path

import numpy as np

from keras_clip.search.pictures.database import BUILD_AGAIN

COLUMNS = ("features", "embeddings")
_BYTES = 4


def path_of(folder: Path, column: str, generation: int) -> Path:
    """Returns the file of a column; each compaction begins a new generation of files."""
    return folder / f"{column}-{generation}.f32"


def append(path: Path, start: int, values: np.ndarray) -> None:
    """Writes rows behind the first ones, and returns when they are on the disk.

    Args:
        path: the file; it is created if `start` is 0.
        start: int, the number of rows that stay.
        values: float32 (M, D).

    Raises:
        ValueError: the file has fewer than `start` rows.
        OSError: the disk is full.
    """
    values = np.ascontiguousarray(values, np.float32)
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        place = start * values.shape[1] * _BYTES
        if os.fstat(file.fileno()).st_size < place:
            raise _damaged(path, start)
        file.seek(place)
        file.write(values.data)
        file.flush()
        os.fsync(file.fileno())


def mapped(path: Path, count: int, width: int) -> np.ndarray:
    """Returns the first rows of a file.

    Args:
        path: the file; it may be absent if `count` is 0.
        count: int N.
        width: int D.

    Returns:
        float32 (N, D), read-only; a memory map unless it is empty.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: the file has fewer rows.
    """
    if not count or not width:
        return np.zeros((0, width), np.float32)
    if path.stat().st_size < count * width * _BYTES:
        raise _damaged(path, count)
    return np.memmap(path, np.float32, "r", shape=(count, width))


def _damaged(path: Path, rows: int) -> ValueError:
    return ValueError(
        f"The files of an index must be complete. Received: {path}, with fewer than its {rows} rows. Restore a "
        f"copy, or {BUILD_AGAIN}."
    )
