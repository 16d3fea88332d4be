"""Chooses the hyperparameters of a classifier on a validation split.

A classifier is fitted on a training split, tuned on a validation split, and then scores embeddings. No function here
takes labels of a test split.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_clip.evaluation.metrics.classification import METRICS, accuracy, map_11pt
from keras_clip.evaluation.metrics.metric import MEAN

# A function of scores (N, K) and labels, where higher is better.
Metric = Callable[[np.ndarray, np.ndarray], float]
# Elements of a block of scores (32 MiB of float64).
BLOCK_AREA = 2**22
# The metrics that are a mean over the images, by their functions: they can be computed block by block.
_MEANS = {metric.score: metric for metric in METRICS.values() if metric.statistic is MEAN}


@dataclass(frozen=True)
class Tuned:
    """The best classifier of a grid search.

    Args:
        head: `NearestNeighbours`, `TipAdapter` or `WiseFT`.
        score: float. Its metric on the validation split.
        choices: {hyperparameter: value}; the first of equally good ones in the grid.
    """

    head: Any
    score: float
    choices: dict[str, float]


def row_blocks(rows: int, num_classes: int) -> list[slice]:
    """Splits the rows of scores (N, K) into blocks of bounded memory."""
    size = max(1, BLOCK_AREA // num_classes)
    return [slice(start, min(rows, start + size)) for start in range(0, rows, size)]


def metric_of_choices(
    scores_of: Callable[[slice], Iterable[tuple[Hashable, np.ndarray]]],
    labels: np.ndarray,
    num_classes: int,
    metric: Metric | None = None,
) -> dict[Hashable, float]:
    """Returns the metric of each choice of hyperparameters.

    Means over images, such as the accuracy, are computed block by block, so that the scores of all images are never in
    memory at once. Other metrics get all scores of one choice.

    Args:
        scores_of: function of a slice of the images that returns (choice, scores (n, K)) pairs.
        labels: (N,) or (N, K).
        num_classes: int, K.
        metric: function of scores and labels; None: `metrics.accuracy`, or `metrics.map_11pt` for several labels.

    Returns:
        {choice: metric}, in the order of the choices.
    """
    metric = metric or (map_11pt if labels.ndim == 2 else accuracy)
    mean = _MEANS.get(getattr(metric, "score", metric)) if labels.ndim == 1 else None
    if mean is None:
        return {choice: float(metric(scores, labels)) for choice, scores in scores_of(slice(0, len(labels)))}
    outcomes_of, outcomes = mean.outcomes or mean.correct, {}
    for rows in row_blocks(len(labels), num_classes):
        for choice, scores in scores_of(rows):
            if not rows.start:
                metric(scores, labels[rows])  # It raises an error where it is undefined, as for too few classes.
            outcomes.setdefault(choice, []).append(outcomes_of(scores, labels[rows]))
    return {choice: float(np.concatenate(parts).mean()) for choice, parts in outcomes.items()}


def best_of(
    scores_of: Callable[[slice], Iterable[tuple[Hashable, np.ndarray]]],
    labels: np.ndarray,
    num_classes: int,
    metric: Metric | None,
) -> tuple[Hashable, float]:
    """Returns the first choice with the best metric, and this metric; its arguments are `metric_of_choices`'s."""
    found = metric_of_choices(scores_of, labels, num_classes, metric)
    return max(found.items(), key=lambda pair: pair[1])
