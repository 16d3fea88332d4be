"""The loss of logistic regression and its gradient over all rows.

Several classes have a softmax, two classes one sigmoid, several labels per image one sigmoid each, as in scikit-learn.
Products are written with `@`, and no `ops.maximum` or `ops.where` takes a Python number: on torch these cast float64
to float32.
"""

import numpy as np
from keras import ops

from keras_clip.evaluation.classifiers.matmul import compiled, full_precision, on_device, tiles, weighted_moments
from keras_clip.evaluation.metrics.classification import IGNORED

# Elements of the widest array of a part of a tile when the second derivatives are formed (32 MiB of float64).
HESSIAN_AREA = 2**22
# Features of at most this many bytes are kept on the device. More are copied there tile by tile in every pass, which
# takes far less time than the products.
MOST_BYTES_KEPT = 2**30


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


def _softmax_product(features, labels, weights, bias, d_weights, d_bias):
    """Computes one tile: the change of the gradients of `_softmax_step` by a change of the parameters."""
    features = ops.cast(features, weights.dtype)
    logits, change = features @ weights + bias, features @ d_weights + d_bias
    own = ops.cast(labels[:, None] == ops.arange(ops.shape(weights)[1], dtype="int32"), weights.dtype)
    probabilities = ops.exp(logits - ops.max(logits, axis=1)[:, None])
    probabilities = probabilities / ops.sum(probabilities, axis=1)[:, None]
    # Relative to the true class, whose own term would lose to rounding where its probability is nearly one.
    change = change - ops.sum(change * own, axis=1)[:, None]
    change = probabilities * (change - ops.sum(probabilities * change, axis=1)[:, None])
    return ops.transpose(features) @ change, ops.sum(change, axis=0)


def _sigmoid_product(features, signs, weights, bias, d_weights, d_bias):
    features, signs = ops.cast(features, weights.dtype), ops.cast(signs, weights.dtype)
    margins = features @ weights + bias
    change = ops.abs(signs) * ops.sigmoid(margins) * ops.sigmoid(-margins) * (features @ d_weights + d_bias)
    return ops.transpose(features) @ change, ops.sum(change, axis=0)


def _probabilities(features, labels, weights, bias):
    """Returns the probabilities, and one minus each, which is exact where the true class is nearly certain."""
    logits = features @ weights + bias
    own = ops.cast(labels[:, None] == ops.arange(ops.shape(weights)[1], dtype="int32"), weights.dtype)
    probabilities = ops.exp(logits - ops.max(logits, axis=1)[:, None])
    probabilities = probabilities / ops.sum(probabilities, axis=1)[:, None]
    others = probabilities * (1 - own)
    return probabilities, 1 - own - others + own * ops.sum(others, axis=1)[:, None]


def _softmax_curvature(features, labels, weights, bias):
    """Computes one tile: moments of its rows, weighted by the curvature of their loss, which is a mean over classes."""
    features = ops.cast(features, weights.dtype)
    probabilities, one_minus = _probabilities(features, labels, weights, bias)
    return weighted_moments(features, ops.mean(probabilities * one_minus, axis=1))


def _sigmoid_curvature(features, signs, weights, bias):
    features, signs = ops.cast(features, weights.dtype), ops.cast(signs, weights.dtype)
    margins = features @ weights + bias
    curvature = ops.abs(signs) * ops.sigmoid(margins) * ops.sigmoid(-margins)
    return weighted_moments(features, ops.mean(curvature, axis=1))


def _softmax_hessian(features, labels, weights, bias):
    """Computes one tile: the second derivatives by all pairs of parameters, as two products of one factor per class."""
    features = ops.cast(features, weights.dtype)
    probabilities, one_minus = _probabilities(features, labels, weights, bias)
    by_class = _times_features(probabilities, features)
    return ops.transpose(by_class) @ by_class, _own_blocks(probabilities * one_minus, features)


def _sigmoid_hessian(features, signs, weights, bias):
    features, signs = ops.cast(features, weights.dtype), ops.cast(signs, weights.dtype)
    margins = features @ weights + bias
    return (_own_blocks(ops.abs(signs) * ops.sigmoid(margins) * ops.sigmoid(-margins), features),)


def _own_blocks(curvature, features):
    """Returns the second derivatives by parameters of the same column, (columns * (D + 1), D + 1)."""
    return ops.transpose(_times_features(curvature, features)) @ _times_features(curvature[:, :1] * 0 + 1, features)


def _times_features(factors, features):
    """Returns the products (n, columns * (D + 1)) of a factor per column with the features and a 1 for the bias."""
    with_bias = ops.concatenate([features, features[:, :1] * 0 + 1], axis=1)
    return ops.reshape(factors[:, :, None] * with_bias[:, None, :], (ops.shape(features)[0], -1))


