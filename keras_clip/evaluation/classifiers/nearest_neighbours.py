"""Nearest neighbours on embeddings (Wu et al., 2018), tuned on a validation split."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from keras_clip.evaluation.classifiers.inputs import (
    check_features,
    check_labels,
    check_split,
    key_blocks,
    normalised,
)
from keras_clip.evaluation.classifiers.matmul import multiply
from keras_clip.evaluation.classifiers.tuning import Metric, Tuned, best_of, row_blocks

NEIGHBOURS, TEMPERATURES = (1, 5, 10, 20, 50, 100), (0.02, 0.07, 0.2, math.inf)
# Queries for which the training split is read once, and those of them whose similarities are in memory at a time.
_QUERIES_PER_PASS, _QUERIES = 16384, 1024


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
        """Refers to the training split, which is not copied and may be memory-mapped.

        Args:
            embeddings: (N, E).
            labels: class indices (N,), or 0, 1 and `metrics.IGNORED` (N, K).
            num_classes: int, K; None: the largest index + 1.

        Returns:
            The classifier itself.

        Raises:
            ValueError: inputs that `LinearProbe.fit` rejects.
        """
        self.keys = check_features(embeddings)
        self.labels, self.num_classes = check_labels(labels, len(self.keys), num_classes)
        return self

    def decision_function(self, embeddings: np.ndarray) -> np.ndarray:
        """Returns votes, float64 (N, K), for embeddings (N, E)."""
        similarities, indices = self._nearest(embeddings)
        votes = np.empty((len(similarities), self.num_classes))
        for rows in row_blocks(*votes.shape):
            votes[rows] = self._votes(similarities[rows], indices[rows], self.temperature)
        return votes

    def _nearest(self, embeddings):
        """Returns the similarities (N, k) of the nearest images in descending order, and their indices.

        Of equally similar images, the first ones in the training split are the nearest.
        """
        queries, k = check_features(embeddings), min(self.k, len(self.keys))
        similarities = np.full((len(queries), k), -np.inf, "float32")
        indices = np.full((len(queries), k), -1, "int64")
        for start in range(0, len(queries), _QUERIES_PER_PASS):
            part = normalised(queries[start : start + _QUERIES_PER_PASS])
            for keys, block in key_blocks(self.keys):
                for first in range(0, len(part), _QUERIES):
                    tile = part[first : first + _QUERIES]
                    rows = slice(start + first, start + first + len(tile))
                    found = _merged(similarities[rows], indices[rows], multiply(tile, block), keys.start)
                    similarities[rows], indices[rows] = found
        order = np.argsort(-similarities, axis=1, kind="stable")
        return [np.take_along_axis(x, order, axis=1) for x in (similarities, indices)]

    def _votes(self, similarities, indices, temperature):
        weights = np.exp((similarities.astype("float64") - 1) / temperature)
        if self.labels.ndim == 1:
            places = np.arange(len(weights))[:, None] * self.num_classes + self.labels[indices]
            votes = np.bincount(places.ravel(), weights.ravel(), len(weights) * self.num_classes)
            return votes.reshape(len(weights), self.num_classes)
        votes = np.zeros((len(weights), self.num_classes))
        for column in range(weights.shape[1]):
            votes += weights[:, column, None] * (self.labels[indices[:, column]] == 1)
        return votes


def _merged(similarities, indices, of_block, start):
    """The k largest of k similarities (n, k) and of those to a block of images, and the indices; ascending by index."""
    k = similarities.shape[1]
    joined = np.concatenate([similarities, of_block], axis=1)
    least = np.partition(joined, -k, axis=1)[:, -k, None]
    kept, equal = joined > least, joined == least
    wanted = k - kept.sum(axis=1)
    too_many = np.flatnonzero(equal.sum(axis=1) > wanted)
    equal[too_many] &= np.cumsum(equal[too_many], axis=1) <= wanted[too_many, None]
    columns = np.nonzero(kept | equal)[1].reshape(-1, k)
    earlier = np.take_along_axis(indices, np.minimum(columns, k - 1), axis=1)
    return np.take_along_axis(joined, columns, axis=1), np.where(columns < k, earlier, start + columns - k)


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
    embeddings, labels = check_split(*validation, head.keys.shape[1], head.num_classes)
    similarities, indices = head._nearest(embeddings)

    def scores_of(rows):
        for k, temperature in itertools.product(neighbours, temperatures):
            yield (k, temperature), head._votes(similarities[rows, :k], indices[rows, :k], temperature)

    (k, temperature), score = best_of(scores_of, labels, head.num_classes, metric)
    best = NearestNeighbours(k, temperature).fit(*train, num_classes)
    return Tuned(best, score, {"k": k, "temperature": temperature})
