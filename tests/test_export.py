"""Exports: every format gives the outputs of the model, has one input, and is small."""

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from subprocesses import forking

import keras_clip
from keras_clip import encoders, export

# On the other backends, a new TensorFlow process loads the saved model and exports it. That process is slow, so most
# tests use one format there.
ON_TENSORFLOW = os.environ["KERAS_BACKEND"] == "tensorflow"
SLOW_ELSEWHERE = [] if ON_TENSORFLOW else [pytest.mark.slow]


def make_clip(encoder=None):
    keras.utils.set_random_seed(0)
    return keras_clip.CLIPModel(
        # A wide model with few layers has a small graph compared with its weights.
        encoder or encoders.VisionTransformer(32, 16, 512, 1, 4),
        encoders.TextTransformer(64, 1, 2, context_length=16),
        embed_dim=8,
    )


@pytest.fixture(scope="module")
def clip():
    """A model for the tests that do not change it, so that it is traced once."""
    return make_clip()


def make_classifier(encoder=None):
    return keras_clip.ZeroShotClassifier(make_clip(encoder), ["cat", "dog", "boat"], ["{}", "a {}"])


@pytest.fixture(scope="module")
def classifier():
    return make_classifier()


@pytest.fixture(scope="module")
def exporter():
    """`subprocess.run` in a process that has imported what an export needs."""
    with forking("import tensorflow, tf2onnx, keras_clip.export", "tensorflow") as run:
        yield run


@pytest.fixture
def new_process():
    """A test with this fixture starts the TensorFlow process as users do; the others fork it from one that runs."""


@pytest.fixture(autouse=True)
def forked(request, monkeypatch):
    if not ON_TENSORFLOW and "new_process" not in request.fixturenames:
        monkeypatch.setattr(export, "subprocess", SimpleNamespace(run=request.getfixturevalue("exporter")))


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, size=(5, 32, 32, 3)).astype("uint8")


def run_saved_model(path, inputs, input_name="images", output_name="probabilities"):
    tf = pytest.importorskip("tensorflow", reason="backend unable: TensorFlow is not installed")
    loaded = tf.saved_model.load(str(path))
    (name, spec) = next(iter(loaded.signatures["serving_default"].structured_input_signature[1].items()))
    dtype = inputs.dtype.name.replace("object", "string")
    assert (name, spec.dtype.name, spec.shape.as_list()[0]) == (input_name, dtype, None)
    return loaded.serve(tf.constant(inputs))[output_name].numpy()


def run_onnx(path, inputs, input_name="images", output_name="probabilities"):
    onnxruntime = pytest.importorskip("onnxruntime", reason="backend unable: ONNX Runtime is not installed")
    session = onnxruntime.InferenceSession(path)
    assert [(i.name, i.type) for i in session.get_inputs()] == [
        (input_name, f"tensor({inputs.dtype.name.replace('float32', 'float')})")
    ]
    assert [output.name for output in session.get_outputs()] == [output_name]
    return session.run(None, {input_name: inputs})[0]


def run_litert(path, inputs, input_name="images", output_name="probabilities"):
    tf = pytest.importorskip("tensorflow", reason="backend unable: TensorFlow is not installed")
    interpreter = tf.lite.Interpreter(str(path))
    signature = interpreter.get_signature_runner()
    assert list(signature.get_input_details()) == [input_name]
    assert list(signature.get_output_details()) == [output_name]
    return signature(**{input_name: inputs})[output_name]


RUN = {"tf_saved_model": run_saved_model, "onnx": run_onnx, "litert": run_litert}
formats = pytest.mark.parametrize("format", RUN)


def formats_or(one, among=tuple(RUN)):
    return pytest.mark.parametrize("format", among if ON_TENSORFLOW else [one])