class LogisticLoss:
    """Mean loss over the rows, without the penalty, in float32 or float64 as chosen per call.

    The features are copied to the device once or, if they are large, tile by tile in each pass. Products have the
    chosen dtype; parameters and sums over tiles are float64.

    Args:
        features: numbers (N, D), as `check_features` passes them.
        labels: as `check_labels` passes them.
        num_classes: int, K.
        dtype: "float32" or "float64". Dtype in which the features are kept.

    Attributes:
        columns: int. Number of columns of the weights: 1 for two classes, else K.
        softmax: bool. Whether there are more than two classes that exclude each other.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, num_classes: int, dtype: str = "float32"):
        self.rows, self.width = features.shape
        self.softmax = labels.ndim == 1 and num_classes > 2
        self.columns = 1 if labels.ndim == 1 and num_classes == 2 else num_classes
        if not self.softmax:
            labels = labels.reshape(self.rows, self.columns)
            labels = np.where(labels == IGNORED, 0, 1 - 2 * labels.astype("int8")).astype("int8")
        self._features, self._dtype, self._slices = features, dtype, tiles(self.rows, max(self.width, self.columns))
        with full_precision():
            self._labels = [on_device(labels[tile], "int32" if self.softmax else "int8") for tile in self._slices]
            self._kept = None
            if features.size * np.dtype(dtype).itemsize <= MOST_BYTES_KEPT:
                self._kept = [on_device(features[tile], dtype) for tile in self._slices]
        functions = (
            (_softmax_step, _softmax_product, _softmax_curvature, _softmax_hessian)
            if self.softmax
            else (_sigmoid_step, _sigmoid_product, _sigmoid_curvature, _sigmoid_hessian)
        )
        self._step, self._product, self._curvature, self._hessian = map(compiled, functions)

    def curvature(self, weights: np.ndarray, bias: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Returns the curvature of the mean loss, which is that of a column in the mean over the columns.

        Args:
            weights: float64 (D, columns).
            bias: float64 (columns,).

        Returns:
            The second derivative by the bias, the mean (D,) of the rows weighted by their part in it, and the second
            derivative (D, D) by the weights of features centred there; float64.
        """
        total, sums, squares = 0.0, np.zeros(self.width), np.zeros((self.width, self.width))
        for parts in self._over_tiles(self._curvature, "float64", weights, bias):
            total, sums, squares = (x + y for x, y in zip((total, sums, squares), parts, strict=True))
        total = max(float(total), np.finfo(float).tiny)
        mean = sums / total
        return total / self.rows, mean, (squares - total * np.outer(mean, mean)) / self.rows

    def hessian(self, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Returns the second derivatives of the mean loss.

        Args:
            weights: float64 (D, columns).
            bias: float64 (columns,).

        Returns:
            float64 (columns, D + 1, columns, D + 1); the last of D + 1 is the bias. The array is of size
            (columns (D + 1))^2, which suits small problems only.
        """
        size, width = self.columns * (self.width + 1), self.width + 1
        cross, own = np.zeros((size, size)), np.zeros((size, width))
        for *by_pair, by_column in self._over_tiles(self._hessian, "float64", weights, bias, rows=HESSIAN_AREA // size):
            own += by_column
            for part in by_pair:
                cross -= part
        blocks = cross.reshape(self.columns, width, self.columns, width)
        # Those of the same column are p (1 - p), which p - p * p would lose to rounding.
        blocks[range(self.columns), :, range(self.columns), :] = own.reshape(self.columns, width, width)
        return blocks / self.rows

    def hessian_product(
        self, weights: np.ndarray, bias: np.ndarray, d_weights: np.ndarray, d_bias: np.ndarray, dtype: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the product of the second derivatives of the mean loss with a change of the parameters.

        Args:
            weights: float64 (D, columns).
            bias: float64 (columns,).
            d_weights: float64 (D, columns). The change of the weights.
            d_bias: float64 (columns,). The change of the bias.
            dtype: "float32" or "float64". Dtype of the products.

        Returns:
            The first-order changes of the gradients by the weights and by the bias, float64.
        """
        # A direction has no scale of its own; this one fits the range of float32.
        scale = max(np.abs(d_weights).max(), np.abs(d_bias).max(), np.finfo(float).tiny)
        by_weights, by_bias = np.zeros_like(weights), np.zeros_like(bias)
        for tile in self._over_tiles(self._product, dtype, weights, bias, d_weights / scale, d_bias / scale):
            by_weights += tile[0]
            by_bias += tile[1]
        return by_weights * (scale / self.rows), by_bias * (scale / self.rows)

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
        for *by_row, tile_weights, tile_bias in self._over_tiles(self._step, dtype, weights, bias):
            loss += self._sum(*by_row)
            d_weights += tile_weights
            d_bias += tile_bias
        return loss / self.rows, d_weights / self.rows, d_bias / self.rows

    def _over_tiles(self, function, dtype, *parameters, rows=None):
        """Yields the outputs of a function of one tile (or of its parts of some rows) and the parameters, float64."""
        with full_precision():
            parameters = [on_device(array, dtype) for array in parameters]
            features_of_tiles = self._kept or (on_device(self._features[tile], self._dtype) for tile in self._slices)
            for features, labels in zip(features_of_tiles, self._labels, strict=True):
                size = max(1, rows or len(features))
                for start in range(0, len(features), size):
                    part = slice(start, start + size)
                    outputs = function(features[part], labels[part], *parameters)
                    yield [np.asarray(ops.convert_to_numpy(x), "float64") for x in outputs]

    def _sum(self, losses, lead=None):
        if self.softmax:
            with np.errstate(divide="ignore"):  # if the others sum to 0, the loss is 0
                losses = np.logaddexp(0, np.log(losses) + lead)
        return float(losses.sum())
