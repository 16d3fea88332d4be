"""The limits of draws by which balancing keeps the pairs of a query: by probability, or a number of pairs.

Every query has a limit in the range of the draws, and a pair is kept if its draw for any of its queries is below the
limit. The two ways of balancing differ in the limits only: a probability `min(1, t / count)` (MetaCLIP, Xu et al.,
2024), or the limit below which a query has its 20,000 smallest draws, so that it selects at most 20,000 pairs (CLIP,
Radford et al., 2021, section 2.2). A pair that a rare query selects may also match a frequent one, so of that one more
pairs may be kept.
"""

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from keras_clip.curation.draws import DRAW_LIMIT, draw

# The draw of rank `cap` among `count` uniform ones is looked for within this number of standard deviations first.
_DEVIATIONS = 6.0


def tail_share(counts: np.ndarray, t: float) -> float:
    """Returns the share of the matches that belong to queries with fewer than t, which balancing leaves unchanged.

    Args:
        counts: int (K,), the number of pairs that each query matches.
        t: float, a number of pairs.

    Returns:
        float in [0, 1].
    """
    counts = np.asarray(counts, np.int64)
    return float(counts[counts < t].sum() / max(1, counts.sum()))


def t_of_tail_share(counts: np.ndarray, share: float) -> int:
    """Returns the largest t for which `tail_share(counts, t) <= share`.

    With the share of a pool for which t is known, it gives t for pools of other sizes, which grows with them.

    Args:
        counts: int (K,), the number of pairs that each query matches.
        share: float in [0, 1).

    Returns:
        int, a number of pairs.

    Raises:
        ValueError: an invalid share, or no matches.
    """
    if not 0 <= share < 1:
        raise ValueError(f"`share` must be in [0, 1). Received: share={share!r}.")
    values, multiples = np.unique(np.asarray(counts, np.int64), return_counts=True)
    total = int(values @ multiples)
    if not total:
        raise ValueError("A share of the tail needs queries that match pairs. Received: no matches at all.")
    # All but the last group may be in the tail, since the last one completes the total.
    return int(values[np.argmax(np.cumsum(values * multiples) > share * total)])


def limits_of_probability(counts: np.ndarray, t: float) -> np.ndarray:
    """Returns limits that each draw is below with a probability of `min(1, t / count)`.

    Args:
        counts: int (K,), the number of pairs that each query matches.
        t: float > 0.

    Returns:
        uint64 (K,). The probabilities are exact to 2 ** -63.

    Raises:
        ValueError: an invalid t.
    """
    if not (t > 0 and math.isfinite(t)):
        raise ValueError(f"`t` must be a positive number of pairs. Received: t={t!r}.")
    counts = np.asarray(counts, np.int64)
    limits = np.full(len(counts), DRAW_LIMIT, np.uint64)
    scaled = Fraction(t) * DRAW_LIMIT
    for entry in np.flatnonzero(counts > t):
        limits[entry] = int(scaled / int(counts[entry]))
    return limits


