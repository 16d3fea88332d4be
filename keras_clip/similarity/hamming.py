"""Exact search for hashes of 64 bits that differ in few bits, without comparing all with all (Manku et al., 2007).

The bits are divided into B blocks. Two hashes that differ in at most d bits agree in at least B - d blocks, so every
such pair is found among the hashes that are equal in one of the C(B, d) choices of B - d blocks. `near_pairs` chooses B
by the number of hashes, and verifies each candidate.
"""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

BITS = 64
# Candidates that are verified at a time: bounds the memory.
_BLOCK = 2**20
_MAX_TABLES = 1000


def near_pairs(
    queries: np.ndarray,
    index: np.ndarray | None = None,
    distance: int = 4,
    groups: np.ndarray | None = None,
    verify: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns all pairs of hashes that differ in at most `distance` bits.

    Args:
        queries: uint64 (N,).
        index: uint64 (M,). None: pairs among the queries, each once.
        distance: int in [0, 16].
        groups: uint64 (N,) or None. Only queries of one group are compared with each other; takes `index=None`.
        verify: function of rows of the queries and rows of the index, int64 (P,), that returns which of these pairs
            count, bool (P,), in any order of the two; or None.

    Returns:
        Rows of the queries and rows of the index, int64 (P,) each, in ascending order. With `index=None`, the first row
        is the smaller one.

    Raises:
        ValueError: another shape or dtype, or a distance out of range.
    """
    queries = _checked(queries, "queries")
    is_self = index is None
    index = queries if is_self else _checked(index, "index")
    if isinstance(distance, bool) or not isinstance(distance, int | np.integer) or not 0 <= distance <= 16:
        raise ValueError(f"`distance` must be an integer in [0, 16]. Received: distance={distance!r}.")
    if not len(queries) or not len(index):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if groups is not None and (not is_self or np.shape(groups) != queries.shape):
        raise ValueError(
            f"`groups` must be (N,), and `index` None. Received: groups of shape {np.shape(groups)}, queries of shape "
            f"{queries.shape}, index of shape {index.shape}."
        )
    # A packed pair is one number, so that pairs which several tables find are easily made unique.
    packed = np.zeros(0, np.uint64)
    for mask in _masks(int(distance), len(queries), len(index)):
        found = [packed]
        for row, other in _equal_under(mask, queries, None if is_self else index, groups):
            near = np.bitwise_count(queries[row] ^ index[other]) <= distance
            if groups is not None:
                near &= groups[row] == groups[other]
            row, other = row[near], other[near]
            if verify is not None and len(row):
                is_verified = verify(row, other)
                row, other = row[is_verified], other[is_verified]
            if is_self:
                row, other = np.minimum(row, other), np.maximum(row, other)
            found.append(row.astype(np.uint64) * np.uint64(len(index)) + other.astype(np.uint64))
        packed = np.unique(np.concatenate(found))
    rows, others = np.divmod(packed, np.uint64(len(index)))
    return rows.astype(np.int64), others.astype(np.int64)


def greedy_representatives(size: int, rows: np.ndarray, others: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Chooses representatives: an item is one unless it is near a representative that comes before it in the order.

    So every other item is near a representative, and no two representatives are near each other. A chain of near items
    does not become one group, as it would among connected components.

    Args:
        size: int, N.
        rows: int (P,), items of the near pairs.
        others: int (P,), the other items of these pairs.
        order: int (N,). A permutation: the place of each item, smallest first.

    Returns:
        int64 (N,): for each item its representative, which is the first one near it; itself if it is one.
    """
    order = np.asarray(order)
    is_before = order[rows] < order[others]
    better, worse = np.where(is_before, rows, others), np.where(is_before, others, rows)
    # Later assignments win, so the first in the order come last.
    last_is_first = np.argsort(-order[better], kind="stable")
    better, worse = better[last_is_first], worse[last_is_first]
    is_kept, is_dropped = np.ones(size, bool), np.zeros(size, bool)
    # Those without an undecided item before them are representatives.
    is_kept[worse] = False
    ahead, behind = better, worse
    while len(ahead):
        is_dropped[behind[is_kept[ahead]]] = True
        left = ~(is_kept[ahead] | is_dropped[ahead] | is_dropped[behind])
        is_free = np.zeros(size, bool)
        is_free[behind] = True
        is_free[behind[left]] = False
        is_kept |= is_free & ~is_dropped
        ahead, behind = ahead[left], behind[left]
    representative = np.arange(size)
    covers = is_kept[better] & ~is_kept[worse]
    representative[worse[covers]] = better[covers]
    return representative


def _checked(hashes, name):
    hashes = np.asarray(hashes)
    if hashes.ndim != 1 or hashes.dtype != np.uint64:
        raise ValueError(
            f"`{name}` must be uint64 (N,). Received: {hashes.dtype} of shape {hashes.shape}. "
            "`hash_of_decoded` returns such numbers."
        )
    return hashes


def _masks(distance: int, num_queries: int, num_index: int) -> Iterator[np.uint64]:
    """Yields the masks of the tables for the number of blocks that is estimated to be the fastest."""
    if distance == 0:
        yield np.uint64(2**BITS - 1)
        return

    def cost(blocks):
        tables, bits = math.comb(blocks, distance), BITS * (blocks - distance) // blocks
        sorting = (num_queries + num_index) * math.log2(2 + num_index)
        return tables * (sorting + num_queries * num_index / 2**bits)

    possible = [n for n in range(distance + 1, BITS + 1) if math.comb(n, distance) <= _MAX_TABLES]
    blocks = min(possible, key=cost)
    edges = [BITS * i // blocks for i in range(blocks + 1)]
    masks = [(1 << high) - (1 << low) for low, high in itertools.pairwise(edges)]
    for chosen in itertools.combinations(masks, blocks - distance):
        yield np.uint64(sum(chosen))


def _equal_under(mask, queries, index, groups) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields blocks of pairs (rows of the queries, rows of the index) that are equal under a mask."""
    if index is None:
        keys = queries & mask
        if groups is not None:
            # Different groups can still give equal keys: such pairs are left out later.
            keys = keys ^ np.asarray(groups, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        order = np.argsort(keys)
        keys = keys[order]
        rows = order
        # Each pair once: those after it in its run.
        begin = np.arange(1, len(keys) + 1)
        end = np.searchsorted(keys, keys, "right")
    else:
        order = np.argsort(index & mask)
        keys = (index & mask)[order]
        rows = np.argsort(queries & mask)
        wanted = (queries & mask)[rows]
        begin, end = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
    counts = end - begin
    rows, begin, counts = rows[counts > 0], begin[counts > 0], counts[counts > 0]
    ends = counts.cumsum()
    start = 0
    while start < len(rows):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _BLOCK, "right")))
        if stop == start + 1:
            # One query with many candidates.
            for first in range(0, int(counts[start]), _BLOCK):
                some = order[begin[start] + first : begin[start] + min(first + _BLOCK, int(counts[start]))]
                yield np.full(len(some), rows[start]), some
        else:
            repeated = np.repeat(np.arange(start, stop), counts[start:stop])
            within = np.arange(len(repeated)) - (ends[repeated] - counts[repeated] - done)
            yield rows[repeated], order[begin[repeated] + within]
        start = stop
