"""`CLIPModel`: fit, evaluate, predict, save; shorter texts; locked encoders; precision; metrics; refusals."""

import keras
import numpy as np
import pytest

import keras_clip
from keras_clip import encoders

TEXTS = ["a red cat", "two green dogs", "the sky", "a boat on a blue lake", "nothing", "a tree"]


def make_clip(image_encoder=None, **arguments):
    keras.utils.set_random_seed(0)
    return keras_clip.CLIPModel(
        image_encoder or encoders.VisionTransformer(16, 8, 16, 1, 2),
        encoders.TextTransformer(16, 2, 2, context_length=12),
        embed_dim=8,
        **arguments,
    )


def make_batch(clip, rng, size=6):
    return {
        "images": rng.integers(0, 256, size=(size, *shape(clip))).astype("uint8"),
        "token_ids": clip.tokenizer([TEXTS[i % len(TEXTS)] for i in range(size)]),
    }


def shape(clip):
    side = clip.image_encoder.image_size
    return (side, side, 3)


def to_numpy(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))


def dense_loss(embeddings, logit_scale):
    """Returns the loss and the accuracies as in figure 3 of the paper."""
    image, text = (embeddings[key].astype("float64") for key in ("image_embeddings", "text_embeddings"))
    logits = np.exp(float(logit_scale)) * image @ text.T

    def cross_entropy(x):
        return np.mean(np.log(np.exp(x - x.max(1, keepdims=True)).sum(1)) + x.max(1) - np.diag(x))

    diagonal = np.arange(len(logits))
    return (
        (cross_entropy(logits) + cross_entropy(logits.T)) / 2,
        np.mean(logits.argmax(1) == diagonal),
        np.mean(logits.argmax(0) == diagonal),
    )


def test_weights_exist_after_construction():
    clip = make_clip()
    assert clip.built
    assert len(clip.weights) == len(clip.get_weights()) > 40
    assert float(clip.logit_scale) == pytest.approx(np.log(1 / 0.07), rel=1e-6)
    assert clip.logit_bias is None
    assert (clip.tokenizer.context_length, clip.image_preprocessor.image_size) == (12, 16)


def test_embeddings_have_unit_length(rng):
    clip = make_clip()
    for embeddings in clip(make_batch(clip, rng)).values():
        assert keras.backend.standardize_dtype(embeddings.dtype) == "float32"
        np.testing.assert_allclose(np.linalg.norm(to_numpy(embeddings), axis=1), 1, atol=1e-6)


def test_evaluate_is_the_loss_of_the_paper(rng):
    clip = make_clip()
    batch = make_batch(clip, rng, 5)
    clip.compile("sgd")
    loss, image_to_text, text_to_image = dense_loss(clip.predict(batch, verbose=0), clip.logit_scale)
    logs = clip.evaluate(batch, batch_size=5, return_dict=True, verbose=0)
    assert logs["loss"] == pytest.approx(loss, rel=1e-5)
    assert logs["image_to_text_accuracy"] == pytest.approx(image_to_text)
    assert logs["text_to_image_accuracy"] == pytest.approx(text_to_image)
    assert logs["logit_scale"] == pytest.approx(np.log(1 / 0.07), rel=1e-6)


def test_uint8_and_normalised_pixels_are_the_same_images(rng):
    clip = make_clip()
    images = make_batch(clip, rng)["images"]
    normalised = clip.image_preprocessor.normalize(images)
    np.testing.assert_allclose(to_numpy(clip.encode_image(images)), to_numpy(clip.encode_image(normalised)), atol=1e-6)


def test_texts_cut_to_the_longest_are_the_same_texts():
    clip = make_clip()
    cut, full = clip.tokenizer(TEXTS, length="longest"), clip.tokenizer(TEXTS)
    assert cut.shape[1] < full.shape[1]
    np.testing.assert_allclose(to_numpy(clip.encode_text(cut)), to_numpy(clip.encode_text(full)), atol=2e-6)


def test_what_follows_the_end_token_does_not_matter():
    clip = make_clip()
    token_ids = clip.tokenizer(TEXTS)
    changed = np.where(np.cumsum(token_ids == 49407, axis=1) - (token_ids == 49407) > 0, 49407, token_ids)
    assert not np.array_equal(token_ids, changed)
    np.testing.assert_allclose(to_numpy(clip.encode_text(changed)), to_numpy(clip.encode_text(token_ids)), atol=1e-6)


@pytest.mark.parametrize("loss", ["contrastive", pytest.param("sigmoid", marks=pytest.mark.slow)])
def test_overfits_a_batch_and_survives_saving(loss, rng, tmp_path):
    clip = make_clip(loss=loss)
    batch = make_batch(clip, rng)
    clip.compile(keras_clip.training.adamw(clip, 5e-3, warmup_steps=2, total_steps=80))
    history = clip.fit(batch, batch_size=6, epochs=40, verbose=0).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert min(history[f"{name}_accuracy"][-1] for name in ("image_to_text", "text_to_image")) > 0.8
    clip.save(tmp_path / "clip.keras")
    loaded = keras.saving.load_model(tmp_path / "clip.keras")
    for key, embeddings in clip.predict(batch, verbose=0).items():
        np.testing.assert_array_equal(embeddings, loaded.predict(batch, verbose=0)[key])
    assert loaded.contrast.kind == loss
    # The loaded model continues the training exactly: weights, moments and position in the schedule are equal.
    after = [model.fit(batch, batch_size=6, epochs=2, verbose=0).history["loss"][-1] for model in (clip, loaded)]
    assert after[0] == pytest.approx(after[1], rel=1e-4)


