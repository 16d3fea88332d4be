"""Evaluation reads every storage form with the reader of training: equal images, captions, keys and refusals."""

import io
import json

import numpy as np
import pytest
from numbered_pairs import NumberTokenizer, colour, numbered, numbers, write_records, write_tar
from PIL import Image

from keras_clip.data import ImagePreprocessor, Reader, image_text_pairs
from keras_clip.data.readers import open_reader
from keras_clip.evaluation import captions_of_tars, sources

pytestmark = pytest.mark.backend_free

COUNT = 10
CLASSES = ("even", "odd")


def labelled():
    """Returns (key, image file, caption, class) of each number."""
    return [(key, image, caption, CLASSES[number % 2]) for number, (key, image, caption) in enumerate(numbered(COUNT))]


def tar(folder):
    members = []
    for key, image, caption, name in labelled():
        record = json.dumps({"name": name, "half": key < "005", "caption": "another"}).encode()
        members += [(f"x/{key}.json", record), (f"x/{key}.png", image), (f"x/{key}.txt", caption)]
    return write_tar(folder / "a.tar", members)


def records(folder):
    rows = [
        {"key": key.encode(), "png": image, "txt": caption, "name": name.encode()}
        for key, image, caption, name in labelled()
    ]
    return write_records(folder / "a.tfrecord", rows)


def table(folder):
    lines = ["path,caption,name"]
    for key, image, caption, name in labelled():
        (folder / f"{key}.png").write_bytes(image)
        lines.append(f"{key}.png,{caption.decode()},{name}")
    (folder / "pairs.csv").write_text("\n".join(lines))
    return folder / "pairs.csv"


def folders(folder):
    for key, image, caption, name in labelled():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / f"{key}.png").write_bytes(image)
        (folder / name / f"{key}.txt").write_bytes(caption)
    return folder


