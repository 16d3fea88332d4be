"""`encode_image` and `encode_text`: the values of a call, by programs that are compiled once."""

import keras
import numpy as np
import pytest
from gradients import value_and_gradients
from keras import ops
from small_clip import SIDE, build

from keras_clip import compat
from keras_clip.data import CLIPTokenizer
from keras_clip.encoders import TextTransformer
from keras_clip.layers.inference import padded_size
from keras_clip.model import TextEmbedder
from keras_clip.training import enable_lora

END, LENGTH = 63, 40
compiled = pytest.mark.skipif(keras.backend.backend() == "torch", reason="backend unable: torch calls the model")


@pytest.fixture(scope="module")
def clip():
    return build()


@pytest.fixture(scope="module")
def texts():
    tokenizer = CLIPTokenizer(LENGTH)
    tokenizer.end_token_id = END
    return TextEmbedder(TextTransformer(32, 2, 2, context_length=LENGTH, vocabulary_size=64), 16, tokenizer)


def images_of(rows):
    return np.random.default_rng(rows).integers(0, 256, (rows, SIDE, SIDE, 3), np.uint8)


def token_ids_of(lengths):
    token_ids = np.zeros((len(lengths), LENGTH), np.int32)
    for row, length in enumerate(lengths):
        token_ids[row, :length] = np.random.default_rng(length).integers(1, END, length)
        token_ids[row, length - 1] = END
    return token_ids


def equal(ours, call):
    np.testing.assert_allclose(ops.convert_to_numpy(ours), ops.convert_to_numpy(call), atol=2e-6)


@pytest.mark.parametrize("rows", [1, 3])
def test_embeddings_of_images_are_those_of_a_call(clip, rows):
    images = images_of(rows)
    equal(clip.encode_image(images), clip.image_embedder.predict_on_batch(images))


@pytest.mark.parametrize("lengths", [(2, 16), (17, 3, 9), (LENGTH,)], ids=str)
def test_embeddings_of_texts_are_those_of_a_call(texts, lengths):
    token_ids = token_ids_of(lengths)
    equal(texts.encode_text(token_ids), texts.predict_on_batch(token_ids))


def test_texts_without_an_end_token_are_not_cut(texts):
    token_ids = token_ids_of([3, 4])
    token_ids[1, 3] = 1
    equal(texts.encode_text(token_ids), texts.predict_on_batch(token_ids))


def test_padding_is_not_computed(monkeypatch):
    tokenizer = CLIPTokenizer(LENGTH)
    tokenizer.end_token_id = END
    texts = TextEmbedder(TextTransformer(32, 1, 2, context_length=LENGTH, vocabulary_size=64), 16, tokenizer)
    widths, call = [], TextTransformer.call

    def look(self, token_ids, *args, **kwargs):
        widths.append(token_ids.shape[1])
        return call(self, token_ids, *args, **kwargs)

    monkeypatch.setattr(TextTransformer, "call", look)
    texts.encode_text(token_ids_of([5, 20]))
    assert widths == [32]


def test_numbers_of_rows_that_are_compiled():
    assert [padded_size(rows) for rows in (0, 1, 2, 3, 5, 9, 16, 17, 32, 33, 100)] == [
        0,
        1,
        2,
        4,
        8,
        16,
        16,
        32,
        32,
        48,
        112,
    ]


@compiled
def test_a_batch_of_another_size_is_not_traced_anew(monkeypatch):
    clip = build(image_encoder="vit")
    calls, call = [], type(clip.image_encoder).call

    def count(self, *args, **kwargs):
        calls.append(args[0].shape)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(type(clip.image_encoder), "call", count)
    for rows in (7, 8, 7, 6, 5):
        clip.encode_image(images_of(rows))
    assert len(calls) == 1


def test_a_model_that_changes_is_traced_anew():
    clip = build()
    images = images_of(2)
    before = ops.convert_to_numpy(clip.encode_image(images))
    enable_lora(clip, rank=2)
    layer = next(layer for layer in compat.all_layers(clip.image_encoder) if getattr(layer, "lora_enabled", False))
    layer.lora_kernel_b.assign(ops.ones_like(layer.lora_kernel_b.value))
    after = ops.convert_to_numpy(clip.encode_image(images))
    assert np.abs(after - before).max() > 1e-4
    equal(after, clip.image_embedder.predict_on_batch(images))


@compiled
def test_a_lock_does_not_exchange_weights():
    clip = build()
    images = images_of(2)
    # Of equal shapes, so that a program could take one for the other.
    first, last = clip.image_encoder.norm_pre, clip.image_encoder.norm_post
    first.trainable = False
    first.gamma.assign(ops.ones_like(first.gamma.value) * 2)
    before = ops.convert_to_numpy(clip.encode_image(images))
    first.trainable, last.trainable = True, False
    equal(clip.encode_image(images), before)


def test_assigned_weights_are_used(clip):
    images = images_of(2)
    clip.encode_image(images)
    kernel = clip.image_embedder.projection.trainable_variables[0]
    kernel.assign(ops.flip(kernel.value, axis=0))
    equal(clip.encode_image(images), clip.image_embedder.predict_on_batch(images))


def test_gradients_with_respect_to_images_are_those_of_a_call(clip):
    images = images_of(3).astype("float32") / 255
    results = []
    for encode in (clip.encode_image, lambda x: clip.image_embedder(x, training=False)):
        _, (gradient,) = value_and_gradients(lambda x, encode=encode: ops.sum(encode(x) ** 3), [images])
        results.append(gradient)
    assert np.abs(results[0]).max() > 1e-5
    np.testing.assert_allclose(*results, atol=1e-6)


def test_errors_and_warnings_are_those_of_a_call(clip):
    with pytest.raises(ValueError, match="`image_size="):
        clip.encode_image(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="context_length"):
        clip.encode_text(np.ones((1, 9), np.int32))
    assert ops.convert_to_numpy(clip.encode_image(images_of(0))).shape == (0, clip.embed_dim)
