"""The digest of the weights of a model, by which results are known to be of it."""

import hashlib
from collections.abc import Iterable

import keras
import numpy as np


def weights_digest(weights: Iterable[keras.Variable], beginning: str = "") -> str:
    """Returns a digest of the bytes, shapes and dtypes of weights, in their order.

    Args:
        weights: the weights.
        beginning: str, what else the digest depends on.

    Returns:
        64 hexadecimal digits.
    """
    whole = hashlib.sha256(beginning.encode())
    for weight in weights:
        array = np.asarray(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(weight)))
        whole.update(f"{weight.dtype} {array.shape} ".encode())
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()