def size(path):
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def check(classifier, format, path, images, dtype="uint8", atol=1e-5):
    classifier.export(path, format=format, dtype=dtype)
    assert classifier.predict(images, verbose=0).std(axis=0).min() > 1e-4
    inputs = images if dtype == "uint8" else classifier.image_preprocessor.normalize(images)
    for batch in (slice(0, 5), slice(1, 2)):
        # Both get the same batches: some processors round bfloat16 differently for one image than for five.
        expected = classifier.predict(images[batch], verbose=0)
        np.testing.assert_allclose(RUN[format](path, inputs[batch]), expected, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("format", [pytest.param(format, marks=SLOW_ELSEWHERE) for format in RUN])
def test_gives_the_probabilities_and_is_small(format, classifier, images, tmp_path):
    path = tmp_path / "new folder" / "exported"
    check(classifier, format, path, images)
    weights = sum(4 * int(np.prod(weight.shape)) for weight in classifier.weights)
    assert size(path) == pytest.approx(weights, rel=0.05)
    if ON_TENSORFLOW or format == "tf_saved_model":
        # The second export overwrites the first.
        classifier.class_embeddings.assign(np.roll(keras.ops.convert_to_numpy(classifier.class_embeddings), 1, axis=0))
        check(classifier, format, path, images)


@pytest.mark.slow
@formats_or("tf_saved_model")
def test_towers(format, clip, images, tmp_path):
    tokens = clip.tokenizer(["a cat", "two dogs in a boat", "x"])
    image, text = clip.image_embedder, clip.text_embedder
    image.export(tmp_path / "image", format=format)
    text.export(tmp_path / "text", format=format)
    for embedder, path, inputs, names in (
        (image, tmp_path / "image", images, ("images", "image_embeddings")),
        (text, tmp_path / "text", tokens, ("token_ids", "text_embeddings")),
    ):
        expected = embedder.predict(inputs, verbose=0)
        assert expected.std(axis=0).min() > 1e-4
        np.testing.assert_allclose(RUN[format](path, inputs, *names), expected, atol=1e-5)
        np.testing.assert_allclose(RUN[format](path, inputs[:1], *names), expected[:1], atol=1e-5)
        weights = sum(4 * int(np.prod(weight.shape)) for weight in embedder.weights)
        assert size(path) == pytest.approx(weights, rel=0.05)


def run_all(format, path, inputs):
    """The outputs by name, of a graph that takes inputs by name."""
    if format == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime", reason="backend unable: ONNX Runtime is not installed")
        session = onnxruntime.InferenceSession(path)
        return dict(zip([output.name for output in session.get_outputs()], session.run(None, inputs), strict=True))
    tf = pytest.importorskip("tensorflow", reason="backend unable: TensorFlow is not installed")
    if format == "litert":
        return tf.lite.Interpreter(str(path)).get_signature_runner()(**inputs)
    outputs = tf.saved_model.load(str(path)).signatures["serving_default"](
        **{name: tf.constant(array) for name, array in inputs.items()}
    )
    return {name: output.numpy() for name, output in outputs.items()}


@pytest.mark.slow
@formats_or("tf_saved_model")
def test_both_halves_in_one(format, clip, images, tmp_path):
    inputs = {"images": images, "token_ids": clip.tokenizer(["a cat", "two dogs in a boat", "x"])}
    clip.export(tmp_path / "clip", format=format)
    served = run_all(format, tmp_path / "clip", inputs)
    assert set(served) == {"image_embeddings", "text_embeddings"}
    np.testing.assert_allclose(served["image_embeddings"], clip.image_embedder.predict(images, verbose=0), atol=1e-5)
    np.testing.assert_allclose(
        served["text_embeddings"], clip.text_embedder.predict(inputs["token_ids"], verbose=0), atol=1e-5
    )


ENCODERS = {
    "VisionTransformer": (lambda: encoders.VisionTransformer(32, 16, 64, 1, 2), "images"),
    "ModifiedResNet": (lambda: encoders.ModifiedResNet(32, (1, 1, 1, 1), 8, num_heads=2), "images"),
    "TextTransformer": (lambda: encoders.TextTransformer(64, 1, 2, context_length=16), "token_ids"),
    "wrap": (lambda: encoders.wrap(convolution()), "images"),
}


def convolution():
    inputs = keras.Input((32, 32, 3))
    return keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs))


