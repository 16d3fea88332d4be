"""KerasHub's CLIP with our weights gives our embeddings, and our model with its weights gives its embeddings."""

import keras
import numpy as np
import pytest

from keras_clip import presets
from keras_clip.presets.architectures import Architecture

TEXTS = ["a", "a photo of a cat", "two red circles and a blue square"]


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def make_clip(**more):
    architecture = Architecture(
        {"image_size": 64, "patch_size": 16, "width": 128, "num_layers": 2, "num_heads": 2, "activation": "quick_gelu"},
        {"width": 64, "num_layers": 2, "num_heads": 2, "context_length": 16, "mlp_ratio": 3.0},
        embed_dim=24,
        **more,
    )
    return architecture.build()


def unit(features):
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


@pytest.mark.slow
def test_both_ways():
    clip = make_clip()
    backbone = presets.to_keras_hub(clip)
    pixels = np.random.default_rng(0).normal(size=(3, 64, 64, 3)).astype(np.float32)
    token_ids = clip.tokenizer(TEXTS)
    images, texts = numpy(clip.encode_image(pixels)), numpy(clip.encode_text(token_ids))
    np.testing.assert_allclose(unit(numpy(backbone.get_vision_embeddings(pixels))), images, atol=2e-5)
    # Their last LayerNorm has another epsilon; the variance of its input is far above both.
    np.testing.assert_allclose(unit(numpy(backbone.get_text_embeddings(token_ids))), texts, atol=2e-3)
    again = presets.from_keras_hub(backbone)
    np.testing.assert_array_equal(numpy(again.encode_image(pixels)), images)
    np.testing.assert_array_equal(numpy(again.encode_text(token_ids)), texts)
    assert again.image_encoder.get_config() == clip.image_encoder.get_config() | {"name": again.image_encoder.name}
    assert float(numpy(again.logit_scale)) == float(numpy(clip.logit_scale))


def test_features_that_keras_hub_lacks_are_refused():
    with pytest.raises(ValueError, match="Received: loss='sigmoid'"):
        presets.to_keras_hub(make_clip(loss="sigmoid"))
