"""Class sets that differ by one label: rates by hand, disparity compared with chance, refusals."""

import numpy as np
import pytest

from keras_clip.evaluation import blaker_interval, class_design_rates, class_set_hits, compare_models, disparity
from keras_clip.evaluation.studies import class_design

pytestmark = pytest.mark.backend_free
NAMES = ["person", "thief", "child"]
SETS = {"without child": ["person", "thief"], "with child": ["thief", "person", "child"]}
# The two young ones are most similar to "child", and to "thief" more than to "person"; one adult is to "thief".
SCORES = np.array([[1, 2, 3], [1, 2, 3], [1, 3, 2], [3, 1, 2], [1, 3, 2], [3, 2, 1]], float)
GROUPS = ["young", "young", "young", "adult", "adult", "adult"]


def test_hits_by_hand():
    hits = class_set_hits(SCORES, NAMES, SETS["without child"], {"thief"})
    assert hits.tolist() == [True, True, True, False, True, False]
    hits = class_set_hits(SCORES, NAMES, SETS["with child"], {"thief"})
    assert hits.tolist() == [False, False, True, False, True, False]
    assert not class_set_hits(SCORES, NAMES, ["person"], {"thief"}).any()


def test_rates_by_hand():
    rows = {(row["class_set"], row["group"]): row for row in class_design_rates(SCORES, NAMES, SETS, GROUPS, ["thief"])}
    assert [key[1] for key in rows] == ["adult", "young", "all"] * 2
    young = rows["with child", "young"]
    assert (young["n"], young["share"]) == (3, pytest.approx(1 / 3))
    assert (young["low"], young["high"]) == blaker_interval(1, 3)
    assert rows["without child", "young"]["share"] == 1 and "change" not in rows["without child", "young"]
    compared = compare_models(np.ones(3, bool), np.array([False, False, True]))
    assert (young["change"], young["change_low"], young["change_high"]) == (
        compared.difference,
        compared.low,
        compared.high,
    )
    assert young["p_value"] == pytest.approx(0.5)  # two images, both changed in the same direction
    assert rows["with child", "adult"]["change"] == 0
    assert rows["with child", "all"]["share"] == pytest.approx(2 / 6) and rows["with child", "all"]["n"] == 6


def test_each_set_is_compared_with_the_first():
    sets = {**SETS, "without child again": SETS["without child"]}
    rows = class_design_rates(SCORES, NAMES, sets, GROUPS, ["thief"])
    assert [row["change"] for row in rows if row["group"] == "all" and "change" in row] == pytest.approx([-2 / 6, 0])


def test_disparity_by_hand():
    hits = np.repeat([True, False, True, False], [30, 10, 10, 30])
    found = disparity(hits, np.repeat(["a", "b"], 40))
    assert (found.highest, found.lowest, found.difference, found.ratio) == ("a", "b", 0.5, 3.0)
    # The difference of two independent proportions, 3/4 and 1/4 of 40 images each.
    half = 1.96 * np.sqrt(2 * 0.75 * 0.25 / 40)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.03)
    assert found.p_value == 1 / 1001
    assert found.debiased == pytest.approx(0.5, abs=0.02)


RATES = {"equal rates": [0.3] * 4, "a tenth apart": [0.25, 0.3, 0.3, 0.35], "none or all": [0.0, 0.0, 1.0, 1.0]}


@pytest.mark.parametrize("rates", RATES.values(), ids=RATES)
def test_disparity_encloses_the_true_difference_and_its_own(rates, rng):
    """The percentile bootstrap enclosed a true difference of 0 in none of the cases, and others in 20 %."""
    held = 0
    groups = np.repeat(np.arange(4), 25)
    for seed in range(60):
        found = disparity(rng.random(100) < np.array(rates)[groups], groups, resamples=100, seed=seed)
        assert found.low <= found.debiased <= found.high and found.low <= found.difference <= found.high
        held += found.low <= np.ptp(rates) <= found.high
    assert held >= 53


def test_rates_at_a_difference_are_the_nearest_ones():
    observed, counts = np.array([0.2, 0.5, 0.3]), np.array([1000, 1000, 10])
    # Apart by less than observed: both ends move inwards, by equal parts of equal groups.
    nearer = class_design._rates_at(observed, counts, 0.2)
    assert np.ptp(nearer) == pytest.approx(0.2) and nearer[0] > 0.2 and nearer[1] < 0.5 and nearer[2] == 0.3
    # Apart by more: the small group is moved, since its rate is the least certain.
    wider = class_design._rates_at(observed, counts, 0.6)
    assert np.ptp(wider) == pytest.approx(0.6) and abs(wider[2] - 0.3) > 0.3


def test_disparity_by_chance_is_no_disparity(rng):
    p_values = [disparity(rng.random(60) < 0.3, np.arange(60) % 6, resamples=99).p_value for _ in range(50)]
    assert sum(p <= 0.1 for p in p_values) < 12
    assert min(p_values) < 0.3 and max(p_values) > 0.7
    # Its largest difference is above 0 nevertheless.
    assert disparity(np.tile([True, False, False], 20), np.repeat([0, 1], 30)).p_value == 1


@pytest.mark.parametrize("hits, ratio", [([True, False], np.inf), ([False, False], 1.0), ([True, True], 1.0)], ids=str)
def test_ratio_at_the_extremes(hits, ratio):
    assert disparity(np.array(hits), ["a", "b"], resamples=5).ratio == ratio


BAD_HITS = {
    "unknown class": ({"class_set": ["person", "dog"]}, r"unknown \['dog'\]"),
    "unknown watched": ({"watched": ["dog"]}, r"unknown \['dog'\]"),
    "class twice": ({"class_set": ["person", "person"]}, "each once"),
    "name twice": ({"class_names": ["person", "person", "thief"]}, "each once"),
    "empty set": ({"class_set": []}, "each once"),
    "names and scores": ({"scores": SCORES[:, :2]}, r"\(6, 2\)"),
    "NaN": ({"scores": SCORES * np.nan}, "NaN"),
}


@pytest.mark.parametrize("change, message", BAD_HITS.values(), ids=BAD_HITS)
def test_refusals(change, message):
    arguments = {"scores": SCORES, "class_names": NAMES, "class_set": ["person", "thief"], "watched": ["thief"]}
    with pytest.raises(ValueError, match=message):
        class_set_hits(**{**arguments, **change})


def test_groups_that_do_not_match():
    with pytest.raises(ValueError, match="6 images"):
        class_design_rates(SCORES, NAMES, SETS, GROUPS[:5], ["thief"])
    with pytest.raises(ValueError, match="0 sets"):
        class_design_rates(SCORES, NAMES, {}, GROUPS, ["thief"])
    with pytest.raises(ValueError, match="2 names of 1 groups"):
        disparity(np.array([True, False]), ["a", "a"])
    with pytest.raises(ValueError, match="2 names of 2 groups"):
        disparity(np.array([True]), ["a", "b"])
    with pytest.raises(ValueError, match="int64"):
        disparity(np.array([1, 0]), ["a", "b"])
