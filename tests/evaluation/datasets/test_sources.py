"""Labelled images: labels by name, ids and groups, refusals, and files of each storage form read back."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from keras_clip.evaluation import sources
from keras_clip.evaluation.datasets.labelled_images import LabelledImages
from keras_clip.evaluation.metrics.classification import IGNORED

pytestmark = pytest.mark.backend_free


def png(number):
    file = io.BytesIO()
    Image.fromarray(np.full((3, 4, 3), number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def level(image):
    """Returns the grey level of an image of `png`, given in any type."""
    if isinstance(image, np.ndarray):
        return int(image[0, 0, 0])
    return int(np.asarray(Image.open(io.BytesIO(image) if isinstance(image, bytes) else image))[0, 0, 0])


def named(images):
    return [images.class_names[label] for label in images.labels]


def test_a_folder_per_class(tmp_path):
    for number, place in enumerate(["b/2.png", "a/x/1.png", "a/3.JPG", "c/4.png"]):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    (tmp_path / "a" / "notes.txt").write_text("no image")
    images = sources.folder_per_class(tmp_path, split="train")
    assert images.class_names == ("a", "b", "c")
    assert images.ids == ("a/3.JPG", "a/x/1.png", "b/2.png", "c/4.png")
    assert [level(sample.image) for sample in images] == [2, 1, 0, 3]
    assert named(images) == ["a", "a", "b", "c"]
    chosen = sources.folder_per_class(tmp_path, ["c", "a"])
    assert (chosen.class_names, named(chosen)) == (("c", "a"), ["c", "a", "a"])
    with pytest.raises(ValueError, match=r"without \['d'\]"):
        sources.folder_per_class(tmp_path, ["a", "d"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"none of \['empty'\] \(1 of 4 classes\)"):
        sources.folder_per_class(tmp_path)
    assert sources.folder_per_class(tmp_path, empty_classes="drop").class_names == ("a", "b", "c")
    kept = sources.folder_per_class(tmp_path, ["empty", "b", "c", "gone"], empty_classes="keep")
    assert (kept.class_names, kept.labels.tolist()) == (("empty", "b", "c", "gone"), [1, 2])
    with pytest.raises(ValueError, match="'refuse', 'keep' or 'drop'. Received: 'maybe'"):
        sources.folder_per_class(tmp_path, empty_classes="maybe")
    with pytest.raises(FileNotFoundError, match="one folder for each class"):
        sources.folder_per_class(tmp_path / "nowhere")


def write_table(folder, text, name="t.csv"):
    for number in range(4):
        (folder / f"{number}.png").write_bytes(png(number))
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_a_table(tmp_path):
    text = "path,label,group\n1.png,dog,old\n0.png,cat,\n2.png,cat,young\n"
    images = sources.csv(write_table(tmp_path, text))
    assert (images.class_names, named(images)) == (("cat", "dog"), ["dog", "cat", "cat"])
    assert (images.ids, images.groups) == (("1.png", "0.png", "2.png"), ("old", "", "young"))
    assert [level(sample.image) for sample in images] == [1, 0, 2]
    assert [level(image) for image in images.read(2)] == [2]
    assert not images.multi_label and images.name == "t"
    tabs = sources.csv(write_table(tmp_path, text.replace(",", "\t"), "t.tsv"), ["dog", "cat"])
    assert (tabs.class_names, tabs.labels.tolist()) == (("dog", "cat"), [0, 1, 1])


def test_a_table_of_several_labels(tmp_path):
    images = sources.csv(write_table(tmp_path, "path,label\n0.png,cat; dog\n1.png,\n2.png,ant\n"), separator=";")
    assert images.class_names == ("ant", "cat", "dog")
    assert images.multi_label
    assert images.labels.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert images.labels.dtype == np.uint8


LISTS = {
    "lists": ('["cat", "dog"]', "[]", '["ant"]'),
    "texts": ('"cat; dog"', '""', '"ant"'),
    "lists and texts": ('["cat", " dog "]', "null", '"ant"'),
    "null inside": ('["cat", null, "dog", ""]', '" ; "', '["ant"]'),
}


@pytest.mark.parametrize("labels", LISTS.values(), ids=LISTS)
def test_lines_of_several_labels(tmp_path, labels):
    text = "".join(f'{{"path": "{i}.png", "label": {label}, "group": null}}\n' for i, label in enumerate(labels))
    images = sources.csv(write_table(tmp_path, text, "t.jsonl"), separator=";")
    assert images.class_names == ("ant", "cat", "dog") and images.groups == ("", "", "")
    assert images.labels.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]


def test_labels_may_be_numbers(tmp_path):
    text = "".join(f'{{"path": "{i}.png", "label": {i % 2}, "group": {i}}}\n' for i in range(3))
    for separator in (None, ";"):
        images = sources.csv(write_table(tmp_path, text, "t.jsonl"), separator=separator)
        assert (images.class_names, images.groups) == (("0", "1"), ("0", "1", "2"))
        assert images.multi_label == (separator is not None)


def test_some_images_of_a_table_have_a_list_of_labels(tmp_path):
    """The others are of one class: no name is taken for the letters that it consists of."""
    for labels in (('["cat", "dog"]', '"ant"'), ('"ant"', '["cat", "dog"]')):
        text = "".join(f'{{"path": "{i}.png", "label": {label}}}\n' for i, label in enumerate(labels))
        images = sources.csv(write_table(tmp_path, text, "t.jsonl"))
        assert images.multi_label and sorted(images.labels.sum(axis=1).tolist()) == [1, 2]
    with pytest.raises(ValueError, match="`separator` must be a text"):
        sources.csv(tmp_path / "t.jsonl", separator="")


BAD_TABLES = {
    "a label that is no class": (
        "path,label\n0.png,cat\n1.png,dog\n2.png,unicorn\n",
        r"\['unicorn'\], which are not among",
    ),
    "an empty class": ("path,label\n0.png,cat\n", r"none of \['dog'\]"),
    "no label": ("path,label\n0.png,cat\n1.png,\n", r"'label' in each row of the table.*/1\.png with .*'label': ''"),
    "no column": ("path,class\n0.png,cat\n", "'label' in each row of the table.*/0.png with .*'class': 'cat'"),
    "no path": ("path,label\n0.png,cat\n,dog\n", r"must have a key. Received: .*t\.csv: 1"),
    "more values than columns": ("path,label\n0.png,cat\n1.png,dog, big\n", r"stand in quotes.*t\.csv, line 3"),
    "an image twice": ("path,label\n0.png,cat\n0.png,dog\n", r"\['0.png'\] twice"),
    "no rows": ("path,label\n", "There must be images"),
}


@pytest.mark.parametrize("text, message", BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_tables(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        sources.csv(write_table(tmp_path, text), ["dog", "cat"])


def test_one_class_only(tmp_path):
    with pytest.raises(ValueError, match="at least two classes"):
        sources.csv(write_table(tmp_path, "path,label\n0.png,cat\n1.png,cat\n"))


@pytest.mark.parametrize("form", ["TIFF", "PPM", "AVIF"])
def test_a_folder_of_images_of_one_format(form, tmp_path):
    for name in ("cat/a", "cat/b", "dog/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((30, 40, 3), 77, np.uint8)).save(tmp_path / f"{name}.{form.lower()}", form)
    images = sources.folder_per_class(tmp_path)
    assert len(images) == 3 and images.skipped.total == 0
    assert [level(sample.image) for sample in images] == [77] * 3


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def record(**values):
    return json.dumps(values).encode()


def test_tars(tmp_path):
    write_tar(tmp_path / "0.tar", {"x/a.png": png(5), "x/a.json": record(name="owl", kind="night"), "x/a.txt": b"hoo"})
    # In the second tar, the .json stands before the image.
    write_tar(tmp_path / "1.tar", {"b.json": record(name="hen", kind="day"), "b.png": png(6)})
    images = sources.tars(f"{tmp_path}/{{0..1}}.tar", group="kind", name="birds")
    assert (images.ids, images.groups) == (("x/a", "b"), ("night", "day"))
    assert (images.class_names, named(images)) == (("hen", "owl"), ["owl", "hen"])
    assert [level(sample.image) for sample in images] == [5, 6]
    assert [level(image) for image in images.read(1)] == [6]
    several = sources.tars(
        write_tar(
            tmp_path / "2.tar",
            {"a.png": png(1), "a.json": record(tags=["x", "y"]), "b.png": png(2), "b.json": record(tags=[])},
        ),
        label="tags",
    )
    assert several.labels.tolist() == [[1, 1], [0, 0]]


BAD_TARS = {
    "no record": ({"a.png": png(1)}, "'name' in the .json.*0.tar: a with nothing"),
    "a record that is no object": ({"a.png": png(1), "a.json": b"[1]"}, "'name' in the .json.*0.tar: a with nothing"),
    "no such key": ({"a.png": png(1), "a.json": record(label=3)}, r"'name' in the .json.*0.tar: a with {'label': 3}"),
    "no image": ({"a.json": record(name="x")}, "There must be images"),
}


@pytest.mark.parametrize("members, message", BAD_TARS.values(), ids=BAD_TARS)
def test_bad_tars(tmp_path, members, message):
    with pytest.raises(ValueError, match=message):
        sources.tars(write_tar(tmp_path / "0.tar", members))


def test_a_damaged_tar(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"no tar" * 100)
    with pytest.raises(ValueError, match="whole, uncompressed tar"):
        sources.tars(tmp_path / "0.tar")


def test_shared_groceries(shared_data):
    known = json.loads((shared_data / "grocery" / "class_names.json").read_text())
    shards = shared_data / "grocery" / "val" / "*.tar"
    images = sources.tars(shards, known, group="coarse", split="val", empty_classes="keep")
    assert (len(images), len(images.class_names), images.name) == (296, 81, "val")
    assert len(sources.tars(shards).class_names) == len(np.unique(images.labels)) == 60
    row = images.ids.index("val-Alpro-Blueberry-Soyghurt_001")
    assert (named(images)[row], images.groups[row]) == ("Alpro Blueberry Soyghurt", "Soyghurt")


def test_digits():
    train, test = sources.digits("train"), sources.digits("test")
    assert (len(train), len(test), train.class_names) == (1200, 597, tuple("0123456789"))
    assert not set(train.ids) & set(test.ids)
    image = next(iter(train)).image
    assert (image.shape, image.dtype, image.max()) == ((8, 8), np.uint8, 239)  # 15 of 16
    with pytest.raises(ValueError, match="split='all'"):
        sources.digits("all")


def make(**changes):
    whole = {"labels": ["a", "b"], "ids": ["1", "2"], "class_names": ["a", "b"]}
    return LabelledImages(lambda start: iter([b"", b""][start:]), **{**whole, **changes})


REFUSED = {
    "columns of unequal length": ({"ids": ["1"]}, "1 ids, 2 labels"),
    "groups of unequal length": ({"groups": ["x"]}, "1 groups"),
    "an id twice": ({"ids": ["1", "1"]}, r"\['1'\] twice"),
    "a class name twice": ({"class_names": ["a", "a"]}, "names that differ"),
    "an empty class name": ({"class_names": ["a", " "], "labels": ["a", " "]}, "not empty"),
    "a value that is no label": ({"labels": [{"a": 1}, {"b": 2}]}, "the value 1 or 255"),
    "a class that is only ignored": ({"labels": [{"a": 1}, {"b": IGNORED}]}, r"none of \['b'\]"),
}


@pytest.mark.parametrize("changes, message", REFUSED.values(), ids=REFUSED)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_labels_without_names():
    images = make(class_names=None, labels=[7, 1])
    assert (images.class_names, images.labels.tolist()) == (None, [7, 1])
    with pytest.raises(ValueError, match=r"must be integers from 0 on. Received: .* such as \[7, -1\]"):
        make(class_names=None, labels=[7, -1])


def test_the_digest_is_of_every_byte(tmp_path):
    path = write_table(tmp_path, "path,label\n0.png,cat\n1.png,dog\n2.png,cat\n")
    first = sources.csv(path).digest()
    assert sources.csv(path).digest() == first
    (tmp_path / "2.png").write_bytes(png(77))
    assert sources.csv(path).digest() != first
    (tmp_path / "2.png").unlink()
    assert sources.csv(path).digest() != first
    arrays = [np.zeros((2, 8), np.uint8), np.zeros((4, 4), np.uint8)]
    digests = {LabelledImages(lambda start, a=a: iter([a] * 2), ["a", "b"], "12", ["a", "b"]).digest() for a in arrays}
    assert len(digests) == 2


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A dataset of tensorflow-datasets in real TFRecords: labels 0 to 2, each with images of grey level 10 * label."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    labels = np.array([2, 0, 2, 0, 0])
    images = np.ones((5, 3, 4, 3), np.uint8) * (labels * 10)[:, None, None, None].astype(np.uint8)
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["zebra", "yak", "ant"])}
    tfds.dataset_builders.TfDataBuilder(
        name="herd",
        version="1.0.0",
        split_datasets={"test": tf.data.Dataset.from_tensor_slices({"image": images, "label": labels})},
        features=tfds.features.FeaturesDict(features),
        data_dir=folder,
    ).download_and_prepare()
    return folder


def test_tensorflow_datasets(prepared):
    images = sources.tfds("herd", "test", empty_classes="drop", name="Herd", data_dir=prepared)
    assert images.class_names == ("zebra", "ant")  # no yak
    samples = list(images)
    assert sorted(images.labels) == [0, 0, 0, 1, 1]
    assert all(level(sample.image) == {0: 0, 1: 20}[sample.label] for sample in samples)
    assert all(isinstance(sample.image, bytes) for sample in samples)  # decoded as the images of all other sources
    assert len(set(images.ids)) == 5 and all(i.startswith("herd-test") for i in images.ids)
    assert list(images.read(3)) == [sample.image for sample in samples[3:]]
    assert (
        images.digest() == sources.tfds("herd", "test", empty_classes="drop", name="Herd", data_dir=prepared).digest()
    )
    with pytest.raises(ValueError, match=r"none of \['yak'\]"):
        sources.tfds("herd", "test", data_dir=prepared)


def test_tensorflow_datasets_with_a_function_for_labels(prepared):
    images = sources.tfds(
        "herd",
        "test",
        label=lambda example, features: "big" if features["label"].int2str(example["label"]) == "zebra" else "small",
        class_names=["small", "big"],
        data_dir=prepared,
    )
    assert np.bincount(images.labels).tolist() == [2, 3]
    with pytest.raises(ValueError, match="needs `class_names`"):
        sources.tfds("herd", "test", label=lambda *_: "x", data_dir=prepared)
