"""One contract for every layer and encoder: documented shapes, all weights learn, serialisation, mixed precision."""

import inspect

import keras
import numpy as np
import pytest

from keras_clip import encoders, layers
from keras_clip.encoders.resnet import Bottleneck


def normal(*shape):
    return lambda rng: rng.normal(size=shape).astype("float32")


def tokens(rows, length, vocabulary):
    return lambda rng: rng.integers(0, vocabulary, size=(rows, length)).astype("int32")


# name: (class, arguments, input, documented shape of the output, its dtype under mixed_bfloat16)
COMPONENTS = {
    "SelfAttention": (layers.SelfAttention, dict(num_heads=2), normal(2, 5, 8), (2, 5, 8), "bfloat16"),
    "SelfAttention causal": (
        layers.SelfAttention,
        dict(num_heads=4, causal=True, output_stddev=0.1),
        normal(2, 5, 8),
        (2, 5, 8),
        "bfloat16",
    ),
    "TransformerBlock": (
        layers.TransformerBlock,
        dict(num_heads=2, num_layers=3, causal=True, activation="gelu", mlp_ratio=2.0),
        normal(3, 4, 8),
        (3, 4, 8),
        "bfloat16",
    ),
    "PatchEmbedding": (
        layers.PatchEmbedding,
        dict(image_size=(8, 12), patch_size=4, width=16),
        normal(2, 8, 12, 3),
        (2, 7, 16),
        "bfloat16",
    ),
    "TokenEmbedding": (
        layers.TokenEmbedding,
        dict(vocabulary_size=11, context_length=6, width=8),
        tokens(3, 5, 11),
        (3, 5, 8),
        "bfloat16",
    ),
    "PatchDropout": (layers.PatchDropout, dict(rate=0.5, seed=1), normal(2, 5, 4), (2, 5, 4), "bfloat16"),
    "PixelNormalization": (
        layers.PixelNormalization,
        dict(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
        lambda rng: rng.integers(0, 256, size=(2, 4, 4, 3)).astype("uint8"),
        (2, 4, 4, 3),
        "bfloat16",
    ),
    "AttentionPool": (layers.AttentionPool, dict(num_heads=2), normal(2, 3, 2, 8), (2, 8), "bfloat16"),
    "ProjectionHead": (layers.ProjectionHead, dict(embed_dim=4, use_bias=True), normal(3, 8), (3, 4), "float32"),
    "Bottleneck": (Bottleneck, dict(filters=4, stride=2), normal(2, 4, 6, 8), (2, 2, 3, 16), "bfloat16"),
    "VisionTransformer": (
        encoders.VisionTransformer,
        dict(image_size=8, patch_size=4, width=8, num_layers=2, num_heads=2, patch_dropout=0.25, seed=3),
        normal(3, 8, 8, 3),
        (3, 8),
        "bfloat16",
    ),
    "ModifiedResNet": (
        encoders.ModifiedResNet,
        dict(image_size=(32, 64), blocks=(1, 2, 1, 1), width=4, num_heads=2),
        normal(2, 32, 64, 3),
        (2, 128),
        "bfloat16",
    ),
    "TextTransformer": (
        encoders.TextTransformer,
        dict(width=8, num_layers=2, num_heads=2, context_length=6, vocabulary_size=11, activation="gelu"),
        tokens(3, 5, 11),
        (3, 8),
        "bfloat16",
    ),
}
components = pytest.mark.parametrize("name", COMPONENTS)


def make(name, rng, **more):
    """Returns the built component with changed weights: initial zeros and ones would hide errors."""
    cls, arguments, inputs, shape, mixed_dtype = COMPONENTS[name]
    component = cls(**arguments, **more)
    x = inputs(rng)
    component(x)
    for variable in component.weights:
        if "seed" not in variable.path:
            noise = 0.1 * rng.normal(size=variable.shape).astype(variable.dtype)
            # Added by NumPy, since JAX compiles each operation for each shape.
            variable.assign(
                keras.ops.convert_to_numpy(variable) + (np.abs(noise) if "variance" in variable.path else noise)
            )
    return component, x, shape, mixed_dtype


def call(component, x):
    return keras.ops.convert_to_numpy(keras.ops.cast(component(x), "float32"))


@components
def test_shape_is_the_documented_one(name, rng):
    component, x, shape, _ = make(name, rng)
    assert call(component, x).shape == shape
    symbolic = component(keras.KerasTensor((None, *x.shape[1:]), dtype=x.dtype.name))
    assert tuple(symbolic.shape) == (None, *shape[1:])


@components
def test_config_holds_every_argument(name, rng):
    component, x, _, _ = make(name, rng)
    config = component.get_config()
    signature = inspect.signature(type(component).__init__).parameters
    assert set(signature) - {"self", "kwargs"} <= set(config)
    for argument, value in COMPONENTS[name][1].items():
        assert config[argument] == value


@components
def test_saved_and_loaded(name, rng, tmp_path):
    component, x, _, _ = make(name, rng)
    inputs = keras.Input(x.shape[1:], dtype=x.dtype.name)
    model = keras.Model(inputs, component(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for before, after in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(before), keras.ops.convert_to_numpy(after), err_msg=before.path
        )
    np.testing.assert_array_equal(call(model, x), call(loaded, x))


@pytest.mark.parametrize("name", [name for name in COMPONENTS if name not in ("PatchDropout", "PixelNormalization")])
def test_every_weight_learns(name, rng):
    component, x, shape, _ = make(name, rng)
    inputs = keras.Input(x.shape[1:], dtype=x.dtype.name)
    model = keras.Model(inputs, component(inputs))
    before = [keras.ops.convert_to_numpy(variable).copy() for variable in model.trainable_variables]
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    model.train_on_batch(x, rng.normal(size=shape).astype("float32"))
    for old, variable in zip(before, model.trainable_variables, strict=True):
        new = keras.ops.convert_to_numpy(variable)
        assert np.isfinite(new).all(), variable.path
        # The bias of the keys adds the same number to all logits of a softmax, and so has no gradient.
        if not variable.path.endswith("key/bias"):
            assert not np.array_equal(old, new), variable.path


@components
def test_mixed_precision(name, rng):
    component, x, shape, mixed_dtype = make(name, rng)
    mixed = type(component)(**COMPONENTS[name][1], dtype="mixed_bfloat16")
    mixed(x)
    mixed.set_weights(component.get_weights())
    assert all(variable.dtype == "float32" for variable in mixed.trainable_variables)
    assert keras.backend.standardize_dtype(mixed(x).dtype) == mixed_dtype
    np.testing.assert_allclose(call(mixed, x), call(component, x), atol=0.15, rtol=0.1)
