"""Intervals and variances from resampled examples: theory, groups, strata, refusals."""

import numpy as np
import pytest

from keras_clip.evaluation import bootstrap_interval, resampled_variance

pytestmark = pytest.mark.backend_free


def test_resampled_variance_of_a_mean(rng):
    x = rng.normal(size=400)
    assert resampled_variance(lambda drawn: drawn @ x / drawn.sum(), 400) == pytest.approx(x.var() / 400, rel=0.2)


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
