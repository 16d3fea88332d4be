"""Micro-batches: the step equals that of the whole batch, with the random numbers and statistics of one pass."""

import gc

import keras
import numpy as np
import pytest
from keras import ops
from small_clip import build, distance, pairs, reference, state, train

from keras_clip import distribution

BACKEND = keras.backend.backend()


@pytest.mark.parametrize("size", [7, 24])
def test_a_step_is_that_of_the_whole_batch(size):
    assert distance(reference(), train(build(), pairs(), 24, microbatch_size=size)) < 1e-5


@pytest.mark.parametrize("size", [23, 24, 1000])
def test_a_batch_that_fits_is_not_divided(size):
    clip, data = build("convolution"), pairs(24)
    clip.compile("sgd", microbatch_size=size)
    embeddings = clip.embed({key: ops.convert_to_tensor(value) for key, value in data.items()}, training=False)
    # The output of `CLIPModel.call` has no key "penalty".
    assert ("penalty" in embeddings) == (size < 24)


def test_the_sigmoid_loss():
    one = reference(loss="sigmoid")
    assert distance(one, train(build(loss="sigmoid"), pairs(), 24, microbatch_size=5)) < 1e-5


def test_a_locked_encoder_does_not_change():
    def locked():
        clip = build("convolution")
        clip.image_encoder.trainable = False
        return clip

    one, other = train(locked(), pairs(), 24), train(locked(), pairs(), 24, microbatch_size=5)
    assert distance(one, other) < 1e-5
    kept = [key for key, value in other[1].items() if np.array_equal(value, other[2][key])]
    assert len(kept) == len(locked().image_encoder.weights) == 5


@pytest.mark.skipif(BACKEND != "torch", reason="backend unable: compiled steps do not call layers")
@pytest.mark.parametrize("is_locked, calls", [(True, 5), (False, 10)])
def test_a_locked_encoder_is_called_once_for_each_micro_batch(is_locked, calls, monkeypatch):
    clip, counted = build("convolution"), []
    clip.image_encoder.trainable = not is_locked
    convolution = clip.image_encoder.get_layer("convolution")
    call = convolution.call
    monkeypatch.setattr(convolution, "call", lambda *args, **kwargs: counted.append(1) or call(*args, **kwargs))
    train(clip, pairs(24), 24, epochs=1, microbatch_size=5)
    counted.clear()
    clip.fit(pairs(24), batch_size=24, verbose=0)
    assert len(counted) == calls


def gradients_in_parts(clip, data, size):
    """Takes one SGD step by hand: the encoders run on one part after another, and one loss covers all embeddings."""
    parts = [slice(i, i + size) for i in range(0, len(data["images"]), size)]
    images = [clip.image_embedder(ops.convert_to_tensor(data["images"][part]), training=True) for part in parts]
    texts = [clip.text_embedder(ops.convert_to_tensor(data["token_ids"][part]), training=True) for part in parts]
    return ops.mean(clip.contrast(ops.concatenate(images), ops.concatenate(texts)))


def test_random_numbers_are_those_of_the_first_pass():
    # With new random numbers, the backward pass would use other patches than the loss.
    from gradients import loss_and_gradients

    clip, data = build(patch_dropout=0.5), pairs(24)
    variables, before = clip.trainable_variables, state(clip)
    seeds = clip.image_encoder.patch_dropout.seed_generator.state
    first = ops.convert_to_numpy(ops.convert_to_tensor(seeds)).copy()
    loss, gradients = loss_and_gradients(lambda: gradients_in_parts(clip, data, 8), variables)
    seeds.assign(first)
    result = train(clip, data, 24, epochs=1, microbatch_size=8)
    assert result[0]["loss"][0] == pytest.approx(float(loss), rel=1e-6)
    after = state(clip)
    changes = {v.path: -0.1 * g for v, g in zip(variables, gradients, strict=True)}
    keys = [key for key, v in zip(after, clip.weights, strict=True) if v.trainable]
    for key, change in zip(keys, changes.values(), strict=True):
        np.testing.assert_allclose(after[key] - before[key], change, atol=2e-6, err_msg=key)
    # Three micro-batches draw three times, in the forward pass only; the backward pass draws none.
    np.testing.assert_array_equal(ops.convert_to_numpy(ops.convert_to_tensor(seeds)) - first, [0, 3])


