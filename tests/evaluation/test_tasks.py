"""Tasks: options that fit the classes, the classes that splits share, and the stores of the splits."""

import dataclasses

import numpy as np
import pytest

from keras_clip.evaluation import FeatureStore, Task, metrics
from keras_clip.evaluation.classifiers.few_shot import FewShotScore
from keras_clip.evaluation.datasets import catalogue
from keras_clip.evaluation.datasets.labelled_images import LabelledImages
from keras_clip.evaluation.parts import limits, robustness
from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.results import Results
from keras_clip.evaluation.tasks import encode, folder_name

pytestmark = pytest.mark.backend_free
KNOWN = ["ant", "bee", "cat", "dog"]


def store(classes, per_class=4, split="test", name="animals", known=KNOWN):
    """Features of some classes, which all splits embed alike."""
    labels = np.repeat(np.arange(len(classes)), per_class)
    embeddings = np.eye(8)[[known.index(classes[label]) for label in labels]]
    ids = [f"{split} {i}" for i in range(len(labels))]
    return FeatureStore.from_arrays(
        embeddings, embeddings, labels, classes, ids=ids, name=name, split=split, logit_scale=1.0
    )


def images(classes=("ant", "bee"), name="animals", split="test", level=0):
    pixels = np.full((2 * len(classes), 8, 8, 3), level, np.uint8)
    labels = list(classes) * 2
    ids = [str(i) for i in range(len(labels))]
    return LabelledImages(lambda start: iter(pixels[start:]), labels, ids, list(classes), name=name, split=split)


class Fixed(Case):
    """A case whose classifiers are given instead of fitted: zero-shot knows the classes, by their embeddings."""

    def zero_shot(self, store, method="zero_shot/family"):
        names = self.splits.test.class_names
        return store.embeddings @ np.eye(8)[[KNOWN.index(name) for name in names]].T

    @property
    def few_shot(self):
        test, probe = self.splits.test, self.probe.probe
        scores = probe.decision_function(test.features)
        return [FewShotScore(1, 0, 2, 1.0, probe, test.features, float((scores.argmax(1) == test.labels).mean()))]

    @property
    def probe(self):
        from types import SimpleNamespace

        places = [KNOWN.index(name) for name in self.splits.test.class_names]
        return SimpleNamespace(probe=SimpleNamespace(C=1.0, decision_function=lambda features: features[:, places]))


def case_of(task):
    from types import SimpleNamespace

    clip = SimpleNamespace(image_preprocessor=SimpleNamespace(sides=(8, 8)))
    return Fixed(clip, task, encode(None, task, None), Results())


POOLED = {
    # name of the test: classes that train lacks, coarser classes, those that remain
    "one of two members": (["ant", "bee", "dog"], {"insect": ["ant", "bee"], "pet": ["cat", "dog"]}, 2),
    "all members of one": (["ant", "bee"], {"insect": ["ant", "bee"], "pet": ["cat", "dog"]}, 1),
    "one member of three": (["ant", "cat", "dog"], {"small": ["ant", "bee"], "c": ["cat"], "d": ["dog"]}, 3),
    "the first of two": (["bee", "cat"], {"insect": ["ant", "bee"], "c": ["cat"], "d": ["dog"]}, 2),
}


@pytest.mark.parametrize(("trained", "pooled", "remain"), POOLED.values(), ids=POOLED)
def test_coarser_classes_of_a_shift_whose_members_are_dropped(trained, pooled, remain):
    members = [group[0] for group in pooled.values()]
    shift = store(list(pooled), 3, name="sketch", known=[*pooled, *KNOWN][: max(8, len(pooled))])
    shift.embeddings = np.eye(8)[[KNOWN.index(members[label]) for label in shift.labels]]
    shift.features = shift.embeddings
    task = Task(
        store(KNOWN),
        store(trained, 10, "train"),
        shifts={"sketch": shift},
        pooled={"sketch": pooled},
        missing="drop",
    )
    case = case_of(task)
    found = case.splits.shifts["sketch"]
    assert len(found.class_names) == remain and len(found) == 3 * remain
    for name, group in zip(found.class_names, case.members("sketch"), strict=True):
        assert group and {case.splits.test.class_names[label] for label in group} <= set(pooled[name])
    robustness.run(case)
    assert {score.n for score in case.results.scores} == {3 * remain}
    lost = [row for row in case.splits.dropped if row["split"] == "shift sketch"]
    assert sum(row["images"] for row in lost) == 3 * (len(pooled) - remain)


