"""The pre-LN residual block of both transformers (Radford et al., 2021, sections 2.4 and 2.5).

It has no dropout, relative positions or key-value cache, none of which CLIP uses.
"""

import keras
from keras import ops

from keras_clip.layers.adaptable import LoraDense
from keras_clip.layers.composite import Composite
from keras_clip.layers.initialisation import normal
from keras_clip.types import Tensor


@keras.saving.register_keras_serializable(package="keras_clip")
def quick_gelu(x: Tensor) -> Tensor:
    """Returns x * sigmoid(1.702 x), the approximate GELU with which the published weights were trained.

    Args:
        x: float tensor of any shape.

    Returns:
        Tensor of the shape and dtype of `x`.
    """
    return x * ops.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": keras.activations.gelu}


def get_activation(name: str):
    """Returns the function of an `activation` argument: "quick_gelu" or "gelu" (exact)."""
    if name not in ACTIVATIONS:
        raise ValueError(
            f"`activation` must be one of {', '.join(map(repr, ACTIVATIONS))}. Received: activation={name!r}. "
            "The nine models of the paper use 'quick_gelu'; most later CLIPs use 'gelu'."
        )
    return ACTIVATIONS[name]


@keras.saving.register_keras_serializable(package="keras_clip")
class SelfAttention(Composite, keras.layers.Layer):
    """Multi-head self-attention with an optional causal mask.

    Query, key and value are separate dense layers, so that a pooled block computes the queries of the pooled rows
    only.

    Args:
        num_heads: int. Must divide the width D of the inputs.
        causal: bool. Whether a token attends only to itself and the preceding tokens.
        output_stddev: float or None. Initial standard deviation of the output projection; None: D^-0.5.

    Call arguments:
        x: float tensor (B, L, D). Source of the keys and values.
        queries: float tensor (B, Q, D) or None. Source of the queries; None: `x`.
        visible: bool tensor (B, Q, L) or None. True where a query attends to a row of `x`; only with `queries`, where
            it replaces the causal mask. (In Keras the argument name `mask` has a special meaning.)

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
            dense = LoraDense(width, kernel_initializer=normal(stddev), dtype=self.dtype_policy, name=name)
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
        query_rows = x if queries is None else queries
        attended = ops.dot_product_attention(
            self._split_heads(self.query(query_rows)),
            self._split_heads(self.key(x)),
            self._split_heads(self.value(x)),
            mask=None if visible is None else ops.expand_dims(visible, 1),
            is_causal=self.causal and queries is None,
        )
        return self.output_projection(ops.reshape(attended, ops.shape(query_rows)))

    def compute_output_shape(self, x_shape, queries_shape=None, visible_shape=None):
        return queries_shape or x_shape


@keras.saving.register_keras_serializable(package="keras_clip")
class TransformerBlock(Composite, keras.layers.Layer):
    """A pre-LN transformer block: x + attention(LN(x)), then x + MLP(LN(x)).

    With `queries` the block returns the requested rows only. Their values equal those of the full output, without the
    computation of rows that pooling would discard.

    Args:
        num_heads: int. Must divide the width D of the inputs.
        num_layers: int. Number of blocks in the transformer, which sets the initial scale of the residual branches.
        causal: bool. Whether a token attends only to itself and the preceding tokens.
        activation: "quick_gelu" or "gelu".
        mlp_ratio: float. Width of the MLP's hidden layer divided by D.

    Call arguments:
        x: float tensor (B, L, D).
        queries: float tensor (B, Q, D) or None. Rows of `x` to compute; None: all.
        visible: bool tensor (B, Q, L) or None. True where a query attends to a row of `x`; only with `queries`.

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
        # The sum of the residual branches of all layers has the variance of a single unscaled branch.
        branch_stddev = width**-0.5 * (2 * self.num_layers) ** -0.5
        policy = self.dtype_policy
        self.norm_1 = keras.layers.LayerNormalization(epsilon=1e-5, dtype=policy, name="norm_1")
        self.attention = SelfAttention(self.num_heads, self.causal, branch_stddev, dtype=policy, name="attention")
        self.norm_2 = keras.layers.LayerNormalization(epsilon=1e-5, dtype=policy, name="norm_2")
        self.expand = LoraDense(
            hidden,
            activation=get_activation(self.activation),
            kernel_initializer=normal((2 * width) ** -0.5),
            dtype=policy,
            name="expand",
        )
        self.contract = LoraDense(width, kernel_initializer=normal(branch_stddev), dtype=policy, name="contract")
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
