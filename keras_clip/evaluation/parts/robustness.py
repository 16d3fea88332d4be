"""The part `robustness` of an evaluation."""

from collections.abc import Callable, Iterator

import numpy as np

from keras_clip.evaluation import metrics
from keras_clip.evaluation.features.store import FeatureStore
from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.parts.part import Part, ReportTable
from keras_clip.evaluation.studies.robustness import (
    SHIFT_LINES,
    effective_robustness,
    effective_robustness_interval,
    pool_classes,
    restrict_to_classes,
)


def run(case: Case) -> None:
    """Adds the accuracy on each distribution shift, and on the test images of the same classes as the reference."""
    rows = case.results.tables.setdefault("robustness", [])
    for method, training, details, scores_of in _classifiers(case):
        reference = scores_of(case.splits.test)
        for name, shift in case.splits.shifts.items():
            members = case.members(name)
            shifted = pool_classes(scores_of(shift), members)
            restricted, labels = _restricted(reference, case.splits.test.labels, members)
            score = metrics.METRICS["accuracy"].measure(
                shifted,
                shift.labels,
                name,
                f"shift/{method}",
                case.protocol(f"shift {shift.name}/{shift.split}, {len(members)} classes", *training),
                published=case.task.published.get(f"{name}/{method}"),
                # Two datasets may have a shift of one name.
                details={"reference": case.name, **details},
                examples=shift.examples,
            )
            case.results.add(score)
            pair = metrics.accuracy(restricted, labels), score.value
            row = {"reference": case.name, "shift": name, "method": method, **details, "n": len(shift)}
            row |= {"reference_accuracy": pair[0], "accuracy": pair[1], "low": score.low, "high": score.high}
            if name in SHIFT_LINES and 0 < pair[0] < 1:
                row["effective_robustness"] = effective_robustness(name, *pair)
                counts = [(round(pair[0] * len(labels)), len(labels)), (round(pair[1] * len(shift)), len(shift))]
                bounds = effective_robustness_interval(name, *counts)
                row |= {"effective_robustness_low": bounds[0], "effective_robustness_high": bounds[1]}
            rows.append(row)


def _restricted(scores, labels, members):
    """The scores (M, J) and labels (M,) of the test images whose class one of J groups of classes covers."""
    covered = [column for group in members for column in group]
    restricted, labels, _ = restrict_to_classes(scores, labels, covered)
    group_of = np.repeat(np.arange(len(members)), [len(group) for group in members])
    places = np.split(np.arange(len(covered)), np.cumsum([len(group) for group in members])[:-1])
    return pool_classes(restricted, places), group_of[labels]


def _classifiers(case: Case) -> Iterator[tuple[str, tuple, dict, Callable[[FeatureStore], np.ndarray]]]:
    """Yields the method, how it was trained, details, and a function of a store that returns its scores.

    The methods are zero-shot and, with `train`, the probes.
    """
    yield "zero_shot/family", (), {}, case.zero_shot
    if case.splits.train is None:
        return
    for few_shot in case.few_shot:
        if few_shot.shots is not None:
            details = {"seed": few_shot.seed}
            yield f"few_shot/{few_shot.shots}", case.training_of(few_shot), details, _scores_of(few_shot.probe)
    probe = case.probe.probe
    yield "linear_probe", case.training_of_probe, {"C": probe.C}, _scores_of(probe)


def _scores_of(probe):
    return lambda store: probe.decision_function(store.features)


PART = Part(
    "robustness",
    "`shifts`",
    lambda splits, _: bool(splits.shifts),
    run,
    tables=(ReportTable("robustness", "Robustness"),),
)
