"""Selects the data of each figure from `Results` and plots the figures for which there are data."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_clip.evaluation.metrics.comparison import compare_models
from keras_clip.evaluation.report import figures
from keras_clip.evaluation.report.drawing import THIS_MODEL, scaled
from keras_clip.evaluation.results import Results
from keras_clip.evaluation.studies import published, scaling
from keras_clip.evaluation.studies.robustness import SHIFT_LINES, adaptation
from keras_clip.evaluation.studies.transfer import few_shot_curve
from keras_clip.printable import printable

# The methods whose score represents zero-shot performance, in order of preference.
ZERO_SHOT = ("zero_shot/family", "zero_shot/one_template", "zero_shot/bare_name")
PROBE = "linear_probe"
# The model with whose features the paper compares CLIP's in figure 11.
PEER = "efficientnet_ns_l2_475"


def headline(results: Results, dataset: str) -> Any:
    """Returns the `Score` that represents zero-shot performance on a dataset, or None."""
    for method in ZERO_SHOT:
        for score in results.select(dataset, method):
            if score.metric != "expected_calibration_error":
                return score
    return None


def probe(results: Results, dataset: str) -> Any:
    """Returns the `Score` of the linear probe on a dataset, or None."""
    return next((s for s in results.select(dataset, PROBE) if s.metric != "expected_calibration_error"), None)


def gallery(results: Results, other: Results | None = None) -> dict[str, Any]:
    """Returns all figures for which there are results.

    Args:
        results: `Results`.
        other: `Results` of the model to compare features with in figure 11; None: the paper's EfficientNet, on the
            paper's datasets.

    Returns:
        {name: matplotlib figure}: "figure_2" ... "figure_15" as in the paper, "reliability", "confusion/<dataset>"; and
        of scores in another unit than fractions "figure_5_<unit>".
    """
    plots, results, other = {}, _printable(results), other and _printable(other)
    for name, draw in FIGURES.items():
        drawn = draw(results, other)
        drawn = drawn if isinstance(drawn, dict) else {"": drawn}
        plots |= {f"{name}{suffix}": figure for suffix, figure in drawn.items() if figure is not None}
    return plots


def _by_unit(draw: Callable) -> Callable:
    """Returns a row of `FIGURES` with a figure of the scores of each unit, since units have no common axis or mean.

    Args:
        draw: function of (results, other, unit), whose results have scores of this unit alone. Published scores are
            fractions.
    """

    @functools.wraps(draw)
    def draw_each(results, other):
        units = dict.fromkeys(score.unit for score in results.scores)
        return {
            "" if unit == "fraction" else f"_{unit}": draw(_of(results, unit), other and _of(other, unit), unit)
            for unit in units
        }

    return draw_each


def _of(results, unit):
    scores = [score for score in results.scores if score.unit == unit]
    return Results(scores, results.tables, results.info, results.failures)


def table_name(name: str) -> str:
    """Returns the name of a table as the figures of `gallery` have it.

    Args:
        name: str, such as "reliability" or "confusion/digits".

    Returns:
        str, with the name of a dataset that can be drawn.
    """
    kind, slash, dataset = name.partition("/")
    return f"{kind}/{_drawable(dataset)}" if slash else _drawable(name)


def _drawable(text: str) -> str:
    """Returns a text that figures can show: fonts have no control characters, legends hide what begins with _."""
    text = printable(text)
    return f" {text}" if text.startswith("_") else text


def _printable(results: Results) -> Results:
    """Returns the results with names that can be drawn."""

    def show(value):
        if isinstance(value, str):
            return _drawable(value)
        if isinstance(value, Mapping):
            return {show(key): show(item) for key, item in value.items()}
        return [show(item) for item in value] if isinstance(value, list | tuple) else value

    scores = [dataclasses.replace(score, dataset=show(score.dataset)) for score in results.scores]
    tables = {table_name(name): show(rows) for name, rows in results.tables.items()}
    return Results(scores, tables, show(results.info), results.failures)


def _figure_2(results, other):
    curves = {}
    for row in results.tables.get("efficiency", ()):
        curves.setdefault(row["objective"], []).append((row["images"], row["accuracy"]))
    return figures.efficiency(curves) if curves else None


def _means(results, *methods):
    """Returns the mean of each method over the datasets that have all of them, or None if there is no such dataset."""
    scores = [[next(iter(results.select(name, method)), None) for method in methods] for name in results.datasets]
    rows = [[score.value for score in row] for row in scores if None not in row]
    return np.mean(rows, axis=0) if rows else None


def _gflops(results):
    return results.info.get("gflops_per_image")


def _datasets(values):
    return f"{len(values)} dataset{'s' if len(values) != 1 else ''}"


def _model(results):
    # Of a path, the folder and the name of the file tell runs apart; all of it would cover the figure.
    return "/".join(str(results.info.get("model", THIS_MODEL)).replace("\\", "/").split("/")[-2:])


@_by_unit
def _figure_4(results, other, unit):
    means = _means(results, "zero_shot/bare_name", "zero_shot/family")
    if means is None or _gflops(results) is None:
        return None
    own = {"name": _model(results), "gflops": _gflops(results), "bare": means[0], "ensemble": means[1]}
    rows = scaling.scaling_rows({name: published.zero_shot(name) for name in scaling.RESNETS})
    paper = [{**row, "ensemble": row["score"]} for row in rows] if unit == "fraction" else []
    return figures.prompt_ensembling([own], paper, unit)


def _pairs(results):
    """Returns {dataset: (linear probe, zero-shot)} of the datasets that have both scores."""
    scores = {name: (probe(results, name), headline(results, name)) for name in results.datasets}
    return {name: (a.value, b.value) for name, (a, b) in scores.items() if a and b}


@_by_unit
def _figure_5(results, other, unit):
    pairs = _pairs(results)
    if not pairs:
        return None
    intervals = {}
    for name in pairs:
        both = probe(results, name), headline(results, name)
        if all(score.correct is not None and score.metric == "accuracy" for score in both):
            comparison = compare_models(*(score.correct for score in both))
            intervals[name] = (100 * comparison.low, 100 * comparison.high)
    own = {name: float(scaled(zero_shot - probed, unit)) for name, (probed, zero_shot) in pairs.items()}
    paper = {name: 100 * gain for name, gain in published.zero_shot_gain().items()} if unit == "fraction" else {}
    return figures.zero_shot_against_probe(own, paper, intervals, unit)


@_by_unit
def _figure_6(results, other, unit):
    try:
        curve = few_shot_curve(results.scores)
    except ValueError:  # No dataset has all numbers of shots.
        return None
    zero_shot = [score.value for name in _few_shot_datasets(results) if (score := headline(results, name))]
    points = {"linear probe": [(k, mean) for k, mean, _, _ in curve]}
    return figures.few_shot(points, {"zero-shot": float(np.mean(zero_shot))} if zero_shot else None, unit)


def _few_shot_datasets(results):
    return list(dict.fromkeys(score.dataset for score in results.select(method="few_shot")))


def _figure_7(results, other):
    own = {row["dataset"]: _number(row["shots"]) for row in results.tables.get("shots_to_match", ())}
    return figures.data_efficiency(own, published.shots_to_match()) if own else None


def _number(shots):
    """Returns the number of shots as a float; JSON stores infinity as null."""
    return math.inf if shots is None else float(shots)


@_by_unit
def _figure_8(results, other, unit):
    pairs = _pairs(results)
    if not pairs:
        return None
    zero_shot, probes = published.zero_shot(), published.linear_probe()
    paper = {name: (probes[name], zero_shot[name]) for name in zero_shot} if unit == "fraction" else {}
    return figures.correlation(pairs, paper, unit)


def _figure_9(results, other):
    # An error is the complement of a fraction.
    results = _of(results, "fraction")
    values = [headline(results, name).value for name in results.datasets if headline(results, name)]
    if not values or _gflops(results) is None:
        return None
    tables = [published.zero_shot(model) for model in scaling.RESNETS]
    errors = {dataset: [1 - table[dataset] for table in tables] for dataset in published.datasets()}
    compute = [scaling.gflops_per_image(model) for model in scaling.RESNETS]
    own = {f"{_model(results)}, {_datasets(values)}": (_gflops(results), 1 - float(np.mean(values)))}
    return figures.zero_shot_scaling(compute, errors, own)


@_by_unit
def _figure_10(results, other, unit):
    values = [probe(results, name).value for name in results.datasets if probe(results, name)]
    if not values or _gflops(results) is None:
        return None
    own = (_gflops(results), float(np.mean(values)), f"{_model(results)}, {_datasets(values)}")
    if unit != "fraction":
        return figures.probe_scaling({f"{_datasets(values)} in {unit}": {THIS_MODEL: [own]}}, unit)
    panels = {}
    for suite, title in (("kornblith12", "12 datasets of Kornblith et al."), ("all", "27 datasets")):
        tables = {model: published.linear_probe(model) for model in published.models("linear_probe")}
        rows = scaling.scaling_rows(tables, published.datasets(suite))
        points = {row["name"]: (row["gflops"], row["score"], row["name"]) for row in rows}
        panels[title] = {
            "CLIP ResNets (paper)": [points.pop(name) for name in scaling.RESNETS],
            "CLIP ViTs (paper)": [points.pop(name) for name in scaling.VISION_TRANSFORMERS],
            "other models (paper)": list(points.values()),
            THIS_MODEL: [own],
        }
    return figures.probe_scaling(panels, unit)


@_by_unit
def _figure_11(results, other, unit):
    own = {name: probe(results, name).value for name in results.datasets if probe(results, name)}
    peers = published.linear_probe(PEER) if unit == "fraction" else {}
    published_probe = published.linear_probe() if unit == "fraction" else {}
    paper = {name: 100 * (value - peers[name]) for name, value in published_probe.items()}
    if other is not None:
        peers = {name: probe(other, name).value for name in other.datasets if probe(other, name)}
    gain = {name: float(scaled(value - peers[name], unit)) for name, value in own.items() if name in peers}
    peer = PEER if other is None else f"{_model(other)} (paper: {PEER})"
    return figures.probe_against_peer(gain, paper, peer, unit) if gain else None


def _by_method(rows) -> dict[str, dict[str, tuple[float, float]]]:
    """Returns {method: {shift: (reference accuracy, accuracy under shift)}}, averaged over few-shot seeds."""
    accuracies: dict[str, dict[str, list]] = {}
    for row in rows:
        pair = (row["reference_accuracy"], row["accuracy"])
        accuracies.setdefault(row["method"], {}).setdefault(row["shift"], []).append(pair)
    return {
        method: {shift: tuple(np.mean(pairs, axis=0).tolist()) for shift, pairs in shifts.items()}
        for method, shifts in accuracies.items()
    }


def _figure_13(results, other):
    rows = results.tables.get("robustness", ())
    methods = _by_method(rows)
    if not methods:
        return None
    paper = {}
    for model in ("resnet101", "zero_shot_clip"):
        accuracies = dict(published.robustness_matched(model))
        imagenet = accuracies.pop("ImageNet")
        paper[model] = {shift: (imagenet, accuracy) for shift, accuracy in accuracies.items()}
    line = SHIFT_LINES.get(rows[0]["shift"]) if len({row["shift"] for row in rows}) == 1 else None
    standard = (line.slope, line.intercept) if line else None
    shown = {method: shifts for method, shifts in methods.items() if not method.startswith("few_shot")}
    return figures.robustness(shown, paper, standard)


def _figure_14(results, other):
    rows = results.tables.get("robustness", ())
    methods = _by_method(rows)
    zero_shot = _zero_shot_of(methods)
    if not zero_shot or PROBE not in methods:
        return None
    changes = _changes(methods[zero_shot], methods[PROBE], rows[0]["reference"])
    return figures.adaptation(changes, _published_adaptation())


def _figure_15(results, other):
    methods = _by_method(results.tables.get("robustness", ()))
    zero_shot = _zero_shot_of(methods)
    if not zero_shot or len(methods) < 2:
        return None
    return figures.few_shot_robustness({"probe": _path(methods, zero_shot)})


def _zero_shot_of(methods):
    """Returns the name of the method that represents zero-shot, or None."""
    return next((method for method in ZERO_SHOT if method in methods), None)


def _changes(before, after, reference):
    """Returns {reference or shift: difference in accuracy between `after` and `before`, in percentage points}."""
    shifts = [shift for shift in before if shift in after]
    changes = {shift: 100 * (after[shift][1] - before[shift][1]) for shift in shifts}
    gain = np.mean([after[shift][0] - before[shift][0] for shift in shifts])
    return {reference: 100 * float(gain), **changes}


def _published_adaptation() -> Mapping[str, float]:
    changes = adaptation(published.robustness("zero_shot_clip"), published.robustness("linear_probe_clip"))
    return {name: 100 * change for name, change in changes.items()}


def _path(methods, zero_shot):
    """Returns (shots, reference accuracy, mean accuracy under shift) from 0 shots (zero-shot) to inf (all labels)."""
    shots = {0.0: zero_shot, **{float(m.rsplit("/", 1)[1]): m for m in methods if m.startswith("few_shot/")}}
    if PROBE in methods:
        shots[math.inf] = PROBE
    return [(k, *np.mean(list(methods[shots[k]].values()), axis=0).tolist()) for k in sorted(shots)]


def _reliability(results, other):
    curves: dict[str, list] = {}
    for row in results.tables.get("reliability", ()):
        point = (row["confidence"], row["accuracy"], row["images"])
        curves.setdefault(f"{row['dataset']}, {row['method']}", []).append(point)
    return figures.reliability(curves) if curves else None


def _confusion(results, other):
    plots = {}
    for table, rows in results.tables.items():
        if table.startswith("confusion/") and rows:
            dataset = table.removeprefix("confusion/")
            names = list(dict.fromkeys(results.info["class_names"][dataset]))
            counts = np.zeros((len(names), len(names)))
            for row in rows:
                counts[names.index(row["true"]), names.index(row["predicted"])] = row["images"]
            plots[dataset] = figures.confusion(counts, names)
    return plots


# One row a figure: its name, and a function of (results, other) that selects its numbers and returns the figure, or
# None if the results lack them. A function may also return several figures, {suffix of the name: figure}: one for each
# dataset, if the name ends in a slash, or for each unit (`_by_unit`).
FIGURES = {
    "figure_2": _figure_2,
    "figure_4": _figure_4,
    "figure_5": _figure_5,
    "figure_6": _figure_6,
    "figure_7": _figure_7,
    "figure_8": _figure_8,
    "figure_9": _figure_9,
    "figure_10": _figure_10,
    "figure_11": _figure_11,
    "figure_13": _figure_13,
    "figure_14": _figure_14,
    "figure_15": _figure_15,
    "reliability": _reliability,
    "confusion/": _confusion,
}
