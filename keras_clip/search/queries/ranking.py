"""Rankings: the results of a search in order, from which pages are cut, and the cache that keeps recent ones."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from keras_clip.search.queries.relevance import Scale


@dataclass(frozen=True)
class Ranking:
    """All results of one search on one version of an index.

    Args:
        ids: int64 (R,), the pictures, the best first.
        scores: float32 (R,), their cosines with the query; None if the query has no terms.
        copies: int32 (R,), the number of pictures in the near-duplicate group of each; None: not collapsed.
        scale: `Scale` of the relevance, or None.
        cutoff: int. The number of results, from the first on, that resemble the query more than a neutral one.
    """

    ids: np.ndarray
    scores: np.ndarray | None
    copies: np.ndarray | None
    scale: Scale | None
    cutoff: int

    @property
    def nbytes(self) -> int:
        """Its size in memory, in bytes."""
        return sum(array.nbytes for array in (self.ids, self.scores, self.copies) if array is not None)


class RankingCache:
    """The most recently used rankings, up to a number of bytes; several threads may use it.

    Args:
        max_bytes: int. The last ranking is kept even if it is larger.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self._kept: OrderedDict[Hashable, Ranking] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Ranking | None:
        """Returns the ranking of a key; None if it is not kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: Hashable, ranking: Ranking) -> None:
        """Keeps a ranking, and forgets those that were not used for the longest time.

        Args:
            key: what identifies the search.
            ranking: `Ranking`.
        """
        with self._lock:
            self._kept[key] = ranking
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self.max_bytes:
                self._kept.popitem(last=False)


def best_of_groups(groups: np.ndarray, best_first: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Chooses the best picture of each near-duplicate group.

    Args:
        groups: int64 (M,), the group of each picture, below `size`.
        best_first: int64 (A,), the positions of the pictures to choose from, the best first.
        size: int.

    Returns:
        The chosen positions, ascending, int64 (G,), and the number of pictures of each group, int32 (G,).
    """
    of_pictures = groups[best_first]
    counts = np.bincount(of_pictures, minlength=size)
    chosen = np.full(size, -1, np.int64)
    # Later assignments win, so the best come last.
    chosen[of_pictures[::-1]] = best_first[::-1]
    there = np.flatnonzero(counts)
    order = np.argsort(chosen[there])
    return chosen[there][order], counts[there][order].astype(np.int32)


def first_below(values: np.ndarray, bound: float) -> int:
    """Returns how many of descending values (R,) are at least a bound, as an int."""
    return len(values) - int(np.searchsorted(values[::-1], bound, "left"))
