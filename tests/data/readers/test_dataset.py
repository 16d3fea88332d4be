"""Datasets in memory: the accepted types of images and captions."""

import collections
import functools
import io
import operator

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


def pictures(count):
    """(PIL image, caption) of each number."""
    return [(Image.open(io.BytesIO(image_file(k))), str(k)) for k in range(count)]


def hugging_face(count=3):
    import datasets

    kinds = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {
        "image": [{"bytes": image_file(k), "path": None} for k in range(count)],
        "text": list(map(str, range(count))),
    }
    return datasets.Dataset.from_dict(rows, features=kinds)


def pixels(file):
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


class TestHuggingFace:
    @staticmethod
    def upper(batch):
        # It gets decoded pictures, as it does from the library itself.
        return {
            "pixels": [picture.convert("L") for picture in batch["image"]],
            "words": [text + "!" for text in batch["text"]],
        }

    @pytest.mark.parametrize(
        "mapping", [("pixels", "words"), lambda row: (row["pixels"], row["words"])], ids=["names", "f"]
    )
    @pytest.mark.parametrize("how", ["with_transform", "set_transform"])
    def test_transforms(self, how, mapping):
        dataset = hugging_face()
        changed = getattr(dataset, how)(self.upper)
        reader = open_reader(dataset if changed is None else changed, mapping)
        found = read_all(reader)
        assert [texts for _, texts in found] == [[b"0!"], [b"1!"], [b"2!"]]
        grey = Image.open(io.BytesIO(image_file(2))).convert("L")
        assert np.array_equal(pixels(found[2][0]), pixels_of(grey))

    def test_columns_that_the_transform_has_not(self):
        with pytest.raises(ValueError, match=r"\('image', 'text'\) for the columns \['pixels', 'words'\]"):
            open_reader(hugging_face().with_transform(self.upper), ("image", "text"))

    @pytest.mark.parametrize("form", ["numpy", "torch", "tf", "pandas", "arrow"])
    def test_formats(self, form):
        reader = open_reader(hugging_face().with_format(form), ("image", "text"))
        assert read_all(reader) == [(image_file(k), [str(k).encode()]) for k in range(3)]

    def test_selected_and_shuffled(self):
        dataset = hugging_face(9).select([7, 2, 5]).filter(lambda row: row["text"] != "2")
        assert read_all(open_reader(dataset, ("image", "text"))) == [(image_file(k), [str(k).encode()]) for k in (7, 5)]

    @pytest.mark.parametrize("change", ["as it is", "mapped", "shuffled"])
    def test_streams(self, change):
        stream = hugging_face().to_iterable_dataset()
        if change == "mapped":
            stream = stream.map(lambda row: {**row, "text": row["text"] + "!"})
        elif change == "shuffled":
            stream = stream.shuffle(seed=0, buffer_size=2)
        reader = open_reader(stream, ("image", "text"))
        mark = "!" if change == "mapped" else ""
        for _ in range(2):
            found = {texts[0].decode(): image for image, texts in reader.pairs(1).as_numpy_iterator()}
            assert sorted(found) == [f"{k}{mark}" for k in range(3)]
            assert all(np.array_equal(pixels(found[f"{k}{mark}"]), pixels(image_file(k))) for k in range(3))

    def test_evaluation_needs_more_than_a_stream(self):
        from keras_clip.evaluation import sources

        with pytest.raises(TypeError, match="make a list of a stream"):
            sources.from_reader(hugging_face().to_iterable_dataset(), mapping=("image", None))


def pixels_of(picture):
    return np.asarray(picture.convert("RGB"))


class TestIterables:
    def test_again_and_again(self):
        class Pairs:
            def __iter__(self):
                return iter(pictures(3))

        reader = open_reader(Pairs(), (0, 1))
        for _ in range(2):
            assert [texts.tolist() for _, texts in reader.pairs(1).as_numpy_iterator()] == [[b"0"], [b"1"], [b"2"]]

    def test_once(self):
        with pytest.raises(TypeError, match="iterated over again"):
            open_reader((pair for pair in pictures(3)), (0, 1))

    def test_a_source_that_fails(self):
        import tensorflow as tf

        class Pairs:
            def __iter__(self):
                yield pictures(1)[0]
                raise KeyError("the disk is away")

        with pytest.raises(tf.errors.OpError, match="the disk is away"):
            list(open_reader(Pairs(), (0, 1)).pairs(1))

    def test_a_picture_that_cannot_be_loaded(self):
        class Pairs:
            def __iter__(self):
                yield Image.open(io.BytesIO(image_file(1, (200, 200))[:300])), "x"
                yield from pictures(1)

        images = [image for image, _ in open_reader(Pairs(), (0, 1)).pairs(1).as_numpy_iterator()]
        assert images[0].startswith(b"OSError: ") and images[1].startswith(b"BM")

    def test_columns(self):
        import tensorflow as tf

        class Rows:
            def __iter__(self):
                yield {"picture": b"A", "text": "x"}

        with pytest.raises(tf.errors.OpError, match="two columns.*'photo'.*\\['picture', 'text'\\]"):
            list(open_reader(Rows(), ("photo", "text")).pairs(1))


