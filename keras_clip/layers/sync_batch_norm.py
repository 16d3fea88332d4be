"""BatchNorm with the moments of the global batch."""

import math

import keras
from keras import ops

from keras_clip import compat, distribution


@keras.saving.register_keras_serializable(package="keras_clip")
class SyncBatchNorm(compat.BatchNormMoments):
    """`keras.layers.BatchNormalization` that uses the moments of the rows of all replicas in training.

    On TensorFlow it communicates with the other replicas of a `tf.distribute` strategy, on torch with the other
    processes; on JAX every layer sees the global batch anyway. In micro-batches
    (`CLIPModel.compile(microbatch_size=...)`) it is the plain layer, which uses the moments of the micro-batch.

    Args:
        As `keras.layers.BatchNormalization`, without `synchronized`.

    Call arguments:
        x: float tensor (B, ..., C).
        training: bool.
        mask: bool tensor or None, as of `keras.layers.BatchNormalization`; None with several replicas.

    Returns:
        Tensor of the shape of `x`, in the compute dtype.

    Raises:
        ValueError: a mask, with several replicas.
    """

    def moments(self, inputs, axes, mask=None):
        if distribution.replica_count() == 1:
            return super().moments(inputs, axes, mask)
        if mask is not None:
            raise ValueError("Masks are not supported over several replicas. Received: a mask. Leave it out.")
        mean, variance = ops.moments(inputs, axes=axes)
        rows = ops.cast(ops.shape(inputs)[0], mean.dtype) * math.prod(inputs.shape[axis] for axis in axes[1:])
        # Deviations from the mean of each replica: sums of squares would cancel.
        # Joined by `concatenate`, since `stack` would keep its list of tensors in a reference cycle on torch.
        parts = ops.concatenate([mean, variance, rows * ops.ones_like(mean)])
        parts = distribution.stack(ops.reshape(parts, (3, -1)))
        means, variances, shares = parts[:, 0], parts[:, 1], parts[:, 2] / ops.sum(parts[:, 2], axis=0)
        mean = ops.sum(shares * means, axis=0)
        return mean, ops.sum(shares * (variances + ops.square(means - mean)), axis=0)

    def get_config(self):
        config = super().get_config()
        config.pop("synchronized", None)
        return config
