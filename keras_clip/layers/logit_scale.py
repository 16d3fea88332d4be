"""The learned temperature that turns cosine similarities into logits."""

import math

import keras
from keras import initializers, ops

# Radford et al. (2021), section 2.5.
LARGEST_LOGIT_SCALE = math.log(100.0)


@keras.saving.register_keras_serializable(package="keras_clip")
class AtMost(keras.constraints.Constraint):
    """Constrains a weight to at most a bound, by clipping it after each step.

    Clipping inside the model instead would permanently stop the gradient of the weight once it exceeds the bound.

    Args:
        bound: float. Upper bound.
    """

    def __init__(self, bound: float):
        self.bound = bound

    def __call__(self, weight):
        return ops.minimum(weight, ops.cast(self.bound, weight.dtype))

    def get_config(self):
        return {"bound": self.bound}


def check_temperature(temperature: float) -> None:
    """Raises a ValueError unless 0 < temperature < infinity."""
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"`temperature` must be positive and finite. Received: temperature={temperature}. The paper uses 0.07."
        )


def add_logit_scale(
    layer: keras.layers.Layer, temperature: float, largest: float = LARGEST_LOGIT_SCALE
) -> keras.Variable:
    """Adds the weight log(1 / temperature) to a layer and returns it.

    Args:
        layer: the layer that owns it.
        temperature: float > 0. Initial temperature.
        largest: float. Upper bound of the weight.

    Returns:
        A scalar variable, float32 under every policy.
    """
    return layer.add_weight(
        name="logit_scale",
        shape=(),
        initializer=initializers.Constant(-math.log(temperature)),
        dtype="float32",
        autocast=False,
        constraint=AtMost(largest),
    )


@keras.saving.register_keras_serializable(package="keras_clip")
class LogitScale(keras.layers.Layer):
    """Divides similarities by a learned temperature.

    The weight is log(1 / temperature), which keeps the temperature positive; a bound of ln 100 keeps it at 0.01 or more
    (Radford et al., 2021, section 2.5). The layer is for custom heads; `CLIPModel` uses `ContrastiveLoss`, which does
    not materialise the similarity matrix.

    Args:
        temperature: float > 0. Initial temperature.

    Call arguments:
        similarities: cosines in [-1, 1], float tensor (..., B, K).

    Returns:
        Logits (..., B, K), float32 under every dtype policy.

    Raises:
        ValueError: a temperature that is not positive and finite.
    """

    def __init__(self, temperature: float = 0.07, **kwargs):
        # Under a mixed policy Keras would cast the similarities to the compute dtype before `call`.
        super().__init__(autocast=False, **kwargs)
        check_temperature(temperature)
        self.temperature = temperature

    def build(self, similarities_shape=None):
        if self.built:
            return
        self.logit_scale = add_logit_scale(self, self.temperature)
        self.built = True

    def call(self, similarities):
        return ops.cast(similarities, "float32") * ops.exp(self.logit_scale)

    def compute_output_spec(self, similarities):
        return keras.KerasTensor(similarities.shape, dtype="float32")
