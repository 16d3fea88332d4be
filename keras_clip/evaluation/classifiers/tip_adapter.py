"""Tip-Adapter on embeddings (Zhang et al., 2022), tuned on a validation split."""

import math
from collections.abc import Sequence

import numpy as np

from keras_clip.evaluation.classifiers.inputs import (
    check_features,
    check_labels,
    check_split,
    key_blocks,
    normalised,
    targets_of,
    unit_length,
)
from keras_clip.evaluation.classifiers.matmul import multiply, tiles
from keras_clip.evaluation.classifiers.tuning import Metric, Tuned, best_of, row_blocks

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
        """Refers to the training split as the cache; it is not copied and may be memory-mapped.

        Args:
            embeddings: (N, E), few per class.
            labels: class indices (N,), or 0, 1 and `metrics.IGNORED` (N, K).

        Returns:
            The classifier itself.

        Raises:
            ValueError: inputs that `LinearProbe.fit` rejects.
        """
        self.keys = check_features(embeddings)
        self.labels, _ = check_labels(labels, len(self.keys), len(self.class_embeddings))
        return self

    def decision_function(self, embeddings: np.ndarray) -> np.ndarray:
        """Returns logits, float64 (N, K), of embeddings (N, E)."""
        embeddings = check_features(embeddings)
        logits = np.empty((len(embeddings), len(self.class_embeddings)))
        for rows in row_blocks(*logits.shape):
            queries = normalised(embeddings[rows])
            logits[rows] = self._zero_shot(queries) + self.alpha * self._caches(queries, [self.beta])[0]
        return logits

    def _zero_shot(self, queries):
        return math.exp(self.logit_scale) * multiply(queries, self.class_embeddings, "float64")

    def _caches(self, queries, betas):
        """Returns the sums of the affinities by class, float64 (n, K), for each beta."""
        num_classes = len(self.class_embeddings)
        result = np.zeros((len(betas), len(queries), num_classes))
        for keys, block in key_blocks(self.keys):
            targets = targets_of(self.labels[keys], num_classes).T
            for tile in tiles(len(queries), len(block)):
                similarities = multiply(queries[tile], block)
                for of_beta, beta in zip(result, betas, strict=True):
                    of_beta[tile] += multiply(np.exp(beta * (similarities - 1)), targets)
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

    def scores_of(rows):
        queries = normalised(embeddings[rows])
        zero_shot = head._zero_shot(queries)
        for beta, cache in zip(betas, head._caches(queries, betas), strict=True):
            for alpha in alphas:
                yield (beta, alpha), zero_shot + alpha * cache

    (beta, alpha), score = best_of(scores_of, labels, len(head.class_embeddings), metric)
    best = TipAdapter(class_embeddings, logit_scale, beta, alpha).fit(*train)
    return Tuned(best, score, {"beta": beta, "alpha": alpha})
