"""Options of `AdamW`: layer-wise learning rates, which Adam's normalisation must not cancel, and bfloat16 moments."""

import keras
import numpy as np
import pytest
from keras import ops
from small_clip import build, pairs

import keras_clip
from keras_clip.training import AdamW, adamw

BLOCKS = 3
DECAY = 0.5


def deep_clip(**options):
    keras.utils.set_random_seed(0)
    return keras_clip.CLIPModel(
        keras_clip.encoders.VisionTransformer(8, 4, 8, BLOCKS, 2),
        keras_clip.encoders.TextTransformer(8, 1, 2, context_length=4, vocabulary_size=49408),
        embed_dim=4,
        **options,
    )


def array(variable):
    return np.array(ops.convert_to_numpy(ops.convert_to_tensor(variable)))


def apply(model, optimizer, gradients):
    before = [array(v) for v in model.trainable_variables]
    optimizer.apply([ops.convert_to_tensor(g) for g in gradients], model.trainable_variables)
    after = [array(v) for v in model.trainable_variables]
    return {v.path: b - a for v, a, b in zip(model.trainable_variables, before, after, strict=True)}


def size(updates, part):
    chosen = [np.abs(update).mean() for path, update in updates.items() if part in path]
    assert chosen
    np.testing.assert_allclose(chosen, chosen[0], rtol=1e-3)
    return chosen[0]


def random_gradients(model, scale=1.0):
    rng = np.random.default_rng(0)
    return [scale * rng.choice([-1.0, 1.0], size=v.shape).astype("float32") for v in model.trainable_variables]


# Factors of the learning rate, by hand: 1 for the last block, half of it for each earlier one and for the embeddings.
FACTORS = {
    "vision_transformer/block_2/": 1.0,
    "vision_transformer/block_1/": 0.5,
    "vision_transformer/block_0/": 0.25,
    "vision_transformer/patch_embedding/": 0.125,
    "vision_transformer/norm_pre/": 0.125,
    "vision_transformer/norm_post/": 1.0,
    "text_transformer/block_0/": 1.0,
    "text_transformer/token_embedding/": 0.5,
    "projection/": 1.0,
    "logit_scale": 1.0,
}


@pytest.fixture(scope="module")
def updates():
    keras.backend.clear_session()
    model = deep_clip()
    optimizer = adamw(model, 0.01, 0, 10, weight_decay=0.0, layer_decay=DECAY)
    return apply(model, optimizer, random_gradients(model))


@pytest.mark.parametrize("part", FACTORS)
def test_the_update_of_a_layer_has_its_size(updates, part):
    unit = size(updates, "image_projection/")
    paths = {path: update for path, update in updates.items() if part in path.replace("patch_projection", "")}
    if part == "projection/":
        paths = {path: update for path, update in paths.items() if "patch_embedding" not in path}
    assert size(paths, "") / unit == pytest.approx(FACTORS[part], rel=1e-3)


def test_scaled_gradients_do_not_change_the_update():
    keras.backend.clear_session()
    model = deep_clip()
    gradients = [
        g * (0.1 if "block_0" in v.path else 1.0)
        for g, v in zip(random_gradients(model), model.trainable_variables, strict=True)
    ]
    updates = apply(model, adamw(model, 0.01, 0, 10, weight_decay=0.0), gradients)
    assert size(updates, "vision_transformer/block_0/") == pytest.approx(size(updates, "block_2/"), rel=1e-3)


def test_decay_follows_the_rate_of_the_layer():
    keras.backend.clear_session()
    model = deep_clip()
    zeros = [np.zeros(v.shape, "float32") for v in model.trainable_variables]
    kernels = {v.path: array(v) for v in model.trainable_variables if "expand/kernel" in v.path}
    updates = apply(model, adamw(model, 0.1, 0, 10, weight_decay=0.2, layer_decay=DECAY), zeros)
    gains = [update for path, update in updates.items() if path.endswith(("gamma", "bias"))]
    assert gains and not any(update.any() for update in gains)
    for path, kernel in kernels.items():
        factor = next(factor for part, factor in FACTORS.items() if part in path)
        np.testing.assert_allclose(updates[path], -0.1 * 0.2 * factor * kernel, rtol=1e-3, atol=1e-8)


