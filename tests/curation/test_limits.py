"""Balancing: limits and probabilities by hand, rates of draws, the cap of a query, and golden values of the hashes."""

import numpy as np
import pytest
from scipy import stats

from keras_clip.curation.balancing.limits import (
    CapSearch,
    Collected,
    draws_of_matches,
    keep_probability,
    kept_by_limits,
    limits_of_probability,
    t_of_tail_share,
    tail_share,
)
from keras_clip.curation.draws import DRAW_LIMIT, draw, hash_pairs, hash_strings, mix

pytestmark = pytest.mark.backend_free


def zipf_pool(pairs=20_000, queries=300, seed=0):
    """Returns (counts, offsets, entries) of pairs with 0 to 5 queries, frequent and rare."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, queries + 1)
    rows = [np.unique(rng.choice(queries, rng.integers(0, 6), p=share / share.sum())) for _ in range(pairs)]
    offsets = np.cumsum([0, *map(len, rows)])
    entries = np.concatenate(rows).astype(np.int32)
    return np.bincount(entries, minlength=queries), offsets, entries


COUNTS, OFFSETS, ENTRIES = zipf_pool()
KEYS = [f"{i:09d}" for i in range(len(OFFSETS) - 1)]
QUERIES = hash_strings([f"query {i}" for i in range(len(COUNTS))])


def draws_of(seed=0):
    return draws_of_matches(hash_pairs(KEYS, np.zeros(len(KEYS), int), seed), QUERIES, OFFSETS, ENTRIES)


# Values that must never change, on any platform. The first of `mix` is the first output of SplitMix64 with seed 0.
def test_golden_values():
    assert mix(np.array([0, 1], np.uint64)).tolist() == [16294208416658607535, 10451216379200822465]
    assert hash_strings(["", "cat", "猫"]).tolist() == GOLDEN_STRINGS
    pairs = hash_pairs(["000000001", "000000001", "b"], [0, 1, 0], seed=7)
    assert pairs.tolist() == GOLDEN_PAIRS
    assert draw(pairs, hash_strings(["cat", "cat", "dog"])).tolist() == GOLDEN_DRAWS


GOLDEN_STRINGS = [13020603013274838756, 3429664268601861939, 4140028929945838904]
GOLDEN_PAIRS = [12266260426946910547, 13713736298195151051, 8780124896079984937]
GOLDEN_DRAWS = [4952353035730717253, 6186488674682031174, 1520474945178809433]


def test_draws_are_uniform_and_independent():
    draws = draws_of() / DRAW_LIMIT
    assert stats.kstest(draws, "uniform").pvalue > 0.001
    grid = draw(np.repeat(hash_pairs(KEYS[:400], [0] * 400), 300), np.tile(QUERIES, 400)).reshape(400, 300) / DRAW_LIMIT
    # Over the pairs of a query and over the queries of a pair.
    assert abs(np.corrcoef(grid)[np.triu_indices(400, 1)]).max() < 6 / np.sqrt(300)
    assert abs(np.corrcoef(grid.T)[np.triu_indices(300, 1)]).max() < 6 / np.sqrt(400)


def test_a_draw_depends_on_seed_key_caption_and_query():
    base = draw(hash_pairs(["a"], [0], 0), QUERIES[:1])
    others = [hash_pairs(["a"], [0], 1), hash_pairs(["b"], [0], 0), hash_pairs(["a"], [1], 0)]
    values = [base, *(draw(other, QUERIES[:1]) for other in others), draw(hash_pairs(["a"], [0], 0), QUERIES[1:2])]
    assert len({int(value[0]) for value in values}) == 5


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, "0"])
def test_invalid_seed(seed):
    with pytest.raises(ValueError, match="`seed` must be an integer in"):
        hash_pairs(["a"], [0], seed)


# t: (limits as shares of the range, for counts of 0, 1, 4, 5, 8, 20,000).
LIMITS = {4: [1, 1, 1, 0.8, 0.5, 0.0002], 2.5: [1, 1, 0.625, 0.5, 0.3125, 0.000125], 20_000: [1] * 6}


@pytest.mark.parametrize("t", LIMITS)
def test_limits(t):
    limits = limits_of_probability(np.array([0, 1, 4, 5, 8, 20_000]), t)
    assert limits.dtype == np.uint64 and limits / DRAW_LIMIT == pytest.approx(LIMITS[t], rel=1e-15)
    assert (limits[limits == np.uint64(DRAW_LIMIT)] > np.uint64(DRAW_LIMIT - 1)).all()


@pytest.mark.parametrize("t", [0, -1, float("nan"), float("inf")])
def test_invalid_t(t):
    with pytest.raises(ValueError, match="`t` must be a positive number of pairs"):
        limits_of_probability(np.array([1]), t)


def test_keep_probability_by_hand():
    # Queries of p = 1, 1/2, 1/4; pairs with none, the rare one, each of the others, both, all.
    counts, entries = np.array([1, 4, 8]), np.array([0, 1, 2, 1, 2, 0, 1, 2])
    probability = keep_probability(counts, 2, np.array([0, 0, 1, 2, 3, 5, 8]), entries)
    assert probability == pytest.approx([0, 1, 1 / 2, 1 / 4, 1 - 1 / 2 * 3 / 4, 1])


def test_kept_by_hand():
    limits, entries = np.array([DRAW_LIMIT, 10, 0], np.uint64), np.array([0, 1, 1, 2, 1, 2])
    draws = np.array([DRAW_LIMIT - 1, 9, 10, 0, 11, 5], np.uint64)
    assert kept_by_limits(draws, limits, np.array([0, 0, 1, 2, 3, 4, 4, 6, 6]), entries).tolist() == [
        0,
        1,
        1,
        0,
        0,
        0,
        0,
        0,
    ]
    assert kept_by_limits(draws[:0], limits, np.zeros(3, int), entries[:0]).tolist() == [False, False]


@pytest.mark.parametrize("t", [50, 400])
def test_rates_are_the_published_probability(t):
    expected = keep_probability(COUNTS, t, OFFSETS, ENTRIES)
    was_kept = np.zeros(len(KEYS))
    seeds = 20
    for seed in range(seeds):
        was_kept += kept_by_limits(draws_of(seed), limits_of_probability(COUNTS, t), OFFSETS, ENTRIES)
    assert (was_kept[expected == 1] == seeds).all() and (was_kept[expected == 0] == 0).all()
    # Chi-square of the number kept in groups of similar probability.
    groups = np.digitize(expected, [0.1, 0.2, 0.4, 0.6, 0.8])
    chi, cells = 0.0, 0
    for group in np.unique(groups):
        drawn = (groups == group) & (expected > 0) & (expected < 1)
        if drawn.any():
            variance = seeds * (expected[drawn] * (1 - expected[drawn])).sum()
            chi += (was_kept[drawn].sum() - seeds * expected[drawn].sum()) ** 2 / variance
            cells += 1
    assert cells >= 3 and stats.chi2.sf(chi, cells) > 0.001


def test_rare_queries_keep_all_and_frequent_ones_at_least_about_t():
    t = 100
    keep = kept_by_limits(draws_of(), limits_of_probability(COUNTS, t), OFFSETS, ENTRIES)
    after = np.bincount(ENTRIES[np.repeat(keep, np.diff(OFFSETS))], minlength=len(COUNTS))
    assert (after[COUNTS <= t] == COUNTS[COUNTS <= t]).all()
    assert (after[COUNTS > t] > t - 5 * np.sqrt(t)).all() and after[0] < 0.7 * COUNTS[0]


# counts 1, 1, 2, 4, 8: cumulated 1, 2, 4, 8, 16. share: t.
TAILS = {0: 1, 0.124: 1, 0.125: 2, 0.2: 2, 0.25: 4, 0.49: 4, 0.5: 8, 0.99: 8}


@pytest.mark.parametrize("share", TAILS)
def test_t_of_a_share_of_the_tail(share):
    counts = np.array([4, 0, 1, 8, 2, 1])
    t = t_of_tail_share(counts, share)
    assert t == TAILS[share]
    assert tail_share(counts, t) <= share < tail_share(counts, t + 1)


@pytest.mark.parametrize("times", [2, 10, 1000])
def test_t_grows_with_the_pool(times):
    t = int(np.sort(COUNTS)[200])
    assert t_of_tail_share(times * COUNTS, tail_share(COUNTS, t)) == times * t


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
def test_invalid_share(share):
    with pytest.raises(ValueError, match=r"`share` must be in \[0, 1\)"):
        t_of_tail_share(COUNTS, share)


def test_share_without_matches():
    with pytest.raises(ValueError, match="no matches at all"):
        t_of_tail_share(np.zeros(3, int), 0.1)


def search_limits(counts, cap, draws, entries, parts=1, seed=0, most=2**25):
    """Runs the search over the matches in several parts, which are merged in any order."""
    search, rng, rounds = CapSearch(counts, cap, most), np.random.default_rng(seed), 0
    part = rng.integers(0, parts, len(draws))
    while search.is_open:
        window, rounds = search.window(), rounds + 1
        collected = [window.collect(draws[part == i], entries[part == i]) for i in rng.permutation(parts)]
        search.add(Collected.merged(collected))
    return search.limits, rounds


@pytest.mark.parametrize("cap", [1, 2, 10, 100, 1000, 10**6])
def test_cap_selects_the_smallest_draws(cap):
    draws = draws_of()
    limits, _ = search_limits(COUNTS, cap, draws, ENTRIES, parts=4)
    for query in range(len(COUNTS)):
        own = np.sort(draws[ENTRIES == query])
        assert (own < limits[query]).sum() == min(cap, len(own))
        assert limits[query] == (own[cap] if len(own) > cap else DRAW_LIMIT)


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_cap_does_not_depend_on_parts_and_order(parts):
    draws = draws_of()
    expected, _ = search_limits(COUNTS, 100, draws, ENTRIES)
    assert (search_limits(COUNTS, 100, draws, ENTRIES, parts, seed=parts)[0] == expected).all()


def test_cap_holds_a_bounded_number_of_draws():
    """Many frequent queries are looked for in several rounds, with the same limits."""
    entries = np.repeat(np.arange(40, dtype=np.int32), 500)
    draws = draw(
        hash_pairs([str(i) for i in range(len(entries))], entries), mix(np.arange(40, dtype=np.uint64))[entries]
    )
    counts = np.full(40, 500)
    expected, rounds = search_limits(counts, 100, draws, entries)
    assert rounds == 1
    search, sizes = CapSearch(counts, 100, most=700), []
    while search.is_open:
        collected = search.window().collect(draws, entries)
        sizes.append(len(collected.draws))
        search.add(collected)
    assert search.limits.tolist() == expected.tolist()
    assert len(sizes) == 8 and max(sizes) < 900


def test_cap_collects_a_part_of_the_draws():
    entries = np.zeros(200_000, int)
    draws = draw(hash_pairs([str(i) for i in range(len(entries))], entries), QUERIES[entries])
    search = CapSearch(np.array([len(entries)]), 20_000)
    collected = search.window().collect(draws, entries)
    assert len(collected.draws) < 12.5 * np.sqrt(20_000)
    search.add(collected)
    assert not search.is_open and (draws < search.limits[0]).sum() == 20_000


# Draws that are not uniform, of a query with 400 pairs: all in a corner, or equal.
ODD = {
    "low": np.arange(400, dtype=np.uint64),
    "high": np.uint64(DRAW_LIMIT - 1) - np.arange(400, dtype=np.uint64),
    "equal": np.full(400, 12345, np.uint64),
    "zero": np.zeros(400, np.uint64),
    "two values": np.repeat(np.array([5, DRAW_LIMIT // 2], np.uint64), 200),
}


@pytest.mark.parametrize("draws", ODD.values(), ids=ODD)
@pytest.mark.parametrize("cap", [1, 150, 399])
def test_cap_holds_for_any_draws(draws, cap):
    limits, rounds = search_limits(np.array([0, 400]), cap, draws, np.ones(400, int))
    assert (draws < limits[1]).sum() <= cap and limits[1] == np.sort(draws)[cap] and rounds < 8


def test_counts_of_other_draws():
    with pytest.raises(ValueError, match="another number of draws than was counted for query 0"):
        search_limits(np.array([400]), 150, ODD["low"][:100], np.zeros(100, int))


@pytest.mark.parametrize("cap", [0, -1, 2.0, True])
def test_invalid_cap(cap):
    with pytest.raises(ValueError, match="`cap` must be a positive integer"):
        CapSearch(COUNTS, cap)
