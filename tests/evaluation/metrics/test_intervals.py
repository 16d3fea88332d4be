"""Intervals, tests, bootstraps and lines: published values, SciPy's values, values by hand, extremes, refusals."""

import sys

import numpy as np
import pytest
from scipy import stats

from keras_clip.evaluation import (
    binomial_test,
    blaker_interval,
    bonferroni,
    bootstrap_interval,
    clopper_pearson_interval,
    clustered_interval,
    clustered_quantile_interval,
    fit_line,
    holm,
    inverted_interval,
    mcnemar_test,
    mean_interval,
    resampled_variance,
    wilson_interval,
)
from keras_clip.evaluation.metrics.intervals import shift_to_mean, student_quantile

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


def test_shift_to_mean_by_hand():
    at = shift_to_mean(np.array([0.2, 0.5]), np.array([1.0, 3.0]), np.array([1.0, 0.6]), np.array([0.5, 0.5]))
    np.testing.assert_allclose(at(0.35), [0.2, 0.5])
    np.testing.assert_allclose(at(0.15), [0.1, 0.2], atol=1e-12)
    np.testing.assert_allclose(at(0.7), [0.8, 0.6])  # the second is at the end of its range
    np.testing.assert_allclose([at(0), at(0.8)], [[0, 0], [1, 0.6]])


@pytest.mark.parametrize("size", [1, 7, 2000])
def test_shift_to_mean_reaches_every_mean(size, rng):
    weights, highest = rng.dirichlet(np.ones(size)), rng.random(size)
    at = shift_to_mean(rng.normal(size=size), weights * 10.0 ** rng.uniform(-4, 0, size), highest, weights)
    for share in (0, 0.01, 0.5, 0.99, 1):
        values = at(share * weights @ highest)
        assert (values >= 0).all() and (values <= highest).all()
        assert weights @ values == pytest.approx(share * weights @ highest, abs=1e-9)


def test_inverted_interval_of_a_shift_is_students(rng):
    # The mean of 400 values with deviation 1: no bias, so the textbook's interval.
    noise = np.random.default_rng(1).normal(size=4000) / 20
    low, high, median = inverted_interval(0.5, lambda true: true + noise, 1.0)
    assert (low, median, high) == pytest.approx((0.5 - 0.098, 0.5, 0.5 + 0.098), abs=0.006)


def test_inverted_interval_removes_a_bias_and_holds_the_estimate():
    noise = np.random.default_rng(1).normal(size=4000) / 20
    # The statistic is 0.2 too high.
    low, high, median = inverted_interval(0.5, lambda true: true + 0.2 + noise, 1.0)
    assert median == pytest.approx(0.3, abs=0.01) and high == 0.5
    # The upper tail that is not used is spent on the lower bound.
    assert low == pytest.approx(0.3 - 1.645 * 0.05, abs=0.006)
    # An observed value that is below what no effect gives.
    assert inverted_interval(0.1, lambda true: true + 0.2 + noise, 1.0) == (0.0, 0.1, 0.0)


def test_resampled_variance_of_a_mean(rng):
    x = rng.normal(size=400)
    assert resampled_variance(lambda drawn: drawn @ x / drawn.sum(), 400) == pytest.approx(x.var() / 400, rel=0.2)


BAD_MEANS = {
    "above 1": lambda: mean_interval(1.5, 10),
    "no images": lambda: mean_interval(0.5, 0.0),
    "confidence": lambda: mean_interval(0.5, 10, 1.0),
    "no examples": lambda: clustered_interval(np.zeros(0, bool), []),
    "groups": lambda: clustered_interval(np.ones(3, bool), [0, 1]),
    "values and groups": lambda: clustered_quantile_interval(np.arange(3), [0, 1]),
    "inverted": lambda: inverted_interval(0.5, lambda true: np.zeros(2), 1.0, confidence=0.0),
}


@pytest.mark.parametrize("call", BAD_MEANS.values(), ids=BAD_MEANS)
def test_means_that_cannot_be(call):
    with pytest.raises(ValueError, match="Received"):
        call()


