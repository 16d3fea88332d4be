"""The part `few_shot` of an evaluation."""

import numpy as np

from keras_clip.evaluation import metrics
from keras_clip.evaluation.classifiers.few_shot import shots_to_match
from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.parts.part import TRAIN_OF_ONE_CLASS, Part, has_train_of_one_class


def run(case: Case) -> None:
    """Adds scores of few-shot linear probes, and the number of shots that match zero-shot."""
    test, curve = case.splits.test, {}
    for probe in case.few_shot:
        scores = probe.scores[: len(test)]
        value = float(metrics.METRICS[case.task.metric](scores, test.labels))
        per_class = probe.shots or len(case.splits.train) / len(test.class_names)
        curve.setdefault(per_class, []).append(value)
        if probe.shots is not None:
            details = {"seed": probe.seed, "C": probe.C, "images": probe.images}
            case.add(f"few_shot/{probe.shots}", scores, case.trained_protocol(case.splits.train), **details)
    means = {per_class: float(np.mean(values)) for per_class, values in curve.items()}
    scores = case.zero_shot(test)
    matched = shots_to_match(means, float(metrics.METRICS[case.task.metric](scores, test.labels)))
    row = {"dataset": case.name, "shots": matched.shots, "censored": matched.censored}
    row |= {"crossings": list(matched.crossings), "largest": max(means)}
    case.results.tables.setdefault("shots_to_match", []).append(row)


PART = Part("few_shot", TRAIN_OF_ONE_CLASS, has_train_of_one_class, run, tables=("shots_to_match",))
