"""`ZeroShotClassifier`: class embeddings by hand and by a naive loop, accuracies by hand, saving, refusals."""

import json
import math
import warnings
import zipfile

import keras
import numpy as np
import pytest

import keras_clip
from keras_clip import encoders
from keras_clip.data import CLIPTokenizer
from keras_clip.evaluation import mean_per_class
from keras_clip.evaluation.classifiers.zero_shot import PromptTable
from keras_clip.zero_shot import class_embeddings, embed_classes
from keras_clip.zero_shot.labelled_batches import ranks_of

NAMES = ["cat", ["dog", "little dog"], "a boat on a very wide and very blue lake", "tree", "CAT"]
TEMPLATES = ("{}", "a photo of a {}.", "a drawing of the {}, one of the many of them.")


def make_clip(image_encoder=None, **arguments):
    keras.utils.set_random_seed(0)
    return keras_clip.CLIPModel(
        image_encoder or encoders.VisionTransformer(16, 8, 16, 1, 2),
        encoders.TextTransformer(32, 1, 2, context_length=24),
        embed_dim=8,
        **arguments,
    )


@pytest.fixture(scope="module")
def clip():
    return make_clip()


@pytest.fixture(scope="module")
def classifier(clip):
    return keras_clip.ZeroShotClassifier(clip, NAMES, TEMPLATES)


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, size=(5, 16, 16, 3)).astype("uint8")


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


def naive_class_embeddings(clip, class_names, templates):
    """Embeds each prompt alone, at the full context length, and averages as documented."""
    rows = []
    for names in class_names:
        prompts = [template.format(name) for name in np.atleast_1d(names) for template in templates]
        mean = np.mean([to_numpy(clip.encode_text(clip.tokenizer([prompt])))[0] for prompt in prompts], axis=0)
        rows.append(mean / np.linalg.norm(mean))
    return np.stack(rows)


class TableOfTexts:
    """Replaces the text tower: returns a given vector for each text, and records its inputs."""

    embed_dim = 2
    tokenizer = CLIPTokenizer(24)

    def __init__(self, table):
        self.table, self.batches = table, []

    def predict_on_batch(self, token_ids):
        self.batches.append((token_ids.shape, self.tokenizer.decode(token_ids)))
        return np.array([self.table[text] for text in self.batches[-1][1]], "float32")


BY_HAND = {
    "one prompt": (["a"], ["{}"], {"a": [0, 1]}, [[0, 1]]),
    "two templates": (["a"], ["{}", "the {}"], {"a": [1, 0], "the a": [0, 1]}, [[0.5**0.5, 0.5**0.5]]),
    # The mean is taken over all three names, not over two means, and normalised afterwards.
    "three names": ([["a", "b", "c"]], ["{}"], {"a": [1, 0], "b": [1, 0], "c": [0, 1]}, [[2 / 5**0.5, 1 / 5**0.5]]),
    "two names, two templates": (
        ["a", ["b", "c"]],
        ["{}", "the {}"],
        {"a": [1, 0], "the a": [1, 0], "b": [0, 1], "the b": [0, 1], "c": [0, 1], "the c": [1, 0]},
        [[1, 0], [1 / 10**0.5, 3 / 10**0.5]],
    ),
    "opposites": (["a"], ["{}", "the {}"], {"a": [1, 0], "the a": [-1, 0]}, [[0, 0]]),
}


@pytest.mark.parametrize("names, templates, table, expected", BY_HAND.values(), ids=BY_HAND)
def test_class_embeddings_by_hand(names, templates, table, expected):
    embeddings = embed_classes(TableOfTexts(table), names, templates)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, expected, atol=1e-6)


def test_equal_prompts_are_computed_once():
    texts = TableOfTexts({"cat": [1, 0], "dog": [0, 1]})
    embeddings = embed_classes(texts, ["cat", "dog", "CAT", " cat"], ["{}"])
    assert [shape for shape, _ in texts.batches] == [(8, 3)]
    assert set(texts.batches[0][1]) == {"cat", "dog"}
    np.testing.assert_array_equal(embeddings, [[1, 0], [0, 1], [1, 0], [1, 0]])


