"""Matrix products over many rows on the backend's device, with sums in float64.

This module depends on the backend, since each has its own switch for full precision. Products are written with `@`,
since `ops.matmul` casts float64 to float32 on torch.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator

import keras
import numpy as np
from keras import ops

from keras_clip.types import Tensor

# Elements of the widest array of a tile (4 MiB of float32): fits the caches, and is large enough for a fast product.
TILE_AREA = 2**20
LEAST_ROWS = 512


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """A context in which products have the precision of their factors: no TF32, and float64 on JAX too."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        with jax.enable_x64(True), jax.default_matmul_precision("float32"):
            yield
    elif backend == "tensorflow":
        from tensorflow import config

        before = config.experimental.tensor_float_32_execution_enabled()
        config.experimental.enable_tensor_float_32_execution(False)
        try:
            yield
        finally:
            config.experimental.enable_tensor_float_32_execution(before)
    else:
        import torch

        before = torch.backends.cuda.matmul.fp32_precision
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        try:
            with torch.no_grad():
                yield
        finally:
            torch.backends.cuda.matmul.fp32_precision = before


@functools.cache
def compiled(function: Callable) -> Callable:
    """Compiles a function, once for each combination of shapes and dtypes, on backends that compile.

    Args:
        function: function of tensors that returns a tuple of tensors.

    Returns:
        A function of the same arguments.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(function)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False, reduce_retracing=True)
    return function


def tiles(rows: int, width: int) -> list[slice]:
    """Splits the rows into equal parts that fit the caches.

    Args:
        rows: int.
        width: int. Elements in a row of the widest array.

    Returns:
        Slices that cover all rows in order.
    """
    count = max(1, -(-rows // max(LEAST_ROWS, TILE_AREA // max(1, width))))
    size = max(1, -(-rows // count))
    return [slice(start, start + size) for start in range(0, rows, size)]


def on_device(array: np.ndarray, dtype: str = "float32") -> Tensor:
    """Copies an array, which may be memory-mapped, to a tensor of the backend.

    Args:
        array: numbers.
        dtype: str.

    Returns:
        The tensor.
    """
    return ops.convert_to_tensor(np.array(array, dtype), dtype=dtype)


def multiply(rows: np.ndarray, columns: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """Computes `rows @ columns.T`, tile by tile.

    Args:
        rows: numbers (N, D).
        columns: numbers (K, D).
        dtype: str. Dtype of the product.

    Returns:
        Array (N, K) of that dtype.
    """
    result = np.empty((len(rows), len(columns)), dtype)
    with full_precision():
        factor = on_device(np.transpose(columns), dtype)
        for tile in tiles(len(rows), max(rows.shape[1], len(columns))):
            result[tile] = ops.convert_to_numpy(on_device(rows[tile], dtype) @ factor)
    return result


def weighted_moments(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the sums of the weights (n,), of the weighted rows (n, D) and of their weighted outer products (D, D)."""
    weighted = rows * weights[:, None]
    return ops.sum(weights), ops.sum(weighted, axis=0), ops.transpose(rows) @ weighted


def _moments_step(rows):
    rows = ops.cast(rows, "float64")
    return ops.sum(rows, axis=0), ops.transpose(rows) @ rows


def moments(parts: Iterable[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and covariance of all rows.

    Args:
        parts: tensors (n, D), tile by tile.

    Returns:
        float64 (D,) and (D, D); the covariance is divided by the number of rows.
    """
    rows, total, square = 0, 0.0, 0.0
    with full_precision():
        for part in parts:
            tile_total, tile_square = compiled(_moments_step)(part)
            rows += len(part)
            total = total + ops.convert_to_numpy(tile_total)
            square = square + ops.convert_to_numpy(tile_square)
    mean = total / rows
    return mean, square / rows - np.outer(mean, mean)
