"""The part `few_shot` of an evaluation."""

import numpy as np

from keras_clip.evaluation import metrics
from keras_clip.evaluation.classifiers.few_shot import shots_to_match
from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.parts.part import TRAIN_OF_ONE_CLASS, Part, has_train_of_one_class


def run(case: Case) -> None:
    """Probes on few images per class, and how many of these zero-shot is worth."""
    test, curve = case.splits.test, {}
    for found in case.few_shot:
        scores = found.scores[: len(test)]
        value = float(metrics.METRICS[case.task.metric](scores, test.labels))
        per_class = found.shots or len(case.splits.train) / len(test.class_names)
        curve.setdefault(per_class, []).append(value)
        if found.shots is not None:
            details = {"seed": found.seed, "C": found.C, "images": found.images}
            case.add(f"few_shot/{found.shots}", scores, case.trained_protocol(case.splits.train), **details)
    means = {per_class: float(np.mean(values)) for per_class, values in curve.items()}
    scores = case.zero_shot(test)
    matched = shots_to_match(means, float(metrics.METRICS[case.task.metric](scores, test.labels)))
    row = {"dataset": case.name, "shots": matched.shots, "censored": matched.censored}
    row |= {"crossings": list(matched.crossings), "largest": max(means)}
    case.results.tables.setdefault("shots_to_match", []).append(row)


PART = Part("few_shot", TRAIN_OF_ONE_CLASS, has_train_of_one_class, run, tables=("shots_to_match",))