def test_statistics_move_once_by_the_mean_of_moments():
    clip, data = build("convolution"), pairs(24)
    convolution, norm = (clip.image_encoder.get_layer(name) for name in ("convolution", "norm"))
    batches = [data["images"][i : i + 8] for i in (0, 8, 16)]
    inputs = [convolution(ops.convert_to_tensor(batch)) for batch in batches]
    moments = [ops.moments(x, axes=[0, 1, 2]) for x in inputs]
    mean, variance = (np.mean([ops.convert_to_numpy(m[i]) for m in moments], axis=0) for i in range(2))
    train(clip, data, 24, epochs=1, microbatch_size=8)
    np.testing.assert_allclose(ops.convert_to_numpy(norm.moving_mean.value), 0.1 * mean, atol=1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(norm.moving_variance.value), 0.9 + 0.1 * variance, rtol=1e-5)


def test_losses_added_by_layers_count():
    def penalised():
        clip = build()
        clip.image_encoder.norm_post.activity_regularizer = keras.regularizers.L2(0.01)
        return clip

    one = train(penalised(), pairs(), 24)
    assert one[0]["loss"][0] > reference()[0]["loss"][0] + 0.01
    assert distance(one, train(penalised(), pairs(), 24, microbatch_size=4)) < 1e-5


def test_evaluate_is_of_the_whole_batch():
    clip, data = build("convolution"), pairs()
    clip.compile("sgd")
    whole = clip.evaluate(data, batch_size=20, verbose=0, return_dict=True)
    clip.compile("sgd", microbatch_size=3)
    parts = clip.evaluate(data, batch_size=20, verbose=0, return_dict=True)
    assert set(parts) == {"loss", "image_to_text_accuracy", "text_to_image_accuracy", "logit_scale"}
    for key, value in whole.items():
        assert parts[key] == pytest.approx(value, rel=1e-5)


def test_it_survives_saving(tmp_path):
    clip = build(vocabulary_size=49408)
    clip.compile(keras.optimizers.SGD(0.3), microbatch_size=5)
    clip.save(tmp_path / "clip.keras")
    loaded = keras.saving.load_model(tmp_path / "clip.keras")
    assert loaded.microbatch_size == 5 and float(loaded.optimizer.learning_rate) == pytest.approx(0.3)


@pytest.mark.skipif(BACKEND != "torch", reason="backend unable: no graph outside of a compiled step")
@pytest.mark.parametrize(
    "options", [{}, {"loss": "sigmoid"}, {"image_encoder": "resnet"}, {"microbatch_size": 7}], ids=str
)
def test_no_tensor_outlives_its_step(options):
    import torch

    def count():
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    size = options.pop("microbatch_size", None)
    clip, data = build(**options), pairs()
    clip.compile("sgd", microbatch_size=size)
    clip.fit(data, batch_size=12, verbose=0)
    gc.collect()
    gc.disable()
    try:
        before = count()
        clip.fit(data, batch_size=12, verbose=0)
        clip.encode_image(data["images"])
        clip.encode_text(data["token_ids"])
        assert count() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("size", [0, -1, 2.5, "4"])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match="`microbatch_size` must be a positive integer.*Received: microbatch_size="):
        build().compile("sgd", microbatch_size=size)


def compiled_temporaries(clip, data):
    """Returns the bytes of temporaries in one training step that XLA compiled."""
    import jax

    clip.make_train_function()
    state = clip._get_jax_state(
        trainable_variables=True, non_trainable_variables=True, optimizer_variables=True, metrics_variables=True
    )
    step = jax.jit(clip.train_step, donate_argnums=0)
    return step.lower(state, (data,)).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.skipif(BACKEND != "jax", reason="backend unable: does not report compiled memory")
def test_memory_does_not_grow_with_the_batch():
    def temporaries(count):
        clip = build()
        clip.compile("sgd", microbatch_size=8)
        return compiled_temporaries(clip, pairs(8 * count))

    few, many = temporaries(4), temporaries(32)
    # Stored activations or a copy of the images would grow eight times.
    assert many < 1.15 * few


def test_rows_stay_on_their_device_without_a_distribution():
    assert distribution.row_shards() == 1
