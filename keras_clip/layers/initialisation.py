"""The initial distributions of weights, and zeros for weights that a checkpoint will overwrite."""

import contextlib
import contextvars
from collections.abc import Iterator

import keras

_is_skipped = contextvars.ContextVar("is_skipped", default=False)


def normal(stddev: float) -> keras.Initializer:
    """Returns a normal initializer, for embeddings and linear layers."""
    return keras.initializers.Zeros() if _is_skipped.get() else keras.initializers.RandomNormal(stddev=stddev)


def uniform() -> keras.Initializer:
    """Returns a uniform initializer in +-fan_in^-0.5, as for the convolutions of the reference implementation."""
    if _is_skipped.get():
        return keras.initializers.Zeros()
    return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")


@contextlib.contextmanager
def skip_initialization() -> Iterator[None]:
    """A context in which models start with zeros: random numbers would take as long as reading the weights."""
    token = _is_skipped.set(True)
    try:
        yield
    finally:
        _is_skipped.reset(token)
