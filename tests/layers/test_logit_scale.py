"""`LogitScale`: its initial value, its bound, its precision."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_clip.layers.logit_scale import LogitScale


def test_divides_by_the_temperature():
    layer = LogitScale(temperature=0.5)
    np.testing.assert_allclose(ops.convert_to_numpy(layer(np.array([[0.25, -1.0]]))), [[0.5, -2.0]], rtol=1e-6)
    assert float(layer.logit_scale) == pytest.approx(np.log(2))
    assert float(LogitScale()(np.ones((1, 1)))[0, 0]) == pytest.approx(1 / 0.07)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_float32_under_every_policy(policy):
    layer = LogitScale(dtype=policy)
    logits = layer(np.array([[1.001, 1.0]], "float32"))
    assert layer.logit_scale.dtype == "float32"
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    # In bfloat16, both logits would be equal.
    np.testing.assert_allclose(ops.convert_to_numpy(logits), np.array([[1.001, 1.0]]) / 0.07, rtol=1e-6)
    symbolic = layer(keras.KerasTensor((None, 3), dtype="float32"))
    assert (tuple(symbolic.shape), symbolic.dtype) == ((None, 3), "float32")


@pytest.mark.parametrize("loaded", [False, True], ids=["new", "loaded"])
def test_stays_at_or_below_100(loaded, tmp_path):
    inputs = keras.Input((1,))
    model = keras.Model(inputs, LogitScale()(inputs))
    if loaded:
        model.save(tmp_path / "model.keras")
        model = keras.saving.load_model(tmp_path / "model.keras")
    weight = model.layers[-1].logit_scale
    model.compile(keras.optimizers.SGD(1.0), loss=lambda y, logits: -logits)
    model.train_on_batch(np.ones((4, 1)), np.ones((4, 1)))
    assert float(weight) == pytest.approx(np.log(100), abs=1e-6)
    # At the bound, the weight still learns: its gradient is that of the loss.
    model.compile(keras.optimizers.SGD(0.01), loss=lambda y, logits: logits)
    model.train_on_batch(np.ones((4, 1)), np.ones((4, 1)))
    assert float(weight) == pytest.approx(np.log(100) - 1.0, abs=1e-4)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf")])
def test_refuses_a_temperature(temperature):
    with pytest.raises(ValueError, match="Received: temperature="):
        LogitScale(temperature)


def test_config_holds_the_temperature():
    assert LogitScale(temperature=0.3).get_config()["temperature"] == 0.3
    assert LogitScale.from_config(LogitScale(temperature=0.3).get_config()).temperature == 0.3
