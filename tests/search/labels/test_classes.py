"""Saved classes and labels by hand: what is kept, who may change it at once, and what they give for pictures."""

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import keras_clip
from keras_clip.search.labels import Classes, ClassExists, Labelling, class_encoder

pytestmark = pytest.mark.backend_free
DIGESTS = [f"{number:064x}" for number in range(6)]


@pytest.fixture
def classes(tmp_path):
    classes = Classes(tmp_path)
    yield classes
    classes.close()


def test_classes_are_kept(classes, tmp_path):
    cat = classes.add("cat", ["a photo of a cat", "a kitten"], 0.25)
    dog = classes.add("dog")
    assert dog.prompts == ("dog",)
    classes.set(DIGESTS[:2], cat.id, True)
    again = Classes(tmp_path)
    assert again.all() == [cat, dog]
    assert again.get(cat.id) == again.named("cat") == cat
    assert again.by_hand(cat.id) == {DIGESTS[0]: True, DIGESTS[1]: True}
    again.close()


def test_a_change_changes_what_is_given(classes):
    cat = classes.add("cat", ["a cat"], 0.25)
    assert classes.change(cat.id, threshold=0.5).prompts == ("a cat",)
    assert classes.change(cat.id, name="cats").threshold == 0.5
    assert classes.change(cat.id).name == "cats"


def test_labels_by_hand(classes):
    cat, dog = classes.add("cat"), classes.add("dog")
    assert classes.set(DIGESTS[:3], cat.id, True) == 3
    assert classes.set(DIGESTS[:3], cat.id, True) == 0
    assert classes.set(DIGESTS[2:4], cat.id, False) == 2
    assert classes.set([DIGESTS[0]] * 5, cat.id, None) == 1
    classes.set([DIGESTS[1]], dog.id, False)
    assert classes.by_hand(cat.id) == {DIGESTS[1]: True, DIGESTS[2]: False, DIGESTS[3]: False}
    assert classes.by_hand_of(DIGESTS[:3]) == {
        (DIGESTS[1], cat.id): True,
        (DIGESTS[1], dog.id): False,
        (DIGESTS[2], cat.id): False,
    }
    classes.remove(cat.id)
    assert classes.by_hand_of(DIGESTS) == {(DIGESTS[1], dog.id): False}


def test_ids_are_not_given_again(classes):
    first = classes.add("cat")
    classes.remove(first.id)
    assert classes.add("cat").id > first.id


@pytest.mark.parametrize("name", ["", " cat", "cat\n", "\x1b[1m", "a" * 201, "\ud800", 5, None])
def test_names_that_are_refused(classes, name):
    with pytest.raises(ValueError, match="name of a class"):
        classes.add(name, ["x"])


@pytest.mark.parametrize(
    "name", ["cat", "Kätzchen", "猫", "🐈", "cats & dogs", "=1+1", "AC/DC", "'; DROP TABLE classes; --"]
)
def test_names_that_are_kept_as_they_are(classes, name):
    assert classes.add(name).name == name
    with pytest.raises(ClassExists, match="must be new"):
        classes.add(name)


@pytest.mark.parametrize("prompts", [[], ["x"] * 101, [""], [" "], ["x" * 501], "cat", [5], ["\udcff"]])
def test_prompts_that_are_refused(classes, prompts):
    with pytest.raises(ValueError, match="prompts"):
        classes.add("cat", prompts)


@pytest.mark.parametrize("threshold", [float("nan"), 1.1, -2, "0", True, float("inf")])
def test_thresholds_that_are_refused(classes, threshold):
    with pytest.raises(ValueError, match="threshold"):
        classes.add("cat", threshold=threshold)


def test_what_is_not_there(classes, tmp_path):
    for call in (classes.get, classes.remove, classes.change):
        with pytest.raises(KeyError, match="must be a class"):
            call(77)
    with pytest.raises(KeyError, match="must be a class"):
        classes.set(DIGESTS, 77, True)
    with pytest.raises(KeyError, match="of this name"):
        classes.named("cat")
    with pytest.raises(ValueError, match="SHA-256"):
        classes.set(["../x"], classes.add("cat").id, True)
    with pytest.raises(ValueError, match="True, False or None"):
        classes.set(DIGESTS, 1, 1)
    with pytest.raises(FileNotFoundError, match="beside an index"):
        Classes(tmp_path / "nothing")


