"""Layers that are computed as matrix products: values, gradients, and the programs of JAX."""

import keras
import numpy as np
import pytest
from gradients import loss_and_gradients
from keras import ops

from keras_clip.layers.adaptable import LoraDense
from keras_clip.layers.convolutions import PatchConv2D, PointwiseConv2D

# The layer, its peer, its arguments, the shape of its inputs, and what it is called with.
LAYERS = {
    "1 x 1, training": (PointwiseConv2D, keras.layers.Conv2D, (5, 1), (2, 3, 4, 6), {"training": True}),
    "1 x 1, inference": (PointwiseConv2D, keras.layers.Conv2D, (5, 1), (2, 3, 4, 6), {"training": False}),
    "patches": (PatchConv2D, keras.layers.Conv2D, (5, 2, 2), (2, 4, 6, 3), {}),
    "dense, tokens": (LoraDense, keras.layers.Dense, (5,), (2, 3, 6), {}),
    "dense, rank 4": (LoraDense, keras.layers.Dense, (5,), (2, 3, 2, 6), {}),
}


@pytest.mark.parametrize("kind, peer, arguments, shape, calling", LAYERS.values(), ids=LAYERS)
def test_values_and_gradients_are_those_of_keras(kind, peer, arguments, shape, calling):
    options = {"use_bias": False} if kind is not LoraDense else {"activation": "tanh"}
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype("float32")
    results = []
    for layer, called in ((kind, calling), (peer, {})):
        layer = layer(*arguments, **options)
        layer.build(shape)
        values = np.random.default_rng(1)
        layer.set_weights([values.normal(size=weight.shape).astype("float32") for weight in layer.weights])
        # A variable, so that the gradient with respect to the inputs is compared too.
        inputs = keras.Variable(x)

        def loss(layer=layer, inputs=inputs, called=called):
            outputs = layer(ops.convert_to_tensor(inputs), **called)
            return ops.sum(outputs * ops.cos(outputs))

        value, gradients = loss_and_gradients(loss, [*layer.trainable_variables, inputs])
        results.append((layer(x, **called), value, *gradients))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="backend unable: has no such program")
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "1 x 1, inference"])
def test_a_training_has_products_of_matrices_only(name):
    import jax

    kind, _, arguments, shape, calling = LAYERS[name]
    layer = kind(*arguments, **({"use_bias": False} if kind is not LoraDense else {}))
    layer.build(shape)
    values = [variable.value for variable in layer.trainable_variables]

    def loss(values, x):
        return layer.stateless_call(values, [], x, **calling)[0].sum()

    program = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(values, np.zeros(shape, "float32")))
    assert "dot_general" in program and "conv_general" not in program
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert all(line.split("=")[0].count(",") <= 1 for line in products), products
