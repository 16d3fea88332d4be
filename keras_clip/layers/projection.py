"""The linear map from the features of an encoder to the embedding space that images and texts share."""

import keras
from keras import ops

from keras_clip import distribution
from keras_clip.custom_gradient import custom_gradient
from keras_clip.layers.adaptable import LoraDense
from keras_clip.layers.composite import Composite
from keras_clip.layers.initialisation import normal
from keras_clip.types import Tensor

# The square of the smallest norm that a row is divided by.
EPSILON_SQUARED = 1e-12
# Smallest number of elements (4 MiB) for which a loop on JAX is used, which saves a copy of the array.
LOOP_MIN_ELEMENTS = 2**20


def unit_length(x: Tensor) -> Tensor:
    """Normalises rows to unit length, in float32; a zero row stays zero.

    Args:
        x: float tensor (..., E).

    Returns:
        float32 tensor (..., E).
    """
    return _unit_length(ops.cast(x, "float32"))


def _normalize(x):
    # The bound is inside the root: a bound on the norm itself would give a zero row a gradient of NaN.
    inverse = ops.rsqrt(ops.maximum(ops.sum(ops.square(x), axis=-1, keepdims=True), EPSILON_SQUARED))
    result = _scaled(x, inverse)
    # The gradient uses the output, which a loss keeps anyway, and not the input.
    return result, (result, inverse)


def _normalize_backward(saved, upstream):
    result, inverse = saved
    along = ops.sum(result * upstream, axis=-1, keepdims=True)
    # Rows shorter than the bound are scaled by a constant, so their gradient has no part along the row.
    along = ops.where(inverse < EPSILON_SQUARED**-0.5, along, 0.0)
    return (inverse * (upstream - along * result),)


_unit_length = custom_gradient(_normalize, _normalize_backward)


def _scaled(x, factors):
    """Returns x * factors, where factors are (..., 1)."""
    shards = distribution.row_shards()
    if keras.backend.backend() != "jax" or x.ndim != 2 or x.size < LOOP_MIN_ELEMENTS or len(x) % (2 * shards):
        return x * factors
    import jax

    # XLA would recompute such a cheap product wherever it is used, and store x for that. A loop runs once, in place.
    x, factors = (array.reshape(shards, 2, -1, array.shape[1]) for array in (x, factors))
    scaled = jax.lax.fori_loop(0, 2, lambda i, x: x.at[:, i].multiply(factors[:, i]), x)
    return scaled.reshape(-1, x.shape[-1])


@keras.saving.register_keras_serializable(package="keras_clip")
class ProjectionHead(Composite, keras.layers.Layer):
    """Maps features linearly to unit-length embeddings (W_i and W_t of Radford et al., 2021, figure 3).

    Args:
        embed_dim: int. E.
        use_bias: bool. The published ResNets have a bias here, the transformers do not.

    Call arguments:
        features: float tensor (B, D).

    Returns:
        float32 tensor (B, E) of unit length under every dtype policy; zero features without bias give zeros.
    """

    def __init__(self, embed_dim: int, use_bias: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.embed_dim = embed_dim
        self.use_bias = use_bias

    def build(self, features_shape):
        if self.built:
            return
        width = features_shape[-1]
        self.dense = LoraDense(
            self.embed_dim,
            use_bias=self.use_bias,
            kernel_initializer=normal(width**-0.5),
            dtype=self.dtype_policy,
            name="dense",
        )
        self.dense.build((None, width))
        self.built = True

    def call(self, features):
        return unit_length(self.dense(features))

    def compute_output_spec(self, features):
        return keras.KerasTensor((features.shape[0], self.embed_dim), dtype="float32")