@pytest.mark.parametrize("alternative", ["greater", "less"])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_binomial_test_equals_scipy(counts, alternative):
    for share in (0.0, 0.1, 0.762, 1.0):
        expected = stats.binomtest(*counts, share, alternative).pvalue
        assert binomial_test(*counts, share, alternative) == pytest.approx(expected, rel=1e-8, abs=1e-300)


def test_binomial_test_by_hand():
    assert binomial_test(2, 2, 0.5) == pytest.approx(0.25)
    assert binomial_test(2, 2, 0.5, "less") == pytest.approx(1)
    with pytest.raises(ValueError, match="alternative='two-sided'"):
        binomial_test(2, 2, 0.5, "two-sided")
    with pytest.raises(ValueError, match="share=1.5"):
        binomial_test(2, 2, 1.5)


@pytest.mark.parametrize("correct, expected", [(0, 1), (1, 0.875), (2, 0.5), (3, 0.125)])
def test_three_coins(correct, expected):
    assert binomial_test(correct, 3, 0.5) == pytest.approx(expected, abs=1e-14)


def test_far_tail_keeps_its_digits():
    assert binomial_test(100, 100, 0.01) == pytest.approx(1e-200, rel=1e-10)


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (0, 5), (3, 4), (10, 25), (60, 2), (400, 460)], ids=str)
def test_mcnemar_equals_scipy(counts):
    expected = stats.binomtest(counts[0], sum(counts)).pvalue if sum(counts) else 1.0
    assert mcnemar_test(*counts) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_test(*counts) == mcnemar_test(*counts[::-1])


def test_mcnemar_by_hand():
    # All five discordant pairs are on one side: 2 / 2^5.
    assert mcnemar_test(0, 5) == pytest.approx(1 / 16)
    with pytest.raises(ValueError, match="only_first=-1"):
        mcnemar_test(-1, 5)


def test_bonferroni_and_holm_by_hand():
    p_values = [0.01, 0.04, 0.03, 0.5]
    assert bonferroni(p_values) == pytest.approx([0.04, 0.16, 0.12, 1.0])
    # 4 x 0.01; 3 x 0.03; 2 x 0.04 = 0.08 is raised to the 0.09 before it; 0.5.
    assert holm(p_values) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([]).shape == (0,)


@pytest.mark.parametrize("adjust", [bonferroni, holm])
@pytest.mark.parametrize("p_values", [[1.1], [-0.1], [np.nan], [[0.5]]], ids=str)
def test_invalid_p_values_are_refused(adjust, p_values):
    with pytest.raises(ValueError, match="Received"):
        adjust(p_values)


def test_bootstrap_of_a_mean_is_as_wide_as_theory_says(rng):
    x = rng.normal(size=400)
    low, high = bootstrap_interval(lambda drawn: drawn @ x / drawn.sum(), 400, resamples=4000)
    half = 1.96 * x.std() / 20
    assert (low, high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.1 * half)


def test_bootstrap_draws_groups_together(rng):
    # Each value occurs four times, so the interval is as wide as that of 100 values, not of 400.
    x, groups = np.repeat(rng.normal(size=100), 4), np.repeat(np.arange(100), 4)
    order = rng.permutation(400)
    x, groups = x[order], groups[order]
    low, high = bootstrap_interval(lambda drawn: drawn @ x / drawn.sum(), 400, groups=groups, resamples=4000)
    assert (high - low) / 2 == pytest.approx(1.96 * x.std() / 10, rel=0.1)


def test_bootstrap_keeps_the_size_of_each_stratum():
    strata = np.array(["b", "a", "b", "b", "c", "a"])
    seen = []

    def statistic(drawn):
        seen.append(drawn)
        return 0.0

    bootstrap_interval(statistic, 6, strata=strata, resamples=50)
    for drawn in seen[:50]:  # then those of the jackknife
        assert [int(drawn[strata == name].sum()) for name in "abc"] == [2, 3, 1]
    assert len({tuple(drawn) for drawn in seen}) > 10