def test_many_prompts_have_few_shapes(monkeypatch):
    monkeypatch.setattr(class_embeddings, "BATCH_SIZE", 16)
    monkeypatch.setattr(class_embeddings, "TOKENS_PER_WIDTH", 10)
    names = [" ".join("x" * (1 + i % 7)) + f" {i // 10} {i % 10}" for i in range(60)]
    texts = TableOfTexts({name: [i, 1.0] for i, name in enumerate(names)})
    embeddings = embed_classes(texts, names, ["{}"])
    np.testing.assert_allclose(embeddings[:, 0] / embeddings[:, 1], np.arange(60), rtol=1e-4)
    shapes = [shape for shape, _ in texts.batches]
    assert len({width for _, width in shapes}) == 3
    assert len(set(shapes)) == 3
    assert max(rows for rows, _ in shapes) <= 16


# {case: (lengths, tokens that a width must save, expected widths)}
WIDTHS = {
    "one length": ([9, 9], 0, [9]),
    "one shape for a few": ([4, 5, 9], 4096, [9]),
    "a width for each length": ([4, 5, 9], 0, [4, 5, 9]),
    "three of four": ([4] * 9 + [5] + [7] * 9 + [20], 0, [4, 7, 20]),
    "saves enough tokens": ([4] * 10 + [20], 100, [4, 20]),
    "saves too few tokens": ([4] * 10 + [20], 161, [20]),
}


@pytest.mark.parametrize("lengths, saved, expected", WIDTHS.values(), ids=WIDTHS)
def test_widths(lengths, saved, expected, monkeypatch):
    monkeypatch.setattr(class_embeddings, "TOKENS_PER_WIDTH", saved)
    assert class_embeddings._widths(np.array(lengths)) == expected


@pytest.mark.parametrize("tokens_per_width", [0, 4096], ids=["three widths", "one width"])
def test_class_embeddings_equal_the_naive_loop(tokens_per_width, clip, monkeypatch):
    monkeypatch.setattr(class_embeddings, "TOKENS_PER_WIDTH", tokens_per_width)
    classifier = keras_clip.ZeroShotClassifier(clip, NAMES, TEMPLATES)
    expected = naive_class_embeddings(clip, NAMES, TEMPLATES)
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    np.testing.assert_allclose(to_numpy(classifier.class_embeddings), expected, atol=2e-6)


def test_the_tokenizer_is_that_of_the_clip():
    class Shouting(CLIPTokenizer):
        def __call__(self, texts, truncate=False, length=None):
            return super().__call__([f"{text}!" for text in texts], truncate, length)

    clip = make_clip(tokenizer=Shouting(24))
    classifier = keras_clip.ZeroShotClassifier(clip, ["cat", "dog"])
    plain = naive_class_embeddings(make_clip(), ["cat", "dog"], ["a photo of a {}."])
    shouted = naive_class_embeddings(make_clip(), ["cat", "dog"], ["a photo of a {}.!"])
    assert np.abs(plain - shouted).max() > 1e-3
    np.testing.assert_allclose(to_numpy(classifier.class_embeddings), shouted, atol=2e-6)


def test_probabilities_are_those_of_the_cosines(clip, classifier, images):
    cosines = to_numpy(clip.encode_image(images)) @ to_numpy(classifier.class_embeddings).T
    logits = cosines / 0.07
    np.testing.assert_allclose(to_numpy(classifier.logits(images)), logits, atol=2e-5)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    probabilities = classifier.predict(images, verbose=0)
    assert probabilities.shape == (5, 5) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    normalised = clip.image_preprocessor.normalize(images)
    np.testing.assert_allclose(classifier.predict(normalised, verbose=0), probabilities, atol=1e-5)
    assert tuple(classifier(keras.KerasTensor((None, 16, 16, 3), "uint8")).shape) == (None, 5)


