"""`wrap`: other libraries' models as encoders, padding recognised by its position, pixel ranges, refusals."""

import keras
import numpy as np
import pytest

import keras_clip
from keras_clip import encoders

CONTEXT = 6


def applications_model():
    return keras.applications.MobileNetV2(input_shape=(32, 32, 3), alpha=0.35, include_top=False, weights=None)


def hub_image_backbone():
    keras_hub = pytest.importorskip("keras_hub", reason="backend unable: keras-hub is not installed")
    return keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16
    )


def hub_text_backbone():
    keras_hub = pytest.importorskip("keras_hub", reason="backend unable: keras-hub is not installed")
    return keras_hub.models.BertBackbone(
        vocabulary_size=49408,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=CONTEXT,
    )


def text_encoder():
    return encoders.TextTransformer(8, 1, 2, context_length=CONTEXT)


def image_encoder():
    return encoders.VisionTransformer(32, 16, 8, 1, 2)


PAIRS = {
    "keras.applications": lambda: (
        encoders.wrap(applications_model(), pooling="mean", pixel_range=(-1, 1)),
        text_encoder(),
    ),
    "KerasHub image": lambda: (encoders.wrap(hub_image_backbone(), pooling="first"), text_encoder()),
    "KerasHub text": lambda: (
        image_encoder(),
        encoders.wrap(hub_text_backbone(), pooling="mean", output="sequence_output", context_length=CONTEXT),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_trains_saves_and_loads_in_a_clip(make, rng, tmp_path):
    image, text = make()
    clip = keras_clip.CLIPModel(image, text, embed_dim=4)
    clip.compile(keras.optimizers.SGD(0.5))
    batch = {
        "images": rng.integers(0, 256, size=(4, 32, 32, 3)).astype("uint8"),
        "token_ids": clip.tokenizer(["a cat", "a dog", "two cars", "sky"]),
    }
    before = clip.predict(batch, verbose=0)
    clip.fit(batch, batch_size=4, epochs=2, verbose=0)
    after = clip.predict(batch, verbose=0)
    assert not any(np.array_equal(before[key], after[key]) for key in before)
    clip.save(tmp_path / "clip.keras")
    loaded = keras.saving.load_model(tmp_path / "clip.keras")
    np.testing.assert_array_equal(loaded.predict(batch, verbose=0)["image_embeddings"], after["image_embeddings"])
    np.testing.assert_array_equal(loaded.predict(batch, verbose=0)["text_embeddings"], after["text_embeddings"])
    assert loaded.image_preprocessor.mean == clip.image_preprocessor.mean


def test_pixel_range_reaches_the_wrapped_model():
    inputs = keras.Input((4, 4, 3))
    encoder = encoders.wrap(keras.Model(inputs, keras.layers.Identity()(inputs)), pooling="max", pixel_range=(-1, 255))
    clip = keras_clip.CLIPModel(encoder, text_encoder(), embed_dim=4)
    pixels = np.zeros((1, 4, 4, 3), "uint8")
    pixels[:, 0, 0] = 255
    normalised = keras.ops.convert_to_numpy(clip.image_embedder.pixels(pixels))
    assert normalised.min() == pytest.approx(-1, abs=1e-4)
    assert normalised.max() == pytest.approx(255, rel=1e-6)


def echo_text_model(length=CONTEXT):
    """Returns a model whose only feature of each token is its id."""
    token_ids = keras.Input((length,), dtype="int32")
    return keras.Model(token_ids, keras.layers.Rescaling(1.0)(keras.ops.expand_dims(token_ids, -1)))


# The first text ends after three tokens. The id 0 before the end is the token "!"; after the end it is padding.
TEXT = np.array([[5, 0, 9, 0, 0, 0], [5, 7, 1, 2, 3, 9]], "int32")
POOLED = {"mean": [14 / 3, 4.5], "max": [9, 9], "first": [5, 5], "end": [9, 9]}


@pytest.mark.parametrize("pooling", POOLED)
def test_pooling_of_texts_by_hand(pooling):
    encoder = encoders.wrap(echo_text_model(), pooling=pooling, end_token_id=9)
    features = keras.ops.convert_to_numpy(encoder(TEXT))
    np.testing.assert_allclose(features[:, 0], POOLED[pooling], rtol=1e-6)


def test_padding_does_not_matter(rng):
    encoder = encoders.wrap(hub_text_backbone(), pooling="mean", output="sequence_output", context_length=CONTEXT)
    full = np.array([[1, 2, 49407, 0, 0, 0]], "int32")
    cut = keras.ops.convert_to_numpy(encoder(full[:, :3]))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(encoder(full)), cut, atol=1e-5)


def masked_text_model():
    inputs = {name: keras.Input((CONTEXT,), dtype="int32", name=name) for name in ("token_ids", "attention_mask")}
    return keras.Model(inputs, keras.layers.Embedding(9, 2)(inputs["token_ids"] * inputs["attention_mask"]))


REFUSED = {
    "unknown pooling": (lambda: encoders.wrap(echo_text_model(), pooling="sum"), "pooling"),
    "a feature map without pooling": (lambda: encoders.wrap(applications_model(), pooling=None), "pooling"),
    "end of an image": (lambda: encoders.wrap(applications_model(), pooling="end"), "text model"),
    "no length": (lambda: encoders.wrap(echo_text_model(None)), "context length"),
    "several outputs": (lambda: encoders.wrap(hub_text_backbone(), context_length=4), "output"),
    "an input of another name": (lambda: encoders.wrap(masked_text_model()), "inputs 'token_ids', 'padding_mask'"),
    "a layer": (lambda: encoders.wrap(keras.layers.Dense(2)), "functional"),
    "a Sequential without an input": (lambda: encoders.wrap(keras.Sequential([keras.layers.Dense(2)])), "an input"),
}


@pytest.mark.parametrize("make, message", REFUSED.values(), ids=REFUSED)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=f"(?s){message}.*Received"):
        make()