def test_rates_survive_saving(tmp_path):
    keras.backend.clear_session()
    model = deep_clip()
    model.compile(adamw(model, 0.01, 0, 10, layer_decay=DECAY, moments_dtype="bfloat16"))
    model.save(tmp_path / "clip.keras")
    loaded = keras.saving.load_model(tmp_path / "clip.keras")
    assert (loaded.optimizer.layer_decay, loaded.optimizer.moments_dtype) == (DECAY, "bfloat16")
    updates = apply(loaded, loaded.optimizer, random_gradients(loaded))
    ratio = size(updates, "vision_transformer/block_1/expand/bias") / size(updates, "block_2/expand/bias")
    assert ratio == pytest.approx(0.5, rel=0.02)


def moment_bytes(optimizer):
    kept = [v for v in optimizer.variables if v.path.endswith(("_momentum", "_velocity"))]
    sizes = {"float32": 4, "bfloat16": 2}
    return sum(sizes[keras.backend.standardize_dtype(v.dtype)] * int(np.prod(v.shape)) for v in kept)


def test_bfloat16_moments_take_half_of_the_memory():
    layer = keras.layers.Dense(16)
    layer.build((None, 8))
    whole, half = AdamW(0.1), AdamW(0.1, moments_dtype="bfloat16")
    for optimizer in (whole, half):
        optimizer.build(layer.trainable_variables)
    assert moment_bytes(whole) == 2 * 4 * (16 * 8 + 16) and moment_bytes(half) == moment_bytes(whole) / 2


def test_a_second_moment_in_bfloat16_decays():
    # One large gradient, then small ones: with rounding to the nearest, 0.999 v would always round back to v.
    layer = keras.layers.Dense(64, use_bias=False)
    layer.build((None, 64))
    optimizer = AdamW(0.0, beta_2=0.999, moments_dtype="bfloat16")
    (variable,) = layer.trainable_variables
    for step in range(200):
        gradient = np.full((64, 64), 1.0 if step == 0 else 0.0, "float32")
        optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
    velocity = ops.convert_to_numpy(ops.cast(optimizer._velocities[0], "float32"))
    assert velocity.mean() == pytest.approx(0.001 * 0.999**199, rel=0.01)


def test_a_training_with_moments_in_bfloat16_is_near_and_repeats():
    def losses(**options):
        clip = build("convolution")
        clip.compile(AdamW(1e-3, **options))
        return clip.fit(pairs(24), batch_size=24, epochs=8, shuffle=False, verbose=0).history["loss"]

    whole, half = losses(), losses(moments_dtype="bfloat16")
    assert half == losses(moments_dtype="bfloat16")
    assert half != whole
    # Eight steps nearly overfit the batch; both must.
    assert half[-1] < 0.7 * half[0]
    np.testing.assert_allclose(half, whole, rtol=0.05)


def test_without_options_it_is_the_optimizer_of_keras():
    def weights(optimizer):
        layer = keras.layers.Dense(4, use_bias=False, kernel_initializer="ones")
        layer.build((None, 4))
        rng = np.random.default_rng(0)
        for _ in range(3):
            gradient = rng.normal(size=(4, 4)).astype("float32")
            optimizer.apply([ops.convert_to_tensor(gradient)], layer.trainable_variables)
        return layer.get_weights()[0]

    options = dict(learning_rate=0.1, weight_decay=0.2)
    np.testing.assert_array_equal(weights(AdamW(**options)), weights(keras.optimizers.AdamW(**options)))


REFUSED = {
    "layer_decay of zero": (dict(layer_decay=0.0), "layer_decay"),
    "layer_decay above one": (dict(layer_decay=1.5), "layer_decay"),
    "other moments": (dict(moments_dtype="float16"), "moments_dtype"),
    "amsgrad": (dict(moments_dtype="bfloat16", amsgrad=True), "amsgrad=True"),
}


@pytest.mark.parametrize("options, message", REFUSED.values(), ids=REFUSED)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=f"Received.*{message}"):
        AdamW(0.1, **options)


def test_layers_that_cannot_be_told_apart_are_refused():
    layer = keras.layers.Dense(4)
    layer.build((None, 4))
    with pytest.raises(ValueError, match="needs weights whose paths have blocks"):
        AdamW(0.1, layer_decay=0.5).build(layer.trainable_variables)
