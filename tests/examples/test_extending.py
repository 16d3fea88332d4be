"""The worked examples: a user's own loss, optimizer and tower, without a change to the library."""

import keras
import numpy as np
import pytest
from gradients import loss_and_gradients, value_and_gradients
from keras import ops
from scripts import load_script
from small_clip import FEW_STEPS, build, pairs

import keras_clip

hard = load_script("examples/hard_negative_loss.py")
video = load_script("examples/video_tower.py")
BETA = 0.7


def dense(images, texts, log_scale):
    """Returns the loss of each pair from the full similarity matrix, as the paper defines it."""
    logits = ops.exp(log_scale) * ops.matmul(images, ops.transpose(texts))
    count = logits.shape[0]
    eye = ops.eye(count, dtype="float32")
    others = 1 - eye
    own = ops.sum(logits * eye, axis=1)
    total = 0.0
    for matrix in (logits, ops.transpose(logits)):
        importance = ops.exp(BETA * matrix) * others
        weights = (count - 1) * importance / ops.sum(importance, axis=1, keepdims=True)
        negatives = ops.sum(weights * ops.exp(matrix) * others, axis=1)
        total = total - own + ops.log(ops.exp(own) + negatives)
    return total / 2


@pytest.fixture
def embeddings(rng):
    drawn = rng.normal(size=(2, 10, 6)).astype("float32")
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


@pytest.mark.parametrize("is_tiled", [False, True])
def test_the_loss_is_the_dense_one(is_tiled, embeddings, monkeypatch):
    if is_tiled:
        monkeypatch.setattr(keras_clip.tiling, "TILE_ROWS", 4)
        monkeypatch.setattr(keras_clip.tiling, "TILE_AREA", 1)
    layer = hard.HardNegativeLoss(BETA, temperature=0.5)
    layer.build()
    tensors = [ops.convert_to_tensor(x) for x in embeddings]
    found = ops.convert_to_numpy(layer(*tensors))
    assert found == pytest.approx(
        ops.convert_to_numpy(dense(*tensors, ops.convert_to_tensor(np.log(2), dtype="float32"))), rel=1e-5
    )
    # Each pair has another weight, so that no gradients cancel in the sum.
    upstream = ops.arange(1, 11, dtype="float32")
    ours = value_and_gradients(lambda *x: ops.sum(upstream * layer(*x)), embeddings)
    theirs = value_and_gradients(
        lambda *x: ops.sum(upstream * dense(*x, ops.convert_to_tensor(np.log(2), dtype="float32"))), embeddings
    )
    for one, other in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    scale = [layer.logit_scale]
    _, (one,) = loss_and_gradients(lambda: ops.sum(layer(*tensors)), scale)
    _, (other,) = loss_and_gradients(lambda: ops.sum(dense(*tensors, ops.convert_to_tensor(scale[0]))), scale)
    assert one == pytest.approx(other, rel=1e-4)


def test_small_beta_is_the_contrastive_loss(embeddings):
    layer = hard.HardNegativeLoss(1e-6, temperature=0.5)
    layer.build()
    plain = keras_clip.losses.contrastive_loss(*embeddings, ops.convert_to_tensor(np.log(2), dtype="float32"))
    assert ops.convert_to_numpy(layer(*embeddings)) == pytest.approx(ops.convert_to_numpy(plain), rel=1e-4)


def test_one_pair_has_no_negatives(embeddings):
    layer = hard.HardNegativeLoss(BETA)
    layer.build()
    assert ops.convert_to_numpy(layer(*embeddings[:, :1])).tolist() == [0.0]


def sgd():
    return keras.optimizers.SGD(0.5)


def whole(loss="contrastive"):
    """Returns a small CLIP with the full vocabulary, which can be saved."""
    keras.utils.set_random_seed(3)
    return keras_clip.CLIPModel(
        keras_clip.encoders.VisionTransformer(32, 16, 32, 1, 2),
        keras_clip.encoders.TextTransformer(32, 1, 2, context_length=8),
        embed_dim=16,
        loss=loss,
    )


def test_the_loss_trains_in_micro_batches_and_is_saved(tmp_path):
    trained = []
    for options in (FEW_STEPS, {"microbatch_size": 5}):
        clip = build(loss=hard.HardNegativeLoss(BETA))
        assert clip.logit_scale is clip.contrast.logit_scale and clip.logit_bias is None
        clip.compile(sgd(), **options)
        history = clip.fit(pairs(), batch_size=24, shuffle=False, verbose=0).history
        trained.append([ops.convert_to_numpy(ops.convert_to_tensor(v)) for v in clip.trainable_variables])
    for one, other in zip(*trained, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert np.isfinite(history["loss"][0]) and {"logit_scale", "image_to_text_accuracy"} <= set(history)
    clip = whole(hard.HardNegativeLoss(BETA, temperature=0.2))
    clip.save(tmp_path / "clip.keras")
    again = keras.saving.load_model(tmp_path / "clip.keras")
    assert type(again.contrast) is hard.HardNegativeLoss and again.contrast.beta == BETA
    assert float(ops.convert_to_numpy(again.logit_scale.value)) == float(ops.convert_to_numpy(clip.logit_scale.value))


@pytest.mark.parametrize("loss, message", [("hinge", "kind='hinge'"), (3, "loss=3"), (keras.layers.Dense(2), "layer")])
def test_values_that_are_no_loss_are_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        build(loss=loss)


def test_a_loss_layer_owns_its_temperature():
    with pytest.raises(ValueError, match="owns its temperature"):
        build(loss=hard.HardNegativeLoss(BETA), temperature=0.1)


REPLICAS = """
import sys
sys.path[:0] = ["tests", "examples"]
import keras, numpy as np
from hard_negative_loss import HardNegativeLoss
from small_clip import build, pairs
def trained(**options):
    clip = build(loss=HardNegativeLoss(0.7))
    clip.compile(keras.optimizers.SGD(0.5), **options)
    clip.fit(pairs(), batch_size=24, shuffle=False, verbose=0)
    return [keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(v)) for v in clip.trainable_variables]
one = trained(run_eagerly=True)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    two = trained()
print(max(float(np.abs(a - b).max()) for a, b in zip(one, two)))
"""


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="backend unable: tf.distribute")
def test_the_loss_is_that_of_all_replicas(distributed):
    assert float(distributed(REPLICAS).split()[-1]) < 1e-5


