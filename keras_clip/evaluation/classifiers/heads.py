"""Other heads on embeddings: nearest neighbours, Tip-Adapter and WiSE-FT, their numbers tuned on a validation split.

A head learns from a training split, is tuned on a validation split, and then gives scores to embeddings: no function
here takes the labels of a test split.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_clip.evaluation.classifiers.linear_probe import LinearProbe
from keras_clip.evaluation.classifiers.logistic_loss import check_features, check_labels, check_split
from keras_clip.evaluation.classifiers.matmul import multiply, tiles
from keras_clip.evaluation.metrics.classification import accuracy, map_11pt

NEIGHBOURS, TEMPERATURES = (1, 5, 10, 20, 50, 100), (0.02, 0.07, 0.2, math.inf)
SHARPNESSES, WEIGHTS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0), (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
SHARES = tuple(round(0.05 * i, 2) for i in range(21))

# Of scores (N, K) and labels, the higher the better.
Metric = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Tuned:
    """The best head of a grid.

    Args:
        head: `NearestNeighbours`, `TipAdapter` or `WiseFT`.
        score: float. Of the head on the validation split.
        choices: {name: number} that was chosen; of equally good ones the first of the grid.
    """

    head: Any
    score: float
    choices: dict[str, float]


def _targets(labels, num_classes):
    """1 for each class of an image, float32 (N, K)."""
    if labels.ndim == 2:
        return (labels == 1).astype("float32")
    return (labels[:, None] == np.arange(num_classes)).astype("float32")


def _unit_length(embeddings):
    embeddings = check_features(embeddings).astype("float64")
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)


class NearestNeighbours:
    """Votes of the images of the training split that are most alike.

    Each of the `k` nearest by cosine similarity votes for its classes with weight exp((similarity - 1) / temperature)
    (Wu et al., 2018, section 3.4); an infinite temperature weighs all alike.

    Args:
        k: int >= 1. Neighbours; all images if there are fewer.
        temperature: float > 0, or infinite.
    """

    def __init__(self, k: int = 20, temperature: float = 0.07):
        if not (k >= 1 and temperature > 0):
            raise ValueError(
                f"`k` must be at least 1 and `temperature` > 0. Received: k={k}, temperature={temperature}."
            )
        self.k, self.temperature = int(k), float(temperature)

    def fit(self, embeddings: np.ndarray, labels: np.ndarray, num_classes: int | None = None) -> "NearestNeighbours":
        """Keeps the training split.

        Args:
            embeddings: (N, E).
            labels: class indices (N,), or 0, 1 and `metrics.IGNORED` (N, K).
            num_classes: int, K; None: the largest index + 1.

        Returns:
            The head itself.

        Raises:
            ValueError: what `LinearProbe.fit` refuses.
        """
        self.keys = _unit_length(embeddings)
        labels, num_classes = check_labels(labels, len(self.keys), num_classes)
        self.targets = _targets(labels, num_classes)
        return self

    def decision_function(self, embeddings: np.ndarray) -> np.ndarray:
        """Votes float64 (N, K) for embeddings (N, E)."""
        return self._votes(*self._nearest(embeddings), self.temperature)

    def _nearest(self, embeddings):
        """Similarities (N, k) of the nearest, descending, and their indices."""
        queries, k = _unit_length(embeddings), min(self.k, len(self.keys))
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


class TipAdapter:
    """Zero-shot logits plus those of a cache of labelled images, without training (Zhang et al., 2022, section 3.1).

    An image of the training split adds exp(-sharpness (1 - similarity)), times the weight, to its classes.

    Args:
        class_embeddings: (K, E), of `embed_classes`.
        logit_scale: float, log(1 / temperature) of the model.
        sharpness: float > 0. The paper's beta.
        weight: float >= 0. The paper's alpha; 0 is zero-shot.
    """

    def __init__(self, class_embeddings: np.ndarray, logit_scale: float, sharpness: float = 5.5, weight: float = 1.0):
        if not (0 < sharpness < math.inf and 0 <= weight < math.inf):
            raise ValueError(
                "`sharpness` must be positive, `weight` not negative. "
                f"Received: sharpness={sharpness}, weight={weight}."
            )
        self.class_embeddings, self.logit_scale = _unit_length(class_embeddings), float(logit_scale)
        self.sharpness, self.weight = float(sharpness), float(weight)

    def fit(self, embeddings: np.ndarray, labels: np.ndarray) -> "TipAdapter":
        """Keeps the training split.

        Args:
            embeddings: (N, E), few per class.
            labels: class indices (N,), or 0, 1 and `metrics.IGNORED` (N, K).

        Returns:
            The head itself.

        Raises:
            ValueError: what `LinearProbe.fit` refuses.
        """
        self.keys = _unit_length(embeddings)
        labels, num_classes = check_labels(labels, len(self.keys), len(self.class_embeddings))
        self.targets = _targets(labels, num_classes)
        return self

    def decision_function(self, embeddings: np.ndarray) -> np.ndarray:
        """Logits float64 (N, K) of embeddings (N, E)."""
        queries = _unit_length(embeddings)
        return self._zero_shot(queries) + self.weight * self._cache(queries, self.sharpness)

    def _zero_shot(self, queries):
        return math.exp(self.logit_scale) * multiply(queries, self.class_embeddings, "float64")

    def _cache(self, queries, sharpness):
        result = np.empty((len(queries), len(self.class_embeddings)))
        for tile in tiles(len(queries), len(self.keys)):
            affinities = np.exp(sharpness * (multiply(queries[tile], self.keys) - 1))
            result[tile] = multiply(affinities, self.targets.T)
        return result


class WiseFT:
    """A classifier between zero-shot and a probe: the weighted mean of their parameters (Wortsman et al., 2022).

    Args:
        class_embeddings: (K, E), of `embed_classes`.
        logit_scale: float, log(1 / temperature) of the model.
        probe: `LinearProbe` of K classes, fitted on embeddings of unit length.
        share: float in [0, 1]. Of the probe; 0 is zero-shot. The paper's alpha.

    Attributes:
        coef: float64 (K, E).
        intercept: float64 (K,).
    """

    def __init__(self, class_embeddings: np.ndarray, logit_scale: float, probe: LinearProbe, share: float = 0.5):
        zero_shot = math.exp(logit_scale) * _unit_length(class_embeddings)
        if not 0 <= share <= 1 or zero_shot.shape != probe.coef.shape:
            raise ValueError(
                "`share` must be from 0 to 1, and the probe one of the classes on embeddings. Received: "
                f"share={share}, class_embeddings {zero_shot.shape}, probe.coef {probe.coef.shape}."
            )
        self.share = float(share)
        self.coef = (1 - share) * zero_shot + share * probe.coef
        self.intercept = share * probe.intercept

    def decision_function(self, embeddings: np.ndarray) -> np.ndarray:
        """Logits float64 (N, K) of embeddings (N, E), which are scaled to unit length."""
        return multiply(_unit_length(embeddings), self.coef, "float64") + self.intercept


def tune_nearest_neighbours(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    metric: Metric | None = None,
    num_classes: int | None = None,
    neighbours: Sequence[int] = NEIGHBOURS,
    temperatures: Sequence[float] = TEMPERATURES,
) -> Tuned:
    """Chooses `k` and temperature of `NearestNeighbours`.

    Args:
        train: embeddings (N, E) and labels, as `NearestNeighbours.fit` takes them.
        validation: the same of other images. Never the test split.
        metric: of scores (N, K) and labels, the higher the better; None: `metrics.accuracy`, of several labels
            `metrics.map_11pt`.
        num_classes: int, K; None: the largest index of the training split + 1.
        neighbours: values of `k`; more than there are images count as all of them.
        temperatures: values of the temperature.

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
    (k, temperature), score = _best(scores, labels, metric)
    best = NearestNeighbours(k, temperature).fit(*train, num_classes)
    return Tuned(best, score, {"k": k, "temperature": temperature})