def test_predicts_datasets(classifier, images):
    tf = pytest.importorskip("tensorflow", reason="backend unable: TensorFlow is not installed")
    expected = classifier.predict(images, verbose=0)
    for elements in (images, {"images": images}, (images, np.zeros(5, "int32"))):
        dataset = tf.data.Dataset.from_tensor_slices(elements).batch(3)
        np.testing.assert_allclose(classifier.predict(dataset, verbose=0), expected, atol=1e-6)


def test_owns_the_image_tower_and_the_class_embeddings_only(clip, classifier):
    own = {id(weight) for weight in classifier.weights}
    assert own == {id(w) for w in clip.image_embedder.weights} | {
        id(classifier.class_embeddings),
        id(classifier.logit_scale),
    }
    assert {id(w) for w in classifier.trainable_weights} == {id(w) for w in clip.image_embedder.trainable_weights}
    assert classifier.class_names == ("cat", "dog", "a boat on a very wide and very blue lake", "tree", "CAT")
    assert classifier.templates == TEMPLATES


def test_the_temperature_is_that_of_construction(images):
    clip = make_clip(temperature=0.5)
    classifier = keras_clip.ZeroShotClassifier(clip, NAMES)
    before = classifier.predict(images, verbose=0)
    clip.logit_scale.assign(3.0)
    np.testing.assert_array_equal(classifier.predict(images, verbose=0), before)
    assert float(classifier.logit_scale) == pytest.approx(math.log(2))


def test_saved_and_loaded(classifier, images, tmp_path):
    classifier.save(tmp_path / "classifier.keras")
    with zipfile.ZipFile(tmp_path / "classifier.keras") as archive:
        config = archive.read("config.json").decode()
    assert json.loads(config)["class_name"] == "ZeroShotClassifier"
    assert "Tokenizer" not in config and "TextTransformer" not in config
    loaded = keras.saving.load_model(tmp_path / "classifier.keras")
    np.testing.assert_array_equal(loaded.predict(images, verbose=0), classifier.predict(images, verbose=0))
    assert loaded.names_per_class == classifier.names_per_class
    assert loaded.templates == classifier.templates
    assert loaded.image_preprocessor == classifier.image_preprocessor
    assert len(loaded.weights) == len(classifier.weights)
    loaded.save(tmp_path / "again.keras")
    again = keras.saving.load_model(tmp_path / "again.keras")
    np.testing.assert_array_equal(to_numpy(again.class_embeddings), to_numpy(classifier.class_embeddings))


def test_wrapped_encoder_and_mixed_precision(images, tmp_path):
    inputs = keras.Input((16, 16, 3))
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        encoder = encoders.wrap(keras.Model(inputs, keras.layers.Conv2D(4, 8)(inputs)), pixel_range=(-1, 1))
        clip = make_clip(encoder)
    finally:
        keras.config.set_dtype_policy("float32")
    classifier = keras_clip.ZeroShotClassifier(clip, NAMES, TEMPLATES)
    probabilities = classifier.predict(images, verbose=0)
    assert probabilities.dtype == np.float32
    assert classifier.class_embeddings.dtype == "float32"
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    expected = naive_class_embeddings(clip, NAMES, TEMPLATES)
    assert (to_numpy(classifier.class_embeddings) * expected).sum(axis=1).min() > 0.999
    classifier.save(tmp_path / "classifier.keras")
    loaded = keras.saving.load_model(tmp_path / "classifier.keras")
    np.testing.assert_array_equal(loaded.predict(images, verbose=0), probabilities)


@keras.saving.register_keras_serializable(package="tests")
class MeanColour(keras.layers.Layer):
    """Maps images to their mean colour, so that embeddings are known by hand."""

    image_size = 2

    def call(self, images):
        return keras.ops.mean(images, axis=(1, 2))