def test_no_image_remains():
    task = Task(store(["ant", "bee"]), shifts={"pets": store(["cat", "dog"], name="pets")}, missing="drop")
    with pytest.raises(ValueError, match="shift pets .*other classes than .'ant', 'bee'"):
        encode(None, task, None)


COUNTS = {
    "a list": [2, 4, 8],
    "by name": {"ant": 2, "bee": 4, "cat": 8},
    "of more classes": {"dog": 1, "cat": 8, "bee": 4, "ant": 2},
    "an array": np.array([2, 4, 8]),
}


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_counts_belong_to_class_names(counts):
    """Also if a class is dropped, which moves the places of the others."""
    test = store(["ant", "bee", "cat"])
    for train, missing in ((["bee", "cat"], "drop"), (["ant", "bee", "cat"], "error")):
        task = Task(test, store(train, 10, "train"), counts=counts, limits=["counting"], missing=missing)
        case = case_of(task)
        limits.run(case)
        rows = {row["measure"]: row["value"] for row in case.results.tables["limits"]}
        assert rows["exact"] == 1 and rows["mean absolute error"] == 0
        assert limits.counts_of(task.counts, case.splits.test.class_names) == [2, 4, 8][-len(train) :]
    # The options of a copy are those of the task.
    assert dataclasses.replace(task, protocol="again").counts == task.counts


def test_classes_of_train_that_are_kept_have_options():
    test, train = store(["bee", "ant"]), store(["ant", "bee", "cat"], 10, "train")
    coarse = {"ant": "insect", "bee": "insect", "cat": "pet"}
    counts, names = {"ant": 1, "bee": 2, "cat": 3}, {name: f"{name}s" for name in coarse}
    options = {"coarse": coarse, "counts": counts, "names": names, "limits": ["fine_grained", "counting"]}
    task = Task(test, train, missing="keep", **options)
    case = case_of(task)
    limits.run(case)
    assert {row["limit"] for row in case.results.tables["limits"]} == {"fine_grained", "counting"}
    for option in ("coarse", "names", "counts"):
        given = {name: value for name, value in getattr(task, option).items() if name != "cat"}
        with pytest.raises(ValueError, match=rf"`{option}` must have every class .*'cat'"):
            dataclasses.replace(task, **{option: given})
    # A list cannot name the class that only the training split has.
    with pytest.raises(ValueError, match="`counts` must have every class .*'cat'"):
        dataclasses.replace(task, counts=[2, 1])


@pytest.mark.parametrize("metric", ["mean_per_class", "roc_auc"])
def test_metrics_that_need_images_of_every_class(metric):
    splits = {"test": store(["ant", "bee"]), "train": store(["ant", "bee", "cat"], 10, "train")}
    with pytest.raises(ValueError, match=f"The metric '{metric}' must be defined.*'cat'.*missing=\"drop\""):
        Task(**splits, missing="keep", metric=metric)
    assert encode(None, Task(**splits, missing="drop", metric=metric), None).test.class_names == ("ant", "bee")
    several = np.array([[1, 0], [0, 1], [1, 1], [0, metrics.IGNORED]], np.uint8)
    several = FeatureStore.from_arrays(np.eye(4), np.eye(4), several, ["ant", "bee"])
    with pytest.raises(ValueError, match="must be defined for the test images"):
        Task(several, metric=metric)
    assert Task(several, metric="map_11pt").metric == "map_11pt"


