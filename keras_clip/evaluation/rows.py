"""Rows of large arrays that are read when they are indexed, so that a subset of a store is no copy of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class Rows:
    """Some rows of one or several arrays (N, D), one after the other, such as the training images of a store.

    It has the shape, the dtype and the indexing of an array; `np.asarray` reads all rows.

    Args:
        arrays: arrays or `Rows` of the same width and dtype, which may be memory-mapped.
        rows: int64 (N,), the rows of the first array, which is the only one then. None: all rows of all arrays.
    """

    def __init__(self, arrays: Sequence[Any], rows: np.ndarray | None = None):
        self._arrays, self._rows = list(arrays), rows
        lengths = list(map(len, self._arrays)) if rows is None else [len(rows)]
        self._ends = np.cumsum(lengths, dtype=np.int64)
        self.shape: tuple[int, ...] = (int(self._ends[-1]), *self._arrays[0].shape[1:])
        self.dtype = self._arrays[0].dtype

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, tuple):
            return self[key[0]][(slice(None), *key[1:])]
        if self._rows is not None:
            return np.asarray(self._arrays[0][self._rows[key]])
        rows = np.arange(len(self))[key]
        found = np.empty((np.size(rows), *self.shape[1:]), self.dtype)
        part, flat = np.searchsorted(self._ends, rows.ravel(), side="right"), rows.ravel()
        for number, array in enumerate(self._arrays):
            if (here := part == number).any():
                found[here] = array[flat[here] - (self._ends[number] - len(array))]
        return found.reshape(*np.shape(rows), *self.shape[1:])
