"""`ZeroShotClassifier.export`: both formats give the classifier's probabilities, from images alone, and are small."""

import importlib.util
import os
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_clip
from keras_clip import encoders, export

# Elsewhere a TensorFlow process does it, which takes a while to start.
SLOW_ELSEWHERE = [] if os.environ["KERAS_BACKEND"] == "tensorflow" else [pytest.mark.slow]


def make_classifier(encoder=None):
    keras.utils.set_random_seed(0)
    clip = keras_clip.CLIPModel(
        # Wide rather than deep: the size of the graph itself should not matter.
        encoder or encoders.VisionTransformer(32, 16, 512, 1, 4),
        encoders.TextTransformer(64, 1, 2, context_length=16),
        embed_dim=8,
    )
    return keras_clip.ZeroShotClassifier(clip, ["cat", "dog", "boat"], ["{}", "a {}"])


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, size=(5, 32, 32, 3)).astype("uint8")


def run_saved_model(path, images):
    tf = pytest.importorskip("tensorflow", reason="backend unable: TensorFlow is not installed")
    loaded = tf.saved_model.load(str(path))
    (name, spec) = next(iter(loaded.signatures["serving_default"].structured_input_signature[1].items()))
    assert (name, spec.dtype.name, spec.shape.as_list()[0]) == ("images", images.dtype.name, None)
    return loaded.serve(images)["probabilities"].numpy()


def run_onnx(path, images):
    onnxruntime = pytest.importorskip("onnxruntime", reason="backend unable: ONNX Runtime is not installed")
    session = onnxruntime.InferenceSession(path)
    assert [(i.name, i.type) for i in session.get_inputs()] == [
        ("images", f"tensor({images.dtype.name.replace('float32', 'float')})")
    ]
    assert [output.name for output in session.get_outputs()] == ["probabilities"]
    return session.run(None, {"images": images})[0]


RUN = {"tf_saved_model": run_saved_model, "onnx": run_onnx}
formats = pytest.mark.parametrize("format", RUN)


def size(path):
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def check(classifier, format, path, images, dtype="uint8", atol=1e-5):
    classifier.export(path, format=format, dtype=dtype)
    expected = classifier.predict(images, verbose=0)
    assert expected.std(axis=0).min() > 1e-4
    inputs = images if dtype == "uint8" else classifier.image_preprocessor.normalize(images)
    for batch in (slice(0, 5), slice(1, 2)):
        np.testing.assert_allclose(RUN[format](path, inputs[batch]), expected[batch], atol=atol)


@pytest.mark.parametrize("format", [pytest.param(format, marks=SLOW_ELSEWHERE) for format in RUN])
def test_gives_the_probabilities_and_is_small(format, images, tmp_path):
    classifier = make_classifier()
    path = tmp_path / "new folder" / "exported"
    check(classifier, format, path, images)
    weights = sum(4 * int(np.prod(weight.shape)) for weight in classifier.weights)
    assert size(path) == pytest.approx(weights, rel=0.05)
    # Over what is there already.
    classifier.class_embeddings.assign(np.roll(keras.ops.convert_to_numpy(classifier.class_embeddings), 1, axis=0))
    check(classifier, format, path, images)


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
        # About as small as the activations are at the start: otherwise no image would matter.
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
    # ONNX computes in float32, so it is closer to the truth than the classifier.
    check(classifier, format, tmp_path / "exported", images, atol=1e-5 if format == "tf_saved_model" else 0.02)
    assert classifier.image_embedder.compute_dtype == "bfloat16"


@keras.saving.register_keras_serializable(package="tests")
class KnownHereOnly(keras.layers.Layer):
    image_size = 2

    def call(self, images):
        return keras.ops.mean(images, axis=(1, 2))


@pytest.mark.slow
def test_a_failure_of_the_other_process_is_told(tmp_path):
    embedder = keras_clip.ImageEmbedder(KnownHereOnly(), embed_dim=2)
    classifier = keras_clip.ZeroShotClassifier(embedder, ["a", "b"], class_embeddings=np.eye(2), logit_scale=0.0)
    options = dict(filepath=str(tmp_path / "x"), format="onnx", image_size=[2, 2], output_name="y", dtype="uint8")
    with pytest.raises(RuntimeError, match="(?s)TensorFlow process.*KnownHereOnly.*Received") as error:
        export._export_elsewhere(classifier, options)
    assert 'File "' not in str(error.value)
    assert not list(Path(tmp_path).iterdir())


def test_refusals(tmp_path, monkeypatch):
    embedder = keras_clip.ImageEmbedder(KnownHereOnly(), embed_dim=2)
    classifier = keras_clip.ZeroShotClassifier(embedder, ["a", "b"], class_embeddings=np.eye(2), logit_scale=0.0)
    with pytest.raises(ValueError, match="(?s)tf_saved_model.*onnx.*Received: format='litert'"):
        classifier.export(tmp_path / "x", format="litert")
    with pytest.raises(ValueError, match="(?s)uint8.*Received: .*dtype='int8'"):
        classifier.export(tmp_path / "x", dtype="int8")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else find_spec(name))
    with pytest.raises(ImportError, match=r"(?s)needs tf2onnx\..*Received: format='onnx'.*keras_clip\[export"):
        classifier.export(tmp_path / "x", format="onnx")
