"""Tip-Adapter on embeddings (Zhang et al., 2022), tuned on a validation split."""

import math
from collections.abc import Sequence

import numpy as np

from keras_clip.evaluation.classifiers.inputs import check_labels, check_split, targets_of, unit_length
from keras_clip.evaluation.classifiers.matmul import multiply, tiles
from keras_clip.evaluation.classifiers.tuning import Metric, Tuned, best_of

BETAS, ALPHAS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0), (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class TipAdapter:
    """Zero-shot logits plus those of a cache of labelled images, without training (Zhang et al., 2022, section 3.1).

    Each labelled image adds alpha * exp(-beta * (1 - similarity)) to the logits of its classes.

    Args:
        class_embeddings: (K, E), of `embed_classes`.
        logit_scale: float, log(1 / temperature) of the model.
        beta: float > 0. Sharpness of the affinities.
        alpha: float >= 0. Weight of the cache; 0 is the zero-shot classifier.
    """

    def __init__(self, class_embeddings: np.ndarray, logit_scale: float, beta: float = 5.5, alpha: float = 1.0):
        if not (0 < beta < math.inf and 0 <= alpha < math.inf):
            raise ValueError(
                f"`beta` must be positive, and `alpha` must not be negative. Received: beta={beta}, alpha={alpha}."
            )
        self.class_embeddings, self.logit_scale = unit_length(class_embeddings), float(logit_scale)
        self.beta, self.alpha = float(beta), float(alpha)

    def fit(self, embeddings: np.ndarray, labels: np.ndarray) -> "TipAdapter":
        """Stores the training split as the cache.

        Args:
            embeddings: (N, E), few per class.
            labels: class indices (N,), or 0, 1 and `metrics.IGNORED` (N, K).

        Returns:
            The classifier itself.

        Raises:
            ValueError: inputs that `LinearProbe.fit` rejects.
        """
        self.keys = unit_length(embeddings)
        labels, num_classes = check_labels(labels, len(self.keys), len(self.class_embeddings))
        self.targets = targets_of(labels, num_classes)
        return self

    def decision_function(self, embeddings: np.ndarray) -> np.ndarray:
        """Returns logits, float64 (N, K), of embeddings (N, E)."""
        queries = unit_length(embeddings)
        return self._zero_shot(queries) + self.alpha * self._cache(queries, self.beta)

    def _zero_shot(self, queries):
        return math.exp(self.logit_scale) * multiply(queries, self.class_embeddings, "float64")

    def _cache(self, queries, beta):
        result = np.empty((len(queries), len(self.class_embeddings)))
        for tile in tiles(len(queries), len(self.keys)):
            affinities = np.exp(beta * (multiply(queries[tile], self.keys) - 1))
            result[tile] = multiply(affinities, self.targets.T)
        return result


def tune_tip_adapter(
    class_embeddings: np.ndarray,
    logit_scale: float,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    metric: Metric | None = None,
    betas: Sequence[float] = BETAS,
    alphas: Sequence[float] = ALPHAS,
) -> Tuned:
    """Chooses `beta` and `alpha` of `TipAdapter` on the validation split.

    Args:
        class_embeddings: (K, E).
        logit_scale: float, log(1 / temperature) of the model.
        train: embeddings (N, E) and labels, as `TipAdapter.fit` takes them.
        validation: embeddings and labels of other images, never of the test split.
        metric: as `tune_nearest_neighbours` takes it.
        betas: candidates for `beta`.
        alphas: candidates for `alpha`.

    Returns:
        A `Tuned`.

    Raises:
        ValueError: splits that do not match.
    """
    head = TipAdapter(class_embeddings, logit_scale).fit(*train)
    embeddings, labels = check_split(*validation, head.keys.shape[1], len(head.class_embeddings))
    queries = unit_length(embeddings)
    zero_shot = head._zero_shot(queries)
    caches = ((beta, head._cache(queries, beta)) for beta in betas)
    scores = (((beta, alpha), zero_shot + alpha * cache) for beta, cache in caches for alpha in alphas)
    (beta, alpha), score = best_of(scores, labels, metric)
    best = TipAdapter(class_embeddings, logit_scale, beta, alpha).fit(*train)
    return Tuned(best, score, {"beta": beta, "alpha": alpha})
