"""Filters for indexes that search approximately: fetch more than k, then keep what is allowed."""

import math

import numpy as np

from keras_clip.search.vectors.exact import ExactIndex
from keras_clip.search.vectors.index import checked_search, filled, ranked

# Where the filter keeps less than this fraction of the rows, the search is exact.
SPARSE = 0.05
# An approximate search for more than this fraction of the rows is slower than an exact one.
_MOST = 0.1
# Added to the expected number of neighbours to fetch, since neighbours are not a random choice of the rows.
_MARGIN = 16


class OverFetching:
    """Base of indexes that know the nearest rows but no filter.

    A subclass has `_embeddings` (N, E), `_indexed` <= N, the number of rows in its structure, and `_nearest`. Rows that
    are not in the structure yet are compared one by one.
    """

    _embeddings: np.ndarray
    _indexed: int

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Finds the nearest rows: arguments as of `Index.search`. Which rows are found is approximate."""
        queries, k, allowed = checked_search(queries, k, allowed, self._embeddings.shape)
        if not len(queries):
            return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
        inside = self._indexed if allowed is None else int(np.count_nonzero(allowed[: self._indexed]))
        most = _MOST * self._indexed
        # As many as there are, if that is less than k.
        wanted = min(k, inside)
        fraction = inside / max(1, self._indexed)
        fetch = math.ceil(wanted / fraction) + (_MARGIN if fraction < 1 else 0) if inside else 0
        missing = np.arange(len(queries)) if fraction < SPARSE or fetch > most else np.zeros(0, np.int64)
        results = [(np.full(k, -1), np.full(k, -np.inf, np.float32))] * len(queries)
        waiting = np.setdiff1d(np.arange(len(queries)), missing)
        while len(waiting):
            nearest = self._nearest(queries[waiting], fetch)
            short = []
            for query, rows in zip(waiting, nearest, strict=True):
                rows = rows if allowed is None else rows[allowed[rows]]
                if len(rows) < wanted:
                    short.append(query)
                else:
                    results[query] = self._with_tail(queries[query], rows, k, allowed)
            fetch *= 4
            waiting = np.array(short, np.int64)
            if fetch > most:
                missing, waiting = np.concatenate([missing, waiting]), waiting[:0]
        if len(missing):
            exact = ExactIndex()
            exact.build(self._embeddings)
            for query, *result in zip(missing, *exact.search(queries[missing], k, allowed), strict=True):
                results[query] = tuple(result)
        return np.stack([rows for rows, _ in results]), np.stack([scores for _, scores in results])

    def _nearest(self, queries: np.ndarray, count: int) -> list[np.ndarray]:
        """Returns about `count` of the nearest rows of each query, int64, in any order."""
        raise NotImplementedError

    def _with_tail(self, query, rows, k, allowed):
        """Returns the best k of the rows found and of those that are not in the structure, by exact scores."""
        tail = np.arange(self._indexed, len(self._embeddings))
        tail = tail if allowed is None else tail[allowed[tail]]
        rows = np.concatenate([np.sort(rows), tail])
        scores = np.vecdot(np.asarray(self._embeddings[rows]), query)
        places = ranked(scores, k)
        return filled(rows[places], scores[places], k)
