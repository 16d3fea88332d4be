"""Low-rank adaptation: nothing changes at the start, only the additions learn, and a saved model goes on with them."""

import keras
import numpy as np
import pytest

import keras_clip
from keras_clip import encoders
from keras_clip.training import enable_lora, merge_lora

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
    assert enable_lora(clip.image_encoder, rank=3, alpha=6.0) == attentions * 2 * 2 * 3 * width
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
    np.testing.assert_array_equal(embeddings(again, images), trained)
    assert len(again.image_encoder.trainable_weights) == len(clip.image_encoder.trainable_weights) == 4 * attentions
    # The next step is the same, so the factors, their scale and the moments are.
    for model in (clip, again):
        model.fit(batch, batch_size=8, verbose=0)
    np.testing.assert_allclose(embeddings(again, images), embeddings(clip, images), atol=3e-7)
    assert np.abs(embeddings(again, images) - trained).max() > 3e-6
    merged = merge_lora(again)
    np.testing.assert_allclose(embeddings(merged, images), embeddings(again, images), atol=1e-5)
    assert not any("lora" in weight.path for weight in merged.weights)


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


def test_nothing_to_merge():
    with pytest.raises(ValueError, match="nothing to merge. Received: model='plain'"):
        merge_lora(encoders.VisionTransformer(16, 8, 16, 1, 2, name="plain"))
