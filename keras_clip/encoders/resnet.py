"""The modified ResNet of CLIP: ResNet-D stem, anti-aliased strides, attention pool."""

import functools
from collections.abc import Sequence

import keras
from keras import ops

from keras_clip.encoders.contract import ImageEncoder
from keras_clip.layers.composite import Composite
from keras_clip.layers.convolutions import PointwiseConv2D
from keras_clip.layers.initialisation import uniform
from keras_clip.layers.input_shapes import check_images, check_images_shape
from keras_clip.layers.pooling import AttentionPool
from keras_clip.layers.pure_call import rematerialize
from keras_clip.layers.sync_batch_norm import SyncBatchNorm


def _convolution(filters: int, size: int, strides: int, dtype, name: str) -> keras.layers.Conv2D:
    layer = PointwiseConv2D if size == 1 else keras.layers.Conv2D
    return layer(
        filters,
        size,
        strides=strides,
        padding="same" if size > 1 and strides == 1 else "valid",
        use_bias=False,
        kernel_initializer=uniform(),
        data_format="channels_last",
        dtype=dtype,
        name=name,
    )


def _batch_norm(dtype, name: str, gamma: str = "ones") -> SyncBatchNorm:
    return SyncBatchNorm(axis=-1, momentum=0.9, epsilon=1e-5, gamma_initializer=gamma, dtype=dtype, name=name)


def _average_pool(size: int, dtype, name: str) -> keras.layers.AveragePooling2D:
    return keras.layers.AveragePooling2D(size, data_format="channels_last", dtype=dtype, name=name)


