"""From images to results in one call, on scikit-learn's digits with an untrained model."""

import dataclasses

import numpy as np
import pytest

import keras_clip
from keras_clip.evaluation import Failure, FeatureStore, Results, Task, compare, evaluate, metrics, report, run
from keras_clip.evaluation.classifiers import few_shot
from keras_clip.evaluation.classifiers.linear_probe import search_C
from keras_clip.evaluation.classifiers.zero_shot import zero_shot_heads, zero_shot_scores
from keras_clip.evaluation.datasets.labelled_images import LabelledImages
from keras_clip.evaluation.datasets.sources import digits
from keras_clip.evaluation.parts import case
from keras_clip.evaluation.tasks import encode, hold_out

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
        shifts={
            "even": few(digits("test"), 90, "even", ["8", "2", "0"]),
            "round": few(digits("test"), 90, "round", ["8", "2", "0"]),
        },
        pooled={"round": {"8": ["8", "9"], "2": ["2", "3", "7"], "0": ["0", "6"]}},
        captions={identity: [f"number {i}", f"the {i}th"] for i, identity in enumerate(test.ids)},
        class_sets={"without": ["a cat", "a dog"], "with": ["a cat", "a dog", "a thief"]},
        watched=["a thief"],
        limits=["counting"],
        shots=(2, 8),
        seeds=(0,),
        published={"zero_shot/family": 0.4, "even/linear_probe": 0.6},
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
    heads = ["bare_name", "one_template", "family", "selected"]
    assert [s.method for s in results.select("digits", "zero_shot", "accuracy")] == [f"zero_shot/{r}" for r in heads]
    assert [s.method for s in results.select("digits", "few_shot")] == ["few_shot/2", "few_shot/8", "few_shot/all"]
    assert len(results.select(method="shift")) == 2 * (1 + 2 + 1)
    tables = {"calibration", "reliability", "robustness", "shots_to_match", "templates", "class_set_disparity"}
    tables |= {"limits", "few_shot_loss"}
    assert tables | {"class_design/digits", "confusion/digits", "errors/digits"} == set(results.tables)
    for score in results.scores:
        assert score.low <= score.value <= score.high and "untrained" in score.protocol and "16x16 px" in score.protocol
    assert {score.n for score in results.select("digits", "linear_probe")} == {120}


def test_protocols_say_what_each_classifier_was_fitted_on(results):
    """The probe is fitted again on the images that its C was selected on; the others are not."""
    (probe,) = results.select("digits", "linear_probe", "accuracy")
    held_out = "digits/train (held out)"
    assert (
        f", trained on digits/train and {held_out} together, hyperparameters selected on {held_out}" in probe.protocol
    )
    for method in ("knn", "tip_adapter", "wise_ft"):
        (score,) = results.select("digits", method)
        assert f", trained on digits/train, hyperparameters selected on {held_out}" in score.protocol
    few_shot = {score.method: score.protocol for score in results.select("digits", "few_shot")}
    assert ", trained on 2 images per class of digits/train, hyper" in few_shot["few_shot/2"]
    assert ", trained on all " in few_shot["few_shot/all"]
    (calibrated,) = results.select("digits", "linear_probe", "expected_calibration_error")
    for shifted in (calibrated, *results.select("even", "shift/linear_probe")):
        assert f"{held_out} together" in shifted.protocol
    assert "trained on" not in results.select("even", "shift/zero_shot/family")[0].protocol


def test_every_table_is_declared_by_one_part(results):
    declared = [table.name for part in run._PARTS.values() for table in part.tables]
    assert len(set(declared)) == len(declared)
    found = {name if name in declared else f"{name.partition('/')[0]}/" for name in results.tables}
    assert found == set(declared) == set(results.info["tables"])
    assert all(table["heading"] for table in results.info["tables"].values())


def test_scores_are_those_of_the_parts(clip, folder, results):
    test = FeatureStore.open(folder / "digits-test")
    family = results.select("digits", "zero_shot/family", "accuracy")[0]
    names = make_task().names
    embeddings = keras_clip.zero_shot.embed_classes(clip.text_embedder, list(names.values()), TEMPLATES)
    np.testing.assert_allclose(family.value, metrics.accuracy(test.embeddings @ embeddings.T, test.labels))
    np.testing.assert_allclose(family.correct.mean(), family.value)
    assert family.published == 0.4


