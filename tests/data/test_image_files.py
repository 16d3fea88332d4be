"""What comes from outside is opened in one place: formats, plugins, bombs, extreme aspects, pixels in flight."""

import ast
import io
import os
import resource
import signal
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

import keras_clip
from keras_clip import similarity
from keras_clip.data import ImagePreprocessor, graph_images, image_files
from keras_clip.data.image_files import PixelBudget, open_header, open_image
from keras_clip.data.images import centered_view, take_view

pytestmark = pytest.mark.backend_free
REPOSITORY = Path(keras_clip.__file__).parents[1]


def encode(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def flat_png(width, height, bits=8, colour=0):
    """A PNG of one colour, without holding its pixels."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    row = bytes(1 + (width * bits * channels + 7) // 8)
    packer = zlib.compressobj(9)
    data = b"".join([packer.compress(row) for _ in range(height)]) + packer.flush()

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


GREY = Image.linear_gradient("L").resize((40, 30))
ALLOWED = {
    "JPEG": encode(GREY, "JPEG"),
    "PNG": encode(GREY, "PNG"),
    "WebP": encode(GREY.convert("RGB"), "WEBP", lossless=True),
    "GIF": encode(GREY, "GIF"),
    "BMP": encode(GREY, "BMP"),
    "TIFF": encode(GREY, "TIFF"),
    "TIFF, LZW": encode(GREY, "TIFF", compression="tiff_lzw"),
    "AVIF": encode(GREY.convert("RGB"), "AVIF", quality=100),
    "PGM": encode(GREY, "PPM"),
    "PPM": encode(GREY.convert("RGB"), "PPM"),
}
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\n(ran) = quit\n%%EOF\n"
# What Pillow would open, by a program or by itself, and what only looks like an image.
REFUSED = {
    "EPS": EPS,
    "EPS with a binary header": b"\xc5\xd0\xd3\xc6"
    + struct.pack("<6IH", 32, len(EPS), 0, 0, 0, 0, 0xFFFF)
    + bytes(2)
    + EPS,
    "ICO": encode(GREY, "ICO"),
    "TGA": encode(GREY, "TGA"),
    "PCX": encode(GREY, "PCX"),
    "JPEG 2000": encode(GREY, "JPEG2000"),
    "ICNS": encode(GREY.resize((32, 32)).convert("RGBA"), "ICNS"),
    "DDS": encode(GREY.convert("RGB"), "DDS"),
    "SGI": encode(GREY, "SGI"),
    "PDF": encode(GREY, "PDF"),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(60),
}


@pytest.fixture(scope="module")
def in_graph():
    """What the pipeline does with the bytes of a file."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def run(data):
        return graph_images.decode_view(data, tf.zeros(2, tf.int64), 32, graph_images.centered_view_in_graph)

    return lambda data: run(tf.constant(data)).numpy()


@pytest.mark.parametrize("data", ALLOWED.values(), ids=ALLOWED)
def test_formats_of_the_allowlist(data, in_graph):
    expected = take_view(GREY.convert("RGB"), centered_view(30, 40, (32, 32)), (32, 32)).astype(int)
    pixels = ImagePreprocessor(32).to_uint8(data)[0]
    assert np.abs(pixels - expected).max() <= 4
    np.testing.assert_array_equal(in_graph(data), pixels)


@pytest.fixture
def programs(monkeypatch, tmp_path):
    """Names of the programs that Pillow starts: each is a script in front of the path that leaves its name."""
    folder, started = tmp_path / "bin", tmp_path / "started"
    folder.mkdir()
    for name in ("gs", "rsvg-convert", "inkscape", "convert"):
        (folder / name).write_text(f"#!/bin/sh\necho {name} >> {started}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    # Pillow remembers that there was none.
    import PIL.EpsImagePlugin

    monkeypatch.setattr(PIL.EpsImagePlugin, "gs_binary", None)
    return lambda: started.read_text().split() if started.exists() else []


def test_pillow_alone_starts_the_program(programs):
    with pytest.raises(Exception):  # noqa: B017  The script writes no image.
        Image.open(io.BytesIO(EPS)).load()
    assert "gs" in programs()


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_other_formats_are_refused(data, in_graph, programs, tmp_path):
    import tensorflow as tf

    (tmp_path / "1.jpg").write_bytes(data)
    for image in (data, tmp_path / "1.jpg", str(tmp_path / "1.jpg")):
        with pytest.raises(ValueError, match="(?s)must be JPEG, PNG.*Received: images.*Convert"):
            ImagePreprocessor(32).to_uint8(image)
    with pytest.raises(ValueError, match="Received"):
        similarity.pixel_digest(data)
    with pytest.raises(tf.errors.InvalidArgumentError):
        in_graph(data)
    assert programs() == []


def test_a_lazy_pil_image_of_another_format_is_refused(programs):
    with pytest.raises(ValueError, match=r"(?s)Received: images\[0\] of format EPS.*load\(\)"):
        ImagePreprocessor(32).to_uint8(Image.open(io.BytesIO(EPS)))
    assert programs() == []
    loaded = Image.open(io.BytesIO(REFUSED["TGA"]))
    with pytest.raises(ValueError, match="TGA"):
        ImagePreprocessor(32).to_uint8(loaded)
    loaded.load()
    assert ImagePreprocessor(32).to_uint8(loaded).shape == (1, 32, 32, 3)


@pytest.mark.parametrize("form", ["PNG", "ROGUE"])
def test_plugins_of_others_are_never_called(form, monkeypatch):
    called = []

    class Rogue(ImageFile.ImageFile):
        format = form

        def _open(self):
            called.append(form)
            self._size, self._mode = (40, 30), "L"

    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", [*Image.ID])
    Image.register_open(form, Rogue)
    with pytest.raises(ValueError, match="Received"):
        open_image(ALLOWED["PNG"] if form == "PNG" else b"rogue", "it", 10**6)
    assert open_image(ALLOWED["GIF"], "it", 10**6).size == (40, 30)
    assert called == []


def test_images_are_opened_in_one_module():
    """Whatever opens an image elsewhere is not bound by the allowlist and the limits."""
    openers = []
    for path in [*(REPOSITORY / "keras_clip").rglob("*.py"), *(REPOSITORY / "examples").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in ("Image.open", "PIL.Image.open") or name.endswith(("load_img", ".imread", "decode_image")):
                openers.append(path.name)
    assert openers == ["image_files.py"]


class TestBombs:
    """A small file of many pixels is refused from its header: it costs no more than a photograph."""

    BOMBS = {
        "PNG of 176 megapixels": (13_000, 13_500, 8, 2),
        "PNG of 100 megapixels": (10_000, 10_000, 8, 2),
        "PNG with alpha": (8_000, 8_000, 8, 6),
        "PNG of one bit": (40_000, 4_000, 1, 0),
        "PNG as long as a road": (100_000_000, 1, 8, 0),
    }

    @pytest.fixture(scope="class", params=BOMBS.values(), ids=BOMBS)
    def bomb(self, request):
        return flat_png(*request.param)

    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    def test_refused_before_decoding(self, bomb, monkeypatch, in_graph):
        import tensorflow as tf

        monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
        assert len(bomb) < 10**6
        with pytest.raises(ValueError, match=r"(?s)bomb\. Received: images\[0\] of .* bytes\. Raise `max_pixels`"):
            ImagePreprocessor(32).to_uint8(bomb)
        with pytest.raises(tf.errors.InvalidArgumentError, match="bomb"):
            in_graph(bomb)

    def test_a_photograph_of_that_size_is_not(self):
        noise = np.random.default_rng(0).integers(0, 256, (1000, 24), "uint8")
        data = encode(Image.fromarray(np.tile(noise, (1, 1250))), "PNG", compress_level=1)
        assert 30_000 * 1000 > 22_400_000 and len(data) < 30_000 * 1000 / 32
        with pytest.raises(ValueError, match="bomb"):
            open_header(data, "it", image_files.MAX_PIXELS)
        assert open_header(data + bytes(10**6), "it", image_files.MAX_PIXELS).size == (30_000, 1000)

    def test_a_higher_limit_is_the_cure(self):
        data = flat_png(6_000, 4_000)
        with pytest.raises(ValueError, match="bomb.*eight times"):
            open_header(data, "it", image_files.MAX_PIXELS)
        assert open_header(data, "it", 8 * 24_000_000).size == (6_000, 4_000)

    def test_the_tile_of_a_tiff_counts(self):
        import PIL.TiffImagePlugin

        tags = PIL.TiffImagePlugin.ImageFileDirectory_v2()
        tags[322], tags[323] = 32_000, 32_000
        data = encode(GREY, "TIFF", tiffinfo=tags)
        if Image.open(io.BytesIO(data)).tag_v2.get(322) == 32_000:
            with pytest.raises(ValueError, match="pixels"):
                open_image(data, "it", 10**6)

    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    def test_memory(self, in_graph):
        import tensorflow as tf

        photograph = encode(Image.effect_noise((3000, 2000), 60).convert("RGB"), "JPEG", quality=80)
        in_graph(photograph)
        before, bomb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flat_png(13_000, 13_500, 8, 2)
        files = tf.data.Dataset.from_tensor_slices([bomb] * 8)
        decoded = files.map(
            lambda data: graph_images.decode_view(
                data, tf.zeros(2, tf.int64), 32, graph_images.centered_view_in_graph, parallel=4
            ),
            num_parallel_calls=4,
        )
        assert list(decoded.ignore_errors()) == []
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 100


class TestExtremeAspects:
    """PIL resizes the whole before it is cropped: here only the crop is computed, to the same pixels."""

    @pytest.mark.parametrize("height, width", [(6000, 1), (1, 6000), (2, 9000), (3000, 7), (31, 2200)])
    @pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
    def test_as_pil(self, height, width, interpolation, monkeypatch):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), "uint8"))
        for sides in ((8, 8), (9, 12), (30, 16)):
            view = centered_view(height, width, sides)
            part = take_view(image, view, sides, interpolation)
            whole = image.resize((view.full_width, view.full_height), Image.Resampling[interpolation.upper()])
            whole = whole.crop((view.right, view.down, view.right + sides[1], view.down + sides[0]))
            np.testing.assert_array_equal(part, np.asarray(whole))

    @pytest.mark.parametrize("form", ["PNG", "JPEG"])
    @pytest.mark.parametrize("shape", [(6000, 1), (1, 6000), (40, 2000), (2000, 60)])
    def test_both_paths_agree(self, shape, form, in_graph):
        data = encode(Image.fromarray(np.random.default_rng(1).integers(0, 256, (*shape, 3), "uint8")), form)
        np.testing.assert_array_equal(in_graph(data), ImagePreprocessor(32).to_uint8(data)[0])

    def test_memory_and_time(self):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.monotonic()
        for shape in ((6000, 1), (1, 6000), (60_000, 2)):
            data = encode(Image.fromarray(np.zeros((*shape, 3), "uint8")), "PNG")
            assert ImagePreprocessor(336).to_uint8(data).shape == (1, 336, 336, 3)
        assert time.monotonic() - start < 5
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 100