class TestTuplesOfTensors:
    IMAGES = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)
    MAPPINGS = {
        "one argument": lambda e: (e[0], e[1]),
        "two arguments": lambda image, text: (image, text),
        "two, one by default": lambda e, shift=0: (e[0] + shift, e[1]),
        "any number": lambda *e: (e[0], e[1]),
        "places": (0, 1),
        "places from the end": (-2, -1),
        "a method": operator.itemgetter(0, 1),
        "partial": functools.partial(lambda shift, image, text: (image + shift, text), 0),
    }

    @pytest.mark.parametrize("mapping", MAPPINGS.values(), ids=MAPPINGS)
    def test_every_mapping(self, mapping):
        import tensorflow as tf

        dataset = tf.data.Dataset.from_tensor_slices((self.IMAGES, ["x", "y", "z"]))
        found = list(open_reader(dataset, mapping).pairs(1).as_numpy_iterator())
        assert np.array_equal([image for image, _ in found], self.IMAGES)
        assert [texts.tolist() for _, texts in found] == [[b"x"], [b"y"], [b"z"]]

    def test_more_parts(self):
        import tensorflow as tf

        dataset = tf.data.Dataset.from_tensor_slices((["x"], ({"a": [b"A"]}, [7])))
        found = list(open_reader(dataset, lambda text, rest: (rest[0]["a"], text)).pairs(1).as_numpy_iterator())
        assert found == [(b"A", [b"x"])]
        with pytest.raises(ValueError, match=r"\(0, 2\) for the columns \[0, 1\]"):
            open_reader(tf.data.Dataset.from_tensor_slices((["x"], ["y"])), (0, 2)).pairs(1)

    @pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3)])
    def test_grey_images(self, shape):
        import tensorflow as tf

        image = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
        dataset = tf.data.Dataset.from_tensors((image, "x"))
        ((found, _),) = open_reader(dataset, (0, 1)).pairs(1).as_numpy_iterator()
        assert np.array_equal(found, np.broadcast_to(image if len(shape) == 3 else image[..., None], (4, 5, 3)))

    @pytest.mark.parametrize("shape", [(4, 5, 4), (2, 4, 5, 3), (4, 5, 2)])
    def test_other_images(self, shape):
        import tensorflow as tf

        dataset = tf.data.Dataset.from_tensors((np.zeros(shape, np.uint8), "x"))
        with pytest.raises(TypeError, match="uint8.*Received: an image of shape"):
            open_reader(dataset, (0, 1)).pairs(1)


