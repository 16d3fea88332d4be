"""The figures of the paper's section 3, own values beside the published ones: plain numbers in, matplotlib figures out.

Own values are blue and filled, the paper's are grey and hollow, in every figure. `gallery` fills them from `Results`.
Shares are drawn as percentages.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_clip.evaluation.metrics.intervals import fit_line
from keras_clip.evaluation.studies.scaling import fit_power_law

OWN, SECOND, PUBLISHED = "#1f5fa8", "#c8501e", "#8a8a8a"
COLORS = (OWN, SECOND, "#3a8a4d", "#8256a8", "#b08a1e")
MARKERS = ("o", "s", "^", "D", "v")
ROW_HEIGHT = 0.2


def sheet(width: float, height: float, panels: int = 1) -> tuple[Any, Any]:
    """An empty figure that needs no window and no global state, and its axes (one, or an array of several)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, panels)
    for one in np.ravel(axes):
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def bars(
    own: Mapping[str, float],
    published: Mapping[str, float],
    label: str,
    title: str,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    form: Callable[[float], str] = "{:+.1f}".format,
) -> tuple[Any, Any]:
    """Bars of data sets, largest first, the published value of each as a hollow bar beside the own one."""
    names = sorted({**published, **own}, key=lambda name: own.get(name, published.get(name)))
    shared = set(own) & set(published)
    figure, axes = sheet(7.5, 1.2 + ROW_HEIGHT * (len(names) * 1.1 + 0.5 * len(shared)))
    for values, side in ((own, 0.2), (published, -0.2)):
        for row, name in enumerate(names):
            if name not in values:
                continue
            value = values[name]
            place, height = (row + side, 0.36) if name in shared else (row, 0.72)
            color = (OWN if value >= 0 else SECOND) if values is own else "white"
            axes.barh([place], [value], height, color=color, edgecolor=color if values is own else PUBLISHED)
            low, high = (intervals or {}).get(name, (value, value)) if values is own else (value, value)
            if high > low:
                axes.plot([low, high], [place, place], color="black", linewidth=1, marker="|", markersize=4)
            end = max(value, high) if value >= 0 else min(value, low)
            axes.annotate(
                form(value),
                (end, place),
                xytext=(3 if value >= 0 else -3, 0),
                textcoords="offset points",
                ha="left" if value >= 0 else "right",
                va="center",
                fontsize=7,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.margins(x=0.12)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel=label)
    axes.set_title(title, fontsize=10)
    axes.legend(handles=_sources(own, published), fontsize=8, loc="lower right", frameon=False)
    return figure, axes


def _sources(own, published):
    from matplotlib.patches import Patch

    handles = [Patch(color=OWN, label="here")] if own else []
    return handles + ([Patch(facecolor="white", edgecolor=PUBLISHED, label="paper")] if published else [])


def label_points(axes, points: Sequence[tuple[float, float, str]], size: float = 7) -> None:
    """Names beside points, each on the side where it covers least of what is there already."""
    figure = axes.figure
    figure.draw_without_rendering()
    anchors = np.array([axes.transData.transform((x, y)) for x, y, _ in points])
    unit = figure.dpi / 72 * size
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in anchors]
    frame = axes.bbox.bounds
    for (_, _, name), (px, py) in sorted(zip(points, anchors, strict=True), key=lambda item: item[1][0]):
        width = 0.62 * unit * len(name)
        best = None
        for dx, dy in ((1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1.3), (0, -1.3), (1, 2.2), (-1, -2.2)):
            left = px + dx * 0.8 * unit - (width if dx < 0 else width / 2 if dx == 0 else 0)
            bottom = py + (1.4 * dy - 0.7) * unit
            box = (left, bottom, left + width, bottom + 1.4 * unit)
            outside = box[0] < frame[0] or box[2] > frame[0] + frame[2] or box[1] < frame[1]
            cost = sum(_overlap(box, other) for other in taken) + 1e6 * outside
            if best is None or cost < best[0]:
                best = (cost, box)
        box = best[1]
        taken.append(box)
        at = axes.transData.inverted().transform((box[0], (box[1] + box[3]) / 2))
        axes.text(*at, name, fontsize=size, va="center", ha="left", color="#333333")


def _overlap(box, other):
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return max(width, 0) * max(height, 0)


def percent(values) -> np.ndarray:
    """Shares as percentages."""
    return 100 * np.asarray(values, float)


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
    axes.legend(handles=[*_sources(own, published), *lines], fontsize=8, loc="lower right", frameon=False)
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
