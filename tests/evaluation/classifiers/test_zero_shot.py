"""The zero-shot heads equal `embed_classes` and the classifier, embeds each prompt once, selects on training data."""

import keras
import numpy as np
import pytest

import keras_clip
from keras_clip.evaluation import FeatureStore
from keras_clip.evaluation.classifiers import zero_shot
from keras_clip.evaluation.classifiers.zero_shot import PromptTable, select_templates, zero_shot_scores
from keras_clip.evaluation.datasets.names import align_names
from keras_clip.zero_shot import ZeroShotClassifier, embed_classes

TEMPLATES = ("a photo of a {}.", "a sketch of a {}.", "one {}.", "my {}")
NAMES = {"cat": ["cat", "kitten"], "dog": "dog", "ant": ["ant", "emmet", "pismire"]}
CLASSES = ("dog", "ant", "cat")


@pytest.fixture(scope="module")
def clip():
    keras.utils.set_random_seed(0)
    image_encoder = keras_clip.encoders.VisionTransformer(16, 8, 16, 1, 2)
    return keras_clip.CLIPModel(image_encoder, keras_clip.encoders.TextTransformer(16, 1, 2, context_length=16), 8)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def random_store(name="zoo", split="test", rows=12, seed=0, **changes):
    embeddings = unit(np.random.default_rng(seed).normal(size=(rows, 8)))
    labels = np.arange(rows) % 3
    ids = [f"{split} {row}" for row in range(rows)]
    whole = {"class_names": CLASSES, "ids": ids, "name": name, "split": split, "logit_scale": 2.0}
    return FeatureStore.from_arrays(embeddings, embeddings, labels, **{**whole, **changes})


def test_heads_are_what_embed_classes_makes(clip):
    heads = zero_shot.zero_shot_heads(clip, random_store(), TEMPLATES, NAMES)
    assert list(heads) == ["zero_shot/bare_name", "zero_shot/one_template", "zero_shot/family"]
    names = [NAMES[name] for name in CLASSES]
    for method, templates in zip(heads, (("{}",), TEMPLATES[:1], TEMPLATES), strict=True):
        head = heads[method]
        assert (head.method, head.templates) == (method, templates)
        np.testing.assert_allclose(
            head.class_embeddings, embed_classes(clip.text_embedder, names, templates), atol=2e-6
        )


def test_scores_are_the_classifier_s_logits(clip):
    images = np.random.default_rng(0).normal(size=(5, 16, 16, 3)).astype("float32")
    embeddings = keras.ops.convert_to_numpy(clip.encode_image(images))
    store = FeatureStore.from_arrays(embeddings, embeddings, [0, 1, 2, 0, 1], CLASSES)
    head = zero_shot.zero_shot_heads(clip, store, TEMPLATES, NAMES)["zero_shot/family"]
    classifier = ZeroShotClassifier(clip, [NAMES[name] for name in CLASSES], TEMPLATES)
    expected = keras.ops.convert_to_numpy(classifier.logits(images))
    scale = float(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(clip.logit_scale)))
    np.testing.assert_allclose(zero_shot_scores(store, head.class_embeddings, scale), expected, atol=1e-4)


@pytest.mark.backend_free
def test_every_prompt_is_embedded_once(clip, monkeypatch):
    seen = []

    def count(embedder, names, templates):
        seen.extend(template.replace("{}", name) for name in names for template in templates)
        return embed_classes(embedder, names, templates)

    monkeypatch.setattr(zero_shot, "embed_classes", count)
    zero_shot.zero_shot_heads(clip, random_store(), TEMPLATES, NAMES, training=random_store(split="train"))
    assert len(seen) == len(set(seen)) == 6 * 5  # six names, four templates and the bare name


def test_names_that_the_tokenizer_makes_equal(clip):
    store = random_store()
    names = {name: [name, name.upper()] for name in store.class_names}
    # Those of one class may.
    table = PromptTable(clip, list(names.values()), TEMPLATES)
    expected = embed_classes(clip.text_embedder, list(names.values()), TEMPLATES)
    np.testing.assert_allclose(table.class_embeddings(TEMPLATES), expected, atol=2e-6)
    names |= {"dog": "dog", "ant": ["emmet", "Dog"]}
    with pytest.warns(UserWarning, match=r"equal token ids of 'dog' and 'Dog' \(1 pair of names\)"):
        zero_shot.zero_shot_heads(clip, store, TEMPLATES, names)


