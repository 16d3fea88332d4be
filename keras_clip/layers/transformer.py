"""The pre-LN residual block of both transformers (Radford et al., 2021, sections 2.4 and 2.5).

It has no dropout, relative positions or key-value cache: CLIP uses none of them.
"""

import keras
from keras import ops

from keras_clip.layers.initialisation import normal
from keras_clip.types import Tensor


@keras.saving.register_keras_serializable(package="keras_clip")
def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the approximate GELU that the published weights were trained with.

    Args:
        x: float tensor of any shape.

    Returns:
        Tensor of the shape and dtype of `x`.
    """
    return x * ops.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": keras.activations.gelu}


def get_activation(name: str):
    """The function behind an `activation` argument: "quick_gelu" or "gelu" (the exact one)."""
    if name not in ACTIVATIONS:
        raise ValueError(
            f"`activation` must be one of {', '.join(map(repr, ACTIVATIONS))}. Received: activation={name!r}. "
            "The nine models of the paper use 'quick_gelu'; most later CLIPs use 'gelu'."
        )
    return ACTIVATIONS[name]


@keras.saving.register_keras_serializable(package="keras_clip")
class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention, causal or not.

    Query, key and value are three `Dense` layers, so that the last block before pooling computes the queries of the
    pooled rows only.

    Args:
        num_heads: int. Must divide the width D of the inputs.
        causal: bool. Whether a token attends only to itself and the tokens before it.
        output_stddev: float or None. Standard deviation of the output projection at the start; None: D^-0.5.

    Call arguments:
        x: float tensor (B, L, D). Keys and values come from here.
        queries: float tensor (B, Q, D) or None. The rows that attend; None: `x`.
        visible: bool tensor (B, Q, L) or None. Which rows of `x` each query sees; only with `queries`, where it
            replaces the causal rule. (Keras gives an argument named `mask` a meaning of its own.)

    Returns:
        Tensor (B, L, D), or (B, Q, D) with `queries`, in the compute dtype.

    Raises:
        ValueError: `num_heads` does not divide D.
    """

    def __init__(self, num_heads: int, causal: bool = False, output_stddev: float | None = None, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.causal = causal
        self.output_stddev = output_stddev

    def build(self, x_shape):
        if self.built:
            return
        width = x_shape[-1]
        if width % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide the width. Received: num_heads={self.num_heads}, width={width}. "
                "The published models use width / 64."
            )
        stddev = width**-0.5

        def projection(name, stddev):
            dense = keras.layers.Dense(width, kernel_initializer=normal(stddev), dtype=self.dtype_policy, name=name)
            dense.build((None, width))
            return dense

        self.query = projection("query", stddev)
        self.key = projection("key", stddev)
        self.value = projection("value", stddev)
        self.output_projection = projection("output", self.output_stddev or stddev)
        self.built = True

    def _split_heads(self, x):
        return ops.reshape(x, (-1, ops.shape(x)[1], self.num_heads, x.shape[-1] // self.num_heads))

    def call(self, x, queries=None, visible=None):
        inputs = x if queries is None else queries
        attended = ops.dot_product_attention(
            self._split_heads(self.query(inputs)),
            self._split_heads(self.key(x)),
            self._split_heads(self.value(x)),
            mask=None if visible is None else ops.expand_dims(visible, 1),
            is_causal=self.causal and queries is None,
        )
        return self.output_projection(ops.reshape(attended, ops.shape(inputs)))

    def compute_output_shape(self, x_shape, queries_shape=None, visible_shape=None):
        return queries_shape or x_shape


@keras.saving.register_keras_serializable(package="keras_clip")
class TransformerBlock(keras.layers.Layer):
    """x + attention(LN(x)), then x + MLP(LN(x)).

    With `queries` the block computes these rows only: the same values as in the full output, without the work for rows
    that pooling would discard.

    Args:
        num_heads: int. Must divide the width D of the inputs.
        num_layers: int. Number of blocks in the transformer, which scales the initialisation of the residual branches.
        causal: bool. Whether a token sees only itself and the tokens before it.
        activation: "quick_gelu" or "gelu".
        mlp_ratio: float. Width of the MLP's hidden layer over D.

    Call arguments:
        x: float tensor (B, L, D).
        queries: float tensor (B, Q, D) or None. The rows of `x` to compute; None: all.
        visible: bool tensor (B, Q, L) or None. Which rows of `x` each query sees; only with `queries`.

    Returns:
        Tensor (B, L, D), or (B, Q, D) with `queries`, in the compute dtype.
    """

    def __init__(
        self,
        num_heads: int,
        num_layers: int = 1,
        causal: bool = False,
        activation: str = "quick_gelu",
        mlp_ratio: float = 4.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        get_activation(activation)
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.causal = causal
        self.activation = activation
        self.mlp_ratio = mlp_ratio

    def build(self, x_shape):
        if self.built:
            return
        width = x_shape[-1]
        hidden = int(width * self.mlp_ratio)
        # Scaled so that the sum of all residual branches has the variance of one.
        branch_stddev = width**-0.5 * (2 * self.num_layers) ** -0.5
        policy = self.dtype_policy
        self.norm_1 = keras.layers.LayerNormalization(epsilon=1e-5, dtype=policy, name="norm_1")
        self.attention = SelfAttention(self.num_heads, self.causal, branch_stddev, dtype=policy, name="attention")
        self.norm_2 = keras.layers.LayerNormalization(epsilon=1e-5, dtype=policy, name="norm_2")
        self.expand = keras.layers.Dense(
            hidden,
            activation=get_activation(self.activation),
            kernel_initializer=normal((2 * width) ** -0.5),
            dtype=policy,
            name="expand",
        )
        self.contract = keras.layers.Dense(
            width, kernel_initializer=normal(branch_stddev), dtype=policy, name="contract"
        )
        for layer in (self.norm_1, self.attention, self.norm_2, self.expand):
            layer.build((None, None, width))
        self.contract.build((None, None, hidden))
        self.built = True

    def call(self, x, queries=None, visible=None):
        if queries is None:
            x = x + self.attention(self.norm_1(x))
        else:
            x = queries + self.attention(self.norm_1(x), queries=self.norm_1(queries), visible=visible)
        return x + self.contract(self.expand(self.norm_2(x)))

    def compute_output_shape(self, x_shape, queries_shape=None, visible_shape=None):
        return queries_shape or x_shape
