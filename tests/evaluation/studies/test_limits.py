"""The limits of the paper's sections 6 and 7: by hand, their refusals, the images that are drawn, and the part."""

import types

import numpy as np
import pytest

from keras_clip.evaluation import blaker_interval, compare_models, disparity, limits, sources
from keras_clip.evaluation.datasets.labelled_images import LabelledImages
from keras_clip.evaluation.parts import limits as part
from keras_clip.evaluation.results import Results
from keras_clip.evaluation.task_options import counts_of
from keras_clip.evaluation.tasks import Splits, Task

pytestmark = pytest.mark.backend_free
# Predicted classes 0, 1, 2, 2 of the true ones 0, 0, 0, 2.
SCORES = np.array([[3, 2, 1], [1, 3, 2], [1, 2, 3], [0, 1, 2]], float)
LABELS = np.array([0, 0, 0, 2])


def by_measure(rows):
    return {row["measure"]: row for row in rows}


def test_counting_by_hand():
    rows = by_measure(limits.counting(SCORES, LABELS, [1, 2, 4]))
    assert [rows[name]["value"] for name in ("exact", "within one", "too many", "too few")] == [0.5, 0.75, 0.5, 0]
    assert rows["mean absolute error"]["value"] == (0 + 1 + 3 + 0) / 4
    assert rows["most frequent count"]["value"] == 0.75
    assert (rows["exact"]["low"], rows["exact"]["high"]) == blaker_interval(2, 4)
    # Too few: the numbers in the other direction.
    assert by_measure(limits.counting(SCORES, LABELS, [4, 2, 1]))["too few"]["value"] == 0.5


def test_fine_grained_by_hand():
    # The make is right for images 0, 1 and 3; given the make, 0 and 3 are right, and image 2 is too.
    rows = by_measure(limits.fine_grained(SCORES, LABELS, ["car", "car", "bird"]))
    assert rows["fine"]["value"] == 0.5 and rows["coarse"]["value"] == 0.75
    assert rows["fine, given the coarse class"]["value"] == 0.5
    assert rows["chance, given the coarse class"]["value"] == pytest.approx((3 / 2 + 1) / 4)


def test_given_the_coarse_class_only_its_own_classes_compete():
    scores = np.array([[1.0, 2.0, 9.0, 9.5]] * 2)
    rows = by_measure(limits.fine_grained(scores, np.array([1, 3]), ["a", "a", "b", "b"]))
    assert rows["fine, given the coarse class"]["value"] == 1 and rows["fine"]["value"] == 0.5


def test_baseline_by_hand():
    pixels, zero_shot = np.array([True, True, True, False]), np.array([True, False, False, False])
    rows = by_measure(limits.against_baseline({"zero-shot": zero_shot, "pixels": pixels}, "pixels"))
    assert rows["zero-shot"]["difference"] == -0.5 and "difference" not in rows["pixels"]
    compared = compare_models(pixels, zero_shot)
    assert rows["zero-shot"]["p_value"] == compared.p_value == 0.5
    assert (rows["zero-shot"]["difference_low"], rows["pixels"]["value"]) == (compared.low, 0.75)


def test_few_shot_loss_by_hand():
    zero_shot = np.arange(200) < 160
    worse, same = np.arange(200) < 100, np.arange(200) >= 40
    rows = limits.few_shot_loss(zero_shot, {4: [same], 1: [worse, worse]})
    assert [row["shots"] for row in rows] == [1, 4]
    assert rows[0]["difference"] == pytest.approx(-0.3) and rows[0]["lost"] and rows[0]["seeds"] == 2
    assert rows[0]["low"] == pytest.approx(compare_models(zero_shot, worse).low)
    assert rows[1]["difference"] == 0 and not rows[1]["lost"]
    # Better than zero-shot is no loss.
    assert not limits.few_shot_loss(worse, {2: [zero_shot]})[0]["lost"]


