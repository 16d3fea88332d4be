"""The limits on records as CLEVR and FairFace have them, drawn small: what is read, and what is measured."""

import io
import types

import keras
import numpy as np
import pytest
from PIL import Image, ImageDraw
from scripts import load_script

import keras_clip
from keras_clip.evaluation import evaluate, limits
from keras_clip.evaluation.datasets.sources import tensorflow_datasets
from keras_clip.evaluation.parts import limits as part
from keras_clip.evaluation.results import Results

pytestmark = pytest.mark.backend_free
SHAPES = {"cube": 0, "sphere": 1, "cylinder": 2}


def scene(number, shapes):
    """A CLEVR-like record: grey objects on a ground, and a row of each feature per object."""
    image = Image.new("RGB", (48, 32), (90, 90, 90))
    draw, rng = ImageDraw.Draw(image), np.random.default_rng(number)
    for place in range(shapes):
        x, y = 2 + 11 * (place % 4), 2 + 10 * (place // 4)
        draw.ellipse((x, y, x + 6, y + 6), fill=tuple(rng.integers(120, 256, 3).tolist()))
    file = io.BytesIO()
    image.save(file, "PNG")
    objects = {
        "shape": rng.integers(0, len(SHAPES), shapes),
        "color": rng.integers(0, 8, shapes),
        "3d_coords": rng.normal(size=(shapes, 3)).astype(np.float32),
    }
    return {"file_name": f"CLEVR_{number:06d}.png", "image": file.getvalue(), "objects": objects}


class Clevr:
    """Stands for the records of a split, of three to ten objects each; tensorflow-datasets is not asked."""

    asked: list = []

    def __init__(self, builder, split, data_dir):
        self.asked.append((builder, split))
        count = {"validation[:500]": 16, "train[:2000]": 40}[split]
        self.records = [scene(number, 3 + number % 8) for number in range(count)]
        self.features = {"objects": {"shape": list(SHAPES)}}

    def read(self, start=0):
        return iter(self.records[start:])

    def key(self, example, number):
        return example["file_name"]


def counted(images):
    """The number of objects of each image, as it can be seen in the pixels."""
    from scipy import ndimage

    pixels = [np.asarray(Image.open(io.BytesIO(data)).convert("L")) for data in images.read(0)]
    return [ndimage.label(image != image[0, 0])[1] for image in pixels]


def test_counting_in_clevr(monkeypatch):
    monkeypatch.setattr(tensorflow_datasets, "TFDSExamples", Clevr)
    task = load_script("examples/limits.py").clevr_task()
    assert Clevr.asked == [("clevr", "validation[:500]"), ("clevr", "train[:2000]")]
    test = task.test
    assert test.class_names == ("3", "4", "5", "6", "7", "8", "9", "10") and task.limits == ["counting"]
    numbers = [int(test.class_names[label]) for label in test.labels]
    assert numbers == counted(test) == [3 + number % 8 for number in range(16)]
    # A model that always sees one object too few, and never fewer than three.
    seen = np.array([[float(int(name) == max(3, number - 1)) for name in test.class_names] for number in numbers])
    case = types.SimpleNamespace(
        name=test.name,
        task=task,
        splits=types.SimpleNamespace(test=test, train=None),
        results=Results(),
        zero_shot=lambda _: seen,
    )
    part.run(case)
    rows = {row["measure"]: row["value"] for row in case.results.tables["limits"]}
    assert (rows["exact"], rows["within one"], rows["too few"], rows["too many"]) == (2 / 16, 1, 14 / 16, 0)
    assert rows["mean absolute error"] == 14 / 16 and rows["most frequent count"] == 2 / 16


AGES = ("0-2", "3-9", "20-29", "more than 70")
RACES = ("White", "Black", "Indian", "East Asian", "Southeast Asian", "Middle Eastern", "Latino_Hispanic")


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """A folder and a table as FairFace has them."""
    folder = tmp_path_factory.mktemp("fairface")
    (folder / "val").mkdir()
    lines, rng = ["file,age,gender,race,service_test"], np.random.default_rng(0)
    for number in range(28):
        image = Image.new("RGB", (24, 24), tuple(rng.integers(60, 220, 3).tolist()))
        ImageDraw.Draw(image).ellipse((6, 4, 18, 20), fill=tuple(rng.integers(60, 220, 3).tolist()))
        image.save(folder / "val" / f"{number + 1}.jpg")
        gender = ("Male", "Female")[number % 2]
        lines.append(f"val/{number + 1}.jpg,{AGES[number % 4]},{gender},{RACES[number % 7]},{number % 3 == 0}")
    (folder / "fairface_label_val.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("group", ["age", "race", "gender"])
def test_class_sets_of_fairface(faces, tmp_path, group):
    keras.utils.set_random_seed(0)
    clip = keras_clip.CLIPModel(
        keras_clip.encoders.VisionTransformer(16, 8, 16, 1, 2),
        keras_clip.encoders.TextTransformer(16, 1, 2, context_length=24),
        8,
    )
    task = load_script("examples/limits.py").people_task(str(faces / "fairface_label_val.csv"), "race", group)
    assert task.test.ids[0] == "val/1.jpg" and set(task.test.class_names) == set(RACES)
    groups = {"age": AGES, "race": RACES, "gender": ("Male", "Female")}[group]
    assert set(task.test.groups) == set(groups)
    found = evaluate(clip, task, tmp_path, ["class_design"], verbose=0)
    rows = found.tables["class_design/fairface_label_val"]
    assert {(row["class_set"], row["group"]) for row in rows} == {
        (name, of) for name in limits.people_class_sets() for of in (*groups, "all")
    }
    for row in rows:
        assert row["n"] == (28 if row["group"] == "all" else 28 // len(groups))
        assert 0 <= row["low"] <= row["share"] <= row["high"] <= 1
        # One more class can only take images away from the watched ones.
        assert row.get("change", 0) <= 0
    assert [row["class_set"] for row in found.tables["class_set_disparity"]] == ["without child", "with child"]


def test_a_table_of_a_user_s_people(faces, tmp_path):
    lines = "".join(f"{faces / 'val'}/{n + 1}.jpg\tperson {n % 2}\t{'ab'[n % 2]}\n" for n in range(4))
    (tmp_path / "people.tsv").write_text(f"path\tlabel\tgroup\n{lines}")
    task = load_script("examples/limits.py").people_task(str(tmp_path / "people.tsv"), "label", "group")
    assert task.test.groups == ("a", "b", "a", "b") and set(task.watched) == {*limits.CRIME_RELATED, *limits.NON_HUMAN}
