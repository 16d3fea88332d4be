"""The logged norm is that of the gradient of the loss, without the factor by which the optimizer scales the loss."""

import keras
import pytest
from small_clip import build, pairs, train

FACTORS = {
    "a constant factor": lambda: keras.optimizers.SGD(0.1, loss_scale_factor=64.0),
    "a dynamic factor": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=64.0),
}


@pytest.fixture(scope="module")
def unscaled():
    return train(build(), pairs(24), 24, epochs=1)[0]["gradient_norm"]


@pytest.mark.parametrize("optimizer", FACTORS.values(), ids=FACTORS)
def test_the_norm_does_not_depend_on_the_loss_scale(unscaled, optimizer):
    logs = train(build(), pairs(24), 24, epochs=1, optimizer=optimizer())[0]
    assert logs["gradient_norm"] == pytest.approx(unscaled, rel=1e-4)
