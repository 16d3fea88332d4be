"""Hashes, the search for near duplicates, and the effect of an overlap: by hand, against scipy, and refusals."""

import hashlib
import io
import json
import math

import numpy as np
import pytest
import scipy.fft
from PIL import Image, ImageEnhance

from keras_clip.data import synthetic
from keras_clip.evaluation.studies import overlap

pytestmark = pytest.mark.backend_free


def picture(index=0, size=96):
    return Image.fromarray(synthetic.sample(index, size)[0])


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def hash_distance(one, other):
    return int(np.unpackbits(overlap.perceptual_hash(one) ^ overlap.perceptual_hash(other)).sum())


def test_pixel_digest_depends_on_pixels_only():
    image = picture()
    digest = overlap.pixel_digest(image)
    for same in (np.asarray(image), encoded(image, "PNG"), encoded(image, "WEBP", lossless=True)):
        assert overlap.pixel_digest(same) == digest
    changed = np.array(image)
    changed[3, 4, 1] ^= 1
    for other in (changed, encoded(image, "JPEG", quality=95), image.rotate(90)):
        assert overlap.pixel_digest(other) != digest
    pixels = np.arange(48, dtype="uint8")
    size = np.array([2, 8], "<i8").tobytes()
    assert overlap.pixel_digest(pixels.reshape(2, 8, 3)) == hashlib.sha256(size + pixels.tobytes()).hexdigest()
    assert overlap.pixel_digest(pixels.reshape(2, 8, 3)) != overlap.pixel_digest(pixels.reshape(4, 4, 3))


CHANGES = {
    "recompressed": lambda x: encoded(x, "JPEG", quality=30),
    "larger": lambda x: x.resize((200, 200), Image.Resampling.BICUBIC),
    "squeezed": lambda x: x.resize((70, 50), Image.Resampling.BICUBIC),
    "brighter": lambda x: ImageEnhance.Brightness(x).enhance(1.05),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_perceptual_hash_withstands(change):
    # Scenes are partly symmetric, and their frequencies lie near the median: more bits change than for a photograph.
    distances = [hash_distance(picture(i), change(picture(i))) for i in range(10)]
    assert np.median(distances) <= 6 and max(distances) <= 16


def test_perceptual_hash_distinguishes_images():
    noise = np.random.default_rng(0).integers(0, 256, size=(20, 8, 8, 3)).astype("uint8")
    images = [Image.fromarray(x).resize((64, 64), Image.Resampling.BICUBIC) for x in noise]
    distances = [hash_distance(images[i], images[j]) for i in range(20) for j in range(i)]
    assert 28 < np.mean(distances) < 36 and min(distances) >= 12


def test_perceptual_hash_equals_scipy_s_transform():
    grey = np.random.default_rng(1).integers(0, 256, size=(32, 32)).astype("uint8")
    lowest = scipy.fft.dctn(grey.astype("float64"), type=2)[:8, :8]
    expected = lowest > np.median(lowest)
    np.testing.assert_array_equal(np.unpackbits(overlap.perceptual_hash(grey)).reshape(8, 8), expected)


def test_a_flat_image_has_one_hash():
    flat = [overlap.perceptual_hash(np.full((40, 50, 3), value, "uint8")) for value in (1, 77, 255)]
    # All frequencies except the constant one are 0.
    np.testing.assert_array_equal(flat, [[128, 0, 0, 0, 0, 0, 0, 0]] * 3)


def test_cosines_of_hashes_count_bits():
    hashes = np.array([[255, 0, 0, 0, 0, 0, 0, 0], [240, 0, 0, 0, 0, 0, 0, 1], [0] + [255] * 7], "uint8")
    vectors = overlap.hash_vectors(hashes)
    # The first two differ in 4 + 1 bits, the first and the third in all 64.
    np.testing.assert_allclose(vectors @ vectors[0], [1, 1 - 5 / 32, -1], atol=1e-6)


def test_nearest_by_hand():
    index = np.array([[1, 0], [0.6, 0.8], [0, 1]], "float32")
    queries = np.array([[0.8, 0.6], [0, 1], [-1, 0]], "float32")
    cosines, places = overlap.nearest_vectors(queries, index)
    np.testing.assert_allclose(cosines, [0.96, 1, 0], atol=1e-6)
    np.testing.assert_array_equal(places, [1, 2, 2])
    cosines, places = overlap.nearest_vectors(queries, index, own=np.array([1, 2, 0]))
    np.testing.assert_allclose(cosines, [0.8, 0.8, 0], atol=1e-6)
    np.testing.assert_array_equal(places, [0, 1, 2])


def test_nearest_in_blocks(monkeypatch, rng):
    queries, index = rng.normal(size=(13, 4)), rng.normal(size=(70_000, 4))
    own = np.argmax(queries @ index.T, axis=1)
    monkeypatch.setattr(overlap, "_BLOCK", 2**17)
    for left_out in (None, own):
        products = queries @ index.T
        if left_out is not None:
            products[np.arange(13), left_out] = -np.inf
        cosines, places = overlap.nearest_vectors(queries, index, left_out)
        np.testing.assert_array_equal(places, products.argmax(axis=1))
        np.testing.assert_allclose(cosines, products.max(axis=1), rtol=1e-5)


RECALLS = {
    # In descending similarity, the matches are right, right, wrong, right.
    "no wrong match": ([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1], 4, 0.99, (0.5, 0.8)),
    "one wrong match in four": ([0.6, 0.9, 0.7, 0.8], [1, 1, 0, 1], 4, 0.75, (0.75, 0.6)),
    "the most similar match is wrong": ([0.9, 0.8], [0, 1], 2, 0.99, (0.0, math.inf)),
    "equal similarities count together": ([0.9, 0.8, 0.8], [1, 1, 0], 2, 0.99, (0.5, 0.9)),
    "all": ([0.9, 0.8], [1, 1], 2, 0.99, (1.0, 0.8)),
    "none right": ([0.9, 0.8], [0, 0], 2, 0.5, (0.0, math.inf)),
}


@pytest.mark.parametrize("similarities, is_right, duplicates, precision, expected", RECALLS.values(), ids=RECALLS)
def test_recall_at_precision(similarities, is_right, duplicates, precision, expected):
    found = overlap.recall_at_precision(np.array(similarities), np.array(is_right, bool), duplicates, precision)
    assert found == expected


def test_overlap_by_hand():
    correct = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 0], bool)
    similarities = np.array([0.9, 0.8, 0.95, 0.8, 0.1, 0.2, 0.79, 0.3, 0.1, 0.0])
    result = overlap.analyse_overlap(correct, similarities, 0.8)
    assert (result.n, result.n_overlap, result.share) == (10, 4, 0.4)
    assert (result.accuracy, result.accuracy_clean, result.accuracy_overlap) == (0.7, 0.5, 1.0)
    assert result.inflation == pytest.approx(0.2)
    # At an accuracy of 1/2, four of four has the probability 1/16. The lower bound has four of four once in 400 times.
    assert result.p_value == pytest.approx(0.5**4)
    assert (result.low, result.high) == pytest.approx((0.0025**0.25, 1.0))