def test_class_sets_decide_the_disparity():
    names, sets = ["person", "thief", "child"], {"without": ["person", "thief"], "with": ["person", "thief", "child"]}
    young = [[1, 2, 3]] * 30 + [[3, 1, 2]] * 10
    scores = np.array(young + [[3, 2, 1]] * 38 + [[1, 3, 2]] * 2, float)
    groups = ["young"] * 40 + ["adult"] * 40
    without, with_child = limits.class_set_disparity(scores, names, sets, groups, ["thief"])
    assert (without["highest"], without["lowest"]) == ("young", "adult")
    assert without["difference"] == pytest.approx(0.75 - 0.05) and with_child["difference"] == pytest.approx(0.05)
    assert without["p_value"] < 0.01 < 0.1 < with_child["p_value"]
    hits = np.repeat([True, False, False, True], [30, 10, 38, 2])
    assert (without["low"], without["high"]) == (disparity(hits, groups).low, disparity(hits, groups).high)


BAD = {
    "counts": (lambda: limits.counting(SCORES, LABELS, [1, 2]), "number for each class"),
    "coarse names": (lambda: limits.fine_grained(SCORES, LABELS, ["a", "b"]), "2 names"),
    "one coarse class": (lambda: limits.fine_grained(SCORES, LABELS, ["a"] * 3), "1 coarse"),
    "as many coarse as fine": (lambda: limits.fine_grained(SCORES, LABELS, list("abc")), "3 coarse"),
    "baseline": (lambda: limits.against_baseline({"a": LABELS == 0}, "b"), "baseline='b'"),
    "no probes": (lambda: limits.few_shot_loss(LABELS == 0, {}), "none"),
    "other images": (lambda: limits.few_shot_loss(LABELS == 0, {1: [np.ones(3, bool)]}), r"\(1, 3\) at 1 shots"),
    "unknown limit": (lambda: Task(digits(), limits=["colour"]), "limits="),
    "a text for the list": (lambda: Task(digits(), limits="counting"), "limits='counting'"),
    "coarse of some": (lambda: Task(digits(), limits=["fine_grained"], coarse={"0": "round"}), "none for"),
    "no pixels to train on": (lambda: Task(digits(), limits=["pixels"]), "train=None"),
    "no scenes": (lambda: sources.counting_scenes(0), "per_count=0"),
    "a word twice": (lambda: sources.rendered_text(["a", "a"]), "distinct"),
    "no word": (lambda: sources.rendered_text(["a", "b"], per_word=0), "per_word=0"),
}


def digits():
    return sources.digits("test")


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_scenes_of_equal_rows_differ_in_their_number_only():
    images = sources.counting_scenes(3, image_size=32)
    assert images.class_names == ("one", "two", "three", "four") and len(images) == 12
    samples = list(images)
    assert [int(sample.label) for sample in samples] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert all(sample.image.shape == (32, 32, 3) and sample.image.dtype == np.uint8 for sample in samples)
    # Read again from the middle, the pixels are the same; another seed has other scenes.
    assert np.array_equal(next(images.read(7)), samples[7].image)
    assert not np.array_equal(next(sources.counting_scenes(3, 32, seed=1).read(7)), samples[7].image)


def test_rendered_words_are_inside_the_image_and_contrast_with_the_ground():
    images = sources.rendered_text(["yes", "wonderful"], per_word=6, image_size=48)
    for sample in images:
        grey = sample.image.mean(2)
        ground = grey[0, 0]
        ink = abs(grey - ground) > 40
        assert 0.005 < ink.mean() < 0.5, sample.id
        assert np.array_equal(sample.image, next(images.read(images.ids.index(sample.id))))
    # A longer word is written smaller.
    heights = [np.ptp(np.flatnonzero((abs(s.image.mean(2) - s.image.mean(2)[0, 0]) > 40).any(1))) for s in images]
    assert np.mean(heights[:6]) > np.mean(heights[6:])


class FakeStore:
    """A feature store of hand-made arrays."""

    def __init__(self, images, features):
        self.name, self.split, self.class_names = images.name, images.split, images.class_names
        self.labels, self.ids, self.groups = images.labels, images.ids, images.groups
        self.features = self.embeddings = features

    def __len__(self):
        return len(self.ids)


