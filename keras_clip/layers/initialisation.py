"""The distributions that weights are initialised from; zeros where a checkpoint will overwrite them."""

import contextlib
import contextvars
from collections.abc import Iterator

import keras

_is_skipped = contextvars.ContextVar("is_skipped", default=False)


def normal(stddev: float) -> keras.Initializer:
    """A normal distribution, for embeddings and linear layers."""
    return keras.initializers.Zeros() if _is_skipped.get() else keras.initializers.RandomNormal(stddev=stddev)


def uniform() -> keras.Initializer:
    """Uniform in +-fan_in^-0.5, as PyTorch initialises the convolutions of the reference implementation."""
    if _is_skipped.get():
        return keras.initializers.Zeros()
    return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")


@contextlib.contextmanager
def skip_initialization() -> Iterator[None]:
    """Models made inside start with zeros: random numbers for a large model take as long as reading its weights."""
    token = _is_skipped.set(True)
    try:
        yield
    finally:
        _is_skipped.reset(token)