def test_overlap_that_does_not_help():
    correct = np.array([0, 1, 1, 1, 1, 0], bool)
    result = overlap.analyse_overlap(correct, np.array([1, 1, 0, 0, 0, 0.0]), 0.5)
    assert (result.accuracy_overlap, result.accuracy_clean) == (0.5, 0.75)
    # At an accuracy of 3/4, one or two of two are correct with the probability 1 - 1/16.
    assert result.p_value == pytest.approx(15 / 16)
    assert result.inflation == pytest.approx(4 / 6 - 0.75)


def test_one_part_alone():
    correct = np.array([True, False])
    clean = overlap.analyse_overlap(correct, np.zeros(2), 0.5)
    assert (clean.n_overlap, clean.accuracy_clean, clean.inflation) == (0, 0.5, 0.0)
    assert all(math.isnan(x) for x in (clean.accuracy_overlap, clean.low, clean.high, clean.p_value))
    dirty = overlap.analyse_overlap(correct, np.ones(2), 0.5)
    assert (dirty.n_overlap, dirty.accuracy_overlap) == (2, 0.5)
    assert math.isnan(dirty.accuracy_clean) and math.isnan(dirty.p_value) and 0 < dirty.low < 0.5 < dirty.high < 1


def test_table_corrects_for_the_number_of_tested_datasets():
    correct = np.array([1, 1, 1, 1, 1, 0], bool)
    similar = np.array([1, 1, 1, 1, 0, 0.0])
    overlaps = {
        "one": overlap.analyse_overlap(correct, similar, 0.5),
        "other": overlap.analyse_overlap(correct, similar[::-1], 0.5),
        "untouched": overlap.analyse_overlap(correct, similar, 2.0),
    }
    rows = {row["dataset"]: row for row in overlap.overlap_table(overlaps)}
    assert rows["one"]["p_value"] == pytest.approx(1 / 16)
    assert rows["one"]["p_bonferroni"] == pytest.approx(2 / 16)
    assert rows["other"]["p_bonferroni"] == 1.0
    assert rows["untouched"]["p_bonferroni"] is None and rows["untouched"]["accuracy_overlap"] is None
    assert json.loads(json.dumps(list(rows.values()), allow_nan=False))[0]["n_overlap"] == 4


REFUSED = {
    "hashes of another shape": lambda: overlap.hash_vectors(np.zeros((2, 4), "uint8")),
    "hashes of another dtype": lambda: overlap.hash_vectors(np.zeros((2, 8), "int64")),
    "vectors of other lengths": lambda: overlap.nearest_vectors(np.zeros((2, 3)), np.zeros((2, 4))),
    "an empty index": lambda: overlap.nearest_vectors(np.zeros((2, 3)), np.zeros((0, 3))),
    "more correct matches than duplicates": lambda: overlap.recall_at_precision(np.zeros(3), np.ones(3, bool), 2),
    "labels, not booleans": lambda: overlap.analyse_overlap(np.array([1, 0]), np.zeros(2), 0.5),
    "other lengths": lambda: overlap.analyse_overlap(np.array([True]), np.zeros(2), 0.5),
    "no image": lambda: overlap.analyse_overlap(np.zeros(0, bool), np.zeros(0), 0.5),
    "NaN": lambda: overlap.analyse_overlap(np.array([True]), np.array([math.nan]), 0.5),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_refusals(call):
    with pytest.raises(ValueError, match="Received: "):
        call()


def test_large_images_and_other_files_are_refused():
    with pytest.raises(ValueError, match="max_pixels"):
        overlap.perceptual_hash(encoded(picture(size=20), "PNG"), max_pixels=100)
    with pytest.raises(ValueError, match="Not an image"):
        overlap.pixel_digest(b"no image")
