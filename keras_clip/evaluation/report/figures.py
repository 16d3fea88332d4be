"""The figures of the paper's section 3, own values beside the published ones: plain numbers in, matplotlib figures out.

Own values are blue and filled, the paper's are grey and hollow, in every figure. `gallery` fills them from `Results`.
Shares are drawn as percentages.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_clip.evaluation.metrics.intervals import fit_line
from keras_clip.evaluation.report.drawing import (
    COLORS,
    MARKERS,
    OWN,
    PUBLISHED,
    SECOND,
    bars,
    label_points,
    percent,
    sheet,
    sources_legend,
)
from keras_clip.evaluation.studies.scaling import fit_power_law

TICKS = (1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99)


def efficiency(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Any:
    """Figure 2: zero-shot accuracy against the images seen in training, one curve for each training objective."""
    figure, axes = sheet(6, 4.2)
    for (name, curve), color, marker in zip(curves.items(), COLORS, MARKERS, strict=False):
        images, accuracy = np.array(sorted(curve), float).T
        axes.plot(images, percent(accuracy), color=color, marker=marker, label=name)
    axes.set_xscale("log")
    axes.set(xlabel="images seen in training", ylabel="zero-shot accuracy (%)", ylim=(0, None))
    axes.set_title("Figure 2: how fast each objective learns to transfer", fontsize=10)
    axes.legend(fontsize=8, frameon=False)
    return figure


def prompt_ensembling(own: Sequence[Mapping[str, Any]], published: Sequence[Mapping[str, Any]]) -> Any:
    """Figure 4: bare class names against prompts, by compute. Rows: "name", "gflops", "bare" and "ensemble"."""
    figure, axes = sheet(6, 4.2)
    if published:
        x, y = [row["gflops"] for row in published], [row["ensemble"] for row in published]
        axes.plot(x, percent(y), "o--", color=PUBLISHED, mfc="white", label="paper: prompts, mean of its 27 sets")
    rows = sorted(own, key=lambda row: row["gflops"])
    x = [row["gflops"] for row in rows]
    for key, label, color, marker in (
        ("ensemble", "here: prompts", OWN, "o"),
        ("bare", "here: bare names", SECOND, "s"),
    ):
        axes.plot(x, percent([row[key] for row in rows]), marker=marker, color=color, label=label)
    for row in rows:
        axes.annotate(
            f"{100 * (row['ensemble'] - row['bare']):+.1f}",
            (row["gflops"], 50 * (row["ensemble"] + row["bare"])),
            xytext=(7, 0),
            textcoords="offset points",
            fontsize=8,
            va="center",
        )
    axes.set_xscale("log")
    axes.set(xlabel="GFLOPs per image", ylabel="average score (%)")
    axes.set_title("Figure 4: what prompts and their ensemble bring", fontsize=10)
    _label_models(axes, [*rows, *published], "ensemble")
    axes.legend(fontsize=8, frameon=False)
    return figure


def _label_models(axes, rows, key):
    axes.margins(0.12)
    label_points(axes, [(row["gflops"], 100 * row[key], row["name"]) for row in rows])


def zero_shot_against_probe(
    own: Mapping[str, float],
    published: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> Any:
    """Figure 5: zero-shot minus a fully supervised linear probe, in points, by data set."""
    figure, _ = bars(
        own,
        published,
        "points by which zero-shot is ahead of the linear probe",
        "Figure 5: zero-shot against full supervision\n(paper: CLIP ViT-L/14@336px against a ResNet-50's features)",
        intervals,
    )
    return figure


def few_shot(curves: Mapping[str, Sequence[tuple[float, float]]], zero_shot: Mapping[str, float] | None = None) -> Any:
    """Figure 6: average score against labelled images per class, and zero-shot, which needs none, as a star at 0."""
    figure, axes = sheet(6, 4.2)
    shots = sorted({k for curve in curves.values() for k, _ in curve})
    for (name, curve), color, marker in zip(curves.items(), COLORS, MARKERS, strict=False):
        k, score = np.array(sorted(curve), float).T
        places = [shots.index(number) + 1 for number in k]
        axes.plot(places, percent(score), color=color, marker=marker, label=name)
    for (name, score), color in zip((zero_shot or {}).items(), COLORS, strict=False):
        axes.plot([0], [100 * score], "*", markersize=14, color=color, label=name)
        axes.axhline(100 * score, color=color, linestyle=":", linewidth=1)
    axes.set_xticks(range(len(shots) + 1), ["0", *(f"{k:g}" for k in shots)])
    axes.set(xlabel="labelled images per class", ylabel="average score (%)")
    axes.set_title("Figure 6: zero-shot against few-shot heads", fontsize=10)
    axes.legend(fontsize=8, frameon=False)
    return figure


def data_efficiency(own: Mapping[str, float], published: Mapping[str, float], largest: float = 256) -> Any:
    """Figure 7: labelled images per class that the probe needs to match zero-shot.

    Below one it is given as 0.9, and where no number of images in the training set is enough as infinite, which is
    drawn as `largest`.
    """
    shown = {name: min(k, largest) for name, k in own.items()}
    figure, axes = bars(
        shown,
        published,
        "labelled images per class to match zero-shot",
        "Figure 7: what zero-shot is worth in labelled images",
        form=lambda k: f"{k:.1f}" if k < largest else f"{largest:g} or more",
    )
    finite = [k for k in own.values() if np.isfinite(k)]
    for values, color, name in ((finite, OWN, "here"), (list(published.values()), PUBLISHED, "paper")):
        if values:
            for average, style, line in (("mean", "--", np.mean(values)), ("median", ":", np.median(values))):
                label = f"{name}: {average} {line:.1f}"
                axes.axvline(line, color=color, linestyle=style, linewidth=1, label=label, zorder=0)
    lines, _ = axes.get_legend_handles_labels()
    axes.legend(handles=[*sources_legend(own, published), *lines], fontsize=8, loc="lower right", frameon=False)
    return figure


def correlation(own: Mapping[str, tuple[float, float]], published: Mapping[str, tuple[float, float]]) -> Any:
    """Figure 8: zero-shot against linear probe score, a point for each data set: (probe, zero-shot)."""
    figure, axes = sheet(6.8, 6.4)
    axes.plot([0, 100], [0, 100], color="black", linestyle="--", linewidth=1, label="equal")
    for values, style, name in (
        (published, {"color": PUBLISHED, "mfc": "white"}, "paper"),
        (own, {"color": OWN}, "here"),
    ):
        if not values:
            continue
        probe, zero_shot = percent(list(values.values())).T
        label = f"{name}, {len(values)} sets"
        if len(values) > 2 and np.ptp(probe) and np.ptp(zero_shot):
            label += f", r = {fit_line(probe, zero_shot).r:.2f}"
        axes.plot(probe, zero_shot, "o", markersize=5, label=label, **style)
    everything = [(100 * x, 100 * y, name) for values in (published, own) for name, (x, y) in values.items()]
    lowest = min(min(x, y) for x, y, _ in everything)
    axes.set(xlim=(max(0, lowest - 5), 102), ylim=(max(0, lowest - 5), 102))
    axes.set(xlabel="linear probe (%)", ylabel="zero-shot (%)")
    axes.set_title("Figure 8: zero-shot goes with the quality of the features", fontsize=10)
    axes.legend(fontsize=8, loc="upper left", frameon=False)
    label_points(axes, everything)
    return figure


def zero_shot_scaling(
    gflops: Sequence[float], errors: Mapping[str, Sequence[float]], own: Mapping[str, tuple[float, float]]
) -> Any:
    """Figure 9: zero-shot error against compute, both axes logarithmic.

    Faint lines are data sets, the strong one their mean with its log-log fit and 95 % interval, of at least three
    models; own models are stars: (GFLOPs, error).
    """
    figure, axes = sheet(6.4, 4.8)
    if errors:
        order = np.argsort(gflops)
        x = np.asarray(gflops, float)[order]
        # No error at all has no place on a logarithmic axis.
        table = np.maximum(np.array(list(errors.values()), float)[:, order], 1e-3)
        for row in table:
            axes.plot(x, percent(row), color=PUBLISHED, alpha=0.3, linewidth=0.8)
        mean = table.mean(axis=0)
        axes.plot(x, percent(mean), "o", color=PUBLISHED, label=f"paper: mean of {len(table)} sets")
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
    axes.set_title("Figure 9: zero-shot error falls with compute", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    return figure


def probe_scaling(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, str]]]]) -> Any:
    """Figure 10: linear probe score against compute, a panel for each group of data sets.

    Panels: {title: {family of models: [(GFLOPs per image, score, name of the model)]}}. The family "here" is drawn as
    stars, one that has no compute (NaN) as a line across.
    """
    figure, axes = sheet(6.2 * len(panels), 4.8, len(panels))
    for one, (title, families) in zip(np.ravel(axes), panels.items(), strict=True):
        for (family, points), color, marker in zip(families.items(), COLORS, MARKERS, strict=False):
            known = sorted(point for point in points if np.isfinite(point[0]))
            for i, (_, score, name) in enumerate(
                sorted((p for p in points if not np.isfinite(p[0])), key=lambda p: p[1])
            ):
                one.axhline(100 * score, color=PUBLISHED, linestyle=":", linewidth=1)
                # Neighbours at opposite ends, so that names of close scores do not cover each other.
                place, side = ((0.01, "left"), (0.99, "right"))[i % 2]
                one.text(place, 100 * score, name, fontsize=7, va="bottom", ha=side, transform=_across(one))
            style = {"marker": "*", "markersize": 14, "color": OWN} if family == "here" else {"marker": marker}
            if known:
                x, y = np.array([point[:2] for point in known], float).T
                one.plot(x, percent(y), **{"color": color, "label": family, **style})
        one.set_xscale("log")
        one.set(xlabel="GFLOPs per image", ylabel="average score of the linear probe (%)", title=title)
        one.margins(0.1)
        points = [point for family in families.values() for point in family if np.isfinite(point[0])]
        label_points(one, [(x, 100 * y, name) for x, y, name in points])
        one.legend(fontsize=8, loc="lower right", framealpha=1, edgecolor="white")
    figure.suptitle("Figure 10: linear probes against compute", fontsize=10)
    return figure


def _across(axes):
    from matplotlib.transforms import blended_transform_factory

    return blended_transform_factory(axes.transAxes, axes.transData)


def probe_against_peer(own: Mapping[str, float], published: Mapping[str, float], peer: str) -> Any:
    """Figure 11: the linear probe's lead over one on another model's features, in points, by data set."""
    figure, _ = bars(
        own,
        published,
        f"points by which the probe is ahead of one on {peer}",
        "Figure 11: whose features serve a linear probe better",
    )
    return figure


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
    axes.set(xlabel="predicted", ylabel="true")
    if len(names) <= 12:
        for row, column in np.ndindex(shares.shape):
            if counts[row, column]:
                color = "white" if shares[row, column] > 0.5 else OWN
                axes.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=8, color=color)
    figure.colorbar(shown, label="share of the class's images (%)", shrink=0.8)
    return figure