def test_a_probe_beats_chance_on_features_of_an_untrained_model(results):
    assert results.select("digits", "linear_probe")[0].value > 0.3
    # On 120 images, the scores of two and of eight shots are too close to be compared.
    assert min(score.value for score in results.select("digits", "few_shot")) > 0.15


def test_shifts_compare_the_same_classes(folder, results):
    rows = [row for row in results.tables["robustness"] if (row["method"], row["shift"]) == ("linear_probe", "even")]
    (shifted,), (probe,) = (
        results.select("even", "shift/linear_probe"),
        results.select("digits", "linear_probe", "accuracy"),
    )
    assert [(row["reference"], row["shift"], row["n"]) for row in rows] == [("digits", "even", len(shifted.correct))]
    # These images are a subset of the test split, and there are fewer classes to confuse them with.
    test = FeatureStore.open(folder / "digits-test")
    among = np.isin(test.labels, [0, 2, 8]) & (np.arange(120) < 90)
    assert (shifted.correct >= probe.correct[among]).all()
    assert rows[0]["reference_accuracy"] >= probe.correct[np.isin(test.labels, [0, 2, 8])].mean()
    assert shifted.published == 0.6 and results.select("even", "shift/zero_shot/family")[0].published is None


def test_a_shift_may_have_coarser_classes(clip, folder, results):
    """Its score of a class is the largest of the classes that it covers, also on the images of the test split."""
    (score,) = results.select("round", "shift/zero_shot/family")
    (row,) = (
        row for row in results.tables["robustness"] if (row["method"], row["shift"]) == (score.method[6:], "round")
    )
    groups = [[8, 9], [2, 3, 7], [0, 6]]
    shift, test = FeatureStore.open(folder / "round-test"), FeatureStore.open(folder / "digits-test")
    classes = zero_shot_heads(clip, test, TEMPLATES, make_task().names)["zero_shot/family"].class_embeddings

    def predicted(store):
        logits = zero_shot_scores(store, classes)
        return np.argmax([logits[:, group].max(1) for group in groups], axis=0)

    assert [shift.class_names[i] for i in range(3)] == ["8", "2", "0"]
    np.testing.assert_array_equal(score.correct, predicted(shift) == shift.labels)
    pooled = np.array([2, -1, 1, 1, -1, -1, 2, 1, 0, 0])[test.labels]
    right = (predicted(test) == pooled)[pooled >= 0]
    assert row["reference_accuracy"] == pytest.approx(right.mean()) and 30 < len(right) < len(test)


@pytest.mark.parametrize(
    "pooled, message",
    [
        ({"oval": {}}, r"`pooled` must be of shifts, \['even', 'round'\]. Received: pooled of 'oval'"),
        ({"even": {"8": ["8"], "2": ["2"]}}, "2 classes for the 3 of the shift"),
        ({"even": {"8": ["8", "2"], "2": ["2"], "0": ["0"]}}, "1 occur again"),
        ({"even": {"8": ["8"], "2": ["two"], "0": ["0"]}}, r"\['two'\] are unknown"),
        ({"even": {"8": ["8"], "2": [], "0": ["0"]}}, "2 members"),
    ],
    ids=["another shift", "a class without members", "a member twice", "an unknown member", "no member"],
)
def test_pooled_classes_are_checked(pooled, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(make_task(), pooled=pooled)


def test_errors_are_wrong_and_shown(results):
    rows = results.tables["errors/digits"]
    assert len(rows) == 12 and all(row["true"] != row["predicted"] and row["thumbnail"] for row in rows)
    assert [row["confidence"] for row in rows] == sorted((row["confidence"] for row in rows), reverse=True)
    assert sum(row["images"] for row in results.tables["confusion/digits"]) == 120


def test_the_model_may_be_given_by_its_path(clip, folder, results, tmp_path, monkeypatch):
    clip.save(tmp_path / "clip.keras")
    for path in (tmp_path / "clip.keras", str(tmp_path / "clip.keras")):
        found = evaluate(path, make_task(), folder, parts=["zero_shot"], verbose=0)
        assert found.scores == [s for s in results.scores if s.method.startswith("zero") and s.metric == "accuracy"]
        assert found.info["model"] == str(path)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "model, error, message",
    [
        ("no_such_model", ValueError, "`name` must be one of .*Received: 'no_such_model'"),
        (None, TypeError, "`clip` must be a `CLIPModel`, or what .* Received: NoneType"),
        (object(), TypeError, "Received: object. For the features of an encoder alone"),
    ],
    ids=["unknown", "None", "no model"],
)
def test_what_is_no_clip_is_refused(model, error, message):
    with pytest.raises(error, match=message):
        evaluate(model, make_task(), verbose=0)