@pytest.mark.slow
@pytest.mark.backend_free
@pytest.mark.parametrize("make, name", ENCODERS.values(), ids=ENCODERS)
def test_encoders(make, name, images, tmp_path):
    encoder = make()
    inputs = images.astype("float32") / 255 if name == "images" else np.full((3, 16), 49407, "int32")
    for format in ("tf_saved_model", "onnx"):
        encoder.export(tmp_path / format, format=format)
        served = RUN[format](tmp_path / format, inputs, name, "features")
        np.testing.assert_allclose(served, encoder.predict(inputs, verbose=0), atol=1e-5)


@pytest.mark.slow
@pytest.mark.backend_free
def test_a_baseline(images, tmp_path):
    tokenizer = keras_clip.data.CLIPTokenizer(8)
    encoder = encoders.VisionTransformer(32, 16, 16, 1, 2)
    bag = keras_clip.baselines.BagOfWordsPredictor(encoder, tokenizer, vocabulary=range(9))
    inputs = {"images": images, "token_ids": tokenizer(["a"] * 5)}
    bag.export(tmp_path / "bag")
    served = run_all("tf_saved_model", tmp_path / "bag", inputs)
    np.testing.assert_allclose(served["logits"], bag.predict(inputs, verbose=0), atol=1e-5)


@pytest.mark.slow
@formats_or("onnx", among=("tf_saved_model", "onnx"))
def test_int8(format, images, tmp_path):
    clip = make_clip()
    in_float32 = sum(4 * int(np.prod(weight.shape)) for weight in clip.image_embedder.weights)
    clip.quantize("int8")
    expected = clip.image_embedder.predict(images, verbose=0)
    clip.image_embedder.export(tmp_path / "image", format=format)
    served = RUN[format](tmp_path / "image", images, "images", "image_embeddings")
    # If an activation differs in its last bit in TensorFlow, it may be rounded to the next integer.
    assert (served * expected).sum(axis=1).min() > 0.999
    assert size(tmp_path / "image") < 0.4 * in_float32
    for model in (clip.text_embedder, keras_clip.ZeroShotClassifier(clip, ["cat", "dog"])):
        with pytest.raises(ValueError, match="LiteRT.*Received.*quantised"):
            model.export(tmp_path / "x", format="litert")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_low_rank_additions(dtype, images, tmp_path):
    keras.config.set_dtype_policy(dtype)
    try:
        clip = make_clip()
    finally:
        keras.config.set_dtype_policy("float32")
    before = keras.ops.convert_to_numpy(clip.encode_image(images))
    keras_clip.training.enable_lora(clip.image_encoder, rank=4)
    for variable in clip.image_encoder.trainable_weights:
        variable.assign(0.1 * np.random.default_rng(0).normal(size=variable.shape))
    expected = clip.image_embedder.predict(images, verbose=0)
    assert np.abs(expected - before).max() > 0.02
    for format in RUN if ON_TENSORFLOW else ["onnx"]:
        clip.image_embedder.export(tmp_path / format, format=format)
        served = RUN[format](tmp_path / format, images, "images", "image_embeddings")
        np.testing.assert_allclose(served, expected, atol=1e-5 if dtype == "float32" else 0.02)


