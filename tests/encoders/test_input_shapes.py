"""Images and token ids of another size or rank: refused everywhere, before they become wrong rows."""

import keras
import numpy as np
import pytest

import keras_clip
from keras_clip import encoders

WRONG = {
    "larger": (4, 48, 48, 3),
    "twice the size": (4, 64, 64, 3),
    "not square": (4, 32, 64, 3),
    "one image": (32, 32, 3),
    "one channel": (4, 32, 32, 1),
    "channels first": (4, 3, 32, 32),
    "video": (2, 2, 32, 32, 3),
}


def images(shape):
    return np.zeros(shape, "float32")


@pytest.fixture(scope="module")
def clip():
    return keras_clip.CLIPModel(
        encoders.VisionTransformer(32, 8, 16, 1, 2),
        encoders.TextTransformer(16, 1, 2, context_length=8),
        embed_dim=8,
    )


@pytest.fixture(scope="module")
def wrapped():
    inputs = keras.Input((None, None, 3))
    return encoders.wrap(keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs)), image_size=32)


@pytest.fixture(scope="module")
def resnet():
    return encoders.ModifiedResNet(32, (1, 1, 1, 1), 4, num_heads=2)


@pytest.mark.parametrize("shape", WRONG.values(), ids=WRONG)
def test_wrong_images(shape, clip, wrapped, resnet):
    embedder = clip.image_embedder
    models = [clip.image_encoder, resnet, wrapped, clip.image_encoder.patch_embedding]
    models += [embedder, embedder.predict, clip.encode_image]
    for model in models:
        with pytest.raises(ValueError, match=r"\(B, 32, 32, 3\).*(?s:.)*Received: images.shape=.*`image_size="):
            model(images(shape))
    # An embedder leaves more axes to its encoder.
    for model in (clip.image_encoder, resnet, wrapped, *([embedder] if len(shape) < 5 else [])):
        with pytest.raises(ValueError, match="`image_size="):
            model(keras.KerasTensor(shape))


def test_every_call_of_a_whole_model(clip):
    wrong = {"images": images((4, 48, 48, 3)), "token_ids": clip.tokenizer(["a", "b", "c", "d"])}
    right = {**wrong, "images": images((4, 32, 32, 3))}
    before = clip.predict(right, verbose=0)
    classifier = keras_clip.ZeroShotClassifier(clip, ["a", "b"])
    clip.compile("sgd")
    calls = [
        lambda: clip.predict(wrong, verbose=0),
        lambda: clip.evaluate(wrong, verbose=0),
        lambda: clip.fit(wrong, verbose=0),
        lambda: classifier.predict(wrong["images"], verbose=0),
        lambda: classifier.evaluate(wrong["images"], [0, 1, 0, 1], verbose=0),
        lambda: clip.train_on_batch(wrong),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="`image_size=48`"):
            call()
    # What failed has left the model as it was.
    for name, embeddings in clip.predict(right, verbose=0).items():
        np.testing.assert_array_equal(embeddings, before[name])
    assert classifier.predict(right["images"], verbose=0).shape == (4, 2)


def test_wrong_token_ids(clip):
    for shape in ((4, 9), (8,), (2, 2, 8)):
        for model in (clip.text_encoder, clip.text_embedder.predict, clip.encode_text):
            with pytest.raises(ValueError, match=r"must be \(B, L\), with at most context_length=8"):
                model(np.ones(shape, "int32"))
        with pytest.raises(ValueError, match="context_length=8"):
            clip.text_encoder(keras.KerasTensor(shape, "int32"))


@pytest.mark.parametrize("value", [-1, 49408, 2**31 - 1])
def test_token_ids_outside_of_the_vocabulary(clip, value):
    wrong = np.full((2, 8), 49407, "int32")
    wrong[1, 3] = value
    whole = {"images": images((2, 32, 32, 3)), "token_ids": wrong}
    clip.compile("sgd")
    calls = [
        lambda: clip.encode_text(wrong),
        lambda: clip.text_embedder(wrong),
        lambda: clip.text_encoder(keras.ops.convert_to_tensor(wrong)),
        lambda: clip.text_embedder.predict(wrong, verbose=0),
        lambda: clip.text_encoder.predict_on_batch(wrong),
        lambda: clip(whole),
        lambda: clip.predict(whole, verbose=0),
        lambda: clip.fit(whole, verbose=0),
        lambda: clip.evaluate({**whole, "token_ids": wrong.astype("int64")}, verbose=0),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"from 0 to 49407, .*Received: values from .*`tokenizer`"):
            call()
    # What failed has left the model as it was, and the ends of the range are part of it.
    wrong[1, 3] = 0
    assert np.isfinite(keras.ops.convert_to_numpy(clip.encode_text(wrong))).all()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="backend unable: shapes unknown until a graph runs")
def test_sizes_that_a_graph_learns_when_it_runs(clip, wrapped):
    import tensorflow as tf

    for encoder in (clip.image_encoder, clip.image_embedder, wrapped):
        graph = tf.function(encoder, input_signature=[tf.TensorSpec((None, None, None, 3))], autograph=False)
        assert graph(images((2, 32, 32, 3))).shape[0] == 2
        with pytest.raises(tf.errors.InvalidArgumentError, match="image_size="):
            graph(images((4, 48, 48, 3)))
    texts = tf.function(clip.text_encoder, input_signature=[tf.TensorSpec((None, None), tf.int32)], autograph=False)
    assert texts(np.full((2, 8), 49407, "int32")).shape == (2, 16)
    with pytest.raises(tf.errors.InvalidArgumentError, match="context_length=8"):
        texts(np.ones((2, 9), "int32"))
