"""Figures 13 to 15 of the paper: accuracy where the images are not as those of the reference set."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_clip.evaluation.report.figures import COLORS, MARKERS, OWN, PUBLISHED, bars, label_points, percent, sheet

TICKS = (1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99)


def _logit(share):
    share = np.clip(np.asarray(share, float), 1e-3, 1 - 1e-3)
    return np.log(share / (1 - share))


def _logit_axes(axes, values):
    """Axes in logits, on which standard models lie on lines, with percentages as their ticks."""
    low, high = _logit(np.min(values)) - 0.4, _logit(np.max(values)) + 0.4
    ticks = [tick for tick in TICKS if low <= _logit(tick / 100) <= high]
    axes.plot([low, high], [low, high], color="black", linewidth=1, label="ideal: no loss under shift")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(_logit(np.array(ticks) / 100), [str(tick) for tick in ticks])
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")


def robustness(
    own: Mapping[str, Mapping[str, tuple[float, float]]],
    published: Mapping[str, Mapping[str, tuple[float, float]]],
    standard: tuple[float, float] | None = None,
) -> Any:
    """Figure 13: accuracy under natural shifts against accuracy on the reference set.

    Both map a model or method to {shift: (accuracy on the reference, accuracy under shift)}. `standard` is the slope
    and intercept, in logits, on which ordinarily trained models lie.
    """
    figure, (left, right) = sheet(11, 4.8, 2)
    everything = {**{f"{name} (paper)": rows for name, rows in published.items()}, **own}
    means = {name: np.mean(list(rows.values()), axis=0) for name, rows in everything.items()}
    _logit_axes(left, np.concatenate(list(means.values())))
    if standard:
        x = np.array(left.get_xlim())
        left.plot(x, standard[0] * x + standard[1], color=PUBLISHED, linestyle="--", label="standard training")
    shifts = list(dict.fromkeys(shift for rows in everything.values() for shift in rows))
    hollow = {"markerfacecolor": "white", "linestyle": "none"}
    for (name, rows), color, marker in zip(everything.items(), COLORS * 3, MARKERS * 3, strict=False):
        style = {"color": color, "linestyle": "none"} if name in own else {"color": color, **hollow}
        x, y = _logit(means[name])
        left.plot([x], [y], marker=marker, label=name, **style)
        heights = [shifts.index(shift) for shift in rows]
        right.plot(percent([accuracy for _, accuracy in rows.values()]), heights, marker=marker, label=name, **style)
    left.set(xlabel="accuracy on the reference set (%), logit scale", ylabel="mean accuracy under shift (%)")
    right.set_yticks(range(len(shifts)), shifts, fontsize=8)
    right.set(xlabel="accuracy under shift (%)", xlim=(0, 100), ylim=(len(shifts) - 0.5, -0.5))
    right.grid(axis="x", alpha=0.3)
    left.legend(fontsize=8, frameon=False, loc="upper left")
    figure.suptitle("Figure 13: robustness to natural shifts", fontsize=10)
    return figure


def adaptation(own: Mapping[str, float], published: Mapping[str, float]) -> Any:
    """Figure 14: what a probe trained on the reference set changes there and under shift, in points."""
    figure, _ = bars(
        own,
        published,
        "change of accuracy by adapting to the reference set (points)",
        "Figure 14: supervised adaptation helps where it is trained",
    )
    return figure


def few_shot_robustness(curves: Mapping[str, Sequence[tuple[float, float, float]]]) -> Any:
    """Figure 15: from zero-shot to a probe on all labels. Points: (shots, accuracy on the reference, under shift)."""
    figure, axes = sheet(6.4, 6)
    _logit_axes(axes, [value for curve in curves.values() for point in curve for value in point[1:]])
    labels = []
    for (name, curve), color, marker in zip(curves.items(), COLORS, MARKERS, strict=False):
        shots, x, y = zip(*curve, strict=True)
        axes.plot(_logit(x), _logit(y), color=color, marker=marker, linewidth=1, label=name)
        names = ["0" if k == 0 else "all" if not np.isfinite(k) else f"{k:g}" for k in shots]
        labels += list(zip(_logit(x), _logit(y), names, strict=True))
    axes.set(xlabel="accuracy on the reference set (%), logit scale", ylabel="mean accuracy under shift (%)")
    axes.set_title("Figure 15: robustness as labels are added (images per class)", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    label_points(axes, labels)
    return figure


def reliability(curves: Mapping[str, Sequence[tuple[float, float, int]]]) -> Any:
    """Share of right answers against confidence. Curves: {name: [(mean confidence, accuracy, images)]}, by bin."""
    figure, axes = sheet(5, 4.6)
    axes.plot([0, 100], [0, 100], color="black", linewidth=1, linestyle="--", label="calibrated")
    for (name, curve), color, marker in zip(curves.items(), COLORS, MARKERS, strict=False):
        confidence, accuracy, images = np.array(curve, float).T
        axes.plot(percent(confidence), percent(accuracy), color=color, linewidth=1)
        sizes = 15 + 200 * images / images.sum()
        axes.scatter(percent(confidence), percent(accuracy), s=sizes, color=color, marker=marker, label=name)
    axes.set(xlabel="confidence (%)", ylabel="right (%)", xlim=(0, 102), ylim=(0, 102))
    axes.set_title("Reliability (area: share of the images)", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return figure


def confusion(counts: np.ndarray, class_names: Sequence[str]) -> Any:
    """The share (K, K) of each class's images (rows) that got each name (columns)."""
    counts = np.asarray(counts, float)
    size = min(11, 3 + 0.22 * len(counts))
    figure, axes = sheet(size + 1, size)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shown = axes.imshow(percent(shares), cmap="Blues", vmin=0, vmax=100)
    names = [name if len(name) <= 24 else f"{name[:23]}…" for name in class_names]
    font = float(np.clip(400 / len(counts), 4, 9))
    axes.set_yticks(range(len(names)), names, fontsize=font)
    axes.set_xticks(range(len(names)), names, fontsize=font, rotation=90)
    axes.set(xlabel="named", ylabel="is")
    if len(names) <= 12:
        for row, column in np.ndindex(shares.shape):
            if counts[row, column]:
                color = "white" if shares[row, column] > 0.5 else OWN
                axes.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=8, color=color)
    figure.colorbar(shown, label="share of the class's images (%)", shrink=0.8)
    return figure