def tune_tip_adapter(
    class_embeddings: np.ndarray,
    logit_scale: float,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    metric: Metric | None = None,
    sharpnesses: Sequence[float] = SHARPNESSES,
    weights: Sequence[float] = WEIGHTS,
) -> Tuned:
    """Chooses sharpness and weight of `TipAdapter`.

    Args:
        class_embeddings: (K, E).
        logit_scale: float, log(1 / temperature) of the model.
        train: embeddings (N, E) and labels, as `TipAdapter.fit` takes them.
        validation: the same of other images. Never the test split.
        metric: as `tune_nearest_neighbours` takes it.
        sharpnesses: values of the sharpness.
        weights: values of the weight.

    Returns:
        A `Tuned`.

    Raises:
        ValueError: splits that do not match.
    """
    head = TipAdapter(class_embeddings, logit_scale).fit(*train)
    embeddings, labels = check_split(*validation, head.keys.shape[1], len(head.class_embeddings))
    queries = _unit_length(embeddings)
    zero_shot = head._zero_shot(queries)
    caches = ((sharpness, head._cache(queries, sharpness)) for sharpness in sharpnesses)
    scores = (((sharpness, weight), zero_shot + weight * cache) for sharpness, cache in caches for weight in weights)
    (sharpness, weight), score = _best(scores, labels, metric)
    best = TipAdapter(class_embeddings, logit_scale, sharpness, weight).fit(*train)
    return Tuned(best, score, {"sharpness": sharpness, "weight": weight})


def tune_wise_ft(
    class_embeddings: np.ndarray,
    logit_scale: float,
    probe: LinearProbe,
    validation: tuple[np.ndarray, np.ndarray],
    metric: Metric | None = None,
    shares: Sequence[float] = SHARES,
) -> Tuned:
    """Chooses the share of `WiseFT`.

    Args:
        class_embeddings: (K, E).
        logit_scale: float, log(1 / temperature) of the model.
        probe: fitted on embeddings of the training split alone: one that knows the validation split wins there.
        validation: embeddings (N, E) and labels of other images than the probe's. Never the test split.
        metric: as `tune_nearest_neighbours` takes it.
        shares: values of the share.

    Returns:
        A `Tuned`.

    Raises:
        ValueError: a probe or a split that does not match.
    """
    heads = {share: WiseFT(class_embeddings, logit_scale, probe, share) for share in shares}
    num_classes, width = probe.coef.shape
    embeddings, labels = check_split(*validation, width, num_classes)
    scores = ((share, head.decision_function(embeddings)) for share, head in heads.items())
    share, score = _best(scores, labels, metric)
    return Tuned(heads[share], score, {"share": share})


def _best(scores, labels, metric):
    """The first choice with the best score of (choice, scores (N, K)) pairs, and that score."""
    metric = metric or (map_11pt if labels.ndim == 2 else accuracy)
    return max(((choice, float(metric(x, labels))) for choice, x in scores), key=lambda pair: pair[1])
