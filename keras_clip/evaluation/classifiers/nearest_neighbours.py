"""Nearest neighbours on embeddings (Wu et al., 2018), tuned on a validation split."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from keras_clip.evaluation.classifiers.inputs import check_labels, check_split, targets_of, unit_length
from keras_clip.evaluation.classifiers.matmul import multiply, tiles
from keras_clip.evaluation.classifiers.tuning import Metric, Tuned, best_of

NEIGHBOURS, TEMPERATURES = (1, 5, 10, 20, 50, 100), (0.02, 0.07, 0.2, math.inf)


class NearestNeighbours:
    """Classifies by the votes of the most similar training images.

    Each of the `k` nearest by cosine similarity votes for its classes with weight exp((similarity - 1) / temperature)
    (Wu et al., 2018, section 3.4); with an infinite temperature all votes have equal weight.

    Args:
        k: int >= 1. Number of neighbours; all images if there are fewer.
        temperature: float > 0, or infinite.
    """

    def __init__(self, k: int = 20, temperature: float = 0.07):
        if not (k >= 1 and temperature > 0):
            raise ValueError(
                f"`k` must be at least 1 and `temperature` > 0. Received: k={k}, temperature={temperature}."
            )
        self.k, self.temperature = int(k), float(temperature)

    def fit(self, embeddings: np.ndarray, labels: np.ndarray, num_classes: int | None = None) -> "NearestNeighbours":
        """Stores the training split.

        Args:
            embeddings: (N, E).
            labels: class indices (N,), or 0, 1 and `metrics.IGNORED` (N, K).
            num_classes: int, K; None: the largest index + 1.

        Returns:
            The classifier itself.

        Raises:
            ValueError: inputs that `LinearProbe.fit` rejects.
        """
        self.keys = unit_length(embeddings)
        labels, num_classes = check_labels(labels, len(self.keys), num_classes)
        self.targets = targets_of(labels, num_classes)
        return self

    def decision_function(self, embeddings: np.ndarray) -> np.ndarray:
        """Returns votes, float64 (N, K), for embeddings (N, E)."""
        return self._votes(*self._nearest(embeddings), self.temperature)

    def _nearest(self, embeddings):
        """Returns the similarities (N, k) of the nearest images in descending order, and their indices."""
        queries, k = unit_length(embeddings), min(self.k, len(self.keys))
        parts = []
        for tile in tiles(len(queries), len(self.keys)):
            similarities = multiply(queries[tile], self.keys)
            nearest = np.sort(np.argpartition(-similarities, k - 1, axis=1)[:, :k], axis=1)
            similarities = np.take_along_axis(similarities, nearest, axis=1)
            order = np.argsort(-similarities, axis=1, kind="stable")
            parts.append([np.take_along_axis(x, order, axis=1) for x in (similarities, nearest)])
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def _votes(self, similarities, indices, temperature):
        weights = np.exp((similarities.astype("float64") - 1) / temperature)
        votes = np.zeros((len(weights), self.targets.shape[1]))
        for column in range(weights.shape[1]):
            votes += weights[:, column, None] * self.targets[indices[:, column]]
        return votes


def tune_nearest_neighbours(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    metric: Metric | None = None,
    num_classes: int | None = None,
    neighbours: Sequence[int] = NEIGHBOURS,
    temperatures: Sequence[float] = TEMPERATURES,
) -> Tuned:
    """Chooses `k` and `temperature` of `NearestNeighbours` on the validation split.

    Args:
        train: embeddings (N, E) and labels, as `NearestNeighbours.fit` takes them.
        validation: embeddings and labels of other images, never of the test split.
        metric: function of scores (N, K) and labels, where higher is better; None: `metrics.accuracy`, or
            `metrics.map_11pt` for several labels.
        num_classes: int, K; None: the largest index of the training split + 1.
        neighbours: candidates for `k`; a number above that of the images selects all of them.
        temperatures: candidates for `temperature`.

    Returns:
        A `Tuned`.

    Raises:
        ValueError: splits that do not match.
    """
    head = NearestNeighbours(max(neighbours)).fit(*train, num_classes)
    embeddings, labels = check_split(*validation, head.keys.shape[1], head.targets.shape[1])
    similarities, indices = head._nearest(embeddings)
    grid = itertools.product(neighbours, temperatures)
    scores = (
        (choice, head._votes(similarities[:, : choice[0]], indices[:, : choice[0]], choice[1])) for choice in grid
    )
    (k, temperature), score = best_of(scores, labels, metric)
    best = NearestNeighbours(k, temperature).fit(*train, num_classes)
    return Tuned(best, score, {"k": k, "temperature": temperature})
