"""The figures of the paper's section 3: functions from plain numbers to matplotlib figures.

In every figure, measured values are blue and filled; values from the paper are grey and hollow. Fractions are plotted
as percentages. Figures of scores take the unit of the metric (`unit`); values of another unit are plotted unchanged.
`gallery` plots the figures of `Results`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_clip.evaluation.metrics.regression import fit_line
from keras_clip.evaluation.report.drawing import (
    COLORS,
    MARKERS,
    OWN,
    PUBLISHED,
    SECOND,
    THIS_MODEL,
    bars,
    difference_name,
    label_points,
    percent,
    scaled,
    sheet,
    sources_legend,
    unit_name,
)
from keras_clip.evaluation.studies.scaling import fit_power_law

TICKS = (1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99)


def efficiency(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Any:
    """Plots figure 2: zero-shot accuracy against the number of training images, one curve per training objective."""
    figure, axes = sheet(6, 4.2)
    for (name, curve), color, marker in zip(curves.items(), COLORS, MARKERS, strict=False):
        images, accuracy = np.array(sorted(curve), float).T
        axes.plot(images, percent(accuracy), color=color, marker=marker, label=name)
    axes.set_xscale("log")
    axes.set(xlabel="training images processed", ylabel="zero-shot accuracy (%)", ylim=(0, None))
    axes.set_title("Figure 2: efficiency of zero-shot transfer by objective", fontsize=10)
    axes.legend(fontsize=8, frameon=False)
    return figure


def prompt_ensembling(
    own: Sequence[Mapping[str, Any]], published: Sequence[Mapping[str, Any]], unit: str = "fraction"
) -> Any:
    """Plots figure 4: scores with class names alone and with prompts, against compute.

    The rows have the keys "name", "gflops", "bare" and "ensemble".
    """
    figure, axes = sheet(6, 4.2)
    if published:
        x, y = [row["gflops"] for row in published], [row["ensemble"] for row in published]
        axes.plot(
            x,
            scaled(y, unit),
            "o--",
            color=PUBLISHED,
            mfc="white",
            label="paper: prompt ensemble, mean of its 27 datasets",
        )
    rows = sorted(own, key=lambda row: row["gflops"])
    x = [row["gflops"] for row in rows]
    for key, label, color, marker in (
        ("ensemble", f"{THIS_MODEL}: prompt ensemble", OWN, "o"),
        ("bare", f"{THIS_MODEL}: contextless class names", SECOND, "s"),
    ):
        axes.plot(x, scaled([row[key] for row in rows], unit), marker=marker, color=color, label=label)
    axes.set_xscale("log")
    axes.set(xlabel="GFLOPs per image", ylabel=f"average score ({unit_name(unit)})")
    axes.set_title("Figure 4: effect of prompt engineering and ensembling", fontsize=10)
    axes.margins(0.12)
    gains = [f" ({scaled(row['ensemble'] - row['bare'], unit):+.1f})" for row in rows] + [""] * len(published)
    label_points(
        axes,
        [
            (row["gflops"], scaled(row["ensemble"], unit), f"{row['name']}{gain}")
            for row, gain in zip((*rows, *published), gains, strict=True)
        ],
    )
    axes.legend(fontsize=8, frameon=False)
    return figure


def zero_shot_against_probe(
    own: Mapping[str, float],
    published: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]] | None = None,
    unit: str = "fraction",
) -> Any:
    """Plots figure 5: zero-shot minus fully supervised linear probe per dataset, as differences of `scaled` values."""
    figure, _ = bars(
        own,
        published,
        f"zero-shot minus linear probe ({difference_name(unit)})",
        "Figure 5: zero-shot against a supervised linear probe\n(paper: CLIP ViT-L/14@336px, ResNet-50 features)",
        intervals,
    )
    return figure


def few_shot(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    zero_shot: Mapping[str, float] | None = None,
    unit: str = "fraction",
) -> Any:
    """Plots figure 6: average score against labelled images per class, with zero-shot as a star at 0."""
    figure, axes = sheet(6, 4.2)
    shots = sorted({k for curve in curves.values() for k, _ in curve})
    for (name, curve), color, marker in zip(curves.items(), COLORS, MARKERS, strict=False):
        k, score = np.array(sorted(curve), float).T
        positions = [shots.index(number) + 1 for number in k]
        axes.plot(positions, scaled(score, unit), color=color, marker=marker, label=name)
    for (name, score), color in zip((zero_shot or {}).items(), COLORS, strict=False):
        axes.plot([0], [scaled(score, unit)], "*", markersize=14, color=color, label=name)
        axes.axhline(scaled(score, unit), color=color, linestyle=":", linewidth=1)
    axes.set_xticks(range(len(shots) + 1), ["0", *(f"{k:g}" for k in shots)])
    axes.set(xlabel="labelled images per class", ylabel=f"average score ({unit_name(unit)})")
    axes.set_title("Figure 6: zero-shot against few-shot classifiers", fontsize=10)
    axes.legend(fontsize=8, frameon=False)
    return figure


def data_efficiency(own: Mapping[str, float], published: Mapping[str, float], largest: float = 256) -> Any:
    """Plots figure 7: labelled images per class with which a linear probe matches zero-shot.

    Values below one are passed as 0.9. A dataset on which the probe does not match zero-shot with the full training
    set has the value infinity, which is plotted as `largest`.
    """
    shown = {name: min(k, largest) for name, k in own.items()}
    figure, axes = bars(
        shown,
        published,
        "labelled images per class to match zero-shot",
        "Figure 7: shots needed to match zero-shot",
        form=lambda k: f"{k:.1f}" if k < largest else f"{largest:g} or more",
    )
    finite = [k for k in own.values() if np.isfinite(k)]
    for values, color, name in ((finite, OWN, THIS_MODEL), (list(published.values()), PUBLISHED, "paper")):
        if values:
            for average, style, line in (("mean", "--", np.mean(values)), ("median", ":", np.median(values))):
                label = f"{name}: {average} {line:.1f}"
                axes.axvline(line, color=color, linestyle=style, linewidth=1, label=label, zorder=0)
    lines, _ = axes.get_legend_handles_labels()
    axes.legend(handles=[*sources_legend(own, published), *lines], fontsize=8, loc="lower right", frameon=False)
    return figure


def correlation(
    own: Mapping[str, tuple[float, float]], published: Mapping[str, tuple[float, float]], unit: str = "fraction"
) -> Any:
    """Plots figure 8: zero-shot against linear probe score, with a point (probe, zero-shot) per dataset."""
    figure, axes = sheet(6.8, 6.4)
    everything = [(*scaled(pair, unit).tolist(), name) for values in (published, own) for name, pair in values.items()]
    coordinates = [coordinate for *point, _ in everything for coordinate in point]
    lowest, highest = min(coordinates), max(coordinates)
    low, high = (max(0, lowest - 5), 102) if unit == "fraction" else (lowest, highest)
    axes.plot([low, high], [low, high], color="black", linestyle="--", linewidth=1, label="zero-shot = linear probe")
    for values, style, name in (
        (published, {"color": PUBLISHED, "mfc": "white"}, "paper"),
        (own, {"color": OWN}, THIS_MODEL),
    ):
        if not values:
            continue
        probe, zero_shot = scaled(list(values.values()), unit).T
        label = f"{name}, {len(values)} datasets"
        if len(values) > 2 and np.ptp(probe) and np.ptp(zero_shot):
            label += f", r = {fit_line(probe, zero_shot).r:.2f}"
        axes.plot(probe, zero_shot, "o", markersize=5, label=label, **style)
    if unit == "fraction":
        axes.set(xlim=(low, high), ylim=(low, high))
    axes.set(xlabel=f"linear probe ({unit_name(unit)})", ylabel=f"zero-shot ({unit_name(unit)})")
    axes.set_title("Figure 8: correlation of zero-shot and linear probe scores", fontsize=10)
    axes.legend(fontsize=8, loc="upper left", frameon=False)
    label_points(axes, everything)
    return figure


def zero_shot_scaling(
    gflops: Sequence[float], errors: Mapping[str, Sequence[float]], own: Mapping[str, tuple[float, float]]
) -> Any:
    """Plots figure 9: zero-shot error against compute, on logarithmic axes.

    Faint lines are datasets. The black line is the power law fitted to their mean, which requires at least three
    models; the legend has its slope with a 95 % interval. Own models (GFLOPs, error) are stars.
    """
    figure, axes = sheet(6.4, 4.8)
    if errors:
        order = np.argsort(gflops)
        x = np.asarray(gflops, float)[order]
        # A logarithmic axis cannot show an error of 0.
        table = np.maximum(np.array(list(errors.values()), float)[:, order], 1e-3)
        for row in table:
            axes.plot(x, percent(row), color=PUBLISHED, alpha=0.3, linewidth=0.8)
        mean = table.mean(axis=0)
        axes.plot(x, percent(mean), "o", color=PUBLISHED, label=f"paper: mean of {len(table)} datasets")
        law = fit_power_law(x, mean)
        slope = f"slope {law.line.slope:.3f} [{law.line.slope_low:.3f}, {law.line.slope_high:.3f}]"
        axes.plot(x, percent(law.error(x)), color="black", linewidth=1, label=slope)
    for (name, (compute, error)), color in zip(own.items(), COLORS, strict=False):
        axes.plot([compute], [100 * max(error, 1e-3)], "*", markersize=14, color=color, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_yticks([5, 10, 20, 30, 40, 60, 80, 100], ["5", "10", "20", "30", "40", "60", "80", "100"])
    axes.set_yticks([], minor=True)
    axes.set(xlabel="GFLOPs per image", ylabel="zero-shot error (%)")
    axes.set_title("Figure 9: zero-shot error against compute", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    return figure


def probe_scaling(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, str]]]], unit: str = "fraction"
) -> Any:
    """Plots figure 10: linear probe score against compute, with a panel for each group of datasets.

    Panels: {title: {family of models: [(GFLOPs per image, score, name of the model)]}}. The family `THIS_MODEL` is
    plotted as stars, and a model of unknown compute (NaN) as a horizontal line.
    """
    figure, axes = sheet(6.2 * len(panels), 4.8, len(panels))
    for panel, (title, families) in zip(np.ravel(axes), panels.items(), strict=True):
        for (family, points), color, marker in zip(families.items(), COLORS, MARKERS, strict=False):
            known = sorted(point for point in points if np.isfinite(point[0]))
            for i, (_, score, name) in enumerate(
                sorted((p for p in points if not np.isfinite(p[0])), key=lambda p: p[1])
            ):
                panel.axhline(scaled(score, unit), color=PUBLISHED, linestyle=":", linewidth=1)
                # The names are placed at alternating ends, so that names of close scores do not overlap.
                x, alignment = ((0.01, "left"), (0.99, "right"))[i % 2]
                transform = _axes_x_data_y(panel)
                panel.text(x, scaled(score, unit), name, fontsize=7, va="bottom", ha=alignment, transform=transform)
            style = {"marker": "*", "markersize": 14, "color": OWN} if family == THIS_MODEL else {"marker": marker}
            if known:
                x, y = np.array([point[:2] for point in known], float).T
                panel.plot(x, scaled(y, unit), **{"color": color, "label": family, **style})
        panel.set_xscale("log")
        label = f"average score of the linear probe ({unit_name(unit)})"
        panel.set(xlabel="GFLOPs per image", ylabel=label, title=title)
        panel.margins(0.1)
        points = [point for family in families.values() for point in family if np.isfinite(point[0])]
        label_points(panel, [(x, scaled(y, unit), name) for x, y, name in points])
        panel.legend(fontsize=8, loc="lower right", framealpha=1, edgecolor="white")
    figure.suptitle("Figure 10: linear probe scores against compute", fontsize=10)
    return figure


def _axes_x_data_y(axes):
    """Returns a transform whose x is a fraction of the axes' width, and whose y is in data units."""
    from matplotlib.transforms import blended_transform_factory

    return blended_transform_factory(axes.transAxes, axes.transData)