class TestDataFrames:
    @staticmethod
    def frame(**columns):
        return pytest.importorskip("pandas").DataFrame(columns)

    def test_usual_columns(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a.png").write_bytes(b"A")
        frame = self.frame(
            path=["a.png", str(tmp_path / "a.png"), None], caption=["x", ["y", "z"], "w"], label=[3, 1, 2]
        )
        frame = frame.set_index("label", drop=False).iloc[[2, 0, 1]]
        reader = open_reader(frame)
        assert read_all(reader) == [(b"", [b"w"]), (b"A", [b"x"]), (b"A", [b"y", b"z"])]
        assert reader.keys(np.arange(3)) == ["0000000", "0000001", "0000002"]
        assert reader.metadata(np.array([1])) == [{"caption": "x", "label": 3}]

    @pytest.mark.parametrize(
        "mapping",
        [("photo", "words"), (0, 1), lambda row: (row["photo"], row["words"])],
        ids=["names", "places", "a function"],
    )
    def test_columns_that_are_named(self, mapping):
        images = [pictures(1)[0][0], np.zeros((4, 5), np.uint8), image_file(2)]
        found = read_all(open_reader(self.frame(photo=images, words=["x", float("nan"), "z"]), mapping))
        assert [texts for _, texts in found] == [[b"x"], [], [b"z"]]
        assert np.array_equal(pixels(found[0][0]), pixels(image_file(0))) and found[2][0] == image_file(2)

    def test_without_captions(self):
        frame = self.frame(image=[b"A", b"B"], label=["cat", "dog"])
        assert read_all(open_reader(frame, captions=False)) == [(b"A", []), (b"B", [])]
        with pytest.raises(ValueError, match=r"one of captions. Received: \['image', 'label'\]"):
            open_reader(frame)

    def test_columns_of_one_name(self):
        frame = self.frame(image=[b"A"], caption=["x"], more=["y"])
        frame.columns = ["image", "caption", "caption"]
        with pytest.raises(ValueError, match="must differ"):
            open_reader(frame)


class Once:
    """An object that can be iterated over, and nothing else."""

    def __init__(self, elements):
        self._elements = elements

    def __iter__(self):
        return iter(self._elements)


class TestElements:
    @pytest.mark.parametrize("mapping", [(0, 1), [0, -1], lambda pair: pair])
    def test_tuples(self, mapping):
        found = read_all(open_reader(pictures(3), mapping))
        assert [texts for _, texts in found] == [[b"0"], [b"1"], [b"2"]]
        assert np.array_equal(pixels(found[1][0]), pixels(image_file(1)))

    @pytest.mark.parametrize(
        "mapping",
        [("photo", "words"), (0, 1), ("photo", -1), lambda row: (row.photo, row.words)],
        ids=["names", "places", "one of each", "f"],
    )
    def test_named_tuples(self, mapping):
        Row = collections.namedtuple("Row", "photo words")
        rows = [Row(image, words) for image, words in pictures(3)]
        for source in (rows, Once(rows)):
            reader = open_reader(source, mapping)
            pairs = reader.pairs(1).as_numpy_iterator() if isinstance(source, Once) else read_all(reader)
            found = [(image, list(texts)) for image, texts in pairs]
            assert [texts for _, texts in found] == [[b"0"], [b"1"], [b"2"]]
            assert np.array_equal(pixels(found[1][0]), pixels(image_file(1)))
        if mapping == ("photo", "words"):
            assert open_reader(rows, mapping).metadata(np.array([2])) == [{"words": "2"}]

    def test_named_tuples_without_these_names(self):
        rows = [collections.namedtuple("Row", "photo words")(b"A", "x")]
        with pytest.raises(ValueError, match=r"\('image', 'words'\) for the columns \['photo', 'words'\]"):
            open_reader(rows, ("image", "words"))

    @pytest.mark.parametrize(
        "mapping", [("photo", "words"), (0, 1), lambda row: (row.photo, row.words), lambda image, text: (image, text)]
    )
    def test_named_tuples_of_tf_data(self, mapping):
        import tensorflow as tf

        row = collections.namedtuple("Row", "photo words")([b"A", b"B"], ["x", "y"])
        found = list(open_reader(tf.data.Dataset.from_tensor_slices(row), mapping).pairs(1).as_numpy_iterator())
        assert [(image, texts.tolist()) for image, texts in found] == [(b"A", [b"x"]), (b"B", [b"y"])]

    def test_labels_of_tuples(self):
        from keras_clip.evaluation import sources

        images = sources.from_reader([(b"A", "x", "cat"), (b"B", "y", "dog")], mapping=(0, None), label=2)
        assert images.class_names == ("cat", "dog") and [sample.image for sample in images] == [b"A", b"B"]

    def test_places_that_are_none(self):
        with pytest.raises(ValueError, match=r"\(0, 2\) for the columns \[0, 1\]"):
            open_reader(pictures(3), (0, 2))

    def test_captions_alone_convert_no_image(self):
        reader = open_reader([(object(), "x")], (0, 1))
        assert reader.captions(np.array([0])) == [[b"x"]]
        with pytest.raises(ValueError, match="Received: element 0 with an image of <class 'object'>"):
            reader.read(np.array([0]))

    def test_errors_are_short_whatever_the_source(self):
        arrays = [np.zeros((50, 50), np.uint8)] * 3000
        for source, mapping in ((arrays, None), (arrays, ("a",)), ([{str(k): k for k in range(3000)}], ("a", "b"))):
            with pytest.raises(ValueError) as error:
                open_reader(source, mapping)
            assert len(str(error.value)) < 1500
        with pytest.raises(ValueError) as error:
            open_reader(arrays, arrays)
        assert len(str(error.value)) < 1500