@pytest.mark.backend_free
def test_scores_by_hand(monkeypatch):
    monkeypatch.setattr(zero_shot, "_ROWS", 2)  # so that several blocks of rows are multiplied
    store = FeatureStore.from_arrays(np.eye(3), np.eye(3), [0, 1, 1], ["a", "b"], logit_scale=np.log(10.0))
    scores = zero_shot_scores(store, [[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(scores, [[6, 0], [8, 0], [0, 10]], rtol=1e-6)
    assert scores.dtype == np.float32


def separable(table):
    """Returns a training split whose classes only the last template separates fully, and the first in part."""
    right = table.class_embeddings(TEMPLATES[3:])
    rows = unit(np.repeat(right - right.mean(axis=0), 3, axis=0))
    return FeatureStore.from_arrays(rows, rows, np.repeat([0, 1, 2], 3), CLASSES, name="zoo", split="train")


def brute_force(table, store, templates):
    chosen, best = (), -1.0
    while True:
        scored = []
        for template in templates:
            if template not in chosen:
                weights = table.class_embeddings((*chosen, template))
                scored.append((np.mean((store.embeddings @ weights.T).argmax(1) == store.labels), template))
        if not scored or max(value for value, _ in scored) <= best:
            return chosen
        best = max(value for value, _ in scored)
        chosen += (next(template for value, template in scored if value == best),)


@pytest.mark.backend_free
def test_selection_adds_templates_while_the_metric_improves(clip):
    table = PromptTable(clip, align_names(CLASSES, NAMES), TEMPLATES)
    assert select_templates(table, separable(table), TEMPLATES) == TEMPLATES[3:]
    sizes = set()
    for seed in range(8):
        training = random_store(split="train", rows=30, seed=seed)
        chosen = select_templates(table, training, TEMPLATES)
        assert chosen == brute_force(table, training, TEMPLATES)
        sizes.add(len(chosen))
    assert len(sizes) > 1


@pytest.mark.backend_free
def test_selection_follows_the_metric(clip):
    table = PromptTable(clip, align_names(CLASSES, NAMES), TEMPLATES)
    # The metric may be any function of scores and labels; this one prefers scores near zero.
    spread = lambda scores, labels: -float(np.abs(scores).sum())  # noqa: E731
    chosen = select_templates(table, random_store(split="train"), TEMPLATES, spread)
    sums = {t: np.abs(random_store(split="train").embeddings @ table.class_embeddings([t]).T).sum() for t in TEMPLATES}
    assert chosen[0] == min(sums, key=sums.get)


@pytest.mark.backend_free
def test_many_images_are_drawn_evenly():
    labels = np.repeat([0, 1, 2], [40, 3, 17])
    store = random_store(rows=60)
    store.labels = labels
    rows = zero_shot._draw(store, 12)
    assert np.bincount(labels[rows]).tolist() == [5, 3, 4]
    assert zero_shot._draw(store, 1).size == 3  # at least one of each class
    assert zero_shot._draw(store, 60).tolist() == list(range(60))
    reordered = store.take(np.arange(60)[::-1])
    assert set(reordered.ids[zero_shot._draw(reordered, 12)]) == set(store.ids[rows])


REFUSED = {
    "no temperature": (
        lambda clip: zero_shot_scores(random_store(logit_scale=None), np.zeros((3, 8))),
        "`logit_scale` must be given",
    ),
    "classes of another model": (lambda clip: zero_shot_scores(random_store(), np.zeros((3, 7))), "with E = 8"),
    "selection on the same store": (
        lambda clip: zero_shot.zero_shot_heads(clip, random_store(), TEMPLATES, NAMES, training=random_store()),
        "selected on a training split",
    ),
    "selection on another set's test split": (
        lambda clip: zero_shot.zero_shot_heads(
            clip, random_store(), TEMPLATES, NAMES, training=random_store("farm", "test[:9]")
        ),
        "selected on a training split",
    ),
    "selection on images of both splits": (
        lambda clip: zero_shot.zero_shot_heads(
            clip,
            random_store(),
            TEMPLATES,
            NAMES,
            training=random_store(split="train", ids=["test 3", *map(str, range(11))]),
        ),
        "with 1 ids in both",
    ),
    "selection on other classes": (
        lambda clip: zero_shot.zero_shot_heads(
            clip, random_store(), TEMPLATES, NAMES, training=random_store(split="train", class_names=CLASSES[::-1])
        ),
        "same classes in the same order",
    ),
    "a template beyond the table": (
        lambda clip: PromptTable(clip, [["cat"]], TEMPLATES).class_embeddings(["the {}"]),
        "must be among the table's",
    ),
}


@pytest.mark.backend_free
@pytest.mark.parametrize("call, message", REFUSED.values(), ids=REFUSED)
def test_refusals(clip, call, message):
    with pytest.raises(ValueError, match=message):
        call(clip)
