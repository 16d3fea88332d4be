"""A small CLIP that trains on the same pairs in every process, and how far two trainings are apart."""

import keras
import numpy as np

import keras_clip

ROWS, LENGTH, SIDE = 48, 8, 32
# Steps of both trainings, each of which rounds a weight.
ROUNDINGS = 4


def build(image_encoder="vit", loss="contrastive", patch_dropout=0.0, vocabulary_size=64, remat=False, **options):
    """A CLIP of a few thousand weights, the same in every process."""
    keras.utils.set_random_seed(3)
    if image_encoder == "vit":
        image_encoder = keras_clip.encoders.VisionTransformer(
            SIDE, 8, 32, 2, 2, patch_dropout=patch_dropout, seed=11 if patch_dropout else None, remat=remat
        )
    else:
        image_encoder = keras_clip.encoders.ModifiedResNet(SIDE, (1, 1, 1, 1), 8, num_heads=2, remat=remat)
    text_encoder = keras_clip.encoders.TextTransformer(
        32, 2, 2, context_length=LENGTH, vocabulary_size=vocabulary_size, remat=remat
    )
    tokenizer = keras_clip.data.CLIPTokenizer(LENGTH)
    tokenizer.end_token_id = vocabulary_size - 1
    clip = keras_clip.CLIPModel(image_encoder, text_encoder, 16, tokenizer=tokenizer, loss=loss, **options)
    # A block of a ResNet starts as the identity, which would hide its gradients.
    for variable in clip.trainable_variables:
        if variable.path.endswith("gamma"):
            variable.assign(keras.ops.ones(variable.shape))
    return clip


def pairs(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    token_ids = rng.integers(1, 63, size=(rows, LENGTH)).astype("int32")
    token_ids[np.arange(rows), rng.integers(2, LENGTH, size=rows)] = 63
    return {"images": rng.normal(size=(rows, SIDE, SIDE, 3)).astype("float32"), "token_ids": token_ids}


def state(clip):
    """All weights, statistics and the temperature."""
    arrays = [keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(variable)) for variable in clip.weights]
    return {f"{i} {v.name}": np.array(array) for i, (v, array) in enumerate(zip(clip.weights, arrays, strict=True))}


def train(clip, data, batch_size, epochs=2, optimizer=None, **options):
    """Trains with SGD, which unlike Adam shows constant factors. Returns logs and weights as before and after."""
    before = state(clip)
    clip.compile(optimizer or keras.optimizers.SGD(0.1), **options)
    history = clip.fit(data, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0).history
    return history, before, state(clip)


def distance(one, other):
    """The largest relative distance of two trainings: of the logged losses, and of the change of each weight.

    A step rounds each weight once, and so does each training here.
    """
    (logs, before, after), (other_logs, other_before, other_after) = one, other
    np.testing.assert_equal(before, other_before)
    losses = [np.array([logs[key], other_logs[key]]) for key in ("loss", "image_to_text_accuracy")]
    worst = max(np.max(np.abs(a - b) / np.maximum(np.abs(a), 1e-6)) for a, b in losses)
    changes = {key: after[key] - before[key] for key in after}
    others = {key: other_after[key] - before[key] for key in after}
    # A change is known to the rounding of the weight it changes.
    rounding = {key: np.linalg.norm(np.spacing(np.abs(before[key]))) for key in after}
    # The biases of keys have no gradient but for rounding.
    least = 0.1 * np.mean([np.linalg.norm(change) for change in changes.values()])
    assert least > 0
    for key, change in changes.items():
        difference = max(np.linalg.norm(change - others[key]) - ROUNDINGS * rounding[key], 0.0)
        worst = max(worst, difference / max(np.linalg.norm(change), least))
    return float(worst)
