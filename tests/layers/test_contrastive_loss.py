"""`ContrastiveLoss`: a temperature and a loss in a user's functional model."""

import keras
import numpy as np
import pytest
from gradients import loss_and_gradients
from keras import ops

from keras_clip import losses
from keras_clip.layers.contrastive_loss import ContrastiveLoss

KINDS = pytest.mark.parametrize("kind", ["contrastive", "sigmoid"])


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype("float32")


def model_of(kind, **arguments):
    """Returns a functional model of two linear encoders and the layer."""
    images, texts = keras.Input((6,)), keras.Input((5,))
    embeddings = (keras.layers.UnitNormalization()(keras.layers.Dense(4)(x)) for x in (images, texts))
    return keras.Model([images, texts], ContrastiveLoss(kind, **arguments)(*embeddings))


def pass_on(y_true, pair_losses):
    return pair_losses


def expected(layer, images, texts):
    if layer.kind == "sigmoid":
        return losses.sigmoid_loss(images, texts, layer.logit_scale.value, layer.logit_bias.value)
    return losses.contrastive_loss(images, texts, layer.logit_scale.value)


@KINDS
def test_is_the_loss_at_its_own_temperature(kind, rng):
    images, texts = unit(rng, 5, 4), unit(rng, 5, 4)
    layer = ContrastiveLoss(kind)
    pairs = layer(images, texts)
    np.testing.assert_allclose(*map(ops.convert_to_numpy, (pairs, expected(layer, images, texts))), rtol=1e-6)
    both = layer.loss_and_matches(images, texts)
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (pairs, both.loss)))
    assert tuple(both.image_matched.shape) == tuple(both.text_matched.shape) == (5,)


def test_starts_as_the_papers_do():
    clip, siglip = ContrastiveLoss(), ContrastiveLoss("sigmoid")
    for layer in (clip, siglip):
        layer.build((None, 4), (None, 4))
    assert float(clip.logit_scale) == pytest.approx(np.log(1 / 0.07))
    assert clip.logit_bias is None
    assert float(siglip.logit_scale) == pytest.approx(np.log(10))
    assert float(siglip.logit_bias) == -10
    own = ContrastiveLoss("sigmoid", temperature=0.5, bias=0)
    own.build((None, 4), (None, 4))
    assert (float(own.logit_scale), float(own.logit_bias)) == (pytest.approx(np.log(2)), 0)


@KINDS
def test_every_weight_has_a_gradient(kind, rng):
    images, texts = unit(rng, 5, 4), unit(rng, 5, 4)
    layer = ContrastiveLoss(kind, temperature=0.5)
    layer.build((None, 4), (None, 4))
    weights = layer.trainable_variables
    _, gradients = loss_and_gradients(lambda: ops.mean(layer(images, texts)), weights)
    for i, weight in enumerate(weights):
        # The gradient by finite differences of the loss.
        before, values = float(weight), []
        for step in (0.05, -0.05):
            weight.assign(before + step)
            values.append(float(ops.mean(layer(images, texts))))
        weight.assign(before)
        assert gradients[i] == pytest.approx((values[0] - values[1]) / 0.1, rel=0.01)


@KINDS
def test_float32_under_mixed_precision(kind, rng):
    images, texts = unit(rng, 5, 64), unit(rng, 5, 64)
    layer = ContrastiveLoss(kind, dtype="mixed_bfloat16")
    pairs = layer(images, texts)
    assert all(weight.dtype == "float32" for weight in layer.weights)
    assert keras.backend.standardize_dtype(pairs.dtype) == "float32"
    np.testing.assert_allclose(*map(ops.convert_to_numpy, (pairs, expected(layer, images, texts))), rtol=1e-6)


@KINDS
def test_trained_saved_and_loaded(kind, rng, tmp_path):
    data = [rng.normal(size=(12, 6)), rng.normal(size=(12, 5))]
    model = model_of(kind)
    assert tuple(model.output_shape) == (None,)
    model.compile(keras.optimizers.SGD(0.1), loss=pass_on)
    start = ops.convert_to_numpy(model.predict(data, batch_size=12, verbose=0)).mean()
    weights = [ops.convert_to_numpy(weight).copy() for weight in model.trainable_variables]
    logged = model.fit(data, np.zeros(12), batch_size=12, epochs=5, shuffle=False, verbose=0).history["loss"]
    assert logged[0] == pytest.approx(start, 1e-4)
    assert logged[-1] < logged[0]
    for old, weight in zip(weights, model.trainable_variables, strict=True):
        assert not np.array_equal(old, ops.convert_to_numpy(weight)), weight.path
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"pass_on": pass_on})
    np.testing.assert_array_equal(*(m.predict(data, batch_size=12, verbose=0) for m in (model, loaded)))
    # The loaded layer keeps the bound on the logit scale.
    layer = loaded.layers[-1]
    layer.logit_scale.assign(7.0)
    loaded.optimizer.learning_rate = 0.0
    loaded.fit(data, np.zeros(12), batch_size=12, verbose=0)
    bound = {"contrastive": 100, "sigmoid": 1000}[kind]
    assert float(layer.logit_scale) == pytest.approx(np.log(bound), abs=1e-6)


def test_config_holds_every_argument():
    config = ContrastiveLoss("sigmoid", temperature=0.2, bias=-3.0).get_config()
    assert {key: config[key] for key in ("kind", "temperature", "bias")} == dict(
        kind="sigmoid", temperature=0.2, bias=-3.0
    )


REFUSALS = {
    "unknown kind": dict(kind="triplet"),
    "a bias without use": dict(bias=-10.0),
    "no temperature": dict(temperature=0.0),
    "no temperature of sigmoid": dict(kind="sigmoid", temperature=-1.0),
}


@pytest.mark.parametrize("arguments", REFUSALS.values(), ids=REFUSALS)
def test_refusal(arguments):
    with pytest.raises(ValueError, match="Received: "):
        ContrastiveLoss(**arguments)