def striped(count, split):
    """Two classes that pixels tell apart, and features do not."""
    rng = np.random.default_rng(len(split))
    pixels = rng.integers(0, 60, (count, 8, 8), dtype="uint8")
    pixels[::2, :4] += 150
    labels = ["top" if i % 2 == 0 else "none" for i in range(count)]
    # Folders of several splits have the same ids.
    ids = [str(i) for i in range(count)]
    images = LabelledImages(
        lambda start: iter(pixels[start:]), labels, ids, ["none", "top"], name="stripes", split=split
    )
    return images, FakeStore(images, rng.normal(size=(count, 3)).astype("float32"))


def test_part_compares_with_a_regression_on_pixels():
    splits = {name: striped(count, name) for name, count in (("test", 40), ("train", 60), ("val", 20))}
    images, stores = ({name: pair[i] for name, pair in splits.items()} for i in (0, 1))
    task = Task(images["test"], images["train"], images["val"], limits=["pixels", "rendered_text"], shots=(1,))
    results = Results()
    probe = types.SimpleNamespace(decision_function=lambda features: np.tile([1.0, 0.0], (len(features), 1)))
    few_shot = [types.SimpleNamespace(shots=1, scores=np.tile([0.0, 1.0], (40, 1)))]
    case = types.SimpleNamespace(
        name="stripes",
        task=task,
        splits=Splits(stores["test"], stores["train"], stores["val"], {}),
        results=results,
        verbose=0,
        zero_shot=lambda store: np.tile([1.0, 0.0], (len(store), 1)),
        probe=types.SimpleNamespace(probe=probe),
        few_shot=few_shot,
    )
    part.run(case)
    rows = {(row["limit"], row["measure"]): row for row in results.tables["limits"]}
    assert rows["pixels", "logistic regression on pixels"]["value"] == 1
    assert rows["pixels", "zero-shot"]["value"] == 0.5 and rows["pixels", "zero-shot"]["difference"] == -0.5
    assert rows["rendered_text", "most frequent class"]["value"] == 0.5
    assert results.tables["few_shot_loss"][0]["difference"] == 0
    # Without the images, the pixels are missing.
    case.task = types.SimpleNamespace(**{**vars(task), "test": stores["test"]})
    with pytest.raises(ValueError, match="feature stores have no pixels"):
        part.run(case)


def test_pixels_are_those_of_the_images_of_a_store():
    """Images of another split may have the same ids, and a store leaves out what cannot be decoded."""
    pixels = [np.full((8, 8, 3), level, np.uint8) for level in (0, 255)]
    images = LabelledImages(lambda start: iter([b"", *pixels][start:]), ["a", "b", "b"], ["x", "y", "z"], ["a", "b"])
    (found,) = part._pixels([part._grey(images, ["z", "y"])])
    assert found.shape == (2, 64) and (found[0] == 1).all() and (found[1] == 0).all()


@pytest.mark.parametrize(
    "sizes, expected",
    {
        "as they are": ([(8, 8), (8, 8)], 64),
        "not square": ([(28, 10), (28, 10)], 280),
        "reduced": ([(50, 20), (28, 40)], 784),
        "of several sizes": ([(8, 8), (9, 8)], 784),
    }.values(),
)
def test_pixels_are_reduced_to_the_size_of_mnist(sizes, expected):
    splits = [
        LabelledImages(
            lambda _, size=size: iter([np.full((*size, 3), 51, np.uint8)] * 2), ["a", "b"], ["x", "y"], ["a", "b"]
        )
        for size in sizes
    ]
    for pixels in part._pixels([part._grey(images, ["x"]) for images in splits]):
        assert pixels.shape == (1, expected) and pixels == pytest.approx(0.2)


def test_part_reads_the_counts_from_the_class_names():
    assert counts_of({}, ["3", "four", "10"]) == [3, 4, 10]
    with pytest.raises(ValueError, match=r"Task\(counts"):
        counts_of({}, ["few", "many"])
