"""Warns of weights that are stored in too few bits to be trained."""

import warnings

import keras
import numpy as np


def check_precision(optimizer: keras.optimizers.Optimizer, variables: list) -> None:
    """Warns of weights in half precision, and refuses an optimizer that makes NaN of them.

    bfloat16 has 8 bits of precision and float16 has 11: an update of less than 1/512 or 1/4096 of a weight is rounded
    away, whatever its sum over many steps. Under the policies "mixed_bfloat16" and "mixed_float16" weights are float32
    and activations have half precision.

    Args:
        optimizer: Keras optimizer.
        variables: the weights that it trains.

    Raises:
        ValueError: float16 weights and an `epsilon` that is zero in float16, by which Adam divides.
    """
    stored = {keras.backend.standardize_dtype(variable.dtype) for variable in variables}
    low = sorted(stored & {"float16", "bfloat16"})
    if not low:
        return
    epsilon = getattr(getattr(optimizer, "inner_optimizer", optimizer), "epsilon", None)
    cure = f'Build or load the model with dtype="mixed_{low[-1]}".'
    if "float16" in low and epsilon is not None and np.float16(epsilon) == 0:
        raise ValueError(
            "`epsilon` must not be zero in the dtype of the weights: where a gradient is zero, Adam would divide by "
            f"it. Received: epsilon={epsilon} and weights in float16. {cure}"
        )
    warnings.warn(
        "Weights should be stored in float32 for training: in half precision, updates that are small beside a weight "
        f"are rounded away. Received: weights in {' and '.join(low)}. {cure}",
        stacklevel=4,
    )
