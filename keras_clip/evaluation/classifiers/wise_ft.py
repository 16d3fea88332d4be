"""WiSE-FT on embeddings (Wortsman et al., 2022), tuned on a validation split."""

import math
from collections.abc import Sequence

import numpy as np

from keras_clip.evaluation.classifiers.inputs import check_split, unit_length
from keras_clip.evaluation.classifiers.linear_probe import LinearProbe
from keras_clip.evaluation.classifiers.matmul import multiply
from keras_clip.evaluation.classifiers.tuning import Metric, Tuned, best_of

SHARES = tuple(round(0.05 * i, 2) for i in range(21))


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
        zero_shot = math.exp(logit_scale) * unit_length(class_embeddings)
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
        return multiply(unit_length(embeddings), self.coef, "float64") + self.intercept


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
    share, score = best_of(scores, labels, metric)
    return Tuned(heads[share], score, {"share": share})
