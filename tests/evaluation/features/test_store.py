"""`FeatureStore`: values equal the model's, the store key covers all that they depend on, and a build can resume."""

import gc
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
import small_clip
from PIL import Image
from subprocesses import REPOSITORY

import keras_clip
from keras_clip import lock
from keras_clip.data import decoding
from keras_clip.data.skipped import SkippedSamples
from keras_clip.evaluation import FeatureStore, sources
from keras_clip.evaluation.classifiers import zero_shot
from keras_clip.evaluation.datasets import labelled_images
from keras_clip.evaluation.datasets.labelled_images import LabelledImages
from keras_clip.evaluation.datasets.sources import reader as source_reader
from keras_clip.evaluation.features import draft, encoding
from keras_clip.evaluation.features.key import model_parts

SIZE = 21


@pytest.fixture(scope="module")
def clip():
    return small_clip.build()


def png(number):
    pixels = np.random.default_rng(number).integers(0, 256, size=(20 + number % 3, 24, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


FILES = [png(number) for number in range(SIZE)]


def make(files=FILES, **changes):
    arguments = {
        "labels": [("cat", "dog", "cow")[number % 3] for number in range(len(files))],
        "ids": [f"image {number}" for number in range(len(files))],
        "class_names": ("dog", "cat", "cow"),
        "groups": ["left", "right", ""] * (len(files) // 3),
        "name": "animals",
    }
    return LabelledImages(lambda start: iter(files[start:]), **{**arguments, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of `store`. No test writes into it."""
    return tmp_path_factory.mktemp("stores") / "animals"


@pytest.fixture(scope="module")
def store(clip, folder):
    return FeatureStore.build(clip, make(), folder, batch_size=8)


def test_values_equal_the_model_s(clip, store):
    pixels = clip.image_preprocessor(FILES)
    embeddings = keras.ops.convert_to_numpy(clip.encode_image(pixels))
    features = keras.ops.convert_to_numpy(clip.image_encoder(pixels, training=False))
    np.testing.assert_allclose(store.embeddings, embeddings, atol=2e-6)
    np.testing.assert_allclose(store.features, features, atol=2e-5)
    assert store.embeddings.dtype == store.features.dtype == np.float32
    assert isinstance(store.features, np.memmap)
    assert store.logit_scale == pytest.approx(np.log(1 / 0.07))


@pytest.mark.backend_free
def test_labels_are_looked_up_by_name(store):
    assert store.labels.tolist() == [1, 0, 2] * 7
    assert store.class_names == ("dog", "cat", "cow")
    assert store.ids[:2].tolist() == ["image 0", "image 1"]
    assert store.groups[:3].tolist() == ["left", "right", ""]
    assert (store.name, store.split, len(store), store.multi_label) == ("animals", "test", SIZE, False)


@pytest.mark.backend_free
def test_it_opens_without_a_model_and_builds_once(clip, store, folder, monkeypatch):
    monkeypatch.setattr(draft.Draft, "encode", lambda *_: pytest.fail("encoded a second time"))
    again = FeatureStore.build(clip, make(), folder)
    assert again.key == FeatureStore.open(folder).key == store.key
    assert [path.name for path in folder.parent.iterdir()] == ["animals"]
    assert {path.name for path in folder.iterdir()} == {
        *(f"{name}.npy" for name in ("features", "embeddings", "labels", "ids", "groups")),
        "store.json",
    }


def changed_weight():
    clip = small_clip.build()
    weight = clip.image_projection.weights[0]
    weight.assign(weight + np.eye(*weight.shape) * 1e-6)
    return clip


def changed_temperature():
    clip = small_clip.build()
    clip.logit_scale.assign(2.0)
    return clip


def changed_preprocessing():
    clip = small_clip.build()
    clip.image_preprocessor.interpolation = "bilinear"
    return clip


def changed_activation():
    clip = small_clip.build()
    config = clip.image_encoder.get_config()
    encoder = type(clip.image_encoder).from_config({**config, "activation": "gelu"})
    encoder.set_weights(clip.image_encoder.get_weights())
    other = type(clip)(encoder, clip.text_encoder, 16, tokenizer=clip.tokenizer)
    other.image_projection.set_weights(clip.image_projection.get_weights())
    return other


def changed_policy():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return small_clip.build()
    finally:
        keras.config.set_dtype_policy(policy)


MODELS = {
    "weights": changed_weight,
    "logit scale": changed_temperature,
    "preprocessing": changed_preprocessing,
    "architecture": changed_activation,
    "architecture ": changed_policy,
}
DATA = {
    "an image": {"files": [png(99), *FILES[1:]]},
    "a label": {"labels": ["dog"] + ["cat", "dog", "cow"] * 6 + ["dog", "cow"]},
    "an id": {"ids": ["other", *(f"image {number}" for number in range(1, SIZE))]},
    "the order of the classes": {"class_names": ("cat", "dog", "cow")},
    "a group": {"groups": [""] * SIZE},
    "the split": {"split": "train"},
    "the name": {"name": "beasts"},
}


@pytest.mark.backend_free
def test_an_equal_model_has_the_same_key(clip):
    assert model_parts(small_clip.build().image_embedder, 1.0) == model_parts(clip.image_embedder, 1.0)


@pytest.mark.backend_free
@pytest.mark.parametrize("part, change", MODELS.items(), ids=[*MODELS][:-1] + ["dtype policy"])
def test_a_store_of_another_model_is_refused(store, folder, part, change):
    other = change()
    with pytest.raises(ValueError, match=f"which differs in {part.strip()}. Pass another folder"):
        FeatureStore.build(other, make(), folder)
    with pytest.raises(ValueError, match=f"which differs in {part.strip()}. Build a store with this model"):
        FeatureStore.open(folder, other)


@pytest.mark.backend_free
def test_a_store_of_this_model_is_accepted(clip, store):
    store.require_model(clip)


@pytest.mark.backend_free
@pytest.mark.parametrize("change", DATA.values(), ids=DATA)
def test_other_data_is_refused(clip, store, folder, change):
    with pytest.raises(ValueError, match="differs in data set"):
        FeatureStore.build(clip, make(**change), folder)


class Killed(BaseException):
    """An exception that no code catches, as no code can catch a SIGKILL."""


def interrupted(files, after):
    """Returns images that interrupt the build after a number of them."""

    def read(start):
        for number in range(start, len(files)):
            if number >= after:
                raise Killed
            yield files[number]

    images = make(files)
    content = images.digest()
    images.read = read
    assert images.digest() == content
    return images


def test_an_interrupted_build_resumes(clip, store, tmp_path, monkeypatch):
    folder = tmp_path / "store"
    monkeypatch.setattr(draft, "_SECONDS_BETWEEN_NOTES", 0)
    monkeypatch.setattr(decoding, "_AHEAD", 0)
    with pytest.raises(Killed):
        FeatureStore.build(clip, interrupted(FILES, after=18), folder, batch_size=8)
    with pytest.raises(FileNotFoundError, match="not finished"):
        FeatureStore.open(folder)
    asked = []
    images = make()
    images.digest()
    images.read = lambda start: asked.append(start) or iter(FILES[start:])
    resumed = FeatureStore.build(clip, images, folder, batch_size=8)
    assert asked == [16]
    np.testing.assert_array_equal(resumed.embeddings, store.embeddings)
    np.testing.assert_array_equal(resumed.features, store.features)
    assert resumed.key == store.key


def test_a_second_builder_waits_and_opens_what_the_first_built(clip, store, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock, "_POLL", 0.01)
    folder, begun, may_go_on, built, reads = tmp_path / "store", threading.Event(), threading.Event(), [], []

    def read(start):
        reads.append(start)
        begun.set()
        assert may_go_on.wait(60)
        return iter(FILES[start:])

    def build():
        images = make()
        images.digest()
        images.read = read
        built.append(FeatureStore.build(clip, images, folder, 8))

    first, second = (threading.Thread(target=build) for _ in range(2))
    first.start()
    assert begun.wait(60)
    with caplog.at_level(logging.WARNING, "keras_clip"):
        second.start()
        second.join(0.5)
    assert second.is_alive() and f"Waiting for process {os.getpid()}" in caplog.text and str(folder) in caplog.text
    may_go_on.set()
    first.join(60), second.join(60)
    assert reads == [0] and [len(one) for one in built] == [SIZE, SIZE]
    np.testing.assert_array_equal(built[1].embeddings, store.embeddings)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_builder_whose_lock_was_taken_stops(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(draft, "_SECONDS_BETWEEN_NOTES", 0)
    images = make()
    images.digest()

    def read(start):
        (tmp_path / "store.lock").write_text('{"token": "another"}')
        return iter(FILES[start:])

    images.read = read
    with pytest.raises(RuntimeError, match="Only one process may build the feature store .*another process took over"):
        FeatureStore.build(clip, images, tmp_path / "store", batch_size=8)
    # That of the other process stays.
    assert (tmp_path / "store.lock").exists() and not (tmp_path / "store").exists()


def test_empty_rows_of_a_draft_are_encoded_again(clip, store, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(draft, "_SECONDS_BETWEEN_NOTES", 0)
    monkeypatch.setattr(decoding, "_AHEAD", 0)
    with pytest.raises(Killed):
        FeatureStore.build(clip, interrupted(FILES, after=18), tmp_path / "store", batch_size=8)
    # As after a power cut: the note is newer than the file of the rows.
    for name, row in (("features", 3), ("embeddings", 9)):
        column = np.load(tmp_path / "store.building" / f"{name}.npy", mmap_mode="r+")
        column[row] = 0
        column.flush()
    with caplog.at_level(logging.WARNING, "keras_clip"):
        resumed = FeatureStore.build(clip, make(), tmp_path / "store", batch_size=8)
    assert "has empty rows" in caplog.text
    np.testing.assert_array_equal(resumed.embeddings, store.embeddings)
    np.testing.assert_array_equal(resumed.features, store.features)


@pytest.mark.backend_free
@pytest.mark.parametrize("name", ["features", "embeddings"])
def test_a_store_with_an_empty_row_is_never_finished(clip, tmp_path, monkeypatch, name):
    monkeypatch.setattr(draft, "_ROWS", 4)
    add = draft.Draft._add

    def leave_one_out(self, encoded):
        is_left_out = (self._done + encoded.rows == 6)[:, None]
        columns = {key: np.where((key == name) & is_left_out, 0, values) for key, values in encoded.columns.items()}
        add(self, encoded._replace(columns=columns))

    monkeypatch.setattr(draft.Draft, "_add", leave_one_out)
    with pytest.raises(ValueError, match=f"must have {name}. Received: .*those of image 'image 6' are all zero"):
        FeatureStore.build(clip, make(), tmp_path / "store", batch_size=8)
    with pytest.raises(FileNotFoundError, match="not finished"):
        FeatureStore.open(tmp_path / "store")


@pytest.mark.backend_free
def test_a_store_of_an_earlier_version_with_an_empty_row_is_refused(store, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "store")
    manifest = json.loads((tmp_path / "store" / "store.json").read_text())
    del manifest["is_verified"]
    (tmp_path / "store" / "store.json").write_text(json.dumps(manifest))
    assert len(FeatureStore.open(tmp_path / "store")) == SIZE
    column = np.load(tmp_path / "store" / "embeddings.npy", mmap_mode="r+")
    column[5] = 0
    column.flush()
    with pytest.raises(ValueError, match="'image 5' are all zero. Delete the folder"):
        FeatureStore.open(tmp_path / "store")


def test_a_draft_of_another_model_is_refused(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(draft, "_SECONDS_BETWEEN_NOTES", 0)
    monkeypatch.setattr(decoding, "_AHEAD", 0)
    with pytest.raises(Killed):
        FeatureStore.build(clip, interrupted(FILES, after=18), tmp_path / "store", batch_size=8)
    with pytest.raises(ValueError, match="store.building, which differs in weights"):
        FeatureStore.build(changed_weight(), make(), tmp_path / "store", batch_size=8)


BUILD = """
import sys
import small_clip
from evaluation.features.test_store import FILES, make
from keras_clip import lock
from keras_clip.data import decoding
from keras_clip.data.skipped import SkippedSamples
from keras_clip.evaluation import FeatureStore
from keras_clip.evaluation.features import draft

draft._SECONDS_BETWEEN_NOTES, decoding._AHEAD = 0, 0

def read(start):
    for number, file in enumerate(FILES[start:], start):
        if number == 12:
            print("half way", flush=True)
            sys.stdin.read()
        yield file

images = make()
images.digest()
images.read = read
FeatureStore.build(small_clip.build(), images, sys.argv[1], batch_size=4)
"""


@pytest.mark.slow
@pytest.mark.backend_free
def test_a_killed_build_resumes(clip, store, tmp_path):
    paths = os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tests")))
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(tmp_path / "store")],
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "half way\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    note = json.loads((tmp_path / "store.building" / "progress.json").read_text())
    assert 0 < note["done"] <= 12
    resumed = FeatureStore.build(clip, make(), tmp_path / "store", batch_size=4)
    np.testing.assert_allclose(resumed.embeddings, store.embeddings, atol=2e-6)


def test_broken_images_are_left_out_and_named(clip, store, tmp_path, caplog, monkeypatch):
    files = FILES * 2
    files[3], files[10] = b"no image at all", b""
    images = make(files)
    # Images that were broken before an interruption are still counted after it.
    monkeypatch.setattr(draft, "_SECONDS_BETWEEN_NOTES", 0)
    monkeypatch.setattr(decoding, "_AHEAD", 0)
    with pytest.raises(Killed):
        FeatureStore.build(clip, interrupted(files, after=12), tmp_path / "store", batch_size=8)
    with caplog.at_level(logging.WARNING, "keras_clip"):
        found = FeatureStore.build(clip, images, tmp_path / "store", batch_size=8)
    kept = [row for row in range(len(files)) if row not in (3, 10)]
    assert len(found) == 40
    assert found.ids.tolist() == [images.ids[row] for row in kept]
    assert found.labels.tolist() == images.labels[kept].tolist()
    np.testing.assert_allclose(found.embeddings, np.tile(store.embeddings, (2, 1))[kept], atol=2e-6)
    assert found.skipped.counts == {"undecodable image": 1, "no image": 1}
    assert found.skipped.examples[0].startswith("image 3: undecodable image")
    assert "skipped 2 of 42 samples" in caplog.text


@pytest.mark.backend_free
def test_many_broken_images_are_an_error(clip, tmp_path):
    with pytest.raises(ValueError, match="At most 5% of the samples may be broken"):
        FeatureStore.build(clip, make([b"broken", b"too", *FILES[2:]]), tmp_path / "store", batch_size=8)


def passed_over(**counts):
    """What a source passed over."""
    skipped = SkippedSamples("animals")
    for reason, count in counts.items():
        for number in range(count):
            skipped.add(f"{reason} {number}.txt", reason)
    return skipped


@pytest.mark.backend_free
def test_the_limit_of_unreadable_images_is_an_argument(clip, tmp_path):
    """It holds for a store that exists, too: results do not depend on which call came first."""
    images = make([b"broken", b"too", *FILES[2:]], skipped=passed_over(text=3))
    for limit in (0, 0.05, 0.09):
        with pytest.raises(ValueError, match=f"At most {100 * limit:g}% .*samples: undecodable.*image 0: undecodable"):
            FeatureStore.build(clip, images, tmp_path / "store", batch_size=8, max_broken=limit)
    built = FeatureStore.build(clip, images, tmp_path / "store", batch_size=8, max_broken=0.1)
    for found in (built, FeatureStore.open(tmp_path / "store"), built.take(np.arange(3))):
        assert found.skipped.counts == {"undecodable image": 2, "text": 3}
        assert (found.skipped.broken, found.skipped.total) == (2, 5)
        assert found.skipped.examples[0] == "text 0.txt: text" and "image 1: undecodable" in found.skipped.examples[4]
    with pytest.raises(ValueError, match="2 of 21 samples: undecodable image 2. First: image 0"):
        FeatureStore.build(clip, images, tmp_path / "store", batch_size=8)
    # What the source passes over now is what counts, not what it passed over when the store was built.
    images = make([b"broken", b"too", *FILES[2:]], skipped=passed_over(hidden=1))
    again = FeatureStore.build(clip, images, tmp_path / "store", batch_size=8, max_broken=1)
    assert again.skipped.counts == {"undecodable image": 2, "hidden": 1}
    for wrong in (-0.1, 2, True, "5%", None):
        with pytest.raises(ValueError, match="max_broken must be a fraction"):
            FeatureStore.build(clip, images, tmp_path / "store", max_broken=wrong)
    for wrong in (0, -4, 1.5, True):
        with pytest.raises(ValueError, match="`batch_size` must be an integer of at least 1"):
            FeatureStore.build(clip, images, tmp_path / "store", batch_size=wrong)


@pytest.mark.backend_free
def test_a_store_of_an_earlier_version_does_not_say_what_was_passed_over(store, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "old")
    manifest = json.loads((tmp_path / "old" / "store.json").read_text())
    del manifest["passed_over"]
    (tmp_path / "old" / "store.json").write_text(json.dumps(manifest))
    assert FeatureStore.open(tmp_path / "old").skipped.total == 0


@pytest.mark.backend_free
def test_a_class_of_broken_images_is_an_error(clip, tmp_path):
    labels = ["cow"] + ["cat", "dog"] * 10
    with pytest.raises(ValueError, match="animals/test, as decoded' with none of \\['cow'\\]"):
        FeatureStore.build(clip, make([b"broken", *FILES[1:]], labels=labels), tmp_path / "store", batch_size=8)


@pytest.mark.backend_free
def test_nan_is_refused(tmp_path):
    clip = small_clip.build()
    clip.image_projection.weights[0].assign(np.full(clip.image_projection.weights[0].shape, np.nan))
    with pytest.raises(ValueError, match="finite embeddings. Received: NaN or infinity for image 'image 0'"):
        FeatureStore.build(clip, make(), tmp_path / "store")


@pytest.mark.backend_free
def test_a_source_with_too_few_images_is_refused(clip, tmp_path):
    images = make()
    images.digest()
    images.read = lambda start: iter(FILES[start:-1])
    with pytest.raises(ValueError, match="the 21 images .* Received: 20"):
        FeatureStore.build(clip, images, tmp_path / "store", batch_size=8)


@pytest.mark.backend_free
def test_folders_without_a_store_are_refused(clip, store, folder, tmp_path):
    store_folder = folder
    with pytest.raises(FileNotFoundError, match="with no store"):
        FeatureStore.open(tmp_path / "nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="must be empty, new, or a store"):
        FeatureStore.build(clip, make(), tmp_path / "full", batch_size=8)
    folder = tmp_path / "store"
    shutil.copytree(store_folder, folder)
    manifest = json.loads((folder / "store.json").read_text())
    manifest["key_parts"]["format"] = 0
    (folder / "store.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="of format 0"):
        FeatureStore.open(folder)
    np.save(folder / "labels.npy", np.zeros(3, np.int64))
    manifest["key_parts"]["format"] = 1
    (folder / "store.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="A store must have features"):
        FeatureStore.open(folder)
    (folder / "labels.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="must be complete"):
        FeatureStore.open(folder)


def arrays(**changes):
    features = np.arange(12.0).reshape(4, 3)
    embeddings = np.tile([0.6, 0.8], (4, 1))
    whole = {"features": features, "embeddings": embeddings, "labels": [0, 1, 1, 0], "class_names": ["a", "b"]}
    return FeatureStore.from_arrays(**{**whole, **changes})


REFUSED = {
    "labels beyond the names": ({"labels": [0, 1, 2, 0]}, "numbers of the 2 class names"),
    "negative labels": ({"labels": [0, 1, -1, 0]}, "numbers of the 2 class names"),
    "labels that are floats": ({"labels": [0.0, 1.0, 1.0, 0.0]}, "must be integers"),
    "an empty class": ({"class_names": ["a", "b", "c"]}, r"none of \['c'\]"),
    "one class": ({"class_names": ["a"], "labels": [0, 0, 0, 0]}, "at least two classes"),
    "a name twice": ({"class_names": ["a", "a"]}, "names that differ"),
    "NaN features": ({"features": np.full((4, 3), np.nan)}, "`features` must be finite"),
    "long embeddings": ({"embeddings": np.ones((4, 2))}, "unit length"),
    "too few labels": ({"labels": [0, 1]}, "A store must have"),
    "no image": ({"features": np.zeros((0, 3)), "embeddings": np.zeros((0, 2)), "labels": np.zeros(0, int)}, "N >= 1"),
    "an id twice": ({"ids": ["x", "y", "x", "z"]}, "same id"),
    "a column without a class name": ({"labels": np.eye(4, 3, dtype=int) + 0}, "2 class names"),
}


@pytest.mark.backend_free
@pytest.mark.parametrize("changes, message", REFUSED.values(), ids=REFUSED)
def test_arrays_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        arrays(**changes)


@pytest.mark.backend_free
def test_stores_of_arrays_and_their_subsets():
    whole = arrays(groups=["g", "h", "g", "h"])
    assert (whole.key, whole.ids.tolist(), whole.logit_scale) == ("", ["0", "1", "2", "3"], None)
    part = whole.take(np.array([True, False, False, True]))
    assert (part.ids.tolist(), part.groups.tolist(), part.labels.tolist()) == (["0", "3"], ["g", "h"], [0, 0])
    assert len(part) == 2 and len(whole) == 4 and part.class_names == ("a", "b")


def test_digits_end_to_end(tmp_path):
    # The prompts need the full vocabulary.
    clip = small_clip.build(vocabulary_size=49408)
    images = sources.digits("test")
    store = FeatureStore.build(clip, images, tmp_path / "digits", batch_size=64)
    pixels = clip.image_preprocessor([sample.image for sample in images][-64:])
    classifier = keras_clip.ZeroShotClassifier(clip, list("0123456789"), ("a photo of a {}.",))
    head = zero_shot.zero_shot_heads(clip, store, ("a photo of a {}.",))["zero_shot/family"]
    scores = zero_shot.zero_shot_scores(store, head.class_embeddings)
    expected = keras.ops.convert_to_numpy(classifier.logits(pixels))
    np.testing.assert_allclose(scores[-64:], expected, atol=1e-4)
    assert scores.shape == (597, 10)
    assert store.labels.tolist() == images.labels.tolist()


def test_the_compiled_function_is_shared_and_uses_the_current_weights(tmp_path):
    clip = small_clip.build()
    first = FeatureStore.build(clip, make(), tmp_path / "first", batch_size=8)
    compiled = encoding._COMPILED[clip.image_embedder]
    weight = clip.image_projection.weights[0]
    weight.assign(-weight)
    second = FeatureStore.build(clip, make(), tmp_path / "second", batch_size=8)
    assert encoding._COMPILED[clip.image_embedder] is compiled
    np.testing.assert_allclose(second.embeddings, -first.embeddings, atol=2e-6)
    clip.image_embedder.quantize("int8")
    FeatureStore.build(clip, make(), tmp_path / "third", batch_size=8)
    assert encoding._COMPILED[clip.image_embedder] is not compiled
    del compiled
    held = len(encoding._COMPILED)
    del clip, weight
    gc.collect()
    assert len(encoding._COMPILED) < held


@pytest.mark.backend_free
def test_paths_that_are_no_images_are_counted(clip, tmp_path):
    """A folder, a file of no bytes, and one that is gone, of images that are given by their paths."""
    paths = []
    for number, file in enumerate(FILES):
        paths.append(str(tmp_path / f"{number}.png"))
        (tmp_path / f"{number}.png").write_bytes(file if number != 4 else b"")
    (tmp_path / "folder.png").mkdir()
    paths[6], paths[8] = str(tmp_path / "folder.png"), str(tmp_path / "gone.png")
    found = FeatureStore.build(clip, make(paths), tmp_path / "store", batch_size=8, max_broken=0.2)
    assert found.skipped.counts == {"undecodable image": 2, "no image": 1}
    assert all(any(what in text for text in found.skipped.examples) for what in ("0 bytes", "a folder", "image 8"))


LABELS = {
    "fractions": ([0.5, 1.7], None, "integers from 0 on.*float64"),
    "negative": ([-1, 1], None, "integers from 0 on"),
    "names without classes": (["a", "b"], None, "Pass `class_names`"),
    "composed and decomposed": (
        ["cafe\u0301", "b"],
        ["caf\u00e9", "b"],
        r"Alike, but not equal, are 'cafe\\u0301' and",
    ),
    "case": (["Cat", "b"], ["cat", "b"], "Alike, but not equal, are 'Cat' and 'cat'"),
}


@pytest.mark.backend_free
@pytest.mark.parametrize(("labels", "class_names", "message"), LABELS.values(), ids=LABELS)
def test_labels_that_are_no_classes(labels, class_names, message):
    with pytest.raises(ValueError, match=message):
        LabelledImages(lambda start: iter(FILES[start:2]), labels, ["0", "1"], class_names)
    with pytest.raises(TypeError, match="must be a list of texts"):
        LabelledImages(lambda start: iter(FILES[start:2]), ["a", "b"], ["0", "1"], "ab")


@pytest.mark.backend_free
@pytest.mark.parametrize("labels", [[-1, 1], [[0, 2], [1, 0]], [[0, 1], [1, 254]]], ids=str)
def test_arrays_with_labels_out_of_range(labels):
    for names in (None, ["a", "b"]):
        with pytest.raises(ValueError, match="Labels"):
            FeatureStore.from_arrays(np.eye(2), np.eye(2), labels, names)


@pytest.mark.backend_free
def test_a_damaged_draft_begins_anew(clip, store, tmp_path, caplog):
    (tmp_path / "store.building").mkdir()
    (tmp_path / "store.building" / "progress.json").write_text("")
    with caplog.at_level(logging.WARNING, "keras_clip"):
        again = FeatureStore.build(clip, make(), tmp_path / "store", batch_size=8)
    np.testing.assert_array_equal(again.embeddings, store.embeddings)
    assert "is damaged; all images are encoded again" in caplog.text
    for wrong in (None, 3, Image.new("RGB", (8, 8))):
        with pytest.raises(TypeError, match=f"of type {type(wrong).__name__}"):
            make([wrong, *FILES[1:]]).digest()


@pytest.mark.backend_free
def test_a_store_is_opened_again_without_reading_an_image(clip, tmp_path, monkeypatch):
    """It is read again where a file changed, and with `full_digest=True`."""
    monkeypatch.setattr(source_reader, "_NANOSECONDS_SETTLED", 0)
    read = []
    monkeypatch.setattr(
        labelled_images,
        "_content",
        lambda images, *rest, to=labelled_images._content: read.append(1) or to(images, *rest),
    )
    for number in range(4):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9, 3), 40 * number, np.uint8)).save(path)
    time.sleep(0.02)

    def build(**options):
        images = sources.folder_per_class(tmp_path / "images")
        return FeatureStore.build(clip, images, tmp_path / "store", 2, **options)

    first = build()
    assert len(read) == 1
    assert build().key == first.key and len(read) == 1
    assert build(full_digest=True).key == first.key and len(read) == 2
    (tmp_path / "store" / "files.json").unlink()
    assert build().key == first.key and len(read) == 3
    assert build().key == first.key and len(read) == 3
    Image.fromarray(np.full((9, 9, 3), 7, np.uint8)).save(path)
    with pytest.raises(ValueError, match="differs in data set"):
        build()
    assert len(read) == 4
