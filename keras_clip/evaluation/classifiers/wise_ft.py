"""WiSE-FT on embeddings (Wortsman et al., 2022), tuned on a validation split."""

import math
from collections.abc import Sequence

import numpy as np

from keras_clip.evaluation.classifiers.inputs import check_features, check_split, normalised, unit_length
from keras_clip.evaluation.classifiers.linear_probe import LinearProbe
from keras_clip.evaluation.classifiers.matmul import multiply
from keras_clip.evaluation.classifiers.tuning import Metric, Tuned, best_of, row_blocks

ALPHAS = tuple(round(0.05 * i, 2) for i in range(21))


class WiseFT:
    """Interpolates between a zero-shot classifier and a probe: the weighted mean of their parameters.

    Wortsman et al. (2022), section 3.

    Args:
        class_embeddings: (K, E), of `embed_classes`.
        logit_scale: float, log(1 / temperature) of the model.
        probe: `LinearProbe` of K classes, fitted on embeddings of unit length.
        alpha: float in [0, 1]. Weight of the probe in the mean; 0 is the zero-shot classifier.

    Attributes:
        coef: float64 (K, E).
        intercept: float64 (K,).
    """

    def __init__(self, class_embeddings: np.ndarray, logit_scale: float, probe: LinearProbe, alpha: float = 0.5):
        zero_shot = math.exp(logit_scale) * unit_length(class_embeddings)
        if not 0 <= alpha <= 1 or zero_shot.shape != probe.coef.shape:
            raise ValueError(
                "`alpha` must be from 0 to 1, and the probe must be fitted on embeddings of the same classes. "
                f"Received: alpha={alpha}, class_embeddings {zero_shot.shape}, probe.coef {probe.coef.shape}."
            )
        self.alpha = float(alpha)
        self.coef = (1 - alpha) * zero_shot + alpha * probe.coef
        self.intercept = alpha * probe.intercept

    def decision_function(self, embeddings: np.ndarray) -> np.ndarray:
        """Returns logits, float64 (N, K), of embeddings (N, E), which are scaled to unit length."""
        embeddings = check_features(embeddings)
        logits = np.empty((len(embeddings), len(self.coef)))
        for rows in row_blocks(*logits.shape):
            logits[rows] = multiply(normalised(embeddings[rows]), self.coef, "float64") + self.intercept
        return logits


def tune_wise_ft(
    class_embeddings: np.ndarray,
    logit_scale: float,
    probe: LinearProbe,
    validation: tuple[np.ndarray, np.ndarray],
    metric: Metric | None = None,
    alphas: Sequence[float] = ALPHAS,
) -> Tuned:
    """Chooses `alpha` of `WiseFT` on the validation split.

    Args:
        class_embeddings: (K, E).
        logit_scale: float, log(1 / temperature) of the model.
        probe: `LinearProbe` fitted on embeddings of the training split alone; one that was also fitted on the
            validation split would always be preferred there.
        validation: embeddings (N, E) and labels of other images than the probe's. Never the test split.
        metric: as `tune_nearest_neighbours` takes it.
        alphas: candidates for `alpha`.

    Returns:
        A `Tuned`.

    Raises:
        ValueError: a probe or a split that does not match.
    """
    heads = {alpha: WiseFT(class_embeddings, logit_scale, probe, alpha) for alpha in alphas}
    num_classes, width = probe.coef.shape
    embeddings, labels = check_split(*validation, width, num_classes)

    def scores_of(rows):
        return ((alpha, head.decision_function(embeddings[rows])) for alpha, head in heads.items())

    alpha, score = best_of(scores_of, labels, num_classes, metric)
    return Tuned(heads[alpha], score, {"alpha": alpha})