RED, GREEN, BLUE = (np.broadcast_to(colour, (2, 2, 3)).astype("float32") for colour in np.eye(3))


def colour_classifier(class_names, class_embeddings, logit_scale=0.0, **options):
    embedder = keras_clip.ImageEmbedder(MeanColour(), embed_dim=3)
    embedder.projection.dense.kernel.assign(np.eye(3))
    return keras_clip.ZeroShotClassifier(
        embedder, class_names, class_embeddings=class_embeddings, logit_scale=logit_scale, **options
    )


@pytest.fixture(scope="module")
def colours():
    return colour_classifier(["red", ["green", "grass"], "blue"], np.eye(3), math.log(2))


def test_probabilities_by_hand(colours):
    e = math.exp(2)
    expected = [[e / (e + 2), 1 / (e + 2), 1 / (e + 2)], [1 / (e + 2), 1 / (e + 2), e / (e + 2)]]
    np.testing.assert_allclose(colours.predict(np.stack([RED, BLUE]), verbose=0), expected, atol=1e-6)


IMAGES = np.stack([RED, RED, RED, GREEN, BLUE])
# Four images are classified correctly and the last wrongly: red has three images, green two, blue none.
UNBALANCED = {"top_1_accuracy": 0.8, "top_5_accuracy": 1.0, "mean_per_class_accuracy": np.nan}


def dataset_of(labels, batch_size=2):
    tf = pytest.importorskip("tensorflow", reason="backend unable: TensorFlow is not installed")
    return tf.data.Dataset.from_tensor_slices((IMAGES, labels)).batch(batch_size)


LABELLED = {
    "arrays": lambda: (IMAGES, np.array([0, 0, 0, 1, 1])),
    "a list of labels": lambda: (IMAGES, [0, 0, 0, 1, 1]),
    "a column of labels": lambda: (IMAGES, np.array([[0], [0], [0], [1], [1]], "uint8")),
    "names": lambda: (IMAGES, ["red", "red", "red", "grass", "green"]),
    "tensors": lambda: (keras.ops.convert_to_tensor(IMAGES), keras.ops.convert_to_tensor([0, 0, 0, 1, 1])),
    "a tuple": lambda: ((IMAGES, [0, 0, 0, 1, 1]),),
    "a dataset": lambda: (dataset_of([0, 0, 0, 1, 1]),),
    "a dataset of names": lambda: (dataset_of(["red", "red", "red", "green", "grass"]),),
    "a list of batches": lambda: ([(IMAGES[:2], [0, 0]), ({"images": IMAGES[2:]}, np.array([0, 1, 1]))],),
}


@pytest.mark.parametrize("labelled", LABELLED.values(), ids=LABELLED)
def test_evaluate_by_hand(labelled, colours):
    with pytest.warns(UserWarning, match=r"no image of \['blue'\] \(1 of 3 classes\); it is NaN"):
        assert colours.evaluate(*labelled(), batch_size=2, verbose=0) == pytest.approx(UNBALANCED, nan_ok=True)


def test_the_mean_per_class_is_that_of_the_metric(colours):
    labels = np.array([0, 0, 2, 1, 1])
    result = colours.evaluate(IMAGES, labels, verbose=0)
    expected = mean_per_class(colours.predict(IMAGES, verbose=0), labels)
    # Two of two red images, none of one blue one, one of two green ones.
    assert result["mean_per_class_accuracy"] == pytest.approx(expected) == pytest.approx((1 + 0 + 0.5) / 3)


def test_top_5_by_hand():
    # For a red image, the classes are in descending order, so the label is its rank.
    cosines = 1 - 0.1 * np.arange(7)
    matrix = np.stack([cosines, np.sqrt(1 - cosines**2), np.zeros(7)], axis=1)
    classifier = colour_classifier([f"class {i}" for i in range(7)], matrix)
    metrics = classifier.evaluate(np.stack([RED] * 7), [0, 1, 2, 3, 4, 5, 6])
    per_class = {"mean_per_class_accuracy": 1 / 7}
    assert metrics == pytest.approx({"top_1_accuracy": 1 / 7, "top_5_accuracy": 5 / 7, **per_class})