def test_one_search_on_all_training_images(clip, folder, monkeypatch):
    """The probe, and the few-shot probe on all images, have the same C and the same search."""
    sizes = []

    def count(train, *args, **options):
        sizes.append(len(train[1]))
        return search_C(train, *args, **options)

    for module in (case, few_shot):
        monkeypatch.setattr(module, "search_C", count)
    found = evaluate(clip, make_task(), folder, parts=["linear_probe", "few_shot"], verbose=0)
    assert len(sizes) == 3 and sizes.count(max(sizes)) == 1 and max(sizes) > 150
    probe, all_images = (found.select(method=name)[0] for name in ("linear_probe", "few_shot/all"))
    assert probe.details["C"] == all_images.details["C"]


def test_a_second_call_needs_no_encoder(clip, folder, results, monkeypatch):
    monkeypatch.setattr("keras_clip.evaluation.features.store.Draft", None)
    again = evaluate(clip, make_task(), folder, parts=["zero_shot", "linear_probe"], model="nothing learnt", verbose=0)
    kept = [s for s in results.scores if s.dataset == "digits" and s.metric == "accuracy"]
    wanted = [s for s in kept if s.method.startswith(("zero_shot", "linear_probe"))]
    assert again.scores == wanted and set(again.tables) == {"templates"}


@pytest.mark.slow
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
    place = next(i for i, s in enumerate(other.scores) if (s.method, s.metric) == ("linear_probe", "accuracy"))
    right = other.scores[place].correct
    other.scores[place] = dataclasses.replace(other.scores[place], correct=~right)
    rows = {(row["dataset"], row["method"], row["metric"]): row for row in compare(results, other, resamples=99)}
    # Every score has a row, with a test that fits it.
    assert len(rows) == len(results.scores)
    assert rows["digits", "zero_shot/family", "accuracy"]["p_value"] == 1
    assert rows["even", "shift/linear_probe", "accuracy"]["difference"] == 0
    tests = {key[2]: row["test"] for key, row in rows.items() if key[1] != "retrieval/text_to_image"}
    assert {metric for metric, test in tests.items() if test == "McNemar"} == {
        "accuracy",
        "recall_at_1",
        "recall_at_5",
        "recall_at_10",
    }
    assert rows["digits", "retrieval/text_to_image", "recall_at_5"]["test"] == "permutation"
    found = rows["digits", "linear_probe", "accuracy"]
    assert found["difference"] == pytest.approx(1 - 2 * right.mean())
    assert found["adjusted_p_value"] == pytest.approx(min(1, found["p_value"] * len(rows)))


def test_images_are_compared_by_their_pixels(clip, results, tmp_path):
    """Of the test split and of a shift, other images with the same ids."""
    task = make_task()
    for where in ("digits", "even"):
        images = task.test if where == "digits" else task.shifts["even"]
        pixels = [255 - image for image in images.read(0)]
        negative = LabelledImages(
            lambda start, pixels=pixels: iter(pixels[start:]),
            [images.class_names[label] for label in images.labels],
            images.ids,
            images.class_names,
            name=images.name,
            split=images.split,
        )
        changed = (
            Task(negative, templates=TEMPLATES, names=task.names)
            if where == "digits"
            else Task(task.test, shifts={"even": negative}, templates=TEMPLATES, names=task.names)
        )
        other = evaluate(
            clip, changed, tmp_path / where, ["zero_shot" if where == "digits" else "robustness"], verbose=0
        )
        with pytest.raises(ValueError, match=rf"same images.*\['{where}'\]"):
            compare(results, other)


