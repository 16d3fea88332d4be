"""Near hashes and representatives: against brute force, by hand, and refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_clip.similarity import hamming

pytestmark = pytest.mark.backend_free


def hashes(size, seed, copies=0, most=9):
    """Returns random hashes, and copies of some of them with up to `most - 1` bits flipped."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2**64, size, dtype=np.uint64)
    altered = values[rng.integers(0, size, copies)]
    for i in range(copies):
        for bit in rng.choice(64, rng.integers(0, most), replace=False):
            altered[i] ^= np.uint64(1) << np.uint64(bit)
    return np.concatenate([values, altered])


def distances(queries, index):
    return np.bitwise_count(queries[:, None] ^ index[None])


@pytest.mark.parametrize("distance", [0, 1, 2, 4, 7, 10, 16])
def test_all_near_pairs_are_found(distance):
    values, queries = hashes(300, 0, copies=200), hashes(50, 1)
    queries[:20] = hashes(300, 0, copies=200)[300:320]
    expected = np.argwhere(np.triu(distances(values, values) <= distance, 1))
    np.testing.assert_array_equal(np.stack(hamming.near_pairs(values, distance=distance), 1), expected)
    expected = np.argwhere(distances(queries, values) <= distance)
    assert len(expected)
    np.testing.assert_array_equal(np.stack(hamming.near_pairs(queries, values, distance), 1), expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2**12 - 1), max_size=40), st.integers(0, 6), st.integers(0, 52), st.booleans())
def test_crowded_hashes(bits, distance, shift, has_groups):
    # Hashes in which only 12 neighbouring bits differ fall into few buckets of most tables.
    values = np.array([b << shift for b in bits], np.uint64)
    groups = values % np.uint64(2) + np.arange(len(values), dtype=np.uint64) // np.uint64(7)
    same = groups[:, None] == groups[None] if has_groups else True
    expected = np.argwhere(np.triu((distances(values, values) <= distance) & same, 1))
    found = hamming.near_pairs(values, None, distance, groups if has_groups else None)
    np.testing.assert_array_equal(np.stack(found, 1), expected)


def test_many_equal_hashes_in_blocks(monkeypatch):
    monkeypatch.setattr(hamming, "_BLOCK", 7)
    values = np.repeat(np.array([0, 2**63], np.uint64), [12, 5])
    rows, others = hamming.near_pairs(values, distance=0)
    assert len(rows) == 12 * 11 // 2 + 5 * 4 // 2
    rows, others = hamming.near_pairs(values[:2], values, 1)
    np.testing.assert_array_equal(rows, np.repeat([0, 1], 17))
    np.testing.assert_array_equal(others, np.tile(np.arange(17), 2))


@pytest.mark.parametrize("size", [10**4, 10**7, 4 * 10**8])
def test_tables_grow_more_slowly_than_comparisons(size):
    """A table of n keys costs n log2 n, and its candidates stay in proportion to the hashes."""
    masks = list(hamming._masks(4, size, size))
    bits = min(int(mask).bit_count() for mask in masks)
    assert len(masks) <= 126 and size / 2**bits <= 12


def brute_representatives(near, order):
    kept, representative = [], np.arange(len(near))
    for item in np.argsort(order):
        before = [other for other in kept if near[item, other]]
        if before:
            representative[item] = before[0]
        else:
            kept.append(item)
    return representative


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 25), st.integers(0, 2**32 - 1), st.floats(0, 0.5))
def test_representatives(size, seed, density):
    rng = np.random.default_rng(seed)
    near = np.triu(rng.random((size, size)) < density, 1)
    rows, others = np.nonzero(near)
    order = rng.permutation(size)
    found = hamming.greedy_representatives(size, rows, others, order)
    np.testing.assert_array_equal(found, brute_representatives(near | near.T, order))


def test_a_chain_is_not_one_group():
    # 0 - 1 - 2 - 3: the second and the fourth are near representatives, and the third is one.
    rows, others = np.array([0, 1, 2]), np.array([1, 2, 3])
    np.testing.assert_array_equal(hamming.greedy_representatives(4, rows, others, np.arange(4)), [0, 0, 2, 2])


ONE = np.zeros(1, np.uint64)
REFUSED = {
    "another dtype": lambda: hamming.near_pairs(np.zeros(3, np.int64)),
    "another shape": lambda: hamming.near_pairs(np.zeros((3, 8), np.uint64)),
    "a distance below 0": lambda: hamming.near_pairs(ONE, distance=-1),
    "a distance of half the bits": lambda: hamming.near_pairs(ONE, distance=32),
    "groups with an index": lambda: hamming.near_pairs(ONE, ONE, 1, ONE),
    "groups of another length": lambda: hamming.near_pairs(ONE, None, 1, np.zeros(2, np.uint64)),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_refusals(call):
    with pytest.raises(ValueError, match="Received: "):
        call()


def test_nothing_is_near_nothing():
    for found in (hamming.near_pairs(ONE[:0]), hamming.near_pairs(ONE, ONE[:0], 4), hamming.near_pairs(ONE)):
        assert [len(rows) for rows in found] == [0, 0]