EQUAL = {
    "upper case": (["Apple", "pear", "apple"], r"'Apple' and 'apple' \(1 pair of names\)"),
    "composed and decomposed": (["caf\u00e9", "cafe\u0301"], r"'caf\\xe9' and 'cafe\\u0301'"),
    "spaces": (["cat ", "cat", "sea  lion", "sea lion"], r"'cat ' and 'cat'; 'sea  lion' and 'sea lion' \(2 pairs"),
    "one of several names": ([["crane", "heron"], ["digger", "Crane"]], "'crane' and 'Crane'"),
    "full-width letters": (["ABC", "\uff21\uff22\uff23"], r"'ABC' and '\\uff21\\uff22\\uff23'"),
}
DIFFERENT = {
    "names": ["cat", "dog"],
    "names of one class": [["Apple", "apple"], "pear"],
    "one begins with the other": ["cat", "cats", "cat food"],
}


@pytest.mark.parametrize(("names", "message"), EQUAL.values(), ids=EQUAL)
def test_names_that_the_tokenizer_makes_equal(clip, names, message):
    with pytest.warns(UserWarning, match=message):
        keras_clip.ZeroShotClassifier(clip, names, TEMPLATES)


@pytest.mark.backend_free
@pytest.mark.parametrize("names", DIFFERENT.values(), ids=DIFFERENT)
def test_names_that_differ_have_no_warning(clip, names, recwarn):
    embed_classes(clip.text_embedder, names, TEMPLATES)
    assert not [w for w in recwarn if "Prompts of different classes" in str(w.message)]


ACROSS = {
    "an article": (["cat", "a cat"], ("a {}.", "{}.")),
    "the end": (["dog", "dog food"], ("{} food.", "{}.")),
    "both ways": (["x", "x y", "y x"], ("{}", "{} y", "y {}")),
}


@pytest.mark.backend_free
@pytest.mark.parametrize(("names", "templates"), ACROSS.values(), ids=ACROSS)
def test_equal_prompts_of_different_templates_have_no_warning(clip, names, templates, recwarn):
    """The classes differ in each template."""
    embed_classes(clip.text_embedder, names, templates)
    PromptTable(clip, [[name] for name in names], templates)
    assert not [w for w in recwarn if "Prompts of different classes" in str(w.message)]
    with pytest.warns(UserWarning, match="Received: equal token ids"):
        PromptTable(clip, [[name] for name in (*names, names[0].upper())], templates)


@pytest.mark.parametrize("classes", [1, 2])
def test_few_classes(classes):
    classifier = colour_classifier(["red", "green"][:classes], np.eye(3)[:classes])
    assert classifier.predict(IMAGES, verbose=0).shape == (5, classes)
    rows = [0, 3][:classes]
    metrics = classifier.evaluate(IMAGES[rows], list(range(classes)))
    assert set(metrics.values()) == {1.0}


# {case: (probabilities, label, number of classes ranked before it)}
RANKS = {
    "first": ([0.5, 0.3, 0.2], 0, 0),
    "last": ([0.5, 0.3, 0.2], 2, 2),
    "ties go to the first class": ([0.25, 0.25, 0.25, 0.25], 2, 2),
    "NaN is never correct": ([np.nan] * 3, 0, 3),
    "a NaN of another class ranks before": ([0.5, np.nan], 0, 1),
}


@pytest.mark.parametrize("row, label, expected", RANKS.values(), ids=RANKS)
def test_ranks(row, label, expected):
    assert ranks_of(np.array([row], "float32"), np.array([label])).tolist() == [expected]