def test_bootstrap_of_a_skewed_mean_is_shifted_towards_the_long_tail(rng):
    x = rng.exponential(size=60)
    low, high = bootstrap_interval(lambda drawn: drawn @ x / drawn.sum(), 60, resamples=4000)
    assert high - x.mean() > 1.15 * (x.mean() - low)


def test_bootstrap_encloses_a_biased_statistic(rng):
    x = rng.normal(size=50)
    largest = lambda drawn: x[drawn > 0].max()  # noqa: E731
    low, high = bootstrap_interval(largest, 50)
    assert low < x.max() == high


def test_bootstrap_is_reproducible():
    statistic = lambda drawn: drawn @ np.arange(30.0)  # noqa: E731
    first, again, other = (bootstrap_interval(statistic, 30, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert bootstrap_interval(statistic, 30, confidence=0.5)[0] > first[0]


BAD_BOOTSTRAPS = {
    "no examples": {"size": 0},
    "both": {"groups": [0, 1, 2], "strata": [0, 1, 2]},
    "length": {"groups": [0, 1]},
    "confidence": {"confidence": 1.0},
    "no resamples": {"resamples": 0},
}


@pytest.mark.parametrize("change", BAD_BOOTSTRAPS.values(), ids=BAD_BOOTSTRAPS)
def test_bootstrap_refusals(change):
    with pytest.raises(ValueError, match="Received"):
        bootstrap_interval(**{"statistic": lambda drawn: 0.0, "size": 3, **change})


def test_bootstrap_refuses_nan():
    with pytest.raises(ValueError, match="NaN on 10 of 10. Pass the classes as `strata`"):
        bootstrap_interval(lambda drawn: float("nan"), 3, resamples=10)


def test_line_equals_scipy(rng):
    x = rng.normal(size=12)
    y = 2 - 3 * x + rng.normal(size=12)
    fit, peer = fit_line(x, y, 0.9), stats.linregress(x, y)
    assert (fit.slope, fit.intercept, fit.r) == pytest.approx((peer.slope, peer.intercept, peer.rvalue), rel=1e-10)
    half = stats.t.ppf(0.95, 10) * peer.stderr
    assert (fit.slope_low, fit.slope_high) == pytest.approx((peer.slope - half, peer.slope + half), rel=1e-10)
    assert fit.residual == pytest.approx(np.sqrt(((y - peer.intercept - peer.slope * x) ** 2).sum() / 10))
    assert fit.n == 12 and fit.r2 == pytest.approx(peer.rvalue**2)


def test_line_by_hand():
    fit = fit_line([0, 1, 2], [1, 3, 5])
    assert (fit.slope, fit.intercept, fit.r, fit.residual) == pytest.approx((2, 1, 1, 0))
    assert fit.predict(10) == 21
    assert fit_line([0, 1, 2], [4, 4, 4]).r == 0


@pytest.mark.parametrize(
    "x, y", [([0, 1], [0, 1]), ([1, 1, 1], [0, 1, 2]), ([0, 1, 2], [0, 1]), ([0, 1, np.nan], [0, 1, 2])], ids=str
)
def test_line_refusals(x, y):
    with pytest.raises(ValueError, match="three finite points"):
        fit_line(x, y)


# Quantiles from printed tables of Student's t: 97.5 % and 95 %.
@pytest.mark.parametrize(
    "probability, degrees, expected", [(0.975, 1, 12.7062), (0.975, 3, 3.1824), (0.95, 10, 1.8125)]
)
def test_student_quantile(probability, degrees, expected):
    assert student_quantile(probability, degrees) == pytest.approx(expected, abs=5e-5)


def test_student_median():
    assert student_quantile(0.5, 4) == pytest.approx(0, abs=1e-7)


def test_names_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"keras_clip\[evaluation\]"):
        binomial_test(1, 2, 0.5)
