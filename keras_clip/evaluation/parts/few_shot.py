"""The part `few_shot` of an evaluation."""

import numpy as np

from keras_clip.evaluation import metrics
from keras_clip.evaluation.classifiers.few_shot import shots_to_match
from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.parts.part import TRAIN_OF_ONE_CLASS, Part, ReportTable, has_train_of_one_class


def run(case: Case) -> None:
    """Adds scores of few-shot linear probes, and the number of shots that match zero-shot."""
    test, labels, curve = case.splits.test, case.splits.train.labels, {}
    counts = np.bincount(labels, minlength=len(test.class_names))
    unequal = counts.min() != counts.max()
    for probe in case.few_shot:
        # A curve needs a number for all images: their mean number per class.
        curve.setdefault(probe.shots or len(labels) / len(test.class_names), []).append(probe.value)
        details = {"seed": probe.seed, "C": probe.C, "images": probe.images}
        if probe.shots is None and not unequal:
            details["images_per_class"] = int(counts[0])
        case.add(f"few_shot/{probe.shots or 'all'}", probe.scores, case.protocol(*case.training_of(probe)), **details)
    means = {per_class: float(np.mean(values)) for per_class, values in curve.items()}
    if len(means) < 2:  # A class has so few images that the smallest number of shots is all of them.
        return
    scores = case.zero_shot(test)
    matched = shots_to_match(means, float(metrics.METRICS[case.task.metric](scores, test.labels)))
    row = {"dataset": case.name, "shots": matched.shots, "censored": matched.censored}
    row |= {"crossings": list(matched.crossings), "largest": max(means)}
    case.results.tables.setdefault("shots_to_match", []).append(row)


PART = Part(
    "few_shot",
    TRAIN_OF_ONE_CLASS,
    has_train_of_one_class,
    run,
    tables=(
        ReportTable(
            "shots_to_match",
            "Shots needed to match zero-shot",
            "Labelled images per class with which a linear probe on the same features reaches the zero-shot score "
            "(figure 7).",
        ),
    ),
)
