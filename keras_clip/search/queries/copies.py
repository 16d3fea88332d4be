"""Near-duplicates: each picture and the most similar one before it, for groups at any threshold.

Row i has one parent: the earlier row of the largest cosine with it, if that is at least `FLOOR`. The rows are only
appended, so parents never change, and new rows are compared with all before them once. A picture belongs to the group
of its parent if its cosine with the first picture of that group reaches the threshold; otherwise it begins a group.
So a chain of similar pictures does not become one group.
"""

import os
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from keras_clip import files
from keras_clip.search.vectors.index import fingerprint

# The smallest threshold.
FLOOR = 0.9
# Equal vectors have a cosine of 1 up to rounding.
_ROUNDING = 1e-6
# Rounding of a bound.
_SLACK = 1e-5
# The numbers of dimensions from which that of the first comparison is chosen, which bounds the cosine from above.
_DIMENSIONS = (16, 32, 64, 128, 192, 256, 384)
# How much longer a cosine of a single pair takes than one of a block of pairs.
_SINGLE = 20
# A tile of bounds is 4 MiB, which fits the cache.
_ROWS, _COLUMNS = 2**8, 2**12
# Where more pairs than this fraction remain after the first comparison, all are computed.
_DENSE = 0.02
# Seconds before a progress bar appears.
_DELAY = 5
# Rows from which the directions of the first comparison are computed.
_SAMPLE = 2**12