REFUSED = {
    "no list of numbers": ({"shots": 4}, "`shots` must be a list of integers. Received: shots=4"),
    "no shots": ({"shots": (0, 1)}, "`shots` must be integers from 1 on"),
    "no seeds": ({"seeds": ()}, "`seeds` must be integers from 0 on"),
    "watched in no set": (
        {"class_sets": {"a": ["x", "y"]}, "watched": ["z"]},
        r"`watched` must be classes of `class_sets`. Received: \['z'\]",
    ),
    "a text as a set": ({"class_sets": {"a": "thief"}}, "`class_sets` must be lists of class names.*'a' with 'thief'"),
    "a class twice": ({"class_sets": {"a": ["x", "x"]}}, "each once"),
    "a text as watched": ({"class_sets": {"a": ["x"]}, "watched": "x"}, "`watched` must be a list"),
    "too few counts": ({"counts": [1, 2, 3]}, "3 numbers for 2 classes"),
    "a limit above 1": ({"max_broken": 5}, "max_broken must be a fraction.*max_broken=5"),
    "no limit": ({"max_broken": None}, "max_broken=None"),
    "no place for a name": ({"templates": ["a photo"]}, "exactly one {}"),
    "two classes of one name": ({"names": {"ant": "insect", "bee": "insect"}}, "unique"),
    "no coarse classes": ({"limits": ["fine_grained"]}, "requires the coarse class"),
    "classes that are no numbers": ({"limits": ["counting"]}, r"Task\(counts"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_options_that_do_not_fit_are_refused_before_anything_is_encoded(options, message):
    with pytest.raises(ValueError, match=message):
        Task(store(["ant", "bee"]), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test": "photos/test"}, "test of type str"),
        ({"train": [1, 2]}, "train of type list"),
        ({"shifts": {"noise": None}}, "noise of type NoneType"),
        ({"shifts": ["noise"]}, "`shifts` must be a mapping by name"),
        ({"captions": ["a dog"]}, "`captions` must be a mapping"),
    ],
)
def test_what_is_no_split(options, message):
    with pytest.raises(TypeError, match=message):
        Task(**{"test": store(["ant", "bee"]), **options})


def test_a_text_is_one_caption():
    task = Task(store(["ant", "bee"]), captions={f"test {i}": "an ant" for i in range(8)})
    assert task.captions["test 3"] == ["an ant"]


NAMES = [
    ("a/b", "test"),
    ("a_b", "test"),
    ("a b", "test"),
    ("a:b", "test"),
    ("a", "b-test"),
    ("a-b", "test"),
    ("..", "test"),
    ("x" * 300, "test"),
    ("x" * 299 + "y", "test"),
    ("é" * 200, "test"),
    ("CON/../../etc", "test"),
    ("half \ud800", "test"),
]


def test_stores_of_different_names_have_different_folders(tmp_path):
    names = [folder_name(images(name=name, split=split)) for name, split in NAMES]
    assert len(set(names)) == len(names)
    for name in names:
        # With what is written beside a store: drafts, locks and their temporary files.
        assert len(name.encode()) <= 150 and "/" not in name and name not in (".", "..")
        (tmp_path / f".{name}.building.lock.{'0' * 16}.part").touch()
    # Names that were folders before still are.
    assert folder_name(images(name="digits")) == "digits-test"


def test_different_images_of_one_name_are_an_error(monkeypatch):
    built = []
    monkeypatch.setattr(
        FeatureStore, "build", lambda clip, images, *_, **__: built.append(images) or store(["ant", "bee"], 9)
    )
    task = Task(images(), train=images(level=9))
    with pytest.raises(ValueError, match="both of animals/test. Pass another `name` or `split`"):
        encode(None, task, "stores")
    built.clear()
    encode(None, Task(images(), train=images(), validation=images(split="val")), "stores")
    assert len(built) == 3


def test_a_record_names_the_classes_of_all_splits(monkeypatch):
    of_split = {"test": ["1", "2"], "train": ["1", "2", "3"]}
    monkeypatch.setattr(
        catalogue.DatasetRecord,
        "images",
        lambda self, split, **_: store(of_split[split], 10, split, known=["1", "2", "3"]),
    )
    task = Task.from_record(catalogue.record("MNIST"), missing="keep")
    assert list(task.names) == ["1", "2", "3"]
    assert encode(None, task, None).test.class_names == ("1", "2", "3")


def test_held_out_images_are_named_so_only_if_they_were_held_out():
    """Two sources of one name are no hold-out."""
    test, train = store(["ant", "bee"]), store(["ant", "bee"], 10, "train")
    own = case_of(Task(test, train))
    assert own.splits.is_held_out and own.training()[1].endswith("animals/train (held out)")
    other = case_of(Task(test, train, store(["ant", "bee"], 3, "train")))
    assert not other.splits.is_held_out and "held out" not in "".join(other.training())
