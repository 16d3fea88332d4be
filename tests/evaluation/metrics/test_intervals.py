"""Intervals of proportions, means and quantiles: published values, SciPy's values, by hand, extremes, refusals."""

import numpy as np
import pytest
from scipy import stats

from keras_clip.evaluation import (
    blaker_interval,
    clopper_pearson_interval,
    clustered_interval,
    clustered_quantile_interval,
    mean_interval,
    wilson_interval,
)

pytestmark = pytest.mark.backend_free
# {(correct, total, confidence): interval}, from Newcombe (1998), table I, method 3.
PUBLISHED = {
    (81, 263, 0.95): (0.2553, 0.3662),
    (15, 148, 0.95): (0.0624, 0.1605),
    (0, 20, 0.95): (0.0, 0.1611),
    (1, 29, 0.95): (0.0061, 0.1718),
}
COUNTS = [(0, 1), (1, 1), (0, 20), (20, 20), (3, 10), (81, 263), (499, 500), (38100, 50000)]


@pytest.mark.parametrize("counts", PUBLISHED, ids=str)
def test_published(counts):
    assert wilson_interval(*counts) == pytest.approx(PUBLISHED[counts], abs=5e-5)


def test_symmetric():
    low, high = wilson_interval(3, 10)
    assert wilson_interval(7, 10) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("interval", [wilson_interval, blaker_interval, clopper_pearson_interval])
def test_more_confidence_is_wider(interval):
    narrow, wide = interval(5, 10, 0.9), interval(5, 10, 0.99)
    assert wide[0] < narrow[0] < 0.5 < narrow[1] < wide[1]


@pytest.mark.parametrize("total", [3, 7, 999, 10**6, 999_983])
def test_the_interval_contains_the_fraction_at_its_ends(total):
    """Exactly: rounding must not leave 0 or 1 outside."""
    assert wilson_interval(0, total)[0] == 0
    assert wilson_interval(total, total)[1] == 1


def test_all_right():
    low, high = wilson_interval(10, 10)
    assert high == 1 and 0.7 < low < 0.75


@pytest.mark.parametrize("interval", [wilson_interval, blaker_interval, clopper_pearson_interval])
@pytest.mark.parametrize("arguments", [(1, 0), (-1, 5), (6, 5), (1, 5, 1.0), (1, 5, 0.0)])
def test_refusals(interval, arguments):
    with pytest.raises(ValueError, match="Received"):
        interval(*arguments)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.995])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_intervals_equal_scipy(counts, confidence):
    peer = stats.binomtest(*counts)
    for method, own in (("wilson", wilson_interval), ("exact", clopper_pearson_interval)):
        expected = peer.proportion_ci(confidence, method)
        assert own(*counts, confidence) == pytest.approx((expected.low, expected.high), abs=1e-10)


def test_clopper_pearson_by_hand():
    # None of 3: (1 - p)^3 = 0.025. All of 3: p^3 = 0.025.
    assert clopper_pearson_interval(0, 3) == pytest.approx((0, 1 - 0.025 ** (1 / 3)))
    assert clopper_pearson_interval(3, 3) == pytest.approx((0.025 ** (1 / 3), 1))


def acceptability(correct, total, p):
    """Blaker's definition (2000), with SciPy's distribution."""
    binomial = stats.binom(total, p)
    above, below = binomial.sf(correct - 1), binomial.cdf(correct)
    first = above + binomial.cdf(binomial.ppf(above) - 1)
    second = below + binomial.sf(binomial.ppf(1 - below))
    return np.minimum(np.minimum(first, second), 1)


@pytest.mark.parametrize("counts", [(0, 20), (1, 20), (7, 20), (19, 20), (3, 37), (30, 31)], ids=str)
def test_blaker_holds_exactly_what_its_acceptability_allows(counts):
    grid = np.linspace(0.0005, 0.9995, 4000)
    accepted = grid[acceptability(*counts, grid) > 0.05]
    low, high = blaker_interval(*counts)
    assert (low, high) == pytest.approx((accepted[0], accepted[-1]), abs=6e-4)
    outer = clopper_pearson_interval(*counts)
    assert outer[0] <= low <= counts[0] / counts[1] <= high <= outer[1]


