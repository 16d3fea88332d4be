"""The baselines learn, do not see the tokens that they predict, score classes as documented, and can be saved."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_clip
from keras_clip import baselines

CAPTIONS = ["a red circle", "two blue stars", "one green heart!", "a blue circle"]
KINDS = ("bag of words", "language model")
kinds = pytest.mark.parametrize("kind", KINDS)


def build(kind, vocabulary=True, **options):
    keras.utils.set_random_seed(1)
    tokenizer = keras_clip.data.CLIPTokenizer(8)
    encoder = keras_clip.encoders.VisionTransformer(16, 8, 16, 1, 2)
    if vocabulary:
        options["vocabulary"] = baselines.vocabulary_of([tokenizer(CAPTIONS)])
    if kind == "bag of words":
        return baselines.BagOfWordsPredictor(encoder, tokenizer, **options)
    return baselines.CaptionLanguageModel(encoder, tokenizer, 16, 2, 2, prefix_length=2, **options)


def pairs(rows=8):
    images = np.random.default_rng(0).integers(0, 256, size=(rows, 16, 16, 3)).astype("uint8")
    token_ids = keras_clip.data.CLIPTokenizer(8)([CAPTIONS[i % 4] for i in range(rows)])
    return {"images": images, "token_ids": token_ids}


def pair_losses(model, data):
    words = model.words_of(data["token_ids"])
    return ops.convert_to_numpy(model._losses_of(model(data), words))


def test_metrics_of_embeddings_are_refused():
    with pytest.raises(ValueError, match="of two inputs. Received: metrics for a BagOfWordsPredictor, which embeds 1"):
        build("bag of words").compile(metrics=[lambda images, texts: 0.0])


def test_vocabulary():
    tokenizer = keras_clip.data.CLIPTokenizer(6)
    vocabulary = baselines.vocabulary_of([tokenizer(["a red", "red a"]), tokenizer("a b")])
    a, red, b = (tokenizer.encode(word)[0] for word in ("a", "red", "b"))
    assert vocabulary == sorted([0, a, red, b, tokenizer.start_token_id, tokenizer.end_token_id])
    model = build("bag of words", vocabulary=False)
    assert model.num_words == tokenizer.vocabulary_size
    np.testing.assert_array_equal(ops.convert_to_numpy(model.words_of([[5, 49407]])), [[5, 49407]])


def test_words_outside_the_vocabulary_are_one_word():
    model = baselines.BagOfWordsPredictor(build("bag of words").image_encoder, keras_clip.data.CLIPTokenizer(8), [7, 3])
    # The words are 3, 7, the end token, and one for all others.
    assert model.num_words == 4
    np.testing.assert_array_equal(ops.convert_to_numpy(model.words_of([[3, 7, 49407, 0, 8]])), [[0, 1, 2, 3, 3]])


@kinds
def test_shapes_and_the_loss_that_fit_reports(kind):
    model, data = build(kind), pairs(3)
    logits = model(data)
    shape = (3, model.num_words) if kind == "bag of words" else (3, 8, model.num_words)
    assert tuple(logits.shape) == shape
    symbolic = model({"images": keras.Input((16, 16, 3)), "token_ids": keras.Input((8,), dtype="int32")})
    assert tuple(symbolic.shape) == (None, *shape[1:])
    model.compile("sgd")
    assert model.evaluate(data, verbose=0) == pytest.approx(pair_losses(model, data).mean(), rel=1e-5)


@pytest.fixture(scope="module")
def one_step():
    """Returns a function of the kind: a model after one training step, its weights before and after, and its loss."""
    made = {}

    def of(kind):
        if kind not in made:
            model = build(kind)
            before = {v.path: ops.convert_to_numpy(v).copy() for v in model.trainable_variables}
            model.compile(keras.optimizers.Adam(1e-2))
            loss = model.fit(pairs(), batch_size=8, verbose=0).history["loss"][0]
            after = {v.path: ops.convert_to_numpy(v).copy() for v in model.trainable_variables}
            made[kind] = model, before, after, loss
        return made[kind]

    return of


@kinds
def test_every_weight_learns_and_stays_finite(kind, one_step):
    _, before, after, _ = one_step(kind)
    for path, value in after.items():
        assert np.isfinite(value).all(), path
        # The bias of the keys adds the same number to all logits of a softmax, and so has no gradient.
        if not path.endswith("key/bias"):
            assert not np.array_equal(before[path], value), path


@pytest.mark.slow
@kinds
def test_it_learns_the_captions_of_its_images(kind, one_step):
    """After training, the caption of each image is the most probable one, also as a class name."""
    model, _, _, first = one_step(kind)
    data = pairs()
    model.fit(data, batch_size=8, epochs=59, verbose=0)
    # The loss of a bag of n words is at least ln n; the captions have 3 or 4 tokens.
    least = (3 * np.log(3) + np.log(4)) / 4 if kind == "bag of words" else 0.0
    assert first > least + 1
    assert model.evaluate(data, verbose=0) == pytest.approx(least, abs=0.1)
    scores = model.zero_shot_scores(data["images"], CAPTIONS, ("{}",), batch_size=3)
    np.testing.assert_array_equal(scores.argmax(axis=1), np.arange(8) % 4)


@kinds
def test_scores_are_the_losses_of_the_prompts(kind, monkeypatch):
    model, data = build(kind), pairs(3)
    monkeypatch.setattr(baselines, "MAX_PAIRS", 4)
    classes, templates = [["red circle", "circle"], "blue stars", "green heart!"], ("a {}", "{} a")
    scores = model.zero_shot_scores(data["images"], classes, templates)
    for i in range(3):
        for k, prompts in enumerate(
            (["a red circle", "red circle a", "a circle", "circle a"], ["a blue stars", "blue stars a"])
        ):
            token_ids = model.tokenizer(prompts)
            images = np.repeat(data["images"][i : i + 1], len(prompts), axis=0)
            losses = pair_losses(model, {"images": images, "token_ids": token_ids})
            assert scores[i, k] == pytest.approx(-losses.mean(), rel=1e-4)


def test_the_language_model_sees_the_image_and_no_later_token(rng):
    model, data = build("language model"), pairs(2)
    logits = ops.convert_to_numpy(model(data))
    later = {**data, "token_ids": data["token_ids"].copy()}
    later["token_ids"][:, 3] = data["token_ids"][::-1, 1]
    changed = ops.convert_to_numpy(model(later))
    np.testing.assert_allclose(changed[:, :3], logits[:, :3], atol=1e-5)
    assert np.abs(changed[:, 3:] - logits[:, 3:]).max() > 1e-3
    other = ops.convert_to_numpy(model({**data, "images": data["images"][::-1]}))
    assert np.abs(other - logits).max(axis=2).min() > 1e-4


def test_the_bag_of_words_does_not_see_the_caption():
    model, data = build("bag of words"), pairs(2)
    other = {**data, "token_ids": data["token_ids"][::-1]}
    np.testing.assert_array_equal(ops.convert_to_numpy(model(data)), ops.convert_to_numpy(model(other)))


@kinds
@pytest.mark.parametrize("vocabulary", [True, False], ids=["some words", "all words"])
def test_saved_and_loaded(kind, vocabulary, tmp_path):
    model, data = build(kind, vocabulary), pairs(2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(ops.convert_to_numpy(model(data)), ops.convert_to_numpy(loaded(data)))
    assert loaded.vocabulary == model.vocabulary and loaded.tokenizer == model.tokenizer
    assert loaded.image_preprocessor == model.image_preprocessor


@kinds
def test_mixed_precision_gives_float32(kind):
    model, data = build(kind, dtype="mixed_bfloat16"), pairs(2)
    assert keras.backend.standardize_dtype(model(data).dtype) == "float32"
    assert all(variable.dtype == "float32" for variable in model.trainable_variables)


@pytest.mark.slow
def test_it_trains_on_image_text_pairs():
    """Trains on batches whose text length varies."""
    model = build("language model")
    rows = [{"image": image, "text": CAPTIONS[i % 4]} for i, image in enumerate(pairs(8)["images"])]
    data = keras_clip.data.image_text_pairs(rows, model, 4, mapping=("image", "text"))
    model.compile("sgd")
    assert np.isfinite(model.fit(data, verbose=0).history["loss"]).all()


def test_a_locked_encoder_keeps_its_statistics():
    resnet = keras_clip.encoders.ModifiedResNet(32, (1, 1, 1, 1), 4, num_heads=2)
    model = baselines.BagOfWordsPredictor(resnet, keras_clip.data.CLIPTokenizer(8), [1, 2])
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    inputs = {"images": images, "token_ids": pairs(2)["token_ids"]}
    before = [ops.convert_to_numpy(v).copy() for v in resnet.weights]
    resnet.trainable = False
    model(inputs, training=True)
    for old, variable in zip(before, resnet.weights, strict=True):
        np.testing.assert_array_equal(old, ops.convert_to_numpy(variable))
    resnet.trainable = True
    model(inputs, training=True)
    changed = [not np.array_equal(a, ops.convert_to_numpy(v)) for a, v in zip(before, resnet.weights, strict=True)]
    assert any(changed)


def test_refusals():
    model = build("bag of words")
    with pytest.raises(ValueError, match="`vocabulary` must be token ids.*Received: 1 ids"):
        baselines.BagOfWordsPredictor(model.image_encoder, model.tokenizer, [49408])
    with pytest.raises(ValueError, match="`image_encoder` must return features"):
        baselines.BagOfWordsPredictor(keras_clip.layers.PatchEmbedding(16, 8, 4), model.tokenizer)
    with pytest.raises(ValueError, match="without targets or sample weights. Received: y="):
        model.compute_loss(pairs(2), y=np.zeros(2), y_pred=model(pairs(2)))
    with pytest.raises(ValueError, match="may have at most 8 tokens"):
        model.zero_shot_scores(pairs(2)["images"], ["a b c d e f g h"])
