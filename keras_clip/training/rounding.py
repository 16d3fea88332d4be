"""Stochastic rounding to bfloat16, for moments that change by less than its precision in a step.

bfloat16 has eight bits of precision. A moving average whose relative change in a step is below 1/256 would never
change if it were rounded to nearest: with `beta_2=0.999` the second moment of Adam could not decrease. Stochastic
rounding is correct in expectation.
"""

import keras
from keras import ops

from keras_clip.types import Tensor

_UPPER_HALF = -65536  # 0xFFFF0000, the bits that bfloat16 keeps of a float32
_EXPONENT = 0x7F800000
_PRECISION = 2.0**-7


def round_to_bfloat16(x: Tensor, noise: Tensor) -> Tensor:
    """Rounds to one of the two neighbours at random, so that the expectation over the noise is `x`.

    Args:
        x: float32 tensor.
        noise: float32 tensor of its shape, uniform in [0, 1).

    Returns:
        bfloat16 tensor of its shape.
    """
    # With float operations where possible: TensorFlow adds int32 tensors on the host.
    bits = ops.view(x, "int32")
    inner = ops.view(ops.bitwise_and(bits, _UPPER_HALF), "float32")
    gap = ops.view(ops.bitwise_and(bits, _EXPONENT), "float32") * _PRECISION
    is_outer = noise * gap < ops.abs(x - inner)
    return ops.cast(inner + ops.where(is_outer, ops.sign(x) * gap, 0.0), "bfloat16")


class StepSeed(keras.random.SeedGenerator):
    """The seed of one weight at one step, a function of both: it has no state, and a resumed training repeats it.

    Args:
        step: int tensor, ().
        index: int. Of the weight.
    """

    def __init__(self, step: Tensor, index: int):
        self._seed = ops.stack([ops.cast(step, "uint32"), ops.convert_to_tensor(index, "uint32")])

    def next(self, ordered: bool = True) -> Tensor:
        """The seed, uint32 (2,), the same at each call."""
        return self._seed
