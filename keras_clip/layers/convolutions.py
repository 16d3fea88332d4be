"""Convolutions that are matrix products, and are computed as such where that is faster.

Variables, configuration and results are those of `keras.layers.Conv2D`.
"""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_clip")
class PointwiseConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` with a kernel of 1 x 1, stride 1 and no bias.

    Args:
        As `keras.layers.Conv2D`, with `data_format="channels_last"`.

    Call arguments:
        inputs: float tensor (B, H, W, C).
        training: bool. Inference uses the convolution, whose forward pass is slightly faster.

    Returns:
        Tensor (B, H, W, filters) in the compute dtype.
    """

    def call(self, inputs, training=False):
        # XLA for CPUs computes the gradient of a 1 x 1 kernel at a tenth of the speed of the matrix product.
        if keras.backend.backend() != "jax" or not training:
            return super().call(inputs)
        *image, channels = inputs.shape
        pixels = ops.matmul(ops.reshape(inputs, (-1, channels)), ops.reshape(self.kernel, (channels, self.filters)))
        return ops.reshape(pixels, (*image, self.filters))


@keras.saving.register_keras_serializable(package="keras_clip")
class PatchConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` whose strides are its kernel size: patches that do not overlap; without bias.

    Args:
        As `keras.layers.Conv2D`, with `data_format="channels_last"`.

    Call arguments:
        inputs: float tensor (B, H, W, C); H and W are multiples of the kernel size.

    Returns:
        Tensor (B, H // kernel size, W // kernel size, filters) in the compute dtype.
    """

    def call(self, inputs):
        # On all backends faster than the convolution. On torch, that one copies the kernel to another layout each time.
        batch, height, width, channels = ops.shape(inputs)
        patch = self.kernel_size[0]
        rows, columns, size = height // patch, width // patch, patch * patch * channels
        patches = ops.reshape(inputs, (batch, rows, patch, columns, patch, channels))
        patches = ops.reshape(ops.transpose(patches, (0, 1, 3, 2, 4, 5)), (-1, size))
        projected = ops.matmul(patches, ops.reshape(self.kernel, (size, self.filters)))
        return ops.reshape(projected, (batch, rows, columns, self.filters))
