"""Datasets in memory: the accepted types of images and captions."""

import io

import numpy as np
import pytest
from numbered_pairs import image_file, read_all
from PIL import Image

from keras_clip.data import ImagePreprocessor
from keras_clip.data.readers import open_reader
from keras_clip.data.readers.dataset import SequenceReader

pytestmark = pytest.mark.backend_free


class TestDatasets:
    FORMS = {
        "bytes": (image_file(3), image_file(3)),
        "nothing": (None, b""),
        "record": ({"bytes": b"A", "path": None}, b"A"),
        "record of a path": ({"bytes": None, "path": "gone.png"}, b""),
    }

    @pytest.mark.parametrize("given, expected", FORMS.values(), ids=FORMS)
    def test_images(self, given, expected):
        assert read_all(SequenceReader([(given, "x")], lambda row: row)) == [(expected, [b"x"])]

    MODES = [
        "1",
        "L",
        "LA",
        "La",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBa",
        "RGBX",
        "CMYK",
        "YCbCr",
        "LAB",
        "HSV",
        "I",
        "I;16",
        "I;16B",
    ]

    @pytest.mark.parametrize("mode", MODES)
    def test_pictures_of_every_mode_are_seen_as_evaluation_sees_them(self, mode):
        ramp = np.arange(0, 240, 4, dtype=np.uint8).reshape(4, 5, 3)
        picture = Image.fromarray(ramp)
        if mode in ("La", "RGBa", "RGBX", "PA", "LAB", "I", "I;16", "I;16B"):
            channels = {"La": 2, "PA": 2, "RGBa": 4, "RGBX": 4, "LAB": 3, "I": 4, "I;16": 2, "I;16B": 2}[mode]
            picture = Image.frombytes(mode, (5, 4), (bytes(range(200)) * 2)[: 20 * channels])
        else:
            picture = picture.convert(mode)
        ((file, _),) = read_all(SequenceReader([(picture, "x")], lambda row: row))
        preprocessor = ImagePreprocessor(image_size=(4, 5))
        picture = picture.convert("LA") if mode == "La" else picture
        assert np.array_equal(preprocessor.to_uint8(file), preprocessor.to_uint8(picture))

    def test_a_transparent_colour_is_white(self):
        picture = Image.new("RGB", (5, 4), (10, 20, 30))
        picture.info["transparency"] = (10, 20, 30)
        ((file, _),) = read_all(SequenceReader([(picture, "x")], lambda row: row))
        assert np.asarray(Image.open(io.BytesIO(file))).min() == 255

    def test_floating_point_pictures(self):
        reader = SequenceReader([(Image.new("F", (5, 4)), "x")], lambda row: row)
        with pytest.raises(ValueError, match="floating-point.*Received"):
            reader.read(np.array([0]))

    @pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3)])
    def test_arrays(self, shape):
        pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
        ((file, _),) = read_all(SequenceReader([(pixels, "x")], lambda row: row))
        expected = np.broadcast_to(pixels if len(shape) == 3 else pixels[..., None], (4, 5, 3))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), expected)

    def test_arrays_that_are_no_pixels(self):
        reader = SequenceReader([(np.full((4, 4), 0.7, np.float32), "x")], lambda row: row)
        with pytest.raises(ValueError, match="uint8 array.*Received.*float32"):
            reader.read(np.array([0]))

    def test_exif_orientation_is_applied(self):
        file = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (40, 20)).save(file, "JPEG", exif=exif)
        ((stored, _),) = read_all(SequenceReader([(Image.open(file), "x")], lambda row: row))
        assert Image.open(io.BytesIO(stored)).size == (20, 40)

    @pytest.mark.parametrize(
        "given, expected",
        [("é", ["é".encode()]), (b"x", [b"x"]), (["x", b"y"], [b"x", b"y"]), (("x", None), [b"x"]), (None, []), (3, [])]
        + [
            (["a cat", " ", ""], [b"a cat"]),
            ("", []),
            (float("nan"), []),
            (np.array(["x", "y"]), [b"x", b"y"]),
            ([], []),
        ],
    )
    def test_captions(self, given, expected):
        assert read_all(SequenceReader([(b"A", given)], lambda row: row)) == [(b"A", expected)]

    def test_hugging_face_images_stay_encoded(self):
        import datasets

        features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
        rows = {"image": [{"bytes": image_file(3), "path": None}], "text": ["x"]}
        reader = open_reader(datasets.Dataset.from_dict(rows, features=features), ("image", "text"))
        assert read_all(reader) == [(image_file(3), [b"x"])]

    def test_keys_and_metadata(self):
        import datasets

        names = datasets.ClassLabel(names=["cat", "dog"])
        features = datasets.Features({"image": datasets.Image(), "label": names, "size": datasets.Value("int64")})
        rows = {"image": [{"bytes": image_file(3), "path": None}] * 3, "label": [1, 0, None], "size": [1, 2, 3]}
        reader = open_reader(datasets.Dataset.from_dict(rows, features=features), ("image", None), captions=False)
        ids = np.array([2, 0])
        assert reader.keys(ids) == ["0000002", "0000000"]
        assert reader.metadata(ids) == [{"label": None, "size": 3}, {"label": "dog", "size": 1}]
        assert reader.read(ids) == ([image_file(3)] * 2, [[], []])
        assert SequenceReader([(b"A", "x")], lambda row: row).metadata(np.array([0])) == [{}]
