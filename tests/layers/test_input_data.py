"""What is passed to `fit`, `evaluate` and `predict`: files and texts in place of arrays, inputs of several lengths."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import keras_clip
from keras_clip.layers.input_data import check_input_data

IMAGE = Image.new("RGB", (4, 4))
RAW = {
    "a path": "a.jpg",
    "paths": ["a.jpg", "b.jpg"],
    "Path objects": [Path("a.jpg")],
    "a PIL image": IMAGE,
    "PIL images": [IMAGE, IMAGE],
    "an array of texts": np.array(["a cat", "a dog"]),
    "an array of objects": np.array(["a", "bcd"], object),
    "bytes": [b"\x89PNG"],
    "a dict of paths": {"images": ["a.jpg"], "token_ids": np.zeros((1, 4), "int32")},
}


@pytest.mark.backend_free
@pytest.mark.parametrize("data", RAW.values(), ids=RAW)
def test_files_and_texts_are_no_arrays(data):
    with pytest.raises(ValueError, match=r"takes arrays: .*Received: (x|images)=.*`image_preprocessor\(images\)`"):
        check_input_data(data)


GOOD = {
    "nothing": None,
    "an array": np.zeros((2, 3)),
    "a list of arrays": [np.zeros(3), np.zeros(3)],
    "an empty list": [],
    "a generator": (np.zeros(3) for _ in range(2)),
    "images and token ids": {"images": np.zeros((2, 4, 4, 3)), "token_ids": np.zeros((2, 7), "int32")},
    "a number beside them": {"images": np.zeros((2, 4, 4, 3)), "temperature": np.float32(1.0)},
    "arrays of objects": np.array([np.zeros(3), np.zeros(4)], object),
}


@pytest.mark.backend_free
@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD)
def test_what_is_passed_on(data):
    check_input_data(data)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "data", [np.zeros((0, 4, 4, 3)), {"images": np.zeros((0, 4, 4, 3)), "token_ids": np.ones((2, 4))}]
)
def test_no_rows(data):
    with pytest.raises(ValueError, match=r"at least one row. Received: (x|images).shape=\(0, 4, 4, 3\)"):
        check_input_data(data)


@pytest.fixture(scope="module")
def clip():
    image_encoder = keras_clip.encoders.VisionTransformer(16, 8, 8, 1, 1)
    clip = keras_clip.CLIPModel(image_encoder, keras_clip.encoders.TextTransformer(32, 1, 2, context_length=16), 16)
    clip.compile("sgd")
    return clip


@pytest.mark.parametrize(
    "method", ["fit", "evaluate", "predict", "train_on_batch", "test_on_batch", "predict_on_batch"]
)
def test_every_method_compares_the_lengths(clip, method):
    data = {"images": np.zeros((4, 16, 16, 3), "uint8"), "token_ids": np.ones((3, 16), "int32")}
    with pytest.raises(ValueError, match="one row for each pair. Received: 4 images, 3 token_ids"):
        getattr(clip, method)(data)


def test_parts_and_classifiers_name_the_cure(clip):
    classifier = keras_clip.ZeroShotClassifier(clip, class_embeddings=np.eye(2, 16), class_names=["a", "b"])
    for model in (classifier, clip.image_embedder, clip.image_encoder, clip.text_embedder, clip.text_encoder):
        with pytest.raises(ValueError, match=r"Received: x=\['a.jpg'\]. Pass `image_preprocessor"):
            model.predict(["a.jpg"], verbose=0)
