"""Digests and perceptual hashes: what leaves them equal, against scipy, and refusals."""

import hashlib
import io

import numpy as np
import pytest
import scipy.fft
from PIL import Image, ImageEnhance

from keras_clip import similarity
from keras_clip.data import synthetic
from keras_clip.similarity.fingerprints import colour_differences, colours_of_decoded

pytestmark = pytest.mark.backend_free


def picture(index=0, size=96):
    return Image.fromarray(synthetic.sample(index, size)[0])


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def hash_distance(one, other):
    return int(np.unpackbits(similarity.perceptual_hash(one) ^ similarity.perceptual_hash(other)).sum())


def test_pixel_digest_depends_on_pixels_only():
    image = picture()
    digest = similarity.pixel_digest(image)
    for same in (np.asarray(image), encoded(image, "PNG"), encoded(image, "WEBP", lossless=True)):
        assert similarity.pixel_digest(same) == digest
    changed = np.array(image)
    changed[3, 4, 1] ^= 1
    for other in (changed, encoded(image, "JPEG", quality=95), image.rotate(90)):
        assert similarity.pixel_digest(other) != digest
    pixels = np.arange(48, dtype="uint8")
    size = np.array([2, 8], "<i8").tobytes()
    assert similarity.pixel_digest(pixels.reshape(2, 8, 3)) == hashlib.sha256(size + pixels.tobytes()).hexdigest()
    assert similarity.pixel_digest(pixels.reshape(2, 8, 3)) != similarity.pixel_digest(pixels.reshape(4, 4, 3))


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


def test_a_reduced_jpeg_keeps_most_bits():
    for index in range(10):
        data = encoded(picture(index, 500), "JPEG", quality=90)
        whole, reduced = (similarity.perceptual_hash(data, shortest=x) for x in (None, similarity.HASH_SHORTEST))
        assert int(np.unpackbits(whole ^ reduced).sum()) <= 6


def test_hash_of_decoded_is_the_same_64_bits():
    image = picture(3)
    bits = similarity.hash_of_decoded(image)
    assert bits.to_bytes(8, "big") == similarity.perceptual_hash(image).tobytes()
    assert np.uint64(bits) == int.from_bytes(similarity.perceptual_hash(encoded(image, "PNG")).tobytes(), "big")


def test_perceptual_hash_equals_scipy_s_transform():
    grey = np.random.default_rng(1).integers(0, 256, size=(32, 32)).astype("uint8")
    lowest = scipy.fft.dctn(grey.astype("float64"), type=2)[:8, :8]
    expected = lowest > np.median(lowest)
    np.testing.assert_array_equal(np.unpackbits(similarity.perceptual_hash(grey)).reshape(8, 8), expected)


def test_a_flat_image_has_one_hash():
    flat = [similarity.perceptual_hash(np.full((40, 50, 3), value, "uint8")) for value in (1, 77, 255)]
    # All frequencies except the constant one are 0.
    np.testing.assert_array_equal(flat, [[128, 0, 0, 0, 0, 0, 0, 0]] * 3)


def test_cosines_of_hashes_count_bits():
    hashes = np.array([[255, 0, 0, 0, 0, 0, 0, 0], [240, 0, 0, 0, 0, 0, 0, 1], [0] + [255] * 7], "uint8")
    vectors = similarity.hash_vectors(hashes)
    # The first two differ in 4 + 1 bits, the first and the third in all 64.
    np.testing.assert_allclose(vectors @ vectors[0], [1, 1 - 5 / 32, -1], atol=1e-6)


REFUSED = {
    "hashes of another shape": lambda: similarity.hash_vectors(np.zeros((2, 4), "uint8")),
    "hashes of another dtype": lambda: similarity.hash_vectors(np.zeros((2, 8), "int64")),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_refusals(call):
    with pytest.raises(ValueError, match="Received: "):
        call()


def test_large_images_and_other_files_are_refused():
    with pytest.raises(ValueError, match="max_pixels"):
        similarity.perceptual_hash(encoded(picture(size=20), "PNG"), max_pixels=100)
    with pytest.raises(ValueError, match="Not an image"):
        similarity.pixel_digest(b"no image")


def test_colours_are_means_of_parts():
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32, 32:] = 200, 100, 50
    colours = np.frombuffer(colours_of_decoded(Image.fromarray(pixels)), np.uint8).reshape(8, 8, 3)
    assert colours[1, 6].tolist() == [200, 100, 50] and colours[6, 1].tolist() == colours[1, 1].tolist() == [0, 0, 0]
    grey = Image.fromarray(pixels[..., 0])
    assert set(colours_of_decoded(grey)[18:21]) == {200}


# Two images, and the largest difference: both are scaled to the geometric mean of their brightness.
DIFFERENCES = {
    "equal": ([100, 100], [100, 100], 0),
    "brighter": ([100, 50], [120, 60], 0),
    "much brighter": ([100, 100], [200, 200], 200 / (4 / 3) ** 0.5 - 100 * (4 / 3) ** 0.5),
    "another part": ([60, 80], [80, 60], 20),
    "black": ([0, 0], [0, 0], 0),
}


@pytest.mark.parametrize("first, second, expected", DIFFERENCES.values(), ids=DIFFERENCES)
def test_differences_of_colours(first, second, expected):
    first, second = (np.array([values], np.uint8) for values in (first, second))
    for one, other in ((first, second), (second, first)):
        assert colour_differences(one, other) == pytest.approx([expected], abs=1e-4)


def test_colours_of_a_copy_of_another_size_are_equal():
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (9, 12, 3), np.uint8)).resize(
        (240, 180), Image.Resampling.BICUBIC
    )
    colours = [
        np.frombuffer(colours_of_decoded(image.resize(size, Image.Resampling.LANCZOS)), np.uint8)[None]
        for size in ((240, 180), (120, 90), (131, 97), (64, 64))
    ]
    assert max(colour_differences(colours[0], other)[0] for other in colours[1:]) < 8
