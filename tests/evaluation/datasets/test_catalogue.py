"""The catalogue of datasets: class names match the labels of tensorflow-datasets, and numbers match the paper's."""

import io

import numpy as np
import pytest
from PIL import Image

from keras_clip.evaluation import catalogue, published
from keras_clip.evaluation.datasets.catalogue import PAPER, SHIFTS
from keras_clip.evaluation.metrics.classification import IGNORED, METRICS
from keras_clip.prompts import FAMILIES, validate_class_names

pytestmark = pytest.mark.backend_free

RECORDS = {**PAPER, **SHIFTS}
AUTOMATIC = [name for name, record in RECORDS.items() if record.builder]
# Label names that these builders read from the files that they prepare. The orders here differ from our table's.
PREPARED = {
    "CIFAR10": "airplane automobile bird cat deer dog frog horse ship truck".split()[::-1],
    "CIFAR100": sorted(PAPER["CIFAR100"].names, reverse=True),
    "STL10": "airplane bird car cat deer dog horse monkey ship truck".split(),
}


@pytest.fixture(scope="module")
def tfds():
    import tensorflow_datasets

    return tensorflow_datasets


def png(number=0):
    file = io.BytesIO()
    Image.fromarray(np.full((2, 2, 3), number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def kitti(counts):
    """Yields one example per class, given (distance in metres, type) of its objects."""
    for objects in counts:
        yield {
            "image": png(),
            "objects": {
                "type": np.array([kind for _, kind in objects], np.int64),
                "location": np.array([[1, 2, ahead] for ahead, _ in objects], np.float32).reshape(-1, 3),
            },
        }


def examples(name, record, features):
    """Returns undecoded examples, one per class of the builder, the last class first, and their expected names."""
    if name == "KITTI":
        car, person = features["objects"]["type"].str2int("Car"), features["objects"]["type"].str2int("Pedestrian")
        assert features["objects"]["location"].shape == (3,)
        nearest = [[(25.0, car), (7.9, car)], [(8.0, car), (1.0, person)], [(20.0, car)], [(3.0, person)], []]
        return list(kitti(nearest)), ["near", "medium", "far", "none", "none"]
    if name == "CLEVRCounts":
        assert features["objects"]["shape"].names  # one number per object, as made up here
        counts = range(10, 2, -1)
        return [{"image": png(), "objects": {"shape": np.zeros(n, np.int64)}} for n in counts], list(map(str, counts))
    if name == "VOC2007":
        names = features["labels"].feature.names
        rows = [{"image": png(), "labels": np.array([n]), "labels_no_difficult": np.array([n])} for n in range(20)]
        rows[3]["labels"] = np.array([3, 5, 7])
        rows[3]["labels_no_difficult"] = np.array([3, 5])
        return rows, names
    numbers = range(features["label"].num_classes - 1, -1, -1)
    key = "video" if "video" in features else "image"
    frames = np.stack([np.full((2, 2, 3), frame, np.uint8) for frame in range(5)])
    picture = frames if key == "video" else png()
    return [{key: picture, "label": n} for n in numbers], [features["label"].int2str(n) for n in numbers]


@pytest.fixture
def fakes(tfds, monkeypatch, tmp_path):
    """Returns `fakes(name)`: the images of a record, by its real builder over invented examples, and their names."""
    import tensorflow as tf

    def open_record(name, split="test"):
        record, made = RECORDS[name], {}

        def prepare(self, **_):
            if name in PREPARED:
                self.info.features["label"].names = PREPARED[name]
            made["examples"], made["names"] = examples(name, record, self.info.features)

        def as_dataset(self, split, **_):
            made["split"] = split
            spec = tf.nest.map_structure(
                lambda value: tf.TensorSpec([None] * np.ndim(value), tf.convert_to_tensor(value).dtype),
                made["examples"][0],
            )
            return tf.data.Dataset.from_generator(lambda: iter(made["examples"]), output_signature=spec)

        # This patch ends inside `mock_data`, which has replaced the same method and restores the real one afterwards.
        with tfds.testing.mock_data(as_dataset_fn=as_dataset), monkeypatch.context() as patch:
            patch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", prepare)
            images = record.images(split, data_dir=tmp_path)
            list(images.read(len(images) - 1))
        return images, made

    return open_record


@pytest.mark.parametrize("name", AUTOMATIC)
def test_classes_are_those_of_the_builder(fakes, name):
    record = RECORDS[name]
    images, made = fakes(name)
    if callable(record.label):
        builder_names = set(made["names"])
    else:
        builder_names = set(images.class_names)
        assert len(builder_names) == len(made["names"])
    assert set(record.names) == builder_names
    if not images.multi_label:
        assert [images.class_names[label] for label in images.labels] == made["names"]
    aligned = record.names_per_class(images.class_names)
    for label, names in zip(images.class_names, aligned, strict=True):
        assert record.names[label] in (names, names[0])
    assert made["split"] == record.splits["test"]


def test_difficult_objects_are_ignored(fakes):
    images, made = fakes("VOC2007")
    row = dict(zip(images.class_names, images.labels[3].tolist(), strict=True))
    names = made["names"]
    assert (row[names[3]], row[names[5]], row[names[7]], row[names[0]]) == (1, 1, IGNORED, 0)


def test_a_video_is_its_middle_frame(fakes, tfds):
    record = catalogue.record("UCF101")
    frames = np.arange(5)[:, None, None, None] * np.ones((1, 2, 2, 3))
    assert (record.image({"video": frames}) == 2).all()


def test_the_catalogue_equals_the_paper_s_table():
    assert tuple(PAPER) == published.datasets()
    assert set(SHIFTS) <= set(published.robustness())
    for name, record in PAPER.items():
        row = published.dataset(name)
        assert record.metric == row.metric, name
        if record.names is not None and name != "FER2013":
            assert len(record.names) == row.num_classes, name


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_complete(name):
    record = RECORDS[name]
    assert record.metric in METRICS
    assert record.templates == FAMILIES[record.family]
    assert "test" in record.splits
    assert record.builder or record.manual
    if record.names is not None:
        validate_class_names(list(record.names.values()))
    assert catalogue.record(name) is record
    with pytest.raises(ValueError, match="has the splits"):
        record.images("middle")


def test_scores_to_compare_with():
    food = catalogue.record("Food101")
    scores = food.published_scores("vit_l14_336")
    assert scores == {"zero_shot/family": pytest.approx(0.938), "linear_probe": pytest.approx(0.959)}
    assert food.published_scores("resnet50").keys() == {"linear_probe"}
    assert food.published_scores("my_own") == {}
    shift = catalogue.record("ImageNet-A")
    assert shift.published_scores("vit_l14_336") == {
        "zero_shot/family": pytest.approx(0.772),
        "linear_probe": pytest.approx(0.753),
    }
    assert shift.published_scores("rn50") == {}


def test_protocols_differ():
    protocols = {record.protocol for record in RECORDS.values()}
    assert len(protocols) == len(RECORDS) == 34
    assert catalogue.record("Food101").protocol == (
        "Food101/tfds:food101[validation]/food/accuracy/1, differs from the paper: prompt templates of keras_clip; "
        "class names of keras_clip"
    )


# Datasets whose images or classes are not all those of the paper's table 9, or not certainly.
OTHER_IMAGES = {
    "Birdsnap": "some are gone",
    "DTD": "partitions",
    "Caltech101": "6,084 test images, not 6,085",
    "FER2013": "3,589 test images, not 3,574",
    "STL10": "ten folds",
    "EuroSAT": "does not say",
    "RESISC45": "does not say",
    "KITTI": "VTAB's rule",
    "UCF101": "3,783 test images, not 1,794",
    "Kinetics700": "some are gone",
    "CLEVRCounts": "does not say",
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_say_what_differs_from_the_paper(name):
    record = catalogue.record(name)
    differences = list(record.differences)
    assert differences[0] == "prompt templates of keras_clip" and all(text in record.protocol for text in differences)
    assert (differences[1:2] == ["class names of keras_clip"]) == (record.names is not None)
    rest = differences[1 + (record.names is not None) :]
    assert bool(rest) == (name in OTHER_IMAGES)
    assert OTHER_IMAGES.get(name, "") in "; ".join(rest)


def test_imagenet_names_are_those_of_the_wnids(tfds):
    from keras_hub.utils import imagenet_id_to_name

    wnids = tfds.builder("imagenet2012", data_dir="/nonexistent").info.features["label"].names
    names = PAPER["ImageNet"].names
    equal = 0
    for number, wnid in enumerate(sorted(wnids)):
        ours = names[wnid] if isinstance(names[wnid], str) else " ".join(names[wnid])
        equal += imagenet_id_to_name(number).replace("_", " ").lower() in ours.lower()
    # The other names were edited, such as "trash can" for "ashcan".
    assert equal >= 960
    assert names["n01440764"] == "tench"
    assert (names["n02012849"], names["n03126707"]) == ("crane (bird)", "construction crane")


def test_by_hand(tmp_path):
    faces = catalogue.record("FER2013")
    with pytest.raises(ValueError, match="downloaded manually: get fer2013.csv"):
        faces.images("test")
    for label in faces.names:
        (tmp_path / label).mkdir()
        (tmp_path / label / "0.png").write_bytes(png())
    images = faces.images("test", files=tmp_path)
    assert (len(images), images.name, images.split) == (7, "FER2013", "test")
    assert faces.names_per_class(images.class_names)[0] == ["angry"]
    (tmp_path / "angry").rename(tmp_path / "cross")
    with pytest.raises(ValueError, match=r"without \['cross'\]"):
        faces.images("test", files=tmp_path)


def test_names_without_a_table(tmp_path):
    birds = catalogue.record("Birdsnap")
    assert birds.names_per_class(["Acadian_Flycatcher", "Barn_Owl"]) == [["Acadian Flycatcher"], ["Barn Owl"]]


def test_an_unknown_name():
    with pytest.raises(ValueError, match="Received: name='Food102'"):
        catalogue.record("Food102")