def test_muon_trains_matrices_and_adamw_the_rest(tmp_path):
    clip = whole()
    optimizer = keras_clip.training.muon(clip, 1e-3, warmup_steps=1, total_steps=50, global_clipnorm=1.0)
    assert optimizer.global_clipnorm == 1.0
    clip.compile(optimizer)
    losses = clip.fit(pairs(24), batch_size=24, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < losses[0] - 0.2
    # AdamW has second moments, Muon has none.
    paths = [variable.path for variable in clip.trainable_variables]
    by_muon = {path for path, second in zip(paths, optimizer.adam_velocities, strict=True) if second is None}
    assert by_muon and all(path.endswith("kernel") for path in by_muon)
    assert not any(word in path for path in by_muon for word in ("embedding", "positions", "projection/dense"))
    clip.save(tmp_path / "clip.keras")
    again = keras.saving.load_model(tmp_path / "clip.keras")
    assert type(again.optimizer) is keras_clip.training.Muon
    for model in (clip, again):
        model.fit(pairs(24), batch_size=24, epochs=2, verbose=0)
    for one, other in zip(clip.trainable_variables, again.trainable_variables, strict=True):
        np.testing.assert_allclose(*map(ops.convert_to_numpy, (one.value, other.value)), atol=1e-6)


def test_the_default_optimizer_is_our_adamw():
    clip = build()
    clip.compile()
    assert type(clip.optimizer) is keras_clip.training.AdamW
    assert type(keras.saving.deserialize_keras_object(clip.get_compile_config()["optimizer"])) is type(clip.optimizer)
    predictor = keras_clip.baselines.BagOfWordsPredictor(
        keras_clip.encoders.VisionTransformer(32, 16, 32, 1, 2), keras_clip.data.CLIPTokenizer(8), range(100)
    )
    predictor.compile()
    assert type(predictor.optimizer) is keras_clip.training.AdamW


def test_schedule_and_mask_serve_any_optimizer():
    clip = build()
    variables = clip.trainable_variables
    mask = keras_clip.training.decay_mask(variables)
    undecayed = {v.path.split("/")[-1] for v, decayed in zip(variables, mask, strict=True) if not decayed}
    assert {"bias", "gamma", "beta", "logit_scale"} <= undecayed and "kernel" not in undecayed
    schedule = keras_clip.training.schedule(0.1, warmup_steps=10, total_steps=110)
    rates = [float(ops.convert_to_numpy(schedule(step))) for step in (0, 10, 60, 110)]
    assert rates == pytest.approx([0.01, 0.1, 0.05, 0.0], abs=1e-6)
    clip.compile(keras.optimizers.Lion(schedule, weight_decay=0.1), **FEW_STEPS)
    clip.fit(pairs(24), batch_size=24, verbose=0)


def test_a_video_tower(tmp_path):
    keras.utils.set_random_seed(0)
    clip = video.build()
    frames, captions, _ = video.draw_clips(128, seed=0)
    assert frames.dtype == np.uint8 and frames.shape == (128, 4, 32, 32, 3)
    normalized = clip.image_preprocessor.normalize(frames)
    both = [ops.convert_to_numpy(clip.encode_image(x[:4])) for x in (frames, normalized)]
    np.testing.assert_allclose(*both, atol=1e-5)
    clip.compile(keras_clip.training.adamw(clip, 1e-3, warmup_steps=4, total_steps=200), microbatch_size=16)
    data = {"images": frames, "token_ids": clip.tokenizer(captions)}
    before = [ops.convert_to_numpy(variable.value) for variable in clip.image_encoder.trainable_variables]
    losses = clip.fit(data, batch_size=32, epochs=6, verbose=0).history["loss"]
    assert losses[-1] < losses[0] - 0.1
    for variable, start in zip(clip.image_encoder.trainable_variables, before, strict=True):
        if variable.path.endswith("key/bias"):  # has no gradient: it adds the same number to all logits of a query
            continue
        assert np.abs(ops.convert_to_numpy(variable.value) - start).max() > 1e-4, variable.path
    clip.save(tmp_path / "clip.keras")
    again = keras.saving.load_model(tmp_path / "clip.keras")
    np.testing.assert_allclose(*(ops.convert_to_numpy(m.encode_image(frames[:4])) for m in (clip, again)), atol=1e-6)


@pytest.mark.slow
def test_the_examples_run(capsys):
    assert 0 <= video.main(["--epochs", "1", "--clips", "64"]) <= 1
    result = hard.main(["--epochs", "1", "--pairs", "128", "--image-size", "32"])
    assert set(result) == {"top_1_accuracy", "top_5_accuracy", "mean_per_class_accuracy"}
    output = capsys.readouterr().out
    assert "direction of unseen clips" in output and "epoch 1: loss" in output