@pytest.mark.slow
def test_raw_strings(new_process, clip, monkeypatch, tmp_path):
    texts = ["a cat", "Two  dogs, in a BOAT!", "", "it's 12:30", "a word " * 40]
    clip.text_embedder.export(tmp_path / "text", strings=True)
    expected = clip.text_embedder.predict(clip.tokenizer(texts, truncate=True), verbose=0)
    served = run_saved_model(tmp_path / "text", np.array(texts, object), "texts", "text_embeddings")
    np.testing.assert_allclose(served, expected, atol=1e-5)
    other = type("OtherTokenizer", (keras_clip.data.CLIPTokenizer,), {})(context_length=16)
    monkeypatch.setattr(clip.text_embedder, "tokenizer", other)
    with pytest.raises(TypeError, match="Received: a OtherTokenizer"):
        clip.text_embedder.export(tmp_path / "x", strings=True)
    with pytest.raises(ValueError, match="Only .*tf_saved_model.* takes strings. Received"):
        clip.text_embedder.export(tmp_path / "x", format="onnx", strings=True)


@pytest.mark.slow
@pytest.mark.backend_free
@formats
def test_normalised_images(format, images, tmp_path):
    check(make_classifier(), format, tmp_path / "exported", images, dtype="float32")


@pytest.mark.slow
@pytest.mark.backend_free
@formats
def test_resnet_with_moved_statistics(format, images, tmp_path):
    classifier = make_classifier(encoders.ModifiedResNet(32, (1, 1, 1, 1), 8, num_heads=2))
    rng = np.random.default_rng(0)
    for weight in classifier.image_embedder.weights:
        # Changes are as small as the initial activations; larger ones would hide the influence of the image.
        if "moving_mean" in weight.path:
            weight.assign(rng.uniform(-0.02, 0.02, size=weight.shape))
        if "moving_variance" in weight.path:
            weight.assign(rng.uniform(0.01, 0.03, size=weight.shape))
    check(classifier, format, tmp_path / "exported", images)


@pytest.mark.slow
@pytest.mark.backend_free
@formats
def test_mixed_precision(format, images, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        classifier = make_classifier()
    finally:
        keras.config.set_dtype_policy("float32")
    # ONNX computes in float32, and so more precisely than the classifier.
    check(classifier, format, tmp_path / "exported", images, atol=1e-5 if format == "tf_saved_model" else 0.02)
    assert classifier.image_embedder.compute_dtype == "bfloat16"


@keras.saving.register_keras_serializable(package="tests")
class KnownHereOnly(keras.layers.Layer):
    image_size = 2

    def call(self, images):
        return keras.ops.mean(images, axis=(1, 2))


@pytest.mark.slow
def test_a_failure_of_the_other_process_is_reported(new_process, tmp_path):
    embedder = keras_clip.ImageEmbedder(KnownHereOnly(), embed_dim=2)
    classifier = keras_clip.ZeroShotClassifier(embedder, ["a", "b"], class_embeddings=np.eye(2), logit_scale=0.0)
    options = dict(
        filepath=str(tmp_path / "x"), format="onnx", inputs={"images": ([2, 2, 3], "uint8")}, output_name="y"
    )
    with pytest.raises(RuntimeError, match="(?s)TensorFlow process.*KnownHereOnly.*Received") as error:
        export._export_elsewhere(classifier, options)
    assert 'File "' not in str(error.value)
    assert not list(Path(tmp_path).iterdir())


def test_refusals(tmp_path, monkeypatch):
    embedder = keras_clip.ImageEmbedder(KnownHereOnly(), embed_dim=2)
    classifier = keras_clip.ZeroShotClassifier(embedder, ["a", "b"], class_embeddings=np.eye(2), logit_scale=0.0)
    with pytest.raises(ValueError, match="(?s)tf_saved_model.*onnx.*Received: format='pmml'"):
        classifier.export(tmp_path / "x", format="pmml")
    with pytest.raises(ValueError, match="(?s)uint8.*Received: .*dtype='int8'"):
        classifier.export(tmp_path / "x", dtype="int8")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else find_spec(name))
    with pytest.raises(ImportError, match=r"(?s)needs tf2onnx\..*Received: format='onnx'.*keras_clip\[export"):
        classifier.export(tmp_path / "x", format="onnx")
