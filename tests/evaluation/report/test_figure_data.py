"""The gallery selects the data of every figure from the results, and draws no figure without data."""

import math

import numpy as np
import pytest
from evaluation import own_results

from keras_clip.evaluation import Results, Score
from keras_clip.evaluation.metrics.metric import Metric
from keras_clip.evaluation.report.figure_data import FIGURES, gallery

pytestmark = pytest.mark.backend_free

PAPER = [f"figure_{number}" for number in (2, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15)]


@pytest.fixture(scope="module")
def drawn():
    return gallery(own_results.results())


def points(axes, label):
    return next(line.get_xydata() for line in axes.lines if line.get_label() == label)


def bar(axes, name):
    row = [label.get_text() for label in axes.get_yticklabels()].index(name)
    return [patch.get_width() for patch in axes.patches if round(patch.get_y() + patch.get_height() / 2) == row]


def test_all_figures_are_drawn(drawn):
    assert {name.split("/")[0] for name in drawn} == {name.rstrip("/") for name in FIGURES}
    assert {name for name in drawn if "/" in name} == {"confusion/digits", "confusion/Food101"}
    assert set(PAPER) < set(drawn)


@pytest.mark.parametrize("name", PAPER)
def test_each_has_points_of_its_own_and_a_title(drawn, name):
    axes = drawn[name].axes
    shown = sum(len(one.lines) + len(one.patches) for one in axes)
    assert shown > 1 and any(one.get_title() for one in axes) or drawn[name].get_suptitle()


def test_no_figure_is_drawn_without_data():
    assert gallery(Results()) == {}
    # No figure of the paper shows only a zero-shot score without compute.
    alone = gallery(Results([Score("digits", "zero_shot/family", "accuracy", 0.5, 0.4, 0.6, 9, "test")]))
    assert not set(PAPER) & set(alone)


@pytest.mark.parametrize(
    "model, shown",
    [("/home/me/runs/first/clip.keras", "first/clip.keras"), ("vit_b32", "vit_b32"), ("hf://org/name", "org/name")],
)
def test_a_path_is_named_by_its_end(model, shown):
    """All of it would cover the points."""
    scores = [Score("digits", f"zero_shot/{m}", "accuracy", 0.5, 0.4, 0.6, 9, "test") for m in ("bare_name", "family")]
    figure = gallery(Results(scores, info={"model": model, "gflops_per_image": 0.1}))["figure_4"]
    assert f"{shown} (+0.0)" in [text.get_text() for text in figure.axes[0].texts]


def test_numbers_reach_the_figures(drawn):
    # On digits, zero-shot has 50 and the probe 80; on Food101, 55 and 80, and the paper's bar stands beside.
    assert bar(drawn["figure_5"].axes[0], "digits") == [pytest.approx(-30)]
    assert bar(drawn["figure_5"].axes[0], "Food101") == [pytest.approx(-25), pytest.approx(22.5)]
    np.testing.assert_allclose(points(drawn["figure_4"].axes[0], "this model: contextless class names"), [[1.5, 30]])
    np.testing.assert_allclose(points(drawn["figure_4"].axes[0], "this model: prompt ensemble"), [[1.5, 52.5]])
    curve = points(drawn["figure_6"].axes[0], "linear probe")
    np.testing.assert_allclose(curve, [[1, 30], [2, 40], [3, 50], [4, 60], [5, 70]])
    np.testing.assert_allclose(points(drawn["figure_8"].axes[0], "this model, 2 datasets"), [[80, 50], [80, 55]])
    np.testing.assert_allclose(points(drawn["figure_9"].axes[0], "tiny <1>, 2 datasets"), [[1.5, 47.5]])
    np.testing.assert_allclose(points(drawn["figure_10"].axes[0], "this model"), [[1.5, 80]])
    assert bar(drawn["figure_7"].axes[0], "digits") == [2.5] and bar(drawn["figure_7"].axes[0], "Food101")[0] == 256
    # The published EfficientNet has 91.6 % there.
    assert bar(drawn["figure_11"].axes[0], "Food101")[0] == pytest.approx(80 - 91.6)