VIEWS = {
    "centre": graph_images.centered_view_in_graph,
    "the paper's crop": graph_images.random_crop_view,
    "random resized crop": graph_images.random_resized_view,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("view_of", VIEWS.values(), ids=VIEWS)
def test_sides_beyond_32_bits_once_they_are_resized(view_of):
    """One row of 12 million pixels, whose longer side is resized to 2,688 million; as a file and as an array."""
    import tensorflow as tf

    pixels = np.random.default_rng(0).integers(0, 256, (1, 12_000_000, 3), "uint8")
    data = encode(Image.fromarray(pixels), "PNG", compress_level=1)
    seed = tf.constant([1, 2], tf.int64)

    @tf.function
    def of_file(data):
        return graph_images.decode_view(data, seed, 224, view_of)

    @tf.function
    def of_array(pixels):
        view = view_of(tf.shape(pixels, tf.int64)[:2], (224, 224), seed)
        return graph_images.take_view_in_graph(pixels, view, (224, 224))

    found = of_file(tf.constant(data)).numpy()
    np.testing.assert_array_equal(found, of_array(tf.constant(pixels)))
    if view_of is graph_images.centered_view_in_graph:
        np.testing.assert_array_equal(found, ImagePreprocessor(224).to_uint8(data)[0])


def test_two_pipelines_have_the_memory_of_one(monkeypatch):
    """Training and validation count the same pixels, whichever budgets they have."""
    import tensorflow as tf

    lock, now, most = threading.Lock(), [0], [0]

    def slowly(image, name):
        with lock:
            now[0] += image.width * image.height
            most[0] = max(most[0], now[0])
        time.sleep(0.005)
        with lock:
            now[0] -= image.width * image.height
        return image.convert("RGB")

    monkeypatch.setattr(graph_images, "decode", slowly)
    data = encode(Image.new("RGB", (20, 10)), "PNG")

    options = tf.data.Options()
    options.threading.private_threadpool_size = 8

    def pipeline(budget):
        def decoded(data):
            view_of = graph_images.centered_view_in_graph
            return graph_images.decode_view(data, tf.zeros(2, tf.int64), 8, view_of, budget=budget)

        images = tf.data.Dataset.from_tensors(data).repeat(30).map(decoded, num_parallel_calls=8)
        return iter(images.prefetch(30).with_options(options))

    # A half of each budget is for PIL: five images of 200 pixels.
    both = [pipeline(PixelBudget(2000)), pipeline(PixelBudget(2000))]
    for images in both:
        next(images)
    assert sum(len(list(images)) for images in both) == 58
    assert 200 <= most[0] <= 1000


class TestPixelBudget:
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_a_forked_process_does_not_wait_for_threads_of_its_parent(self):
        """As the workers of a torch `DataLoader`."""
        budget = PixelBudget(100)
        with budget.hold(90):
            child = os.fork()
            if not child:
                with budget.hold(50):
                    os._exit(0)
            end, ended = time.monotonic() + 5, (0, 0)
            while time.monotonic() < end and ended == (0, 0):
                time.sleep(0.01)
                ended = os.waitpid(child, os.WNOHANG)
            if ended == (0, 0):
                os.kill(child, signal.SIGKILL)
            assert ended == (child, 0)

    def test_the_smaller_budget_bounds_what_all_decode(self):
        small, large = PixelBudget(100), PixelBudget(1000)
        with large.hold(90):
            waiting = threading.Thread(target=lambda: small.hold(20).__enter__(), daemon=True)
            waiting.start()
            waiting.join(0.05)
            assert waiting.is_alive()
        waiting.join(5)
        assert not waiting.is_alive()

    def test_bounds_what_is_in_flight(self):
        budget, lock = PixelBudget(100), threading.Lock()
        now, most = [0], [0]

        def decode(pixels):
            with budget.hold(pixels):
                with lock:
                    now[0] += pixels
                    most[0] = max(most[0], now[0])
                time.sleep(0.002)
                with lock:
                    now[0] -= pixels

        threads = [threading.Thread(target=decode, args=(30 + i % 40,)) for i in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert 60 <= most[0] <= 100 and now == [0]

    def test_a_larger_image_is_decoded_alone(self):
        budget = PixelBudget(100)
        with budget.hold(10**9):
            waiting = threading.Thread(target=lambda: budget.hold(1).__enter__(), daemon=True)
            waiting.start()
            waiting.join(0.05)
            assert waiting.is_alive()
        waiting.join(5)
        assert not waiting.is_alive()

    def test_an_error_gives_back(self):
        budget = PixelBudget(100)
        for _ in range(3):
            with pytest.raises(ValueError, match="Received"):
                ImagePreprocessor(8).to_uint8(ALLOWED["PNG"][:-30], budget)
        with budget.hold(100):
            pass

    def test_the_default_fits_the_memory(self):
        assert PixelBudget().pixels == max(2**24, image_files.memory_bytes() // 128)
        assert image_files.memory_bytes() > 2**28

    @pytest.mark.parametrize("pixels", [0, -1, 1.5, True, "1e6"])
    def test_refused(self, pixels):
        with pytest.raises(ValueError, match="max_pixels_in_flight.*Received"):
            PixelBudget(pixels)


def test_a_device_is_no_image():
    with pytest.raises(ValueError, match="regular file.*Received.*/dev/zero"):
        ImagePreprocessor(8).to_uint8("/dev/zero")


@pytest.mark.backend_free
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sides_of_every_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    Image.new("RGB", (6, 4)).save(content, "JPEG", exif=exif)
    image = Image.open(content)
    assert image_files.upright_sides(image) == image_files.upright(image).size[::-1]


def test_several_threads_read_one_image():
    # PIL decodes an image when it is first used, and is not made for two threads that do so at the same time.
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    with ThreadPoolExecutor(8) as threads:
        for _ in range(40):
            image = Image.open(io.BytesIO(file.getvalue()))
            for found in threads.map(lambda _, image=image: open_image(image, "image", 10**6), range(8)):
                np.testing.assert_array_equal(np.asarray(found), pixels)
