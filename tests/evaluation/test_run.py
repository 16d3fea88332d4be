"""From images to results in one call, on scikit-learn's digits with an untrained model."""

import dataclasses

import numpy as np
import pytest

import keras_clip
from keras_clip.evaluation import FeatureStore, Results, Task, compare, evaluate, metrics, report, run
from keras_clip.evaluation.datasets.labelled_images import LabelledImages
from keras_clip.evaluation.datasets.sources import digits
from keras_clip.evaluation.tasks import hold_out

TEMPLATES = ("a photo of the number {}.", "the digit {}.")


def build():
    """Returns a CLIP whose 8 features do not separate the classes, so that a probe converges fast for every C."""
    image_encoder = keras_clip.encoders.VisionTransformer(16, 8, 8, 1, 1)
    text_encoder = keras_clip.encoders.TextTransformer(32, 1, 2, context_length=16)
    return keras_clip.CLIPModel(image_encoder, text_encoder, 16)


def few(images, count, name=None, classes=None):
    """Returns the first images of some classes under another name."""
    names = [images.class_names[label] for label in images.labels[:count]]
    rows = [row for row, label in enumerate(names) if classes is None or label in classes]

    def read(start):
        pixels = list(images.read(0))
        return iter([pixels[row] for row in rows[start:]])

    return LabelledImages(
        read,
        [names[row] for row in rows],
        [images.ids[row] for row in rows],
        classes or images.class_names,
        groups=["left" if row % 2 else "right" for row in rows],
        name=name or images.name,
        split=images.split,
    )


def make_task():
    test = few(digits("test"), 120)
    return Task(
        test,
        train=few(digits("train"), 200),
        templates=TEMPLATES,
        names={
            str(i): [name, str(i)] for i, name in enumerate("zero one two three four five six seven eight nine".split())
        },
        shifts={"even": few(digits("test"), 90, "even", ["8", "2", "0"])},
        captions={identity: [f"number {i}", f"the {i}th"] for i, identity in enumerate(test.ids[:30])},
        class_sets={"without": ["a cat", "a dog"], "with": ["a cat", "a dog", "a thief"]},
        watched=["a thief"],
        shots=(2, 8),
        seeds=(0,),
        published={"zero_shot/family": 0.4},
        protocol="untrained",
    )


@pytest.fixture(scope="module")
def clip():
    model, generator = build(), np.random.default_rng(0)
    # The weights are equal on every backend, although the backends' random numbers differ.
    for variable in model.trainable_variables:
        if len(variable.shape) == 2:
            variable.assign(generator.standard_normal(variable.shape) / variable.shape[0] ** 0.5)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def results(clip, folder):
    return evaluate(clip, make_task(), folder, model="nothing learnt", verbose=0)


def test_every_part_has_its_scores(results):
    methods = {score.method.partition("/")[0] for score in results.scores}
    assert methods == {"zero_shot", "linear_probe", "few_shot", "knn", "tip_adapter", "wise_ft", "shift", "retrieval"}
    rungs = ["bare_name", "one_template", "family", "selected"]
    assert [s.method for s in results.select("digits", "zero_shot", "accuracy")] == [f"zero_shot/{r}" for r in rungs]
    assert len(results.select("digits", "few_shot")) == 2 and len(results.select(method="shift")) == 1 + 2 + 1
    tables = {"calibration", "reliability", "robustness", "shots_to_match", "templates"}
    assert tables | {"class_design/digits", "confusion/digits", "errors/digits"} == set(results.tables)
    for score in results.scores:
        assert score.low <= score.value <= score.high and "untrained" in score.protocol and "16x16 px" in score.protocol
    assert {score.n for score in results.select("digits", "linear_probe")} == {120}


def test_every_table_is_declared_by_one_part(results):
    declared = [table for part in run._PARTS.values() for table in part.tables]
    assert len(set(declared)) == len(declared)
    found = {name if name in declared else f"{name.partition('/')[0]}/" for name in results.tables}
    assert found == set(declared)


def test_scores_are_those_of_the_parts(clip, folder, results):
    test = FeatureStore.open(folder / "digits-test")
    family = results.select("digits", "zero_shot/family", "accuracy")[0]
    names = make_task().names
    embeddings = keras_clip.zero_shot.embed_classes(clip.text_embedder, list(names.values()), TEMPLATES)
    np.testing.assert_allclose(family.value, metrics.accuracy(test.embeddings @ embeddings.T, test.labels))
    np.testing.assert_allclose(results.correct["digits/zero_shot/family"].mean(), family.value)
    assert family.published == 0.4


def test_a_probe_beats_chance_on_features_of_an_untrained_model(results):
    assert results.select("digits", "linear_probe")[0].value > 0.3
    # On 120 images, the scores of two and of eight shots are too close to be compared.
    assert min(score.value for score in results.select("digits", "few_shot")) > 0.15