def test_fine_tuning_trains_the_image_tower_only():
    classifier = colour_classifier(["red", "green"], np.eye(3)[:2])
    kernel = to_numpy(classifier.image_embedder.projection.dense.kernel).copy()
    classifier.compile(keras.optimizers.SGD(0.1), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    data = IMAGES[:4], np.array([1, 1, 0, 0])
    history = classifier.fit(*data, epochs=1, validation_data=data, verbose=0).history
    assert "val_accuracy" in history
    assert np.abs(to_numpy(classifier.image_embedder.projection.dense.kernel) - kernel).max() > 1e-4
    np.testing.assert_array_equal(to_numpy(classifier.class_embeddings), np.eye(3)[:2])
    assert float(classifier.logit_scale) == 0.0


def test_logits_learn_where_a_confident_model_is_wrong():
    """From probabilities the loss is cut off at -log(1e-7) = 16.1; from logits it is the whole difference."""
    classifier = colour_classifier(["red", "green"], np.eye(3)[:2], logit_scale=np.log(100.0), activation=None)
    np.testing.assert_allclose(to_numpy(classifier(IMAGES)), to_numpy(classifier.logits(IMAGES)), rtol=1e-6)
    kernel = to_numpy(classifier.image_embedder.projection.dense.kernel).copy()
    wrong = np.array([1, 1, 0, 0])
    classifier.compile(keras.optimizers.SGD(0.1), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    history = classifier.fit(IMAGES[:4], wrong, epochs=1, verbose=0).history
    # Three of four images have a logit of 100 for the other class, and 0 for their own.
    assert history["loss"][0] == pytest.approx(75.0, rel=1e-3)
    assert np.abs(to_numpy(classifier.image_embedder.projection.dense.kernel) - kernel).max() > 1e-3
    again = keras_clip.ZeroShotClassifier.from_config(classifier.get_config())
    assert again.activation is None


@pytest.mark.parametrize(
    "activation, loss",
    [
        (None, keras.losses.SparseCategoricalCrossentropy()),
        ("softmax", keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
        ("softmax", keras.losses.CategoricalCrossentropy(from_logits=True)),
    ],
    ids=["probabilities of logits", "logits of probabilities", "one-hot"],
)
def test_losses_of_something_else_are_refused(activation, loss):
    classifier = colour_classifier(["red", "green"], np.eye(3)[:2], activation=activation)
    with pytest.raises(ValueError, match=f"Received: a {type(loss).__name__}.*activation={activation!r}.*Fine-tune"):
        classifier.compile("sgd", loss)


def test_losses_of_probabilities_are_warned_of():
    classifier = colour_classifier(["red", "green"], np.eye(3)[:2])
    for loss in ("sparse_categorical_crossentropy", keras.losses.categorical_crossentropy):
        with pytest.warns(UserWarning, match="activation=None"):
            classifier.compile("sgd", loss)
    classifier.compile("sgd", "mse")
    with pytest.raises(ValueError, match="Received: activation='sigmoid'"):
        colour_classifier(["red"], np.eye(3)[:1], activation="sigmoid")


def test_a_compiled_classifier_loads_without_the_warning(tmp_path):
    classifier = colour_classifier(["red", "green"], np.eye(3)[:2])
    with pytest.warns(UserWarning, match="activation=None"):
        # As of `keras.Model.compile`, whose further arguments may have no name either.
        classifier.compile("adam", "sparse_categorical_crossentropy", None, ["accuracy"])
    classifier.fit(IMAGES[:4], np.array([0, 0, 1, 1]), verbose=0)
    classifier.save(tmp_path / "classifier.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = keras.saving.load_model(tmp_path / "classifier.keras")
    values = [
        model.evaluate(IMAGES[:4], np.array([0, 0, 1, 1]), verbose=0, return_dict=True)
        for model in (classifier, loaded)
    ]
    assert set(values[0]) == {"loss", "accuracy"} and values[0] == pytest.approx(values[1], abs=1e-5)
    # The state of the optimizer is loaded too: both go on alike.
    assert int(loaded.optimizer.iterations) == 1
    for model in (classifier, loaded):
        model.fit(IMAGES[:4], np.array([0, 0, 1, 1]), verbose=0)
    np.testing.assert_allclose(to_numpy(loaded.weights[0]), to_numpy(classifier.weights[0]), atol=1e-6)
    with pytest.warns(UserWarning, match="activation=None"):
        loaded.compile("sgd", "sparse_categorical_crossentropy")


LABELS_REFUSED = {
    "too large": (lambda: (IMAGES, [0, 0, 0, 1, 3]), r"\[0, 3\)"),
    "negative": (lambda: (IMAGES, [0, 0, 0, 1, -1]), r"\[0, 3\)"),
    "floats": (lambda: (IMAGES, [0.0, 0, 0, 1, 1]), "integers"),
    "one-hot": (lambda: (IMAGES, np.eye(3)[[0, 0, 0, 1, 1]]), "one label per image"),
    "an unknown name": (lambda: (IMAGES, ["red", "red", "red", "green", "grey"]), "'grey'"),
    "too few": (lambda: (IMAGES, [0, 0]), "one label per image"),
    "too few in a batch": (lambda: ([(IMAGES, [0, 0])],), "one label per image"),
    "none": (lambda: (IMAGES,), "require labels"),
    "none in a dataset": (lambda: ([{"images": IMAGES}],), r"\(images, labels\)"),
    "no images": (lambda: (IMAGES[:0], []), "at least one"),
    "an empty dataset": (lambda: ([],), "at least one"),
    "paths": (lambda: (["a.png", "b.png"], [0, 1]), "image_preprocessor"),
    "paths in batches": (lambda: ([(["a.png", "b.png"], [0, 1])],), "image_preprocessor"),
    "images of two sizes": (lambda: ([IMAGES[0], IMAGES[1][:1]], [0, 1]), "image_preprocessor"),
}


@pytest.mark.parametrize("labelled, message", LABELS_REFUSED.values(), ids=LABELS_REFUSED)
def test_labels_refused(labelled, message, colours):
    with pytest.raises(ValueError, match=f"(?s){message}.*Received|Received.*{message}"):
        colours.evaluate(*labelled(), verbose=0)


REFUSED = {
    "a template without a placeholder": (dict(templates=["a photo"]), ValueError, "template"),
    "a template with two placeholders": (dict(templates=["{} {}"]), ValueError, "template"),
    "the same template twice": (dict(templates=["{}", "{}"]), ValueError, "template"),
    "one text as templates": (dict(templates="{}"), TypeError, "templates"),
    "no class": (dict(class_names=[]), ValueError, "class"),
    "an empty name": (dict(class_names=["cat", " "]), ValueError, "class"),
    "a name twice": (dict(class_names=["cat", ["dog", "cat"]]), ValueError, "class_names"),
    "a prompt too long": (dict(class_names=["very " * 30 + "long"]), ValueError, "very long"),
    "another shape": (dict(class_embeddings=np.zeros((3, 8))), ValueError, r"\(2, 8\)"),
}


@pytest.mark.parametrize("arguments, error, message", REFUSED.values(), ids=REFUSED)
def test_refusals(arguments, error, message, clip):
    with pytest.raises(error, match=f"(?s){message}.*Received|Received.*{message}"):
        keras_clip.ZeroShotClassifier(clip, **{"class_names": ["cat", "dog"], **arguments})


def test_an_embedder_instead_of_a_clip_is_refused(clip):
    with pytest.raises(ValueError, match="(?s)text embedder.*Received.*`class_embeddings` and `logit_scale`"):
        keras_clip.ZeroShotClassifier(clip.image_embedder, ["cat"])
    with pytest.raises(TypeError, match="(?s)CLIPModel.*Received"):
        keras_clip.ZeroShotClassifier(clip.text_embedder, ["cat"])