@keras.saving.register_keras_serializable(package="keras_clip")
class Bottleneck(Composite, keras.layers.Layer):
    """A residual block of three convolutions, with anti-aliased strides by average pooling (Zhang, 2019).

    Args:
        filters: int. Channels of the inner convolutions; the output has 4 times this number.
        stride: int. 1 or 2.

    Call arguments:
        x: float tensor (B, H, W, C).
        training: bool.

    Returns:
        Tensor (B, H // stride, W // stride, 4 filters) in the compute dtype.
    """

    def __init__(self, filters: int, stride: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.stride = stride

    def build(self, x_shape):
        if self.built:
            return
        channels, filters, policy = x_shape[-1], self.filters, self.dtype_policy
        self.convolution_1 = _convolution(filters, 1, 1, policy, "convolution_1")
        self.norm_1 = _batch_norm(policy, "norm_1")
        self.convolution_2 = _convolution(filters, 3, 1, policy, "convolution_2")
        self.norm_2 = _batch_norm(policy, "norm_2")
        self.convolution_3 = _convolution(4 * filters, 1, 1, policy, "convolution_3")
        # Zeros initialise the block as the identity.
        self.norm_3 = _batch_norm(policy, "norm_3", gamma="zeros")
        self.pool = _average_pool(self.stride, policy, "pool") if self.stride > 1 else None
        parts = [
            (self.convolution_1, channels),
            (self.norm_1, filters),
            (self.convolution_2, filters),
            (self.norm_2, filters),
            (self.convolution_3, filters),
            (self.norm_3, 4 * filters),
        ]
        self.shortcut = None
        if self.stride > 1 or channels != 4 * filters:
            self.shortcut = _convolution(4 * filters, 1, 1, policy, "shortcut")
            self.shortcut_norm = _batch_norm(policy, "shortcut_norm")
            parts += [(self.shortcut, channels), (self.shortcut_norm, 4 * filters)]
        for layer, depth in parts:
            layer.build((None, None, None, depth))
        self.built = True

    def call(self, x, training=False):
        y = ops.relu(self.norm_1(self.convolution_1(x, training=training), training=training))
        y = ops.relu(self.norm_2(self.convolution_2(y), training=training))
        if self.pool is not None:
            x, y = self.pool(x), self.pool(y)
        y = self.norm_3(self.convolution_3(y, training=training), training=training)
        if self.shortcut is not None:
            x = self.shortcut_norm(self.shortcut(x, training=training), training=training)
        return ops.relu(x + y)

    def compute_output_shape(self, x_shape):
        batch, height, width, _ = x_shape
        return (batch, height // self.stride, width // self.stride, 4 * self.filters)


@keras.saving.register_keras_serializable(package="keras_clip")
class ModifiedResNet(ImageEncoder):
    """Encodes images with a ResNet that has three stem convolutions, anti-aliased strides and an attention pool.

    Radford et al. (2021), sections 2.4 and 2.5. The output projection of the published attention pool is the projection
    head here (with a bias), as in every other model. The weights are created at construction with the paper's
    initialisation.

    Args:
        image_size: int or (height, width), pixels; multiples of 32.
        blocks: four ints. Number of residual blocks of each stage.
        width: int. Channels of the stem. Features have D = 32 width.
        num_heads: int or None. Heads of the attention pool; None: D / 64.
        remat: bool. Rematerialisation: in training, stores only the inputs of the stem and of each block, and
            recomputes other activations in the backward pass. The BatchNorm statistics are updated once.

    Call arguments:
        images: float tensor (B, H, W, 3), normalised.
        training: bool.

    Returns:
        Features (B, 32 width) in the compute dtype.

    Raises:
        ValueError: sizes that are not multiples of 32, another number of stages than four, or images of another size.
    """

    # The projection heads of the published models have a bias; `CLIPModel` reads this attribute.
    projection_bias = True

    def __init__(
        self,
        image_size: int | tuple[int, int],
        blocks: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        num_heads: int | None = None,
        remat: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.sides = sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(blocks) != 4 or any(side < 32 or side % 32 for side in sides):
            raise ValueError(
                "A modified ResNet has four stages and takes images whose sides are multiples of 32. "
                f"Received: blocks={tuple(blocks)}, image_size={image_size}."
            )
        self.image_size = image_size
        self.block_counts = tuple(blocks)
        self.stem_width = width
        self.width = 32 * width
        self.remat = remat
        policy = self.dtype_policy
        # "same" would pad the strided convolution on the right only; the published one pads both sides.
        self.stem_padding = keras.layers.ZeroPadding2D(1, data_format="channels_last", dtype=policy, name="stem_pad")
        self.stem = []
        for i, (filters, strides) in enumerate(((width // 2, 2), (width // 2, 1), (width, 1))):
            self.stem.append(_convolution(filters, 3, strides, policy, f"stem_convolution_{i + 1}"))
            self.stem.append(_batch_norm(policy, f"stem_norm_{i + 1}"))
        self.stem_pool = _average_pool(2, policy, "stem_pool")
        self.stages = [
            Bottleneck(width * 2**stage, 2 if stage and not i else 1, dtype=policy, name=f"stage_{stage + 1}_block_{i}")
            for stage, count in enumerate(blocks)
            for i in range(count)
        ]
        self.pool = AttentionPool(num_heads or self.width // 64, dtype=policy, name="pool")
        self.feature_map = tuple(side // 32 for side in sides)
        self.build()

    def build(self, images_shape=None):
        if self.built:
            return
        shape = (None, None, None, 3)
        for layer in (*self.stem, *self.stages):
            layer.build(shape)
            shape = (None, None, None, layer.compute_output_shape((1, 32, 32, shape[-1]))[-1])
        self.pool.build((None, *self.feature_map, self.width))
        self.built = True

    def call(self, images, training=False):
        check_images(images, self.sides)

        def run_stem(x):
            x = self.stem_padding(x)
            for convolution, norm in zip(self.stem[::2], self.stem[1::2], strict=True):
                x = ops.relu(norm(convolution(x), training=training))
            return self.stem_pool(x)

        if not (self.remat and training):
            x = run_stem(images)
            for block in self.stages:
                x = block(x, training=training)
            return self.pool(x)
        x = rematerialize(self, run_stem, self.stem, images)
        for block in self.stages:
            x = rematerialize(self, functools.partial(block, training=training), [block], x)
        return self.pool(x)

    def compute_output_shape(self, images_shape):
        check_images_shape(images_shape, self.sides)
        return (images_shape[0], self.width)

    def get_config(self):
        return {
            **super().get_config(),
            "image_size": self.image_size,
            "blocks": self.block_counts,
            "width": self.stem_width,
            "num_heads": self.pool.num_heads,
            "remat": self.remat,
        }
