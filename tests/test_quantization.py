"""int8: a quarter of the memory, nearly the same embeddings, and identical ones after saving and loading."""

import keras
import numpy as np
import pytest

import keras_clip
from keras_clip import encoders, presets

IMAGE_ENCODERS = {
    "VisionTransformer": lambda: encoders.VisionTransformer(32, 8, 64, 1, 2),
    "ModifiedResNet": lambda: encoders.ModifiedResNet(32, (1, 1, 1, 1), 8, num_heads=2),
}


def make_clip(encoder="VisionTransformer"):
    keras.utils.set_random_seed(0)
    return keras_clip.CLIPModel(
        IMAGE_ENCODERS[encoder](), encoders.TextTransformer(64, 1, 2, context_length=16), embed_dim=32
    )


def inputs(clip):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    return {"images": images, "token_ids": clip.tokenizer(["a cat", "two dogs", "x", "a boat on the sea"])}


def size(layer):
    return sum(int(np.prod(v.shape)) * np.dtype(v.dtype).itemsize for v in layer.weights)


@pytest.mark.parametrize("encoder", ["VisionTransformer", pytest.param("ModifiedResNet", marks=pytest.mark.slow)])
def test_nearly_the_same_embeddings_and_saved_quantised(encoder, tmp_path):
    clip = make_clip(encoder)
    batch, bytes_before = inputs(clip), size(clip.text_encoder)
    before = clip.predict(batch, verbose=0)
    clip.quantize("int8")
    after = clip.predict(batch, verbose=0)
    for name in before:
        assert not np.array_equal(before[name], after[name])
        cosines = (before[name] * after[name]).sum(axis=1)
        assert cosines.min() > 0.998
    assert size(clip.text_encoder) < 0.3 * bytes_before
    clip.save(tmp_path / "clip.keras")
    again = keras.saving.load_model(tmp_path / "clip.keras")
    for name, embeddings in again.predict(batch, verbose=0).items():
        np.testing.assert_array_equal(embeddings, after[name])


def test_one_tower_alone_and_its_classifier(tmp_path):
    clip = make_clip()
    batch = inputs(clip)
    texts = clip.text_embedder.predict(batch["token_ids"], verbose=0)
    clip.image_embedder.quantize("int8")
    np.testing.assert_array_equal(clip.text_embedder.predict(batch["token_ids"], verbose=0), texts)
    classifier = keras_clip.ZeroShotClassifier(clip, ["cat", "dog"])
    probabilities = classifier.predict(batch["images"], verbose=0)
    classifier.save(tmp_path / "classifier.keras")
    again = keras.saving.load_model(tmp_path / "classifier.keras")
    np.testing.assert_array_equal(again.predict(batch["images"], verbose=0), probabilities)
    assert [again.image_embedder.quantization, clip.text_embedder.quantization] == ["int8", None]


def test_other_layouts_are_refused(tmp_path):
    clip = make_clip()
    clip.quantize("int8")
    for layout in ("open_clip", "hugging_face"):
        with pytest.raises(TypeError, match="(?s)quantised.*keras"):
            presets.save(clip, tmp_path, layout=layout)