def test_shifts_reach_the_figures(drawn):
    logit = lambda share: math.log(share / (1 - share))  # noqa: E731
    left = drawn["figure_13"].axes[0]
    np.testing.assert_allclose(points(left, "zero_shot/family"), [[logit(0.5), logit(0.35)]])
    assert not any("few_shot" in line.get_label() for line in left.lines)
    assert bar(drawn["figure_14"].axes[0], "digits") == [pytest.approx(30)]
    assert bar(drawn["figure_14"].axes[0], "blur") == [pytest.approx(25)]
    path = points(drawn["figure_15"].axes[0], "probe")
    np.testing.assert_allclose(path[0], [logit(0.5), logit(0.35)])
    np.testing.assert_allclose(path[1], [logit(0.4), logit(0.2)])
    np.testing.assert_allclose(path[2], [logit(0.8), logit(0.6)])


def test_the_results_of_another_model_are_the_comparison():
    figure = gallery(own_results.results(), own_results.results(right=0.4))["figure_11"]
    assert bar(figure.axes[0], "digits") == [pytest.approx(10)]


def with_ranks(made):
    """Adds the scores of two further datasets, by a metric of another unit than a fraction."""
    metric = Metric(
        "mean_rank",
        lambda scores, labels: (scores > scores[np.arange(len(labels)), labels][:, None]).sum(axis=1).mean(),
        lambda *_: (0.0, 9.0),
        unit="rank",
    )
    labels = np.zeros(4, int)
    places = {"zero_shot/bare_name": 2, "zero_shot/family": 3, "linear_probe": 7, "few_shot/1": 5, "few_shot/2": 6}
    for dataset, more in (("birds", 0), ("trees", 1)):
        for method, place in places.items():
            # The rank is the number of wrong classes with a higher score than the true one.
            scores = np.tile(np.r_[0.0, np.ones(place + more), -np.ones(3 - more)], (4, 1))
            made.add(metric.measure(scores, labels, dataset, method, ""))
    return made


def test_scores_of_another_unit_have_figures_of_their_own(drawn):
    figures = gallery(with_ranks(own_results.results()), with_ranks(own_results.results(right=0.4)))
    own = {name for name in figures if name.endswith("_rank")}
    assert own == {f"figure_{number}_rank" for number in (4, 5, 6, 8, 10, 11)}
    # The others have neither these scores nor another mean.
    for number in (4, 6, 8, 9, 10):
        name = f"figure_{number}"
        lines, former = (of_one[name].axes[0].lines for of_one in (figures, drawn))
        assert [line.get_xydata().tolist() for line in lines] == [line.get_xydata().tolist() for line in former]
    with pytest.raises(ValueError, match="birds"):
        bar(figures["figure_5"].axes[0], "birds")
    axes = {name: figures[name].axes[0] for name in own}
    assert bar(axes["figure_5_rank"], "birds") == [-4] and bar(axes["figure_11_rank"], "trees") == [0]
    np.testing.assert_allclose(points(axes["figure_4_rank"], "this model: prompt ensemble"), [[1.5, 3.5]])
    np.testing.assert_allclose(points(axes["figure_6_rank"], "linear probe"), [[1, 5.5], [2, 6.5]])
    np.testing.assert_allclose(points(axes["figure_6_rank"], "zero-shot"), [[0, 3.5]])
    np.testing.assert_allclose(points(axes["figure_8_rank"], "this model, 2 datasets"), [[7, 3], [8, 4]])
    np.testing.assert_allclose(points(axes["figure_10_rank"], "this model"), [[1.5, 7.5]])
    for one in axes.values():
        labels = one.get_xlabel() + one.get_ylabel()
        assert "(rank)" in labels and "%" not in labels and "percentage" not in labels