def test_damaged_databases(tmp_path):
    (tmp_path / "labels.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(ValueError, match="must be whole"):
        Classes(tmp_path)


def test_another_format(tmp_path):
    Classes(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "labels.sqlite")
    connection.execute("UPDATE meta SET value = 9 WHERE key = 'format'")
    connection.commit()
    connection.close()
    with pytest.raises(ValueError, match="of format 1"):
        Classes(tmp_path)


def test_two_tabs_at_once(tmp_path):
    """Two connections change the same labels and classes in threads; each change is whole."""
    mine, other = Classes(tmp_path), Classes(tmp_path)
    cat = mine.add("cat")
    added, exists = [], []

    def work(classes, value):
        for number in range(20):
            classes.set(DIGESTS, cat.id, value)
            try:
                added.append(classes.add(f"class {number}").name)
            except ClassExists:
                exists.append(number)

    threads = [threading.Thread(target=work, args=arguments) for arguments in ((mine, True), (other, False))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(added) == sorted(f"class {number}" for number in range(20))
    assert len(exists) == 20
    assert len(set(mine.by_hand(cat.id).values())) == 1
    assert mine.by_hand(cat.id) == other.by_hand(cat.id)
    assert mine.revision == other.revision
    mine.close()
    other.close()


# Keras would take seconds to load, and labels do not need it.
KILLED = """
import sys, types
for name in ("keras_clip", "keras_clip.search", "keras_clip.search.labels"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [sys.argv[2] + "/" + name.replace(".", "/")]
from keras_clip.search.labels.classes import Classes
classes = Classes(sys.argv[1])
for number in range(10**6):
    classes.set([f"{number:064x}"], 1, True)
    print(number, flush=True)
"""


def test_what_has_returned_survives_a_kill(tmp_path):
    classes = Classes(tmp_path)
    classes.add("cat")
    command = [sys.executable, "-c", KILLED, tmp_path, Path(keras_clip.__file__).parents[1]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    done = [int(process.stdout.readline()) for _ in range(20)]
    process.kill()
    done += [int(line) for line in process.stdout.read().split()]
    process.wait()
    process.stdout.close()
    kept = sorted(int(digest, 16) for digest in classes.by_hand(1))
    assert kept in ([*range(done[-1] + 1)], [*range(done[-1] + 2)])
    classes.close()


# Labels of pictures.


class Index:
    """An index of unit vectors: rows are in another order than ids, and two pictures have one file."""

    def __init__(self):
        self.version, self.ids, self.rows = 3, np.array([2, 5, 7, 9]), np.array([3, 0, 1, 4])
        angles = np.array([0.2, 0.9, 0.5, 0.0, 1.5])
        self.embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    def columns(self, names):
        return {"sha256": np.array([DIGESTS[0], DIGESTS[1], DIGESTS[2], DIGESTS[0]], object)}


def encode(texts):
    return np.array([{"right": (1, 0), "up": (0, 1)}.get(text, (-1, 0)) for text in texts], np.float32)


@pytest.fixture
def labelling(classes):
    return Labelling(Index(), classes, class_encoder(encode))


def test_the_model_labels_from_the_threshold_on(labelling, classes):
    right = classes.add("right", ["right"], 0.6)
    # The cosines of the pictures 2, 5, 7 and 9 are those of the angles 0, 0.2, 0.9 and 1.5.
    np.testing.assert_allclose(labelling.scores(right.id), np.cos([0, 0.2, 0.9, 1.5]), atol=1e-6)
    assert labelling.members("right").tolist() == [2, 5, 7]
    (counts,) = labelling.counts()
    assert (counts.pictures, counts.by_hand, sum(counts.histogram)) == (3, 0, 4)
    assert counts.low == pytest.approx(np.cos(1.5), abs=1e-6)
    with pytest.raises(KeyError):
        labelling.members("wrong")


def test_a_person_is_right_and_copies_have_the_labels_of_their_file(labelling, classes):
    right, up = classes.add("right", ["right"], 0.6), classes.add("up", ["up"], 0.9)
    assert labelling.set([2], right.id, False) == 1
    # 9 has the same file as 2.
    assert labelling.members("right").tolist() == [5, 7]
    labelling.set([9], right.id, True)
    assert labelling.members("right").tolist() == [2, 5, 7, 9]
    labels = labelling.of_pictures([9, 5, 1000, 2])
    assert [[label.saved.name for label in each] for each in labels] == [["right", "up"], ["right"], [], ["right"]]
    assert [label.by_hand for label in labels[0]] == [True, False]
    assert labelling.of_pictures([9], [up.id])[0][0].score == pytest.approx(np.sin(1.5), abs=1e-6)
    assert {each.saved.name: (each.pictures, each.by_hand) for each in labelling.counts()} == {
        "right": (4, 2),
        "up": (1, 0),
    }
    labelling.set([2], right.id, None)
    assert labelling.members("right").tolist() == [2, 5, 7]
    with pytest.raises(KeyError, match="of this id"):
        labelling.set([1000], right.id, True)


def test_counts_follow_changes_of_others(labelling, classes, tmp_path):
    right = classes.add("right", ["right"], 0.6)
    assert labelling.counts()[0].pictures == 3
    other = Classes(tmp_path)
    other.change(right.id, threshold=0.99)
    assert labelling.counts()[0].pictures == 1
    other.set([DIGESTS[1]], right.id, True)
    assert labelling.counts()[0].pictures == 2
    other.close()


def test_a_class_is_the_mean_of_its_prompts(labelling, classes):
    both = classes.add("both", ["right", "up"])
    np.testing.assert_allclose(labelling.embeddings_of([both]), [[np.sqrt(0.5)] * 2], atol=1e-6)
    assert [saved.name for saved, _ in labelling.nearest_classes(7)] == ["both"]
    assert labelling.nearest_classes(1000) == []


def test_an_index_without_pictures(classes):
    empty = SimpleNamespace(
        version=1,
        ids=np.empty(0, int),
        rows=np.empty(0, int),
        embeddings=np.empty((0, 2), np.float32),
        columns=lambda names: {"sha256": np.empty(0, object)},
    )
    labelling = Labelling(empty, classes, class_encoder(encode))
    classes.add("right", ["right"])
    assert labelling.counts()[0].pictures == 0
    assert labelling.members("right").tolist() == []
    assert labelling.of_pictures([1]) == [[]]
