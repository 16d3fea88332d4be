"""Stochastic rounding to bfloat16.

bfloat16 has eight bits of precision. Under rounding to nearest, an average that changes by less than 1/256 of its value
per step would never change: with `beta_2=0.999` the second moment of Adam could not decrease. Stochastic rounding is
unbiased, so that such an average is correct in expectation.
"""

import keras
from keras import ops

from keras_clip.types import Tensor

_UPPER_HALF = -65536  # 0xFFFF0000, the bits that bfloat16 keeps of a float32
_EXPONENT = 0x7F800000
_PRECISION = 2.0**-7


def round_to_bfloat16(x: Tensor, noise: Tensor) -> Tensor:
    """Rounds stochastically to one of the two neighbouring values, so that the mean over the noise is `x`.

    Args:
        x: float32 tensor.
        noise: float32 tensor of the same shape, uniform in [0, 1).

    Returns:
        bfloat16 tensor of the same shape.
    """
    # Uses float operations where possible: TensorFlow adds int32 on the host, even for tensors on a device.
    bits = ops.view(x, "int32")
    inner = ops.view(ops.bitwise_and(bits, _UPPER_HALF), "float32")
    gap = ops.view(ops.bitwise_and(bits, _EXPONENT), "float32") * _PRECISION
    is_outer = noise * gap < ops.abs(x - inner)
    return ops.cast(inner + ops.where(is_outer, ops.sign(x) * gap, 0.0), "bfloat16")


class StepSeed(keras.random.SeedGenerator):
    """A seed generator that depends on a step and a weight only, so that it is stateless and a resumed run repeats it.

    Args:
        step: int tensor, ().
        index: int. Index of the weight.
    """

    def __init__(self, step: Tensor, index: int):
        self._seed = ops.stack([ops.cast(step, "uint32"), ops.convert_to_tensor(index, "uint32")])

    def next(self, ordered: bool = True) -> Tensor:
        """Returns the seed, uint32 (2,), which is the same at every call."""
        return self._seed