def test_the_temperature_is_learned_and_bounded(rng):
    clip = make_clip(temperature=0.0101)
    batch = make_batch(clip, rng, 2)
    clip.compile(keras.optimizers.SGD(0.0))
    clip.logit_scale.assign(7.0)
    clip.train_on_batch(batch)
    assert float(clip.logit_scale) == pytest.approx(np.log(100), rel=1e-6)


def test_locked_encoder_keeps_everything(rng):
    clip = make_clip(encoders.ModifiedResNet(32, (1, 1, 1, 1), 4, num_heads=2))
    clip.image_encoder.trainable = False
    locked = [to_numpy(variable).copy() for variable in clip.image_encoder.weights]
    others = [to_numpy(variable).copy() for variable in clip.text_encoder.trainable_variables]
    assert any("moving_mean" in variable.path for variable in clip.image_encoder.weights)
    clip.compile(keras.optimizers.SGD(0.5))
    clip.fit(make_batch(clip, rng), batch_size=6, epochs=2, verbose=0)
    for before, variable in zip(locked, clip.image_encoder.weights, strict=True):
        np.testing.assert_array_equal(before, to_numpy(variable), err_msg=variable.path)
    learned = zip(others, clip.text_encoder.trainable_variables, strict=True)
    assert any(not np.array_equal(before, to_numpy(variable)) for before, variable in learned)


def test_locked_encoder_does_not_drop_patches(rng):
    clip = make_clip(encoders.VisionTransformer(16, 4, 16, 1, 2, patch_dropout=0.5))
    batch = make_batch(clip, rng)
    calm = to_numpy(clip(batch)["image_embeddings"])
    assert np.abs(to_numpy(clip(batch, training=True)["image_embeddings"]) - calm).max() > 1e-4
    clip.image_encoder.trainable = False
    np.testing.assert_allclose(to_numpy(clip(batch, training=True)["image_embeddings"]), calm, atol=1e-6)


MIXED = ["mixed_bfloat16", "mixed_float16"]


@pytest.mark.parametrize("policy", MIXED)
def test_mixed_precision_trains(policy, rng):
    if policy == "mixed_float16" and keras.backend.backend() == "jax":
        pytest.skip("backend unable: JAX has no float16 attention on a CPU")
    exact = make_clip()
    keras.config.set_dtype_policy(policy)
    try:
        clip = make_clip()
    finally:
        keras.config.set_dtype_policy("float32")
    clip.set_weights(exact.get_weights())
    assert clip.image_encoder.blocks[0].attention.query.compute_dtype == policy.removeprefix("mixed_")
    batch = make_batch(clip, rng)
    for key, embeddings in clip(batch).items():
        assert keras.backend.standardize_dtype(embeddings.dtype) == "float32"
        assert (to_numpy(embeddings) * to_numpy(exact(batch)[key])).sum(1).min() > 0.99
    clip.compile(keras.optimizers.Adam(5e-3))
    losses = clip.fit(batch, batch_size=6, epochs=30, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.5 * losses[0]
    assert clip.logit_scale.dtype == "float32"


def test_regularisation_of_an_encoder_counts(rng):
    inputs = keras.Input((16, 16, 3))
    penalised = keras.layers.Dense(4, kernel_regularizer=keras.regularizers.L2(0.5))
    features = penalised(keras.layers.GlobalAveragePooling2D()(inputs))
    clip = make_clip(encoders.wrap(keras.Model(inputs, features), pooling=None))
    batch = make_batch_for(16, clip, rng)
    clip.compile("sgd")
    plain = dense_loss(clip.predict(batch, verbose=0), clip.logit_scale)[0]
    expected = plain + 0.5 * np.square(to_numpy(penalised.kernel)).sum()
    assert clip.evaluate(batch, batch_size=6, return_dict=True, verbose=0)["loss"] == pytest.approx(expected, rel=1e-5)


def make_batch_for(side, clip, rng):
    images = rng.integers(0, 256, size=(6, side, side, 3)).astype("uint8")
    return {"images": images, "token_ids": clip.tokenizer(TEXTS)}


def feature_map_model():
    inputs = keras.Input((16, 16, 3))
    return keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs))


REFUSED = {
    "a feature map": (lambda: make_clip(feature_map_model()), "features \\(B, D\\)"),
    "an unknown loss": (lambda: make_clip(loss="hinge"), "kind"),
    "a negative temperature": (lambda: make_clip(temperature=-1.0), "temperature"),
    "an end token of its own": (
        lambda: keras_clip.CLIPModel(
            encoders.VisionTransformer(16, 8, 16, 2, 2), encoders.TextTransformer(8, 1, 2, 6, vocabulary_size=50), 4
        ),
        "the encoder looks for, 49",
    ),
    "no image size": (lambda: make_clip(keras.layers.GlobalAveragePooling2D()), "image_size"),
}


@pytest.mark.parametrize("make, message", REFUSED.values(), ids=REFUSED)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=f"(?s){message}.*Received"):
        make()


def test_targets_are_refused(rng):
    clip = make_clip()
    clip.compile("sgd")
    with pytest.raises(ValueError, match="without targets"):
        clip.train_on_batch(make_batch(clip, rng), np.zeros(6))


def test_too_long_texts_are_refused():
    clip = make_clip()
    with pytest.raises(ValueError, match="context_length=12"):
        clip.encode_text(np.ones((1, 13), "int32"))
