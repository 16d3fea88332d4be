"""Pooling of a sequence at the end token, and of a feature map by attention."""

import keras
from keras import ops

from keras_clip.layers.adaptable import LoraDense
from keras_clip.layers.composite import Composite
from keras_clip.layers.initialisation import normal
from keras_clip.types import Tensor


def end_positions(token_ids: Tensor, end_token_id: int) -> Tensor:
    """Returns the position of the first end token of each text.

    Args:
        token_ids: int tensor (B, L).
        end_token_id: int.

    Returns:
        int32 tensor (B,): index of the first end token, or the last index if a row has none.
    """
    before_end = ops.cumsum(ops.cast(ops.equal(token_ids, end_token_id), "int32"), axis=1) == 0
    count = ops.sum(ops.cast(before_end, "int32"), axis=1)
    return ops.minimum(count, ops.shape(token_ids)[1] - 1)


@keras.saving.register_keras_serializable(package="keras_clip")
class AttentionPool(Composite, keras.layers.Layer):
    """Pools a feature map by attention, with its mean as the query (Radford et al., 2021, section 2.4).

    The published layer computes a query for every position and uses one; this layer computes only that one. The output
    projection of the published layer is the projection head of the model and not part of this layer.

    Args:
        num_heads: int. Must divide the channels D.

    Call arguments:
        x: float tensor (B, H, W, D), with the H and W of `build`.

    Returns:
        Tensor (B, D) in the compute dtype.

    Raises:
        ValueError: `num_heads` does not divide D, or H or W is unknown when the layer is built.
    """

    def __init__(self, num_heads: int, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads

    def build(self, x_shape):
        if self.built:
            return
        _, height, width, channels = x_shape
        if height is None or width is None or channels % self.num_heads:
            raise ValueError(
                "The attention pool requires a feature map of known size with channels divisible by `num_heads`. "
                f"Received: x.shape={tuple(x_shape)}, num_heads={self.num_heads}."
            )
        stddev = channels**-0.5
        self.positions = self.add_weight(
            name="positions", shape=(1 + height * width, channels), initializer=normal(stddev)
        )
        for name in ("query", "key", "value"):
            dense = LoraDense(channels, kernel_initializer=normal(stddev), dtype=self.dtype_policy, name=name)
            dense.build((None, channels))
            setattr(self, name, dense)
        self.built = True

    def call(self, x):
        count, channels = x.shape[1] * x.shape[2], x.shape[3]
        x = ops.reshape(x, (-1, count, channels))
        x = ops.concatenate([ops.mean(x, axis=1, keepdims=True), x], axis=1) + ops.cast(self.positions, x.dtype)

        def split_heads(y):
            return ops.reshape(y, (-1, y.shape[1], self.num_heads, channels // self.num_heads))

        pooled = ops.dot_product_attention(
            split_heads(self.query(x[:, :1])), split_heads(self.key(x)), split_heads(self.value(x))
        )
        return ops.reshape(pooled, (-1, channels))

    def compute_output_shape(self, x_shape):
        return (x_shape[0], x_shape[-1])
