"""Plotting functions shared by the figures: empty figures, bar charts, point labels and colours.

In every figure, measured values are blue and filled; values from the paper are grey and hollow.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

OWN, SECOND, PUBLISHED = "#1f5fa8", "#c8501e", "#8a8a8a"
COLORS = (OWN, SECOND, "#3a8a4d", "#8256a8", "#b08a1e")
MARKERS = ("o", "s", "^", "D", "v")
ROW_HEIGHT = 0.2
# The label of measured values in legends.
THIS_MODEL = "this model"


def sheet(width: float, height: float, panels: int = 1) -> tuple[Any, Any]:
    """Returns an empty figure without a window or global state, and its axes (one, or an array of several).

    All of its texts are literal, so that a dollar in a name begins no formula, except the numbers of logarithmic axes.
    """
    figure = _literal_figure()(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, panels)
    for panel in np.ravel(axes):
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


@functools.cache
def _literal_figure() -> type:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    class LiteralFigure(Figure):
        """Shows texts literally, without parsing formulas. `draw` is called whenever texts are measured or shown."""

        def draw(self, renderer):
            logarithmic = [axis for axes in self.axes for axis in (axes.xaxis, axes.yaxis) if axis.get_scale() == "log"]
            numbers = {id(text) for axis in logarithmic for text in axis.findobj(Text)}
            for text in self.findobj(lambda artist: isinstance(artist, Text) and id(artist) not in numbers):
                text.set_parse_math(False)
            super().draw(renderer)

    return LiteralFigure


def bars(
    own: Mapping[str, float],
    published: Mapping[str, float],
    label: str,
    title: str,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    form: Callable[[float], str] = "{:+.1f}".format,
) -> tuple[Any, Any]:
    """Plots a bar per dataset, sorted by value; the published value is a hollow bar beside the measured one."""
    names = sorted({**published, **own}, key=lambda name: own.get(name, published.get(name)))
    shared = set(own) & set(published)
    figure, axes = sheet(7.5, 1.2 + ROW_HEIGHT * (len(names) * 1.1 + 0.5 * len(shared)))
    for values, offset in ((own, 0.2), (published, -0.2)):
        for row, name in enumerate(names):
            if name not in values:
                continue
            value = values[name]
            position, height = (row + offset, 0.36) if name in shared else (row, 0.72)
            color = (OWN if value >= 0 else SECOND) if values is own else "white"
            axes.barh([position], [value], height, color=color, edgecolor=color if values is own else PUBLISHED)
            low, high = (intervals or {}).get(name, (value, value)) if values is own else (value, value)
            if high > low:
                axes.plot([low, high], [position, position], color="black", linewidth=1, marker="|", markersize=4)
            end = max(value, high) if value >= 0 else min(value, low)
            axes.annotate(
                form(value),
                (end, position),
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
    axes.legend(handles=sources_legend(own, published), fontsize=8, loc="lower right", frameon=False)
    return figure, axes


def sources_legend(own, published):
    """Returns the legend handles of measured and published values, without those that are empty."""
    from matplotlib.patches import Patch

    handles = [Patch(color=OWN, label=THIS_MODEL)] if own else []
    return handles + ([Patch(facecolor="white", edgecolor=PUBLISHED, label="paper")] if published else [])


def label_points(axes, points: Sequence[tuple[float, float, str]], size: float = 7) -> None:
    """Writes names beside points, each at the position that overlaps least with the points and labels placed before."""
    figure = axes.figure
    figure.draw_without_rendering()
    anchors = np.array([axes.transData.transform((x, y)) for x, y, _ in points])
    unit = figure.dpi / 72 * size
    occupied = [(x - 3, y - 3, x + 3, y + 3) for x, y in anchors]
    frame = axes.bbox.bounds
    for (_, _, name), (px, py) in sorted(zip(points, anchors, strict=True), key=lambda item: item[1][0]):
        width = 0.62 * unit * len(name)
        best = None
        for dx, dy in ((1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1.3), (0, -1.3), (1, 2.2), (-1, -2.2)):
            left = px + dx * 0.8 * unit - (width if dx < 0 else width / 2 if dx == 0 else 0)
            bottom = py + (1.4 * dy - 0.7) * unit
            box = (left, bottom, left + width, bottom + 1.4 * unit)
            outside = box[0] < frame[0] or box[2] > frame[0] + frame[2] or box[1] < frame[1]
            cost = sum(_overlap(box, other) for other in occupied) + 1e6 * outside
            if best is None or cost < best[0]:
                best = (cost, box)
        box = best[1]
        occupied.append(box)
        position = axes.transData.inverted().transform((box[0], (box[1] + box[3]) / 2))
        axes.text(*position, name, fontsize=size, va="center", ha="left", color="#333333")


def _overlap(box, other):
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return max(width, 0) * max(height, 0)


def scaled(values, unit: str) -> np.ndarray:
    """Returns values as figures show them: fractions as percentages, values of another unit unchanged."""
    return (100 if unit == "fraction" else 1) * np.asarray(values, float)


def percent(values) -> np.ndarray:
    """Returns fractions as percentages."""
    return scaled(values, "fraction")


def unit_name(unit: str) -> str:
    """Returns the unit of `scaled` values for labels of axes."""
    return "%" if unit == "fraction" else unit


def difference_name(unit: str) -> str:
    """Returns the unit of differences of `scaled` values for labels of axes."""
    return "percentage points" if unit == "fraction" else unit
