"""The distributions that weights are drawn from, or nothing at all where a checkpoint fills them."""

import contextlib
import contextvars
from collections.abc import Iterator

import keras

_drawing = contextvars.ContextVar("drawing", default=True)


def normal(stddev: float) -> keras.Initializer:
    """A normal distribution, for embeddings and linear layers."""
    return keras.initializers.RandomNormal(stddev=stddev) if _drawing.get() else keras.initializers.Zeros()


def uniform() -> keras.Initializer:
    """Uniform in +-fan_in^-0.5, which is how the reference leaves its convolutions."""
    if not _drawing.get():
        return keras.initializers.Zeros()
    return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")


@contextlib.contextmanager
def skip_initialization() -> Iterator[None]:
    """Models made inside start with zeros: to draw the numbers of a large one takes as long as to read them."""
    token = _drawing.set(False)
    try:
        yield
    finally:
        _drawing.reset(token)