def binomial_coverage(interval, total, share):
    counts = np.arange(total + 1)
    low, high = np.array([interval(int(correct), total) for correct in counts]).T
    return stats.binom(total, share).pmf(counts)[(low <= share) & (share <= high)].sum()


@pytest.mark.parametrize("share", [0.001, 0.01, 0.03, 0.11, 0.37, 0.5, 0.93, 0.99, 0.998])
def test_blaker_covers_95_percent_whatever_the_truth(share):
    coverage = binomial_coverage(blaker_interval, 100, share)
    assert 0.95 <= coverage
    if 3 <= 100 * share <= 97:
        assert coverage <= 0.97


def test_wilson_does_not():
    # The reason for Blaker's interval: one expected error in 100 images.
    assert binomial_coverage(wilson_interval, 100, 0.99) < 0.93


def test_blaker_of_many_images_equals_the_normal_approximation():
    half = 1.96 * np.sqrt(0.8 * 0.2 / 50000)
    assert blaker_interval(40000, 50000) == pytest.approx((0.8 - half, 0.8 + half), abs=5e-5)
    assert blaker_interval(50000, 50000)[1] == 1
    with pytest.raises(ValueError, match="whole numbers"):
        blaker_interval(1.5, 5)


def test_mean_interval_of_a_count_is_between_wilson_and_exact():
    for correct in (0, 1, 30, 50, 99, 100):
        low, high = mean_interval(correct / 100, 100)
        outer = clopper_pearson_interval(correct, 100)
        assert outer[0] - 1e-9 <= low <= correct / 100 <= high <= outer[1] + 1e-9
    # At the ends it is Clopper and Pearson's.
    assert mean_interval(1.0, 100) == pytest.approx(clopper_pearson_interval(100, 100))
    low, high = mean_interval(0.3, 50)
    assert mean_interval(0.7, 50) == pytest.approx((1 - high, 1 - low))


def test_mean_interval_takes_the_count_at_the_true_mean():
    # Twice as many effective images above the value as below it: the upper bound is nearer.
    low, high = mean_interval(0.5, lambda mean: 200.0 if mean > 0.5 else 50.0)
    assert (low, high) == pytest.approx((mean_interval(0.5, 50)[0], mean_interval(0.5, 200)[1]))


def test_clusters_that_agree_count_once():
    found = np.arange(100) < 60
    low, high = clustered_interval(np.repeat(found, 5), np.repeat(np.arange(100), 5))
    assert (low, high) == pytest.approx(blaker_interval(60, 100), abs=0.015)
    # One example for each group is exact; and examples of mixed order are the same.
    assert clustered_interval(found, np.arange(100)) == blaker_interval(60, 100)
    order = np.random.default_rng(0).permutation(500)
    assert clustered_interval(np.repeat(found, 5)[order], np.repeat(np.arange(100), 5)[order]) == (low, high)


def test_clusters_without_agreement_count_each_example(rng):
    hits = rng.random(1000) < 0.6
    low, high = clustered_interval(hits, np.repeat(np.arange(200), 5))
    exact = blaker_interval(int(hits.sum()), 1000)
    assert high - low == pytest.approx(exact[1] - exact[0], rel=0.12)


def test_quantile_interval_is_that_of_order_statistics():
    # Of 10 independent values, ranks 2 to 9 hold the median in 97.9 %, and 3 to 8 in 89 %.
    assert clustered_quantile_interval(np.arange(10), np.arange(10)) == (1, 8)
    assert clustered_quantile_interval(np.array([10, 1]), [0, 1], confidence=0.01) == (1, 10)


BAD_MEANS = {
    "above 1": lambda: mean_interval(1.5, 10),
    "no images": lambda: mean_interval(0.5, 0.0),
    "confidence": lambda: mean_interval(0.5, 10, 1.0),
    "no examples": lambda: clustered_interval(np.zeros(0, bool), []),
    "groups": lambda: clustered_interval(np.ones(3, bool), [0, 1]),
    "values and groups": lambda: clustered_quantile_interval(np.arange(3), [0, 1]),
}


@pytest.mark.parametrize("call", BAD_MEANS.values(), ids=BAD_MEANS)
def test_means_that_cannot_be(call):
    with pytest.raises(ValueError, match="Received"):
        call()