def fail(*_):
    raise RuntimeError("the first\n line, and the second")


def test_a_failing_part_leaves_the_others(clip, folder, results, tmp_path, monkeypatch):
    """Every part may fail; what the others measured is written before the next one begins."""
    seen = []

    def look(case):
        seen.append(Results.from_json((tmp_path / "results.json").read_text()))

    parts = {"zero_shot": None, "linear_probe": fail, "errors": look}
    changed = {name: dataclasses.replace(part, run=parts.get(name) or part.run) for name, part in run._PARTS.items()}
    monkeypatch.setattr(run, "_PARTS", changed)
    with pytest.warns(UserWarning, match="1 parts of the evaluation failed. linear_probe of digits: RuntimeError"):
        found = evaluate(clip, make_task(), folder, parts=list(parts), model="nothing learnt", verbose=0, out=tmp_path)
    expected = [s for s in results.scores if s.method.startswith("zero_shot") and s.metric == "accuracy"]
    assert found.scores == expected
    assert found.failures == [Failure("digits", "linear_probe", "RuntimeError: the first line, and the second")]
    assert [(one.scores, one.failures) for one in seen] == [(expected, found.failures)]
    assert Results.from_json((tmp_path / "results.json").read_text()).failures == found.failures
    page = report.html.render(found)
    assert "Failed parts" in page and "the first line, and the second" in page


def test_a_dataset_that_cannot_be_encoded_leaves_the_others(clip, folder, tmp_path):
    broken = few(digits("test"), 30, "broken", ["8", "2"])
    broken.digest()
    broken.read = fail
    with pytest.warns(UserWarning, match="encode of broken: RuntimeError"):
        found = evaluate(clip, [Task(broken), make_task()], folder, parts=["zero_shot"], verbose=0, out=tmp_path)
    assert found.datasets == ["digits"] and [(f.dataset, f.part) for f in found.failures] == [("broken", "encode")]
    # An evaluation of nothing is an error.
    with pytest.raises(RuntimeError, match="the first"):
        evaluate(clip, Task(broken), folder, parts=["zero_shot"], verbose=0)


def test_unreadable_images_are_counted_and_named(clip, tmp_path):
    images = few(digits("test"), 40, "spoilt")
    pixels = [b"no image" if row in (3, 9, 17) else image for row, image in enumerate(images.read(0))]
    images.read = lambda start: iter(pixels[start:])
    images.skipped.add("README.txt", "not an image")
    for limit, options in ((0.05, {}), (0.01, {"max_broken": 0.01})):
        with pytest.raises(ValueError, match=f"At most {100 * limit:g}% of the samples"):
            evaluate(clip, Task(images), tmp_path, parts=["zero_shot"], verbose=0, **options)
    found = evaluate(clip, Task(images, max_broken=0.1), tmp_path, parts=["zero_shot"], verbose=0)
    assert {score.n for score in found.scores} == {37}
    skipped = found.info["skipped"]["spoilt/test"]
    assert skipped["counts"] == {"not an image": 1, "undecodable image": 3}
    assert [f"{images.ids[9]}: undecodable" in text for text in skipped["examples"]] == [False, False, True, False]
    assert Results.from_json(found.to_json()).info["skipped"] == found.info["skipped"]
    # An argument of the call goes before that of the task.
    again = evaluate(clip, Task(images), tmp_path, parts=["zero_shot"], verbose=0, max_broken=1)
    assert again.scores == found.scores


