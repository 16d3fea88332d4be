"""Score against compute: counts, recovered power laws, Fieller's interval, refusals."""

import math

import numpy as np
import pytest

from keras_clip.evaluation import (
    compute_gain,
    compute_to_reach,
    fit_power_law,
    gflops_per_image,
    mean_score,
    published,
    scaling_rows,
)

pytestmark = pytest.mark.backend_free


def test_compute_by_hand():
    # ViT-B/32 has 49 patches and 12 blocks of 50 rows, and the projection of one row; in multiply-adds:
    block = 50 * 12 * 768**2 + 2 * 50**2 * 768
    expected = 49 * 3 * 32**2 * 768 + 12 * block + 768 * 512
    assert gflops_per_image("vit_b32") == pytest.approx(expected / 1e9, rel=1e-12)


def test_unknown_model():
    with pytest.raises(ValueError, match="preset='vit_h14'"):
        gflops_per_image("vit_h14")


def test_the_fit_recovers_a_power_law():
    compute = np.array([1.0, 10, 100, 1000])
    law = fit_power_law(compute, 0.5 * compute**-0.1)
    assert law.line.slope == pytest.approx(-0.1) and law.line.r == pytest.approx(-1)
    assert law.error(1e6) == pytest.approx(0.5 * 1e6**-0.1)
    assert law.compute_for(0.25) == pytest.approx((2**10,) * 3, rel=1e-6)


def test_interval_of_the_compute_ends_at_the_confidence_band_of_the_line(rng):
    compute = np.geomspace(1, 300, 9)
    law = fit_power_law(compute, 0.5 * compute**-0.2 * np.exp(0.05 * rng.normal(size=9)))
    error = 0.1
    best, low, high = law.compute_for(error)
    assert low < best < high < np.inf
    assert law.error(best) == pytest.approx(error)
    from scipy import stats

    x = np.log(compute)
    for bound in (low, high):
        place = np.log(bound)
        spread = law.line.residual * np.sqrt(1 / 9 + (place - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
        off = abs(math.log(error) - law.line.predict(place))
        assert off == pytest.approx(stats.t.ppf(0.975, 7) * spread, rel=1e-6)


def test_nothing_bounds_an_uncertain_slope():
    law = fit_power_law([1, 2, 4, 8], [0.5, 0.7, 0.3, 0.45])
    assert law.line.slope < 0 < law.line.slope_high
    best, low, high = law.compute_for(0.2)
    assert (low, high) == (0, math.inf) and 8 < best < math.inf


def test_compute_beyond_all_numbers_is_infinite():
    law = fit_power_law([1, 2, 4, 8], [0.5, 0.4999, 0.4998, 0.4997])
    assert law.compute_for(0.01)[0] == math.inf


def test_mean_score():
    scores = {"a": 0.5, "b": 0.7, "c": 0.0}
    assert mean_score(scores) == pytest.approx(0.4)
    assert mean_score(scores, ["a", "b"]) == pytest.approx(0.6)
    for faulty in ({}, None), (scores, ["a", "z"]):
        with pytest.raises(ValueError, match="Received: none for"):
            mean_score(*faulty)


def test_rows_grow_with_compute():
    scores = {"mine": {"a": 0.9}, "rn50x4": {"a": 0.6}, "unknown": {"a": 0.3}, "rn50": {"a": 0.5}}
    rows = scaling_rows(scores, gflops={"mine": 10.0})
    assert [row["name"] for row in rows] == ["rn50", "mine", "rn50x4", "unknown"]
    assert [row["score"] for row in rows] == [0.5, 0.9, 0.6, 0.3]
    assert rows[1]["gflops"] == 10 and rows[0]["gflops"] == gflops_per_image("rn50")
    assert math.isnan(rows[3]["gflops"])
    assert rows[2]["error"] == pytest.approx(0.4)


def test_gain_by_hand():
    # The plain curve has 0.5 at 10 and 0.6 at 100; 0.55 lies at the midpoint of the logarithms.
    gains = compute_gain([1, 10, 100], [0.4, 0.5, 0.6], [0.5, 0.55, 0.7])
    assert gains == pytest.approx([10, 10**0.5, math.inf])
    assert compute_gain([1, 10], [0.4, 0.5], [0.3, 0.45]) == pytest.approx([0, 10**-0.5])


def test_compute_to_reach_a_score():
    scores = {f"m{i}": {"a": 1 - 0.5 * compute**-0.2} for i, compute in enumerate((1.0, 8.0, 64.0))}
    rows = scaling_rows(scores, gflops={"m0": 1.0, "m1": 8.0, "m2": 64.0})
    law = fit_power_law([row["gflops"] for row in rows], [row["error"] for row in rows])
    assert law.compute_for(0.125)[0] == pytest.approx(4**5)
    found = compute_to_reach(published.linear_probe("resnet50")["ImageNet"], datasets=["ImageNet"])
    # The largest ResNet has 73.6 % zero-shot, so that 74.3 % takes a little more.
    assert 1 < found["factor"] < 1.5 and found["factor_low"] < found["factor"] < found["factor_high"]
    assert found["gflops"] == pytest.approx(found["factor"] * gflops_per_image("rn50x64"))


BAD_INPUT = {
    "no error": (lambda: fit_power_law([1, 2, 3], [0.5, 0.1, 0.0]), "above 0"),
    "no compute": (lambda: fit_power_law([0, 2, 3], [0.5, 0.2, 0.1]), "above 0"),
    "two models": (lambda: fit_power_law([1, 2], [0.5, 0.1]), "three"),
    "growing errors": (lambda: fit_power_law([1, 2, 3], [0.1, 0.2, 0.3]).compute_for(0.05), "slope below 0"),
    "perfect": (lambda: fit_power_law([1, 2, 3], [0.3, 0.2, 0.1]).compute_for(0.0), "error=0.0"),
    "lengths": (lambda: compute_gain([1, 2], [0.1, 0.2], [0.3]), "2, 2, 1"),
    "falling scores": (lambda: compute_gain([1, 2], [0.2, 0.1], [0.3, 0.3]), "strictly increasing"),
    "falling compute": (lambda: compute_gain([2, 1], [0.1, 0.2], [0.3, 0.3]), "strictly increasing"),
}


@pytest.mark.parametrize("call, message", BAD_INPUT.values(), ids=BAD_INPUT)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
