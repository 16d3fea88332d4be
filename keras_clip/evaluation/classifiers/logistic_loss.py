"""The loss of logistic regression and its gradient over all rows.

Several classes have a softmax, two classes one sigmoid, several labels per image one sigmoid each, as in scikit-learn.
Products are written with `@`, and no `ops.maximum` or `ops.where` takes a Python number: on torch these cast float64
to float32.
"""

import numpy as np
from keras import ops

from keras_clip.evaluation.classifiers.matmul import compiled, full_precision, moments, on_device, tiles
from keras_clip.evaluation.metrics.classification import IGNORED


def _softmax_step(features, labels, weights, bias):
    """Computes one tile: per row, the sum of the other exponentials and the margin of the highest; and gradients."""
    features = ops.cast(features, weights.dtype)
    logits = features @ weights + bias
    own = ops.cast(labels[:, None] == ops.arange(ops.shape(weights)[1], dtype="int32"), weights.dtype)
    highest = ops.max(logits, axis=1)
    own_logit = ops.sum(logits * own, axis=1)
    # The sum omits the true class: where its probability is nearly one, the loss is the probability of the others,
    # which one minus its probability would lose to rounding.
    others = ops.exp(logits - highest[:, None]) * (1 - own)
    sum_of_others = ops.sum(others, axis=1)
    total = sum_of_others + ops.exp(own_logit - highest)
    residual = (others - own * sum_of_others[:, None]) / total[:, None]
    return (
        sum_of_others,
        highest - own_logit,
        ops.transpose(features) @ residual,
        ops.sum(residual, axis=0),
    )


def _sigmoid_step(features, signs, weights, bias):
    """Computes one tile: the loss per row and the gradients of the sum. Signs: -1 positive, 1 negative, 0 ignored."""
    features, signs = ops.cast(features, weights.dtype), ops.cast(signs, weights.dtype)
    margins = signs * (features @ weights + bias)
    losses = ops.relu(margins) + ops.log1p(ops.exp(-ops.abs(margins)))
    losses = ops.sum(losses * ops.abs(signs), axis=1)
    residual = signs * ops.sigmoid(margins)
    return losses, ops.transpose(features) @ residual, ops.sum(residual, axis=0)


class LogisticLoss:
    """Mean loss over the rows, without the penalty, in float32 or float64 as chosen per call.

    The features are copied to the device once. Products have the chosen dtype; parameters and sums over tiles are
    float64.

    Args:
        features: numbers (N, D), as `check_features` passes them.
        labels: as `check_labels` passes them.
        num_classes: int, K.

    Attributes:
        columns: int. Number of columns of the weights: 1 for two classes, else K.
        softmax: bool. Whether there are more than two classes that exclude each other.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, num_classes: int):
        self.rows, self.width = features.shape
        self.softmax = labels.ndim == 1 and num_classes > 2
        self.columns = 1 if labels.ndim == 1 and num_classes == 2 else num_classes
        if not self.softmax:
            labels = labels.reshape(self.rows, self.columns)
            labels = np.where(labels == IGNORED, 0, 1 - 2 * labels.astype("int8")).astype("int8")
        with full_precision():
            self._tiles = [
                (on_device(features[tile]), on_device(labels[tile], "int32" if self.softmax else "int8"))
                for tile in tiles(self.rows, max(self.width, self.columns))
            ]
        self._step = compiled(_softmax_step if self.softmax else _sigmoid_step)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean (D,) and covariance (D, D) of the features, float64."""
        return moments(features for features, _ in self._tiles)

    def __call__(self, weights: np.ndarray, bias: np.ndarray, dtype: str) -> tuple[float, np.ndarray, np.ndarray]:
        """Returns the loss and its gradients.

        Args:
            weights: float64 (D, columns).
            bias: float64 (columns,).
            dtype: "float32" or "float64". Dtype of the products.

        Returns:
            Mean loss in nats, its gradients by the weights and by the bias, float64.
        """
        loss, d_weights, d_bias = 0.0, np.zeros_like(weights), np.zeros_like(bias)
        with full_precision():
            parameters = on_device(weights, dtype), on_device(bias, dtype)
            for features, labels in self._tiles:
                outputs = self._step(features, labels, *parameters)
                *by_row, tile_weights, tile_bias = (np.asarray(ops.convert_to_numpy(x), "float64") for x in outputs)
                loss += self._sum(*by_row)
                d_weights += tile_weights
                d_bias += tile_bias
        return loss / self.rows, d_weights / self.rows, d_bias / self.rows

    def _sum(self, losses, lead=None):
        if self.softmax:
            with np.errstate(divide="ignore"):  # if the others sum to 0, the loss is 0
                losses = np.logaddexp(0, np.log(losses) + lead)
        return float(losses.sum())
