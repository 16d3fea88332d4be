"""A linear probe in closed form, fast enough to run every few hundred training steps."""

import math

import numpy as np

from keras_clip.evaluation.classifiers.inputs import check_features, check_labels, targets_of
from keras_clip.evaluation.classifiers.matmul import moments, multiply, on_device, tiles


class RidgeProbe:
    """Ridge regression from features to targets of 1 for an image's classes and 0 for the others.

    Its scores are a few points below those of `LinearProbe` and move with them, so it serves to compare a model with
    itself while it trains. Fitting takes one pass over the features and one linear system of D equations in float64.

    Args:
        penalty: float > 0. Relative to the mean variance of the features, so that their scale does not matter.

    Attributes:
        coef: float64 (K, D).
        intercept: float64 (K,).
        multi_label: bool.
    """

    def __init__(self, penalty: float = 0.1):
        if not 0 < penalty < math.inf:
            raise ValueError(f"`penalty` must be positive. Received: penalty={penalty}.")
        self.penalty = float(penalty)

    def fit(self, features: np.ndarray, labels: np.ndarray, num_classes: int | None = None) -> "RidgeProbe":
        """Fits the probe.

        Args:
            features: (N, D), taken as float32.
            labels: class indices (N,), or 0, 1 and `metrics.IGNORED` (N, K); ignored counts as 0.
            num_classes: int, K; None: the largest index + 1.

        Returns:
            The probe itself.

        Raises:
            ValueError: inputs that `LinearProbe.fit` rejects, or features that are equal for all images.
        """
        features = check_features(features)
        labels, num_classes = check_labels(labels, len(features), num_classes)
        self.multi_label = labels.ndim == 2
        width = features.shape[1]
        parts = (
            on_device(np.concatenate([features[tile], targets_of(labels[tile], num_classes)], axis=1))
            for tile in tiles(len(features), width + num_classes)
        )
        mean, covariance = moments(parts)
        matrix, cross = covariance[:width, :width], covariance[:width, width:]
        variance = np.trace(matrix) / width
        if not variance > 0:
            raise ValueError(f"`features` must differ between images. Received: {len(features)} equal rows.")
        self.coef = np.linalg.solve(matrix + self.penalty * variance * np.eye(width), cross).T
        self.intercept = mean[width:] - self.coef @ mean[:width]
        return self

    def decision_function(self, features: np.ndarray) -> np.ndarray:
        """Returns scores, float64 (N, K), of features (N, D): estimates of the targets 0 and 1."""
        return multiply(check_features(features), self.coef, "float64") + self.intercept

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Returns the most probable class of features (N, D), int64 (N,); if `multi_label`, uint8 (N, K)."""
        scores = self.decision_function(features)
        return (scores > 0.5).astype("uint8") if self.multi_label else scores.argmax(axis=1)