def keep_probability(counts: np.ndarray, t: float, offsets: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """Returns the probability with which each pair is kept, `1 - prod(1 - min(1, t / count))` over its queries.

    Args:
        counts: int (K,), the number of pairs that each query matches.
        t: float > 0.
        offsets: int (N + 1,). The queries of pair i are `entries[offsets[i]:offsets[i + 1]]`.
        entries: int (M,).

    Returns:
        float64 (N,); 0 for pairs without queries.
    """
    drop = 1 - np.minimum(1.0, t / np.maximum(np.asarray(counts, np.float64), 1))
    return 1 - _by_pair(np.multiply, drop[entries], offsets, 1.0)


def kept_by_limits(draws: np.ndarray, limits: np.ndarray, offsets: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """Returns which pairs are kept: those with a draw below the limit of its query.

    Args:
        draws: uint64 (M,), one for each match.
        limits: uint64 (K,), one for each query.
        offsets: int (N + 1,). The matches of pair i are `entries[offsets[i]:offsets[i + 1]]`.
        entries: int (M,).

    Returns:
        bool (N,). False for pairs without queries.
    """
    return _by_pair(np.logical_or, draws < limits[entries], offsets, False)


def draws_of_matches(pairs: np.ndarray, queries: np.ndarray, offsets: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """Returns the draw of each match, uint64 (M,).

    Args:
        pairs: uint64 (N,), from `hash_pairs`.
        queries: uint64 (K,), from `hash_strings` of the entries.
        offsets: int (N + 1,). The matches of pair i are `entries[offsets[i]:offsets[i + 1]]`.
        entries: int (M,).
    """
    return draw(np.repeat(pairs, np.diff(offsets)), queries[entries])


class Window(NamedTuple):
    """The windows in which a round of `CapSearch` looks for limits; sent to workers.

    Attributes:
        queries: int (O,), the queries whose limits are looked for.
        lower: uint64 (K,), inclusive bounds.
        upper: uint64 (K,), exclusive bounds. 0 where no limit is looked for.
    """

    queries: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    def collect(self, draws: np.ndarray, entries: np.ndarray) -> "Collected":
        """Counts the draws below the windows and collects those inside: draws, uint64 (M,); their queries, int (M,)."""
        is_below = draws < self.lower[entries]
        is_inside = ~is_below & (draws < self.upper[entries])
        below = np.bincount(entries[is_below], minlength=len(self.lower))[self.queries]
        return Collected(below, entries[is_inside], draws[is_inside])


class Collected(NamedTuple):
    """What a round of `CapSearch` found in a part of the pool.

    Attributes:
        below: int64 (O,), numbers of draws below the windows.
        entries: int (I,), queries of the draws inside the windows.
        draws: uint64 (I,), the draws inside.
    """

    below: np.ndarray
    entries: np.ndarray
    draws: np.ndarray

    @classmethod
    def merged(cls, parts: Iterable["Collected"]) -> "Collected":
        """Returns what all of some parts have. The order of the parts does not matter."""
        below, entries, draws = zip(*parts, strict=True)
        return cls(np.sum(below, axis=0), np.concatenate(entries), np.concatenate(draws))


class CapSearch:
    """Finds the limit of each query that at most `cap` of its draws are below, without holding all draws.

    The limit of a query with more pairs than `cap` is its draw of rank `cap`, from 0. Draws are uniform, so that it
    lies in a narrow window around `cap / count`. A round over the pool counts the draws below each window and collects
    those inside, about `12 * sqrt(cap)` for each query: 1,700 for 20,000, instead of all. A round looks for the limits
    of as many queries as `most` draws allow, so that memory does not grow with the pool. Queries whose limit is outside
    the window, if there are any, get a wider one in another round, so the result is exact:

        search = CapSearch(counts, cap=20_000)
        while search.is_open:
            window = search.window()
            search.add(Collected.merged(window.collect(draws, entries) for each shard))
        search.limits

    Args:
        counts: int (K,), the number of pairs that each query matches.
        cap: int >= 1.
        most: int >= 1. Draws that a round collects, about, if it has more than one query; they take 12 bytes each.

    Attributes:
        limits: uint64 (K,).

    Raises:
        ValueError: an invalid cap.
    """

    def __init__(self, counts: np.ndarray, cap: int = 20_000, most: int = 2**25):
        if isinstance(cap, bool) or not isinstance(cap, int) or cap < 1:
            raise ValueError(f"`cap` must be a positive integer. Received: cap={cap!r}.")
        self.counts, self.cap = np.asarray(counts, np.int64), cap
        self.limits = np.full(len(self.counts), DRAW_LIMIT, np.uint64)
        self._open, self._most = np.flatnonzero(self.counts > cap), most
        # Half the width of the window of each query, in expected draws.
        self._widths = np.full(len(self.counts), math.ceil(_DEVIATIONS * math.sqrt(cap)), np.int64)

    @property
    def is_open(self) -> bool:
        """Whether a query has no limit yet."""
        return len(self._open) > 0

    def window(self) -> Window:
        """Returns the windows of this round."""
        lower, upper = np.zeros((2, len(self.counts)), np.uint64)
        inside = np.minimum(2 * self._widths[self._open], self.counts[self._open])
        chosen = self._open[: max(1, int(np.searchsorted(np.cumsum(inside), self._most, side="right")))]
        for entry in chosen.tolist():
            count, width = int(self.counts[entry]), int(self._widths[entry])
            lower[entry] = max(0, (self.cap - width) * DRAW_LIMIT // count)
            upper[entry] = min(DRAW_LIMIT, (self.cap + width) * DRAW_LIMIT // count)
        return Window(chosen, lower, upper)

    def add(self, collected: Collected) -> None:
        """Ends a round with what was collected in all of the pool.

        Raises:
            ValueError: the draws are not those of the pairs that were counted.
        """
        order = np.lexsort((collected.draws, collected.entries))
        entries, draws = collected.entries[order], collected.draws[order]
        # Those of the round come first.
        queries, rest = np.split(self._open, [len(collected.below)])
        starts = np.searchsorted(entries, queries, side="left")
        stops = np.searchsorted(entries, queries, side="right")
        rank = self.cap - collected.below
        found = (rank >= 0) & (rank < stops - starts)
        self.limits[queries[found]] = draws[(starts + rank)[found]]
        missed = queries[~found]
        self._open = np.concatenate([missed, rest])
        widths = self._widths[missed]
        if ((widths >= self.cap) & (self.counts[missed] <= self.cap + widths)).any():
            # The window was the whole range.
            raise ValueError(
                f"Counts must be those of the draws. Received: another number of draws than was counted for query "
                f"{self._open[0]}. Count the matches again."
            )
        self._widths[missed] *= 8


def _by_pair(operation, values, offsets, empty):
    """Reduces the values of each pair; `empty` for pairs without any."""
    result = np.full(len(offsets) - 1, empty, values.dtype)
    starts = np.asarray(offsets[:-1])
    has_values = starts < offsets[1:]
    if has_values.any():
        result[has_values] = operation.reduceat(values, starts[has_values])
    return result
