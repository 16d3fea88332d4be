"""The detector of altered copies: its loss, its data, its measured recall, and that it finds more than a hash."""

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

from keras_clip import losses
from keras_clip.data import synthetic
from keras_clip.evaluation.studies import duplicate_detector, overlap

SMALL = {"image_size": 32, "width": 8, "embed_dim": 16}


def scenes(count, seed=0, size=64):
    return [synthetic.sample(i, size, seed)[0] for i in range(count)]


def hash_vectors(images):
    return overlap.hash_vectors([overlap.perceptual_hash(image) for image in images])


def test_loss_is_the_contrastive_one_at_a_fixed_temperature(rng):
    detector = duplicate_detector.DuplicateDetector(**SMALL, temperature=0.2)
    inputs = {key: rng.normal(size=(3, 32, 32, 3)).astype("float32") for key in ("images", "copies")}
    embeddings = ops.convert_to_numpy(detector(inputs))
    assert embeddings.shape == (6, 16)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(embeddings[3:], ops.convert_to_numpy(detector(inputs["copies"])), atol=1e-5)
    expected = losses.contrastive_loss(embeddings[:3], embeddings[3:], np.log(5.0))
    loss = detector.compute_loss(x=inputs, y_pred=ops.convert_to_tensor(embeddings))
    assert float(loss) == pytest.approx(float(ops.mean(expected)), rel=1e-5)
    assert not [v.path for v in detector.trainable_variables if "scale" in v.path.split("/")[-1]]


@pytest.mark.slow
def test_trained_saved_and_loaded(tmp_path):
    images = scenes(9, size=40)
    detector = duplicate_detector.train_duplicate_detector(images, steps=2, batch_size=4, verbose=0, **SMALL)
    before = detector.embed(images, batch_size=4)
    assert before.shape == (9, 16) and np.isfinite(before).all() and before.std(axis=0).min() > 0
    detector.save(tmp_path / "detector.keras")
    loaded = keras.saving.load_model(tmp_path / "detector.keras")
    assert loaded.temperature == detector.temperature
    np.testing.assert_allclose(loaded.embed(images, batch_size=4), before, atol=1e-6)


@pytest.mark.backend_free
def test_batches_are_repeatable_and_hold_no_image_twice():
    # The colour of an image identifies it.
    images = [Image.new("RGB", (40, 30), (10 * i, 0, 0)) for i in range(10)]
    data = duplicate_detector._Copies(images, 32, 4, 6, seed=3)
    assert len(data) == 6
    batches = [data[step][0] for step in range(6)]
    reds = [sorted(batch["images"][:, 0, 0, 0].tolist()) for batch in batches]
    assert all(len(set(red)) == 4 for red in reds)
    # Two batches are a pass, in which no image occurs twice; the next pass has another order.
    assert len({*reds[0], *reds[1]}) == 8 and reds[:2] != reds[2:4]
    for key in ("images", "copies"):
        np.testing.assert_array_equal(batches[5][key], data[5][0][key])
        assert batches[5][key].shape == (4, 32, 32, 3) and batches[5][key].dtype == np.uint8
    assert not np.array_equal(batches[5]["images"], batches[5]["copies"])


@pytest.mark.backend_free
def test_alterations_match_their_names(rng):
    ramp = Image.fromarray(np.tile(np.arange(100, 200, dtype="uint8")[None, :, None], (80, 1, 3)))
    alterations = duplicate_detector.ALTERATIONS
    np.testing.assert_array_equal(np.asarray(alterations["flipped"](ramp, rng)), np.asarray(ramp)[:, ::-1])
    for _ in range(20):
        cropped = np.asarray(alterations["cropped"](ramp, rng))
        assert 0.45 <= cropped.shape[0] * cropped.shape[1] / 8000 <= 0.85
        assert (np.diff(cropped[0, :, 0].astype(int)) == 1).all()
        assert not np.array_equal(np.asarray(alterations["rotated"](ramp, rng)), np.asarray(ramp))
        recompressed = alterations["recompressed"](ramp, rng).resize(ramp.size)
        assert 0 < np.abs(np.asarray(recompressed).astype(int) - np.asarray(ramp)).mean() < 10


@pytest.mark.backend_free
def test_recall_by_hand(monkeypatch):
    """Of four images, two copies are found, one is nearest to another image, and one is below the threshold."""
    monkeypatch.setattr(duplicate_detector, "ALTERATIONS", {"turned": lambda image, rng: image.rotate(90)})
    vectors = np.eye(4, dtype="float32")
    copies = np.array([[0.9, 0.1, 0, 0], [0, 0.8, 0.1, 0], [0.7, 0, 0.2, 0], [0, 0, 0, 0.6]], "float32")
    calls = iter([vectors, copies])
    images = [np.full((8, 8, 3), i, "uint8") for i in range(4)]
    measured = duplicate_detector.recall_on_copies(lambda _: next(calls), images)
    # The similarities 0.9 and 0.8 are correct, 0.7 is to another image, and 0.6 ranks below that error.
    assert measured["turned"]["recall"] == 0.5
    assert measured["turned"]["threshold"] == pytest.approx(0.8)
    assert measured["turned"]["nearest"] == 0.75
    assert measured["all"] == measured["turned"] and measured["turned"]["n"] == 4
    calls = iter([vectors, copies])
    assert duplicate_detector.recall_on_copies(lambda _: next(calls), images, precision=0.5)["all"]["recall"] == 0.75


def mosaics(count, seed):
    colours = np.random.default_rng(seed).integers(0, 256, size=(count, 4, 4, 3)).astype("uint8")
    return [Image.fromarray(x).resize((64, 64), Image.Resampling.BICUBIC) for x in colours]


@pytest.mark.slow
@pytest.mark.backend_free
def test_a_small_detector_beats_the_hash_on_rotated_and_flipped_images(monkeypatch):
    """Trains for half a minute on similar images. With 40 steps, the recall was 18 %, and that of the hash 0."""
    chosen = {name: duplicate_detector.ALTERATIONS[name] for name in ("rotated", "flipped")}
    monkeypatch.setattr(duplicate_detector, "ALTERATIONS", chosen)
    detector = duplicate_detector.train_duplicate_detector(mosaics(400, 1), 60, batch_size=32, verbose=0, **SMALL)
    held_out = mosaics(60, 2)
    ours = duplicate_detector.recall_on_copies(detector.embed, held_out)["all"]
    hashes = duplicate_detector.recall_on_copies(hash_vectors, held_out)["all"]
    assert ours["low"] > hashes["high"]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_refusals(batch_size):
    with pytest.raises(ValueError, match="Received: batch_size="):
        duplicate_detector.train_duplicate_detector(scenes(3, size=16), batch_size=batch_size)
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        duplicate_detector.DuplicateDetector(temperature=0.0)