def hugging_face(folder):
    import datasets

    kinds = {"image": datasets.Image(), "text": datasets.Value("string"), "name": datasets.ClassLabel(names=CLASSES)}
    keys, images, captions, names = zip(*labelled(), strict=True)
    columns = {
        "image": [{"bytes": image, "path": None} for image in images],
        "text": [caption.decode() for caption in captions],
        "name": [CLASSES.index(name) for name in names],
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def rows(folder):
    return [{"image": image, "text": caption.decode(), "name": name} for _, image, caption, name in labelled()]


class Own(Reader):
    def __len__(self):
        return COUNT

    def read(self, ids):
        found = [labelled()[k] for k in ids.tolist()]
        return [image for _, image, *_ in found], [[caption] for _, _, caption, _ in found]

    def name(self, index):
        return f"sample {index}"

    def metadata(self, ids):
        return [{"name": labelled()[k][3]} for k in ids.tolist()]


# Each form: the function that stores the samples, the mapping, the name of the label, and the key of a sample.
FORMS = {
    "tar": (tar, None, "name", lambda key, name: f"x/{key}"),
    "TFRecord": (records, None, "name", lambda key, name: key),
    "TFRecord, named": (records, ("png", "txt"), "name", lambda key, name: key),
    "table": (table, None, "name", lambda key, name: f"{key}.png"),
    "folder": (folders, None, "class", lambda key, name: f"{name}/{key}.png"),
    "Hugging Face": (hugging_face, ("image", "text"), "name", lambda key, name: f"{int(key):07d}"),
    "list of dicts": (rows, ("image", "text"), "name", lambda key, name: f"{int(key):07d}"),
    "own reader": (lambda folder: Own(), None, "name", lambda key, name: f"sample {int(key)}"),
}
forms = pytest.mark.parametrize("store, mapping, label, key", FORMS.values(), ids=FORMS)


def pairs(source, mapping=None):
    return image_text_pairs(
        source,
        batch_size=4,
        tokenizer=NumberTokenizer(),
        image_preprocessor=ImagePreprocessor(image_size=16),
        mapping=mapping,
        training=False,
    )


@forms
def test_training_and_evaluation_read_the_same(store, mapping, label, key, tmp_path):
    source = store(tmp_path)
    images = sources.from_reader(source, label=label, mapping=mapping)
    expected = {key(name, class_name): (image, caption, class_name) for name, image, caption, class_name in labelled()}

    reader = open_reader(source, mapping)
    ids = np.arange(COUNT)
    files, captions = reader.read(ids)
    assert tuple(reader.keys(ids)) == images.ids and set(images.ids) == set(expected)
    assert files == [sample.image for sample in images] == [expected[identity][0] for identity in images.ids]
    assert captions == reader.captions(ids) == [[expected[identity][1]] for identity in images.ids]
    texts = sources.captions_of(source, mapping)
    assert texts == {identity: [caption.decode()] for identity, (caption,) in zip(images.ids, captions, strict=True)}
    assert [images.class_names[number] for number in images.labels] == [expected[i][2] for i in images.ids]
    assert images.class_names == CLASSES
    # Reading can start at any image.
    assert list(images.read(7)) == files[7:] and list(images.read(COUNT)) == []


@pytest.mark.parametrize("store", [tar, lambda folder: Own()], ids=["tar", "own reader"])
def test_the_pipeline_reads_the_images_in_the_same_order(store, tmp_path):
    source = store(tmp_path)
    images = sources.from_reader(source, label="name")
    shown = [Image.open(io.BytesIO(file)).getpixel((0, 0)) for file in images.read(0)]
    assert [colour(number) for number in numbers(pairs(source))] == shown


@pytest.mark.parametrize("store, mapping", [(records, ("png", None)), (rows, ("image", None))], ids=["records", "rows"])
def test_captions_are_not_needed(store, mapping, tmp_path):
    source = store(tmp_path)
    assert len(sources.from_reader(source, label="name", mapping=mapping)) == COUNT
    with pytest.raises(ValueError, match="must name two columns"):
        pairs(source, mapping)


def test_where_there_are_no_captions(tmp_path):
    members = [
        (f"{k}.{end}", content)
        for k in "ab"
        for end, content in (("png", b"?"), ("json", b'{"name": "%s"}' % k.encode()))
    ]
    source = write_tar(tmp_path / "a.tar", [*members, ("lonely.json", b"{}"), ("other.txt", b"x")])
    assert sources.from_reader(source, label="name").ids == ("a", "b")
    assert sources.captions_of(source) == {"other": ["x"]}
    record = write_records(tmp_path / "a.tfrecord", [{"png": b"?", "name": name} for name in (b"a", b"b")])
    assert sources.from_reader(record, label="name").ids == ("0", "1")
    with pytest.raises(ValueError, match="a feature named 'txt'"):
        sources.captions_of(record)


def test_groups_and_options(tmp_path):
    images = sources.from_reader(
        tar(tmp_path),
        ["odd", "even", "none"],
        label="name",
        group="half",
        name="n",
        split="train",
        empty_classes="keep",
    )
    assert images.groups == ("True",) * 5 + ("False",) * 5
    assert (images.name, images.split, images.class_names) == ("n", "train", ("odd", "even", "none"))
    assert images.labels.tolist() == [1, 0] * 5
    several = sources.from_reader(tar(tmp_path), label=lambda metadata: [metadata["name"], "number"])
    assert several.multi_label and several.class_names == ("even", "number", "odd")


class Bare:
    __len__, read, name = Own.__len__, Own.read, Own.name


def stream(folder):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices([b"?"])


ROWS = {"mapping": ("image", "text")}
REFUSED = {
    "no such label": (rows, {"label": "kind", **ROWS}, ValueError, "'kind' in the metadata.*element 0 with .*'even'"),
    "no such group": (rows, {"label": "name", "group": "kind", **ROWS}, ValueError, "'kind' in the metadata"),
    "a function without a value": (rows, {"label": lambda row: None, **ROWS}, ValueError, "a label in"),
    "a reader without keys": (lambda folder: Bare(), {}, TypeError, "keys, metadata.*Derive"),
    "a stream": (stream, {"mapping": len}, TypeError, "list of a stream"),
    "nothing": (lambda folder: folder / "gone.tar", {}, FileNotFoundError, "gone.tar"),
}


@pytest.mark.parametrize("store, options, error, message", REFUSED.values(), ids=REFUSED)
def test_refusals(store, options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        sources.from_reader(store(tmp_path), **options)


@pytest.mark.parametrize("damage", ["cut at a member", "a flipped header byte"])
def test_a_damaged_tar_is_refused_by_all(damage, tmp_path):
    import tarfile

    path = tar(tmp_path)
    member = tarfile.open(path).getmembers()[15]
    content = open(path, "rb").read()
    place = member.offset
    damaged = content[:place] if damage == "cut at a member" else content[: place + 3] + b"\xff" + content[place + 4 :]
    open(path, "wb").write(damaged)
    for read in (pairs, sources.tars, sources.from_reader, sources.captions_of, captions_of_tars):
        with pytest.raises(ValueError, match="whole tar"):
            read(path)


def test_a_text_is_one_caption_in_evaluation_as_in_training(tmp_path, caplog):
    members = [("a.png", b"?"), ("a.txt", b"x\n\ny \n"), ("b.json", b'{"caption": ["u", "", "v"]}'), ("c.txt", b" \n")]
    source = write_tar(tmp_path / "a.tar", [*members, ("d.txt", b"caf\xe9"), ("e.jpg", b"?")])
    assert captions_of_tars(source) == {"a": ["x\n\ny"], "b": ["u", "v"]}
    assert "skipped 1 of 5 samples: caption not UTF-8 1. First: " in caplog.text and "a.tar: d" in caplog.text