def test_numbers_that_cannot_be_written_are_returned(clip, folder, results, tmp_path, monkeypatch):
    """A full disk costs the files, not the evaluation."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileExistsError):
        evaluate(clip, make_task(), folder, parts=["zero_shot"], verbose=0, out=tmp_path / "file")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Results, "save", full)
    with pytest.warns(UserWarning, match="1 parts .* write results of digits: OSError: .*No space left"):
        found = evaluate(clip, make_task(), folder, parts=["zero_shot"], verbose=0, out=tmp_path)
    assert [s.value for s in found.scores] == [
        s.value for s in results.select("digits", "zero_shot") if s.metric == "accuracy"
    ]
    assert [(one.dataset, one.part) for one in found.failures] == [("digits", "write results")]


def test_an_interrupted_evaluation_has_written_its_numbers(clip, folder, tmp_path, monkeypatch):
    def interrupt(case):
        raise KeyboardInterrupt

    changed = run._PARTS | {"errors": dataclasses.replace(run._PARTS["errors"], run=interrupt)}
    monkeypatch.setattr(run, "_PARTS", changed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(clip, make_task(), folder, parts=["zero_shot", "errors"], verbose=0, out=tmp_path)
    assert len(Results.from_json((tmp_path / "results.json").read_text()).scores) == 4


def test_a_drawing_that_fails_leaves_the_numbers(results, tmp_path, monkeypatch):
    monkeypatch.setattr(report.html, "gallery", fail)
    with pytest.raises(RuntimeError):
        report.write(results, tmp_path)
    assert (tmp_path / "results.json").read_text() == results.to_json()
    assert (tmp_path / "results.csv").exists() and not (tmp_path / "report.html").exists()


def store(classes, per_class, split="test", name="animals"):
    """Features of some classes, which all splits embed alike."""
    known = ["ant", "bee", "cat", "dog"]
    labels = np.repeat(np.arange(len(classes)), per_class)
    embeddings = np.eye(8)[[known.index(classes[label]) for label in labels]]
    ids = [f"{split} {i}" for i in range(len(labels))]
    return FeatureStore.from_arrays(
        embeddings, embeddings, labels, classes, ids=ids, name=name, split=split, logit_scale=1.0
    )


MISSING = {
    "train lacks one": (["ant", "bee", "cat"], ["ant", "bee"], r"Only animals/test has \['cat'\] \(1 of 3 classes\)"),
    "test lacks one": (["ant", "bee"], ["ant", "bee", "cat"], r"Only animals/train has \['cat'\] \(1 of 3 classes\)"),
    "each lacks one": (["ant", "bee", "cat"], ["ant", "bee", "dog"], r"train has \['dog'\].*test has \['cat'\]"),
    "nothing in common": (["ant", "bee"], ["cat", "dog"], r"train has \['cat', 'dog'\].*test has \['ant', 'bee'\]"),
}


@pytest.mark.parametrize(("of_test", "of_train", "message"), MISSING.values(), ids=MISSING)
def test_classes_that_one_split_lacks_are_an_error_or_counted(of_test, of_train, message):
    splits = {"test": store(of_test, 4), "train": store(of_train, 10, "train")}
    with pytest.raises(ValueError, match=message + '.*missing="drop"'):
        encode(None, Task(**splits), None)
    common = [name for name in of_test if name in of_train]
    if len(common) < 2:
        with pytest.raises(ValueError, match="at least two"):
            encode(None, Task(**splits, missing="drop"), None)
        return
    found = encode(None, Task(**splits, missing="drop"), None)
    for part, per_class in (("test", 4), ("train", 8), ("validation", 2)):
        of_part = getattr(found, part)
        assert of_part.class_names == tuple(common) and np.bincount(of_part.labels).tolist() == [per_class] * 2
        # The label is still that of the image.
        assert (of_part.embeddings.argmax(axis=1) == of_part.labels).all()
    rows = [(row["split"], row["classes"], row["images"], row["of"]) for row in found.dropped]
    expected = [
        (part, [name for name in names if name not in common], size * (len(names) - 2), size * len(names))
        for part, names, size in (("test", of_test, 4), ("train", of_train, 10))
        if len(names) > 2
    ]
    assert rows == expected


def test_classes_without_test_images_may_be_kept():
    splits = {"test": store(["bee", "ant"], 4), "train": store(["ant", "bee", "cat"], 10, "train")}
    found = encode(None, Task(**splits, missing="keep"), None)
    assert found.test.class_names == ("ant", "bee", "cat") and found.test.labels.tolist() == [1] * 4 + [0] * 4
    assert found.dropped == []
    with pytest.raises(ValueError, match="Only animals/test has"):
        encode(None, Task(store(["ant", "bee", "cat"], 4), store(["ant", "bee"], 9, "train"), missing="keep"), None)


def test_images_of_a_shift_whose_classes_the_dataset_lacks():
    task = Task(store(["ant", "bee"], 4), shifts={"noise": store(["bee", "cat"], 3, name="noise")})
    with pytest.raises(ValueError, match=r"classes of a shift.*Only noise/test has \['cat'\].*missing"):
        encode(None, task, None)
    found = encode(None, dataclasses.replace(task, missing="drop"), None)
    assert found.shifts["noise"].class_names == ("bee",) and len(found.shifts["noise"]) == 3
    assert [(row["split"], row["images"]) for row in found.dropped] == [("shift noise", 3)]
    unnamed = FeatureStore.from_arrays(np.eye(4), np.eye(4), [0, 1, 0, 1])
    with pytest.raises(ValueError, match="no class names"):
        encode(None, Task(task.test, shifts={"noise": unnamed}, missing="drop"), None)


def test_classes_of_images_with_several():
    labels = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [0, metrics.IGNORED, 1]], np.uint8)
    whole = FeatureStore.from_arrays(np.eye(4), np.eye(4), labels, ["ant", "bee", "cat"])
    part = whole.of_classes(["bee", "ant", "dog"])
    assert part.ids.tolist() == ["0", "1", "2"] and part.labels.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_dropped_images_are_counted_in_every_protocol(clip, tmp_path):
    splits = few(digits("test"), 60), few(digits("train"), 80, classes=list("012"))
    found = evaluate(clip, Task(*splits, missing="drop"), tmp_path, parts=["zero_shot", "linear_probe"], verbose=0)
    kept = int(np.isin(splits[0].labels, [0, 1, 2]).sum())
    for score in found.scores:
        assert score.n == kept and f"without {60 - kept} of 60 images of test, whose classes not all" in score.protocol
    assert [(row["split"], row["images"], len(row["classes"])) for row in found.tables["dropped"]] == [
        ("test", 60 - kept, 7)
    ]


CAPTIONS = {
    "four of eight images": ({f"test {i}": ["a"] for i in range(4)}, r"4 of 8 images without captions \['test 4'"),
    "other images too": ({f"test {i}": ["a"] for i in range(9)}, r"captions of 1 other images \['test 8'\]"),
    "no caption in the list": ({f"test {i}": ["a"] * (i > 0) for i in range(8)}, "1 of 8 images without captions"),
    "other ids": ({f"{i}": ["a"] for i in range(8)}, "8 of 8 images without captions"),
}


@pytest.mark.parametrize(("captions", "message"), CAPTIONS.values(), ids=CAPTIONS)
def test_captions_or_images_without_the_other_are_an_error(captions, message):
    with pytest.raises(ValueError, match=message + '.*missing="drop"'):
        Task(store(["ant", "bee"], 4), captions=captions)
    assert Task(store(["ant", "bee"], 4), captions=captions, missing="drop").missing == "drop"


def test_images_without_captions_are_counted(clip, folder):
    test = few(digits("test"), 120)
    captions = {identity: [f"number {i}"] for i, identity in enumerate(test.ids[:30])} | {"other": ["a"]}
    found = evaluate(clip, Task(test, captions=captions, missing="drop"), folder, parts=["retrieval"], verbose=0)
    for score in found.scores:
        assert score.n == 30 and "without 90 of 120 images, which have no captions" in score.protocol
        assert (score.details["images_without_captions"], score.details["captions_without_image"]) == (90, 1)


def test_captions_of_broken_images_are_no_error():
    test = store(["ant", "bee"], 4)
    test.skipped.add("test 8", "no image")
    assert Task(test, captions={f"test {i}": ["a"] for i in range(9)})


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
        captions = {"other": ["a"]}
        evaluate(clip, Task(task.test, captions=captions, missing="drop"), folder, parts=["retrieval"], verbose=0)
    with pytest.raises(ValueError, match="metric"):
        Task(task.test, metric="acuracy")
    with pytest.raises(ValueError, match="missing='ignore'"):
        Task(task.test, missing="ignore")
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
