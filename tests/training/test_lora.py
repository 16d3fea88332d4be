"""Low-rank adaptation: the initial output is unchanged, only the added weights learn, and saving merges them."""

import keras
import numpy as np
import pytest

import keras_clip
from keras_clip import encoders
from keras_clip.training import enable_lora

ENCODERS = {
    "VisionTransformer": lambda: encoders.VisionTransformer(32, 8, 64, 2, 2),
    "ModifiedResNet": lambda: encoders.ModifiedResNet(32, (1, 1, 1, 1), 8, num_heads=2),
}


def make_clip(encoder):
    keras.utils.set_random_seed(0)
    return keras_clip.CLIPModel(
        ENCODERS[encoder](), encoders.TextTransformer(32, 1, 2, context_length=16), embed_dim=16
    )


def embeddings(clip, images):
    """Embeds images eagerly, so that a changed model is not compiled again."""
    return keras.ops.convert_to_numpy(clip.encode_image(images))


def values(weights):
    return {weight.path: keras.ops.convert_to_numpy(weight).copy() for weight in weights}


@pytest.mark.parametrize("encoder", ["VisionTransformer", pytest.param("ModifiedResNet", marks=pytest.mark.slow)])
def test_only_the_additions_learn(encoder, tmp_path):
    clip = make_clip(encoder)
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    batch = {"images": images, "token_ids": clip.tokenizer([f"picture {i}" for i in range(8)])}
    before = embeddings(clip, images)
    width, attentions = (64, 2) if encoder == "VisionTransformer" else (256, 1)
    assert enable_lora(clip.image_encoder, rank=3) == attentions * 2 * 2 * 3 * width
    np.testing.assert_allclose(embeddings(clip, images), before, atol=1e-6)
    start = values(clip.image_encoder.weights)
    clip.compile(optimizer=keras.optimizers.SGD(1.0))
    clip.fit(batch, batch_size=8, epochs=2, verbose=0)
    moved = {
        path for path, value in values(clip.image_encoder.weights).items() if not np.array_equal(value, start[path])
    }
    assert moved == {path for path in start if "lora_kernel" in path}
    trained = embeddings(clip, images)
    assert np.abs(trained - before).max() > 1e-4
    clip.save(tmp_path / "clip.keras")
    again = keras.saving.load_model(tmp_path / "clip.keras")
    np.testing.assert_allclose(embeddings(again, images), trained, atol=1e-5)
    assert not any("lora" in weight.path for weight in again.image_encoder.weights)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rank": 0}, "Received: rank=0"),
        ({"projections": ("output",)}, "Received: .*projections=\\('output',\\)"),
        ({"projections": ()}, "Received"),
    ],
    ids=["rank of zero", "unknown projection", "no projection"],
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        enable_lora(ENCODERS["VisionTransformer"](), **arguments)


def test_other_encoders():
    pixels = keras.Input((8, 8, 3))
    other = keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(pixels))
    with pytest.raises(ValueError, match="must have attention layers of keras_clip. Received"):
        enable_lora(other)