SEQUENTIAL = {
    "with an input": (lambda: [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)], {}, (8, 8, 3)),
    "without": (lambda: [keras.layers.Conv2D(4, 3), keras.layers.ReLU()], {"image_size": (8, 10)}, (8, 10, 3)),
    "of features": (
        lambda: [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(4)],
        {"pooling": None},
        (8, 8, 3),
    ),
    "of texts": (lambda: [keras.Input((6,), dtype="int32"), keras.layers.Embedding(50000, 4)], {}, (6,)),
    "of texts without": (lambda: [keras.layers.Embedding(50000, 4)], {"context_length": 6}, (6,)),
}


@pytest.mark.parametrize("layers, options, shape", SEQUENTIAL.values(), ids=SEQUENTIAL)
def test_sequential(layers, options, shape):
    model = keras.Sequential(layers())
    encoder = encoders.wrap(model, **options)
    inputs = np.ones((2, *shape), "float32" if len(shape) == 3 else "int32")
    features = keras.ops.convert_to_numpy(encoder(inputs))
    assert features.shape == (2, encoder.width) == (2, 4)
    again = type(encoder).from_config(encoder.get_config())
    again.set_weights(encoder.get_weights())
    np.testing.assert_allclose(keras.ops.convert_to_numpy(again(inputs)), features, rtol=1e-6)
    nested = encoders.wrap(
        keras.Sequential([keras.Input(shape, dtype=inputs.dtype), keras.Sequential(layers())]), **options
    )
    assert nested.width == 4


def test_a_sequential_without_input_is_refused():
    for options in ({}, {"image_size": 8, "context_length": 6}):
        with pytest.raises(ValueError, match="Received: model='.*' without one. Begin it with"):
            encoders.wrap(keras.Sequential([keras.layers.Dense(4)]), **options)
