"""Pixels equal PIL's in every format, inside tf.data and outside; decompression bombs and broken files are refused."""

import io
import tarfile

import keras
import numpy as np
import pytest
from PIL import Image

from keras_clip.data import ImagePreprocessor, graph_images, image_files
from keras_clip.data.images import OPENAI_MEAN

pytestmark = pytest.mark.backend_free
SIZE = 64


def noise(height=97, width=131, channels=3, seed=0, dtype="uint8"):
    high = np.iinfo(dtype).max + 1
    shape = (height, width) if channels == 1 else (height, width, channels)
    return Image.fromarray(np.random.default_rng(seed).integers(0, high, size=shape).astype(dtype))


def encode(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def exif(orientation, byte_order="<"):
    tags = Image.Exif()
    tags.endian = byte_order
    tags[0x010F] = "a maker"
    tags[0x0112] = orientation
    return tags


@pytest.fixture(scope="module")
def in_graph():
    """Returns a function that decodes the bytes of a file as the pipeline does."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def run(data):
        seed = tf.zeros(2, tf.int64)
        return graph_images.decode_view(data, seed, SIZE, graph_images.centered_view_in_graph, max_pixels=10**6)

    return lambda data: run(tf.constant(data)).numpy()


def by_pil(data):
    """Returns the expected pixels, computed with PIL alone."""
    image = Image.open(io.BytesIO(data))
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) // 256).astype("uint8"))
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    image = image.convert("RGB")
    width, height = image.size
    if width <= height:
        image = image.resize((SIZE, int(SIZE * height / width)), Image.BICUBIC)
    else:
        image = image.resize((int(SIZE * width / height), SIZE), Image.BICUBIC)
    left, top = round((image.width - SIZE) / 2), round((image.height - SIZE) / 2)
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


PALETTE = noise().convert("P")
# The most frequent palette index and its colour: if it is transparent, a wrong background changes many pixels.
COMMON = int(np.bincount(np.asarray(PALETTE).ravel()).argmax())
COLOUR = tuple(np.asarray(PALETTE.convert("RGB"))[np.asarray(PALETTE) == COMMON][0].tolist())


def spare_byte_bmp():
    """Returns a BMP of 32 bits per pixel of which 24 are used, as many programs write it."""
    header = bytearray(encode(noise(), "BMP")[:54])
    header[28] = 32
    blue_first = np.asarray(noise())[::-1, :, ::-1]
    return bytes(header) + np.pad(blue_first, ((0, 0), (0, 0), (0, 1))).tobytes()


FILES = {
    "JPEG": encode(noise(), "JPEG", quality=95),
    "JPEG without subsampling": encode(noise(), "JPEG", subsampling=0),
    "JPEG grey": encode(noise(channels=1), "JPEG"),
    "JPEG CMYK": encode(noise().convert("CMYK"), "JPEG"),
    "JPEG progressive": encode(noise(), "JPEG", progressive=True),
    "PNG": encode(noise(), "PNG"),
    "PNG with alpha": encode(noise(channels=4), "PNG"),
    "PNG grey with alpha": encode(noise(channels=4).convert("LA"), "PNG"),
    "PNG grey": encode(noise(channels=1), "PNG"),
    "PNG 1 bit": encode(noise().convert("1"), "PNG"),
    "PNG 16 bit": encode(noise(channels=1, dtype="uint16"), "PNG"),
    "PNG palette": encode(PALETTE, "PNG"),
    "PNG palette with transparency": encode(PALETTE, "PNG", transparency=COMMON),
    "PNG with a transparent colour": encode(PALETTE.convert("RGB"), "PNG", transparency=COLOUR),
    "PNG grey with a transparent level": encode(noise(channels=1), "PNG", transparency=77),
    "GIF": encode(noise(), "GIF"),
    "GIF transparent": encode(PALETTE, "GIF", transparency=COMMON),
    "GIF animated": encode(noise(), "GIF", save_all=True, append_images=[noise(seed=1)]),
    "BMP": encode(noise(), "BMP"),
    "BMP grey": encode(noise(channels=1), "BMP"),
    "BMP palette": encode(PALETTE, "BMP"),
    "BMP 1 bit": encode(noise().convert("1"), "BMP"),
    "BMP with a spare byte": spare_byte_bmp(),
    "WebP": encode(noise(), "WEBP"),
    "WebP lossless": encode(noise(), "WEBP", lossless=True),
    "WebP with alpha": encode(noise(channels=4), "WEBP", lossless=True),
    "WebP animated": encode(noise(), "WEBP", lossless=True, save_all=True, append_images=[noise(seed=1)]),
}


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int)).max()


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_formats(data, in_graph):
    expected = by_pil(data)
    assert difference(ImagePreprocessor(SIZE).to_uint8(data)[0], expected) <= 1
    assert difference(in_graph(data), expected) <= 1


# Since Pillow 13, tall images that shrink are resized along the height first.
TALL = [(711, 73), (350, 163), (1000, 70)]
SHAPES = [(7, 9), (9, 7), (64, 64), (65, 64), (64, 77), (100, 33), (301, 300), (613, 777), (37, 500), (1, 1), *TALL]


@pytest.mark.parametrize("height, width", SHAPES)
def test_sizes(height, width, in_graph):
    data = encode(noise(height, width), "PNG")
    expected = by_pil(data)
    np.testing.assert_array_equal(ImagePreprocessor(SIZE).to_uint8(data)[0], expected)
    np.testing.assert_array_equal(in_graph(data), expected)


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, byte_order, in_graph):
    upright = noise(40, 60)
    # The transposition that reverses that of the tag.
    undo = [None, 0, 3, 1, 5, 2, 6, 4][orientation - 1]
    stored = upright if undo is None else upright.transpose(undo)
    jpeg = encode(stored, "JPEG", quality=100, subsampling=0, exif=exif(orientation, byte_order))
    assert Image.open(io.BytesIO(jpeg)).getexif()[0x0112] == orientation
    assert difference(ImagePreprocessor(SIZE).to_uint8(jpeg)[0], in_graph(jpeg)) == 0
    # JPEG at high quality changes each pixel of the noise by little; a wrong rotation changes all of them by much.
    assert np.abs(in_graph(jpeg).astype(int) - by_pil(encode(upright, "PNG"))).mean() < 3


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_exif_orientation_of_other_files(form, in_graph):
    data = encode(noise(40, 60), form, exif=exif(6), **({"lossless": True} if form == "WEBP" else {}))
    turned = by_pil(encode(noise(40, 60).transpose(Image.Transpose.ROTATE_270), "PNG"))
    assert difference(ImagePreprocessor(SIZE).to_uint8(data)[0], turned) == 0
    assert difference(in_graph(data), turned) == 0


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_is_ignored_or_refused():
    data = encode(noise(8, 8), "JPEG", exif=exif(6))
    pixels = 0
    for place in range(20, 60):
        for value in (0, 1, 7, 128, 255):
            damaged = data[:place] + bytes([value]) + data[place + 1 :]
            try:
                pixels += len(ImagePreprocessor(SIZE).to_uint8(damaged))
            except ValueError as error:
                assert "images[0]" in str(error)
    assert pixels > 100


SMOOTH = Image.linear_gradient("L").resize((640, 400)).convert("RGB")


@pytest.mark.parametrize(
    "shortest, ratio", [(500, 1), (400.5, 1), (200, 2), (199, 2), (100, 4), (51, 4), (50, 8), (3, 8)]
)
@pytest.mark.parametrize("orientation", [None, 6])
def test_large_jpeg_is_decoded_small(shortest, ratio, orientation):
    import tensorflow as tf

    options = {} if orientation is None else {"exif": exif(orientation)}
    data = encode(SMOOTH, "JPEG", quality=95, **options)
    whole = np.asarray(image_files.open_image(data, "it", 10**6))
    assert whole.shape == ((400, 640, 3) if orientation is None else (640, 400, 3))
    pixels = np.asarray(image_files.open_image(data, "it", 10**6, shortest))
    assert pixels.shape == (whole.shape[0] // ratio, whole.shape[1] // ratio, 3)
    expected = Image.fromarray(whole).resize(pixels.shape[1::-1], Image.BOX)
    assert difference(pixels, np.asarray(expected)) <= 4
    if orientation is None:
        native = tf.function(graph_images._try_jpeg)(tf.constant(data), 10**6, shortest, 10**6)
        np.testing.assert_array_equal(native, pixels)


def test_needs_a_graph():
    with pytest.raises(RuntimeError, match="(?s)graph.*Received.*tf.function"):
        graph_images.decode_view(FILES["JPEG"], [0, 0], SIZE, graph_images.centered_view_in_graph)


def test_riff_that_is_no_webp(in_graph):
    with pytest.raises(Exception, match="Not an image"):
        in_graph(b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(32))


def photographs(shared_data):
    for shard in sorted(shared_data.rglob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith((".jpg", ".png")):
                    yield member.name, tar.extractfile(member).read()


def worst(files, in_graph):
    worst = 0
    for _, data in files:
        expected = by_pil(data)
        worst = max(
            worst,
            difference(ImagePreprocessor(SIZE).to_uint8(data)[0], expected),
            difference(in_graph(data), expected),
        )
    return worst


def test_some_photographs(shared_data, in_graph):
    files = list(photographs(shared_data))
    assert len(files) > 6_000
    assert worst(files[::60], in_graph) <= 1


@pytest.mark.slow
def test_every_photograph(shared_data, in_graph):
    assert worst(photographs(shared_data), in_graph) <= 1


def test_equals_open_clip(shared_data):
    import torchvision_shim  # noqa: F401  # isort: skip
    from open_clip import image_transform

    peer = image_transform(SIZE, is_train=False)
    preprocessor = ImagePreprocessor(SIZE)
    # The peer ignores EXIF and drops alpha; these photographs have neither.
    files = [data for name, data in photographs(shared_data) if name.endswith(".jpg")][::150]
    for data in files:
        expected = peer(Image.open(io.BytesIO(data))).numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(preprocessor(data)[0], expected, atol=1e-6)
    assert len(files) > 15


MODES = ["shortest", "squash", "longest"]


@pytest.mark.parametrize("mode", MODES)
def test_resize_modes(mode):
    image = Image.new("RGB", (60, 30), (10, 200, 30))
    pixels = ImagePreprocessor(20, resize_mode=mode).to_uint8(image)[0]
    background = (pixels == 0).all(axis=2)
    # Only "longest" leaves padding: a quarter of the height above and below the image.
    assert background.sum() == (200 if mode == "longest" else 0)
    assert (pixels[~background] == (10, 200, 30)).all()


def test_all_types_of_images_in_one_list(tmp_path):
    image = noise()
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), array, image]
    preprocessor = ImagePreprocessor(SIZE)
    batch = preprocessor(forms)
    assert batch.shape == (5, SIZE, SIZE, 3) and batch.dtype == np.float32
    for row in batch[1:]:
        np.testing.assert_array_equal(row, batch[0])
    np.testing.assert_array_equal(preprocessor(np.stack([array, array])), batch[:2])
    np.testing.assert_array_equal(preprocessor(array), batch[:1])


def test_normalised_by_hand():
    preprocessor = ImagePreprocessor(1, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    pixels = preprocessor(np.full((1, 1, 3), 255, np.uint8))
    np.testing.assert_allclose(pixels[0, 0, 0], [1.0, 3.0, 1.0], rtol=1e-6)


def test_other_sizes_of_the_target():
    assert ImagePreprocessor((10, 20))(noise()).shape == (1, 10, 20, 3)


BROKEN = {
    "truncated JPEG": FILES["JPEG"][: len(FILES["JPEG"]) // 2],
    "truncated PNG": FILES["PNG"][: len(FILES["PNG"]) // 2],
    "text": b"<html>404 not found</html>",
    "nothing": b"",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_broken_files_are_refused(data, in_graph):
    import tensorflow as tf

    with pytest.raises(ValueError, match=r"Received: images\[1\]"):
        ImagePreprocessor(SIZE)([FILES["PNG"], data])
    with pytest.raises(tf.errors.InvalidArgumentError):
        in_graph(data)


BOMBS = {form: encode(Image.new("RGB", (2000, 600)), form) for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP")}
BOMBS["WebP lossless"] = encode(Image.new("RGB", (2000, 600)), "WEBP", lossless=True)
BOMBS["WebP with alpha"] = encode(Image.new("RGBA", (2000, 600)), "WEBP")


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_too_many_pixels_are_refused(data, in_graph):
    import tensorflow as tf

    with pytest.raises(ValueError, match=r"2000 x 600.*max_pixels"):
        ImagePreprocessor(SIZE, max_pixels=10**6)(data)
    with pytest.raises(tf.errors.InvalidArgumentError, match="max_pixels"):
        in_graph(data)


REFUSED = {
    "floats": (np.zeros((4, 4, 3), np.float32), "uint8 array.*float32"),
    "five channels": (np.zeros((4, 4, 5), np.uint8), r"\(4, 4, 5\)"),
    "None": (None, "uint8 array"),
}


@pytest.mark.parametrize("image, message", REFUSED.values(), ids=REFUSED)
def test_values_that_are_no_images_are_refused(image, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        ImagePreprocessor(SIZE)([image])


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        ImagePreprocessor(SIZE)("nowhere.png")


WRONG = {
    "two means": dict(mean=(0.5, 0.5)),
    "a deviation of zero": dict(std=(0.5, 0.0, 0.5)),
    "an unknown mode": dict(resize_mode="fit"),
    "an unknown filter": dict(interpolation="nearest"),
    "no pixels": dict(image_size=0),
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="Received"):
        ImagePreprocessor(**arguments)


def test_serialised():
    preprocessor = ImagePreprocessor((8, 16), std=(0.1, 0.2, 0.3), resize_mode="squash")
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(preprocessor))
    assert restored == preprocessor != ImagePreprocessor(8)
    assert restored.mean == pytest.approx(OPENAI_MEAN)


def test_random_crops_are_seeded_and_lie_inside():
    import tensorflow as tf

    # The value of each pixel encodes its position.
    rows, columns = np.mgrid[0:200, 0:250]
    image = tf.constant(np.stack([rows, columns, 0 * rows], axis=2).astype("uint8"))

    # TensorFlow traces this once per set of options.
    @tf.function
    def in_graph(seed, **options):
        view = graph_images.random_resized_view(tf.shape(image)[:2], (32, 32), seed, **options)
        return graph_images.take_view_in_graph(image, view, (32, 32), "float32")

    def crop(seed, **options):
        return in_graph(tf.constant([0, seed]), **options).numpy().astype(int)

    np.testing.assert_array_equal(crop(1), crop(1))
    crops = np.stack([crop(seed) for seed in range(200)])
    assert len({tuple(c[16, 16]) for c in crops}) > 50
    heights = (crops[:, -1, 16, 0] - crops[:, 0, 16, 0]) * 32 / 31
    widths = (crops[:, 16, -1, 1] - crops[:, 16, 0, 1]) * 32 / 31
    shares = heights * widths / (200 * 250)
    assert 0.86 < shares.min() and 0.97 < shares.max() < 1.03
    small = np.stack([crop(seed, scale=(0.1, 0.2)) for seed in range(50)])
    assert small[:, 16, 16].std(axis=0)[:2].min() > 20
