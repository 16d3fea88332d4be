"""Figures draw the given values: bars, points and labels are read back from matplotlib's objects."""

import math

import numpy as np
import pytest

from keras_clip.evaluation.report import figures

pytestmark = pytest.mark.backend_free


def lines(axes):
    """Returns {label: (x, y)} of the curves that have a label."""
    return {line.get_label(): line.get_xydata() for line in axes.lines if not line.get_label().startswith("_")}


def texts(axes):
    return [text.get_text() for text in axes.texts]


def bar_widths(axes):
    """Returns {label of the nearest row: widths of its bars, from top to bottom}."""
    names = [label.get_text() for label in axes.get_yticklabels()]
    found = {name: [] for name in names}
    for bar in sorted(axes.patches, key=lambda bar: -bar.get_y()):
        found[names[round(bar.get_y() + bar.get_height() / 2)]].append(bar.get_width())
    return found


def inside(figure):
    """Returns whether all texts lie inside the figure."""
    figure.draw_without_rendering()
    page = figure.bbox
    boxes = [text.get_window_extent() for axes in figure.axes for text in [*axes.texts, axes.title]]
    return all(box.x0 >= -1 and box.x1 <= page.x1 + 1 for box in boxes)


def test_bars_stand_in_order_with_the_published_ones_beside():
    figure, axes = figures.bars({"digits": -12.5, "mnist": 3.0}, {"mnist": -10.0, "cars": 28.9}, "points", "title")
    assert bar_widths(axes) == {"digits": [-12.5], "mnist": [3.0, -10.0], "cars": [28.9]}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["digits", "mnist", "cars"]
    assert sorted(texts(axes)) == ["+28.9", "+3.0", "-10.0", "-12.5"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["this model", "paper"]


def test_figure_5_draws_intervals():
    figure = figures.zero_shot_against_probe({"digits": -12.0}, {}, {"digits": (-15.0, -9.0)})
    ends = [line.get_xdata() for line in figure.axes[0].lines if line.get_marker() == "|"]
    np.testing.assert_allclose(ends, [[-15, -9]])


def test_figure_2():
    figure = figures.efficiency({"contrastive": [(2000, 0.3), (1000, 0.1)], "bag of words": [(1000, 0.05)]})
    found = lines(figure.axes[0])
    np.testing.assert_allclose(found["contrastive"], [[1000, 10], [2000, 30]])
    np.testing.assert_allclose(found["bag of words"], [[1000, 5]])
    assert figure.axes[0].get_xscale() == "log"


def test_figure_4():
    own = [{"name": "mine", "gflops": 2.0, "bare": 0.3, "ensemble": 0.36}]
    figure = figures.prompt_ensembling(own, [{"name": "rn50", "gflops": 12.0, "ensemble": 0.5}])
    found = lines(figure.axes[0])
    np.testing.assert_allclose(found["this model: contextless class names"], [[2, 30]])
    np.testing.assert_allclose(found["this model: prompt ensemble"], [[2, 36]])
    assert sorted(texts(figure.axes[0])) == ["mine (+6.0)", "rn50"]


def test_figure_6():
    figure = figures.few_shot({"probe": [(1, 0.2), (4, 0.4), (16, 0.6)], "Tip": [(4, 0.5)]}, {"zero-shot": 0.45})
    found = lines(figure.axes[0])
    np.testing.assert_allclose(found["probe"], [[1, 20], [2, 40], [3, 60]])
    np.testing.assert_allclose(found["Tip"], [[2, 50]])
    np.testing.assert_allclose(found["zero-shot"], [[0, 45]])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0", "1", "4", "16"]


def test_figure_7():
    figure = figures.data_efficiency({"digits": 0.9, "cars": math.inf, "food": 5.1}, {"food": 64.0}, largest=100)
    axes = figure.axes[0]
    assert bar_widths(axes) == {"digits": [0.9], "food": [5.1, 64.0], "cars": [100]}
    assert sorted(texts(axes)) == ["0.9", "100 or more", "5.1", "64.0"]
    # The mean of the finite values, and the median.
    assert {"this model: mean 3.0", "this model: median 3.0", "paper: mean 64.0"} <= set(lines(axes))


def test_figure_8():
    own = {"a": (0.9, 0.8), "b": (0.5, 0.6), "c": (0.7, 0.7)}
    figure = figures.correlation(own, {"d": (0.4, 0.3)})
    found = lines(figure.axes[0])
    np.testing.assert_allclose(found["this model, 3 datasets, r = 1.00"], [[90, 80], [50, 60], [70, 70]])
    assert "paper, 1 datasets" in found and sorted(texts(figure.axes[0])) == ["a", "b", "c", "d"]


def test_figure_9():
    # error = 0.8 / gflops**0.5 for both datasets, given out of order.
    figure = figures.zero_shot_scaling([16, 1, 4], {"a": [0.2, 0.8, 0.4], "b": [0.2, 0.8, 0.4]}, {"mine": (2, 0.5)})
    found = lines(figure.axes[0])
    np.testing.assert_allclose(found["slope -0.500 [-0.500, -0.500]"], [[1, 80], [4, 40], [16, 20]])
    np.testing.assert_allclose(found["mine"], [[2, 50]])


def test_figure_10():
    families = {"ViT": [(35, 0.8, "b16"), (9, 0.7, "b32")], "others": [(math.nan, 0.6, "peer")]}
    figure = figures.probe_scaling({"12 sets": families, "27 sets": {"this model": [(1, 0.5, "mine")]}})
    first, second = figure.axes
    np.testing.assert_allclose(lines(first)["ViT"], [[9, 70], [35, 80]])
    assert sorted(texts(first)) == ["b16", "b32", "peer"] and texts(second) == ["mine"]
    np.testing.assert_allclose(lines(second)["this model"], [[1, 50]])


def test_figure_11():
    figure = figures.probe_against_peer({"digits": 2.0}, {"cars": 16.0}, "EfficientNet L2")
    assert bar_widths(figure.axes[0]) == {"digits": [2.0], "cars": [16.0]}
    assert "EfficientNet L2" in figure.axes[0].get_xlabel()


def logit(share):
    return math.log(share / (1 - share))


def test_figure_13():
    own = {"zero_shot": {"sketch": (0.6, 0.5), "blur": (0.8, 0.3)}}
    figure = figures.robustness(own, {"clip": {"sketch": (0.76, 0.6)}}, standard=(0.9, -1.0))
    left, right = figure.axes
    found = lines(left)
    np.testing.assert_allclose(found["zero_shot"], [[logit(0.7), logit(0.4)]])
    np.testing.assert_allclose(found["standard training"][0, 1], 0.9 * left.get_xlim()[0] - 1.0)
    assert "clip (paper)" in found
    np.testing.assert_allclose(lines(right)["zero_shot"], [[50, 0], [30, 1]])
    assert [label.get_text() for label in right.get_yticklabels()] == ["sketch", "blur"]


def test_figure_14():
    figure = figures.adaptation({"digits": 9.0, "noisy": -3.0}, {"ImageNet": 9.2})
    assert bar_widths(figure.axes[0]) == {"noisy": [-3.0], "digits": [9.0], "ImageNet": [9.2]}


def test_figure_15():
    figure = figures.few_shot_robustness({"probe": [(0, 0.6, 0.5), (4, 0.5, 0.3), (math.inf, 0.8, 0.4)]})
    np.testing.assert_allclose(lines(figure.axes[0])["probe"][1], [logit(0.5), logit(0.3)])
    assert sorted(texts(figure.axes[0])) == ["0", "4", "all"]


def test_reliability():
    figure = figures.reliability({"zero_shot": [(0.3, 0.2, 1), (0.9, 0.7, 3)]})
    points = figure.axes[0].collections[0]
    np.testing.assert_allclose(points.get_offsets(), [[30, 20], [90, 70]])
    np.testing.assert_allclose(points.get_sizes() - 15, [50, 150])


def test_confusion_is_by_class():
    figure = figures.confusion([[3, 1], [0, 2]], ["cat", "a name that is much too long for this"])
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[75, 25], [0, 100]])
    assert sorted(texts(axes)) == ["1", "2", "3"]
    assert axes.get_yticklabels()[1].get_text().endswith("…")


def test_labels_do_not_cover_each_other():
    figure, axes = figures.sheet(6, 6)
    axes.plot([0, 1], [0, 1])
    figures.label_points(axes, [(0.5, 0.5, "first"), (0.5, 0.5, "second"), (0.51, 0.5, "third")])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 3
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_texts_lie_on_the_page():
    names = {f"a dataset with quite a long name {i}": float(i - 3) for i in range(6)}
    assert inside(figures.zero_shot_against_probe(names, {}))
    assert inside(figures.correlation({name: (0.99, 0.9 - 0.01 * i) for i, name in enumerate(names)}, {}))