class Copies:
    """The parents of the rows of an index.

    Args:
        path: file that keeps the parents between processes, or None. It is only a cache.

    Attributes:
        parents: int64 (N,), the most similar row before each; the row itself where none is similar.
        cosines: float32 (N,), the cosines with them; 0 where none is similar.
    """

    def __init__(self, path: str | os.PathLike | None = None):
        self.path = None if path is None else Path(path)
        self.parents, self.cosines = np.zeros(0, np.int64), np.zeros(0, np.float32)
        # The fingerprint of the first rows, by their number, for each number that was compared.
        self._known: dict[int, str] = {}
        self._lock = threading.RLock()

    @classmethod
    def of(cls, index: Any) -> "Copies":
        """Returns those of a `PictureIndex`, which are kept in its folder if it has one."""
        folder = getattr(index, "folder", None)
        return cls(None if folder is None else Path(folder) / "copies.npz")

    def update(self, embeddings: np.ndarray, progress: bool = False) -> None:
        """Compares the rows of float32 unit vectors (N, E) that are new with all before them.

        100,000 rows take about a minute of one core, and the time grows with the square. Embeddings that do not begin
        with the rows known so far begin anew.

        Args:
            embeddings: float32 (N, E), unit vectors.
            progress: whether to show progress in the terminal if it takes more than some seconds.
        """
        with self._lock:
            size = len(embeddings)
            if self._known.get(size) == fingerprint(embeddings, size):
                return
            # Another process may have compared them meanwhile.
            self._load(embeddings)
            if self._known.get(size) == fingerprint(embeddings, size):
                return
            known = max((rows for rows in self._known if rows <= size), default=0)
            if known == 0 or self._known[known] != fingerprint(embeddings, known):
                known, self._known = 0, {}
            parents, cosines = nearest_before(embeddings, known, progress)
            self.parents = np.concatenate([self.parents[:known], parents])
            self.cosines = np.concatenate([self.cosines[:known], cosines])
            self._known = {rows: digest for rows, digest in self._known.items() if rows <= known}
            self._known[size] = fingerprint(embeddings, size)
            self._save()

    def groups(self, embeddings: np.ndarray, threshold: float) -> np.ndarray:
        """Returns the group of each row: the row of its first picture. It calls `update`.

        Args:
            embeddings: float32 (N, E), unit vectors.
            threshold: float in [0.9, 1]. The smallest cosine with the first picture of the group.

        Returns:
            int64 (N,).
        """
        size, threshold = len(embeddings), threshold - _ROUNDING
        with self._lock:
            self.update(embeddings)
            parents, cosines = self.parents[:size], self.cosines[:size]
        group = np.arange(size)
        # A parent comes before its children, so that its group is known when theirs is chosen, level by level.
        waiting = np.flatnonzero((cosines >= threshold) & (parents != group))
        is_open = np.zeros(size, bool)
        is_open[waiting] = True
        while len(waiting):
            ready = ~is_open[parents[waiting]]
            rows = waiting[ready]
            firsts = group[parents[rows]]
            similar = _cosines(embeddings, rows, firsts) >= threshold
            group[rows[similar]] = firsts[similar]
            is_open[rows] = False
            waiting = waiting[~ready]
        return group

    def _load(self, embeddings):
        """Takes the parents of the file if they are of more of the rows than those known."""
        if self.path is None or not self.path.exists():
            return
        try:
            with np.load(self.path, allow_pickle=False) as saved:
                parents, cosines, digest = saved["parents"], saved["cosines"], str(saved["fingerprint"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            # A damaged file is written anew.
            return
        rows = len(parents)
        if max(self._known, default=0) < rows <= len(embeddings) and fingerprint(embeddings, rows) == digest:
            same = {known: old for known, old in self._known.items() if fingerprint(embeddings, known) == old}
            self.parents, self.cosines, self._known = parents, cosines, {**same, rows: digest}

    def _save(self):
        if self.path is None:
            return
        try:
            with files.replacing(self.path) as temporary, open(temporary, "wb") as file:
                np.savez(file, parents=self.parents, cosines=self.cosines, fingerprint=self._known[len(self.parents)])
        except OSError:
            # The folder may be read-only or full; then each process computes them.
            pass


def find_copies(index: Any, progress: bool = True) -> None:
    """Compares the new pictures of an index with all others, so that a `Searcher` of it need not do so.

    Args:
        index: `PictureIndex`, in whose folder the near-duplicates are kept.
        progress: whether to show progress in the terminal if it takes more than some seconds.
    """
    Copies.of(index).update(index.embeddings, progress)


def nearest_before(embeddings: np.ndarray, start: int = 0, progress: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Finds for each row the most similar one before it.

    The vectors are split into their part in a few directions, in which they are long, and the rest. By the inequality
    of Cauchy and Schwarz, the cosine of two vectors is at most the inner product of these parts plus the product of the
    lengths of the rests, so few pairs need all dimensions, and none is missed.

    Args:
        embeddings: float32 (N, E), unit vectors.
        start: int. The rows before are only compared with.
        progress: whether to show progress.

    Returns:
        For the rows from `start` on: the rows, int64 (N - start,), and the cosines, float32 (N - start,). Where no
        cosine is at least 0.9, the row itself and 0. Of equal cosines, the first row.
    """
    size = len(embeddings)
    parents, cosines = np.arange(start, size), np.zeros(size - start, np.float32)
    parts = _parts(embeddings)
    firsts = range(start, size, _ROWS)
    for first in tqdm(firsts, "Comparing pictures", delay=_DELAY, leave=False, disable=not progress):
        rows = np.arange(first, min(first + _ROWS, size))
        block = embeddings[rows]
        best, nearest = np.full(len(rows), FLOOR - _ROUNDING, np.float32), rows.copy()
        for left in range(0, rows[-1], _COLUMNS):
            columns = slice(left, min(left + _COLUMNS, rows[-1]))
            bounds = parts[rows] @ parts[columns].T
            if columns.stop > first:
                bounds[np.arange(columns.start, columns.stop) >= rows[:, None]] = -1
            row, column = np.nonzero(bounds >= (best - _SLACK)[:, None])
            if len(row) > _DENSE * bounds.size:
                values = block @ np.asarray(embeddings[columns]).T
                values[bounds == -1] = -1
                column = values.argmax(axis=1)
                row, value = np.arange(len(rows)), np.take_along_axis(values, column[:, None], axis=1)[:, 0]
            else:
                value = _cosines(embeddings, rows[row], left + column)
            # The largest of each row last, and the first column of equal ones.
            order = np.lexsort([-column, value])
            row, column, value = row[order], column[order], value[order]
            top, place = np.full(len(rows), -1, np.float32), np.zeros(len(rows), np.int64)
            top[row], place[row] = value, left + column
            is_better = (top > best) | ((top == best) & (nearest == rows))
            best, nearest = np.where(is_better, top, best), np.where(is_better, place, nearest)
        parents[first - start : first - start + len(rows)] = nearest
        cosines[first - start : first - start + len(rows)] = np.where(nearest == rows, 0, best)
    return parents, cosines


def _cosines(embeddings, rows, others):
    """Returns the inner products of pairs of rows, float32 (P,)."""
    values = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _COLUMNS):
        part = slice(start, start + _COLUMNS)
        np.einsum("ne,ne->n", embeddings[rows[part]], embeddings[others[part]], out=values[part])
    return values


def _parts(embeddings):
    """Returns vectors (N, D + 1) whose inner products are at least the cosines of the embeddings (N, E).

    They are the coordinates in the directions in which a sample of the embeddings is the longest, and the length of the
    rest. D is the number for which the comparison of the sample is estimated to be the fastest.
    """
    size, dimensions = embeddings.shape
    sample = np.asarray(embeddings[np.unique(np.linspace(0, max(size - 1, 0), min(size, _SAMPLE)).astype(int))])
    _, directions = np.linalg.eigh(sample.T.astype(np.float64) @ sample)
    directions = np.ascontiguousarray(directions[:, ::-1], np.float32)
    possible = [few for few in _DIMENSIONS if few < dimensions] or [dimensions]

    def time(few):
        few_rows = _with_rest(sample[:: max(1, len(sample) // 1024)] @ directions[:, :few])
        share = np.mean(few_rows @ few_rows.T >= FLOOR) if len(few_rows) else 0
        return few + dimensions * (_SINGLE * share if share < _DENSE else 1)

    few = min(possible, key=time)
    parts = np.empty((size, few + 1), np.float32)
    for start in range(0, size, _SAMPLE):
        block = slice(start, start + _SAMPLE)
        parts[block] = _with_rest(embeddings[block] @ directions[:, :few])
    return parts


def _with_rest(parts):
    """Appends to parts (N, D) of unit vectors the lengths of their rests."""
    squares = np.einsum("nd,nd->n", parts, parts)
    return np.concatenate([parts, np.sqrt(np.maximum(0, 1 - squares))[:, None]], axis=1)
