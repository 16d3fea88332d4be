"""Filters for indexes that search approximately: fetch more than k, then keep what is allowed."""

import math
from typing import Any

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

    A subclass has `_state` and `_nearest`. Rows that are not in its structure yet are compared one by one. It may be
    extended by one thread while others search.
    """

    # Embeddings (N, E), the structure, and the number of rows in it, which is at most N.
    _state: tuple[np.ndarray, Any, int]

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Finds the nearest rows: arguments as of `Index.search`. Which rows are found is approximate."""
        embeddings, structure, indexed = self._state
        queries, k, allowed = checked_search(queries, k, allowed, embeddings.shape)
        if not len(queries):
            return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
        inside = indexed if allowed is None else int(np.count_nonzero(allowed[:indexed]))
        most = _MOST * indexed
        # As many as there are, if that is less than k.
        wanted = min(k, inside)
        fraction = inside / max(1, indexed)
        fetch = math.ceil(wanted / fraction) + (_MARGIN if fraction < 1 else 0) if inside else 0
        waiting = np.arange(len(queries))
        exactly = []
        results = [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * len(queries)
        while len(waiting):
            if fraction < SPARSE or fetch > most:
                exactly, waiting = waiting, waiting[:0]
                continue
            short = []
            for query, rows in zip(waiting, self._nearest(structure, queries[waiting], fetch), strict=True):
                rows = rows[rows < indexed]
                rows = rows if allowed is None else rows[allowed[rows]]
                if len(rows) < wanted:
                    short.append(query)
                    continue
                tail = np.arange(indexed, len(embeddings))
                rows = np.concatenate([np.sort(rows), tail if allowed is None else tail[allowed[tail]]])
                scores = np.vecdot(np.asarray(embeddings[rows]), queries[query])
                places = ranked(scores, k)
                results[query] = filled(rows[places], scores[places], k)
            waiting, fetch = np.array(short, np.int64), 4 * fetch
        if len(exactly):
            exact = ExactIndex()
            exact.build(embeddings)
            for query, *result in zip(exactly, *exact.search(queries[exactly], k, allowed), strict=True):
                results[query] = tuple(result)
        return np.stack([rows for rows, _ in results]), np.stack([scores for _, scores in results])

    def _nearest(self, structure: Any, queries: np.ndarray, count: int) -> list[np.ndarray]:
        """Returns about `count` of the nearest rows of each query, int64, in any order."""
        raise NotImplementedError