def probe_against_peer(
    own: Mapping[str, float], published: Mapping[str, float], peer: str, unit: str = "fraction"
) -> Any:
    """Plots figure 11: linear probe minus that of another model per dataset, as differences of `scaled` values."""
    figure, _ = bars(
        own,
        published,
        f"linear probe minus that on {peer} ({difference_name(unit)})",
        "Figure 11: linear probes on the features of two models",
    )
    return figure


def _logit(fraction):
    fraction = np.clip(np.asarray(fraction, float), 1e-3, 1 - 1e-3)
    return np.log(fraction / (1 - fraction))


def _logit_axes(axes, values):
    """Scales the axes in logits, on which standard models lie on a line, with ticks in percent, and adds y = x."""
    low, high = _logit(np.min(values)) - 0.4, _logit(np.max(values)) + 0.4
    ticks = [tick for tick in TICKS if low <= _logit(tick / 100) <= high]
    axes.plot([low, high], [low, high], color="black", linewidth=1, label="ideal robust model (y = x)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(_logit(np.array(ticks) / 100), [str(tick) for tick in ticks])
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")


def robustness(
    own: Mapping[str, Mapping[str, tuple[float, float]]],
    published: Mapping[str, Mapping[str, tuple[float, float]]],
    standard: tuple[float, float] | None = None,
) -> Any:
    """Plots figure 13: accuracy under natural distribution shift against accuracy on the reference dataset.

    `own` and `published` map a model or method to {shift: (reference accuracy, accuracy under shift)}. `standard` is
    the slope and intercept, in logits, of the line of models with standard training.
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
    left.set(xlabel="accuracy on the reference dataset (%), logit scale", ylabel="mean accuracy under shift (%)")
    right.set_yticks(range(len(shifts)), shifts, fontsize=8)
    right.set(xlabel="accuracy under shift (%)", xlim=(0, 100), ylim=(len(shifts) - 0.5, -0.5))
    right.grid(axis="x", alpha=0.3)
    left.legend(fontsize=8, frameon=False, loc="upper left")
    figure.suptitle("Figure 13: robustness to natural distribution shift", fontsize=10)
    return figure


def adaptation(own: Mapping[str, float], published: Mapping[str, float]) -> Any:
    """Plots figure 14: change in accuracy from zero-shot to a probe trained on the reference dataset, per dataset."""
    figure, _ = bars(
        own,
        published,
        "change in accuracy after adaptation to the reference dataset (percentage points)",
        "Figure 14: effect of supervised adaptation on robustness",
    )
    return figure


def few_shot_robustness(curves: Mapping[str, Sequence[tuple[float, float, float]]]) -> Any:
    """Plots figure 15: robustness from zero-shot to a probe on all labels.

    Curves: {name: [(shots, reference accuracy, accuracy under shift)]}.
    """
    figure, axes = sheet(6.4, 6)
    _logit_axes(axes, [value for curve in curves.values() for point in curve for value in point[1:]])
    labels = []
    for (name, curve), color, marker in zip(curves.items(), COLORS, MARKERS, strict=False):
        shots, x, y = zip(*curve, strict=True)
        axes.plot(_logit(x), _logit(y), color=color, marker=marker, linewidth=1, label=name)
        names = ["0" if k == 0 else "all" if not np.isfinite(k) else f"{k:g}" for k in shots]
        labels += list(zip(_logit(x), _logit(y), names, strict=True))
    axes.set(xlabel="accuracy on the reference dataset (%), logit scale", ylabel="mean accuracy under shift (%)")
    axes.set_title("Figure 15: robustness of few-shot classifiers (images per class)", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    label_points(axes, labels)
    return figure


def reliability(curves: Mapping[str, Sequence[tuple[float, float, int]]]) -> Any:
    """Plots a reliability diagram: accuracy against confidence.

    Curves: {name: [(mean confidence, accuracy, number of images) of each bin]}.
    """
    figure, axes = sheet(5, 4.6)
    axes.plot([0, 100], [0, 100], color="black", linewidth=1, linestyle="--", label="perfect calibration")
    for (name, curve), color, marker in zip(curves.items(), COLORS, MARKERS, strict=False):
        confidence, accuracy, images = np.array(curve, float).T
        axes.plot(percent(confidence), percent(accuracy), color=color, linewidth=1)
        sizes = 15 + 200 * images / images.sum()
        axes.scatter(percent(confidence), percent(accuracy), s=sizes, color=color, marker=marker, label=name)
    axes.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 102), ylim=(0, 102))
    axes.set_title("Reliability diagram (area: fraction of images)", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return figure


def confusion(counts: np.ndarray, class_names: Sequence[str]) -> Any:
    """Plots a confusion matrix (K, K): the fraction of each true class (rows) by predicted class (columns)."""
    counts = np.asarray(counts, float)
    size = min(11, 3 + 0.22 * len(counts))
    figure, axes = sheet(size + 1, size)
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(percent(fractions), cmap="Blues", vmin=0, vmax=100)
    names = [name if len(name) <= 24 else f"{name[:23]}…" for name in class_names]
    font = float(np.clip(400 / len(counts), 4, 9))
    axes.set_yticks(range(len(names)), names, fontsize=font)
    axes.set_xticks(range(len(names)), names, fontsize=font, rotation=90)
    axes.set(xlabel="predicted", ylabel="true")
    if len(names) <= 12:
        for row, column in np.ndindex(fractions.shape):
            if counts[row, column]:
                color = "white" if fractions[row, column] > 0.5 else OWN
                axes.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=8, color=color)
    figure.colorbar(image, label="fraction of the true class (%)", shrink=0.8)
    return figure
