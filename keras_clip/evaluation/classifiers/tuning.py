"""Chooses the hyperparameters of a classifier on a validation split.

A classifier is fitted on a training split, tuned on a validation split, and then scores embeddings. No function here
takes labels of a test split.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_clip.evaluation.metrics.classification import accuracy, map_11pt

# A function of scores (N, K) and labels, where higher is better.
Metric = Callable[[np.ndarray, np.ndarray], float]


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


def best_of(scores: Iterable[tuple[Any, np.ndarray]], labels: np.ndarray, metric: Metric | None) -> tuple[Any, float]:
    """Returns the first choice with the best score, given (choice, scores (N, K)) pairs, and this score."""
    metric = metric or (map_11pt if labels.ndim == 2 else accuracy)
    return max(((choice, float(metric(x, labels))) for choice, x in scores), key=lambda pair: pair[1])