def test_shifts_compare_the_same_classes(folder, results):
    rows = [row for row in results.tables["robustness"] if row["method"] == "linear_probe"]
    assert [(row["reference"], row["shift"], row["n"]) for row in rows] == [
        ("digits", "even", len(results.correct["even/shift/linear_probe"]))
    ]
    # These images are a subset of the test split, and there are fewer classes to confuse them with.
    test = FeatureStore.open(folder / "digits-test")
    among = np.isin(test.labels, [0, 2, 8]) & (np.arange(120) < 90)
    assert (results.correct["even/shift/linear_probe"] >= results.correct["digits/linear_probe"][among]).all()
    assert (
        rows[0]["reference_accuracy"] >= results.correct["digits/linear_probe"][np.isin(test.labels, [0, 2, 8])].mean()
    )


def test_errors_are_wrong_and_shown(results):
    rows = results.tables["errors/digits"]
    assert len(rows) == 12 and all(row["class"] != row["named"] and row["thumbnail"] for row in rows)
    assert [row["confidence"] for row in rows] == sorted((row["confidence"] for row in rows), reverse=True)
    assert sum(row["images"] for row in results.tables["confusion/digits"]) == 120


def test_a_second_call_needs_no_encoder(clip, folder, results, monkeypatch):
    monkeypatch.setattr("keras_clip.evaluation.features.store.Draft", None)
    again = evaluate(clip, make_task(), folder, parts=["zero_shot", "linear_probe"], model="nothing learnt", verbose=0)
    kept = [s for s in results.scores if s.dataset == "digits" and s.metric == "accuracy"]
    wanted = [s for s in kept if s.method.startswith(("zero_shot", "linear_probe"))]
    assert again.scores == wanted and set(again.tables) == {"templates"}


@pytest.mark.backend_free
def test_the_report_has_every_figure_that_one_model_gives(results, tmp_path, monkeypatch):
    results.tables["efficiency"] = [{"objective": "contrastive", "images": 8, "accuracy": 0.1}]
    page = report.write(results, tmp_path).read_text(encoding="utf-8")
    # Figure 11 needs another model on the same data: the digits are not among the paper's datasets.
    for number in (2, 4, 5, 6, 7, 8, 9, 10, 13, 14, 15):
        assert f'alt="figure {number}"' in page
    assert 'alt="figure 11"' not in page
    monkeypatch.setattr(report.html, "gallery", lambda *_: {})
    assert "adjusted p value" not in page
    assert "adjusted p value" in report.render(results, Results.from_json(results.to_json()))


def test_two_models_are_compared_by_method(results):
    other = Results.from_json(results.to_json())
    other.correct["digits/linear_probe"] = ~other.correct["digits/linear_probe"]
    rows = {(row["dataset"], row["method"]): row for row in compare(results, other)}
    assert rows["digits", "zero_shot/family"]["p_value"] == 1 and rows["even", "shift/linear_probe"]["difference"] == 0
    found = rows["digits", "linear_probe"]
    assert found["difference"] == pytest.approx(1 - 2 * results.correct["digits/linear_probe"].mean())
    assert found["adjusted_p_value"] == pytest.approx(min(1, found["p_value"] * len(rows)))
    other.info["images"]["digits"] = "others"
    with pytest.raises(ValueError, match=r"same images.*\['digits'\]"):
        compare(results, other)


def test_inconsistent_tasks_are_refused(clip, folder, tmp_path):
    task = make_task()
    with pytest.raises(ValueError, match="'retrieval' requires `captions`"):
        evaluate(clip, task.test, folder, parts=["retrieval"], verbose=0)
    with pytest.raises(ValueError, match="parts from .*Received: 1 tasks, parts=.'probe'"):
        evaluate(clip, task, folder, parts=["probe"])
    with pytest.raises(ValueError, match="require a folder"):
        evaluate(clip, task)
    with pytest.raises(ValueError, match="different names"):
        evaluate(clip, [task.test, task.test], folder, verbose=0)
    with pytest.raises(ValueError, match="same classes in the same order.*'8', '2', '0'"):
        evaluate(clip, dataclasses.replace(task, train=task.shifts["even"]), folder, verbose=0)
    with pytest.raises(ValueError, match="captions by the ids"):
        evaluate(clip, Task(task.test, captions={"other": ["a"]}), folder, parts=["retrieval"], verbose=0)
    with pytest.raises(ValueError, match="metric"):
        Task(task.test, metric="acuracy")
    with pytest.raises(ValueError, match="differs in weights"):
        evaluate(build(), task.test, folder, verbose=0)


def test_a_part_of_each_class_is_held_out():
    rng = np.random.default_rng(0)
    embeddings = np.eye(4)[rng.integers(0, 4, 60)]
    labels = np.repeat([0, 1, 2], [40, 16, 4])
    store = FeatureStore.from_arrays(embeddings, embeddings, labels, ["a", "b", "c"], split="train")
    kept, held = hold_out(store)
    assert np.bincount(held.labels, minlength=3).tolist() == [8, 3, 0] and len(kept) + len(held) == 60
    assert not set(kept.ids) & set(held.ids)
    again = hold_out(store.take(np.arange(60)[::-1]))[1]
    assert set(again.ids) == set(held.ids)
    with pytest.raises(ValueError, match="fewer than 5 images"):
        hold_out(store.take([0, 41, 58]))
