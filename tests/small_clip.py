"""A small CLIP that trains on the same pairs in every process, and how far two trainings are apart."""

import json

import keras
import numpy as np

import keras_clip
from keras_clip import compat
from keras_clip.layers.sync_batch_norm import SyncBatchNorm

ROWS, LENGTH, SIDE = 48, 8, 32
BATCH = 24
# Steps of both trainings, each of which rounds a weight.
ROUNDINGS = 4


def build(
    image_encoder="vit",
    loss="contrastive",
    patch_dropout=0.0,
    vocabulary_size=64,
    num_layers=1,
    remat=False,
    is_predictor=False,
    **options,
):
    """A CLIP of a few thousand weights, the same in every process.

    Args:
        is_predictor: whether to return a `BagOfWordsPredictor` of the image encoder instead.
        image_encoder: "vit", "resnet", or "convolution": one convolution and BatchNorm, which compile quickly.
        num_layers: blocks of each transformer. One is enough for whatever treats an encoder as a whole.
    """
    keras.utils.set_random_seed(3)
    if image_encoder == "vit":
        image_encoder = keras_clip.encoders.VisionTransformer(
            SIDE, 8, 32, num_layers, 2, patch_dropout=patch_dropout, seed=11 if patch_dropout else None, remat=remat
        )
    elif image_encoder == "resnet":
        image_encoder = keras_clip.encoders.ModifiedResNet(SIDE, (1, 1, 1, 1), 8, num_heads=2, remat=remat)
    else:
        image_encoder = keras.Sequential(
            [
                keras.Input((SIDE, SIDE, 3)),
                keras.layers.Conv2D(8, 8, strides=8, use_bias=False, name="convolution"),
                SyncBatchNorm(momentum=0.9, name="norm"),
                keras.layers.GlobalMaxPooling2D(),
            ]
        )
    text_encoder = keras_clip.encoders.TextTransformer(
        32, num_layers, 2, context_length=LENGTH, vocabulary_size=vocabulary_size, remat=remat
    )
    tokenizer = keras_clip.data.CLIPTokenizer(LENGTH)
    tokenizer.end_token_id = vocabulary_size - 1
    if is_predictor:
        return keras_clip.baselines.BagOfWordsPredictor(image_encoder, tokenizer, range(vocabulary_size))
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
    clip.compile(optimizer or sgd(), **options)
    history = clip.fit(data, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0).history
    return history, before, state(clip)


def reference(rows=ROWS, epochs=2, optimizer=None, is_frozen=False, **options):
    """What one device makes of a configuration in direct steps of `BATCH` pairs: as `train` returns it.

    Each configuration is trained once in a process, whichever tests compare with it.

    Args:
        optimizer: arguments of SGD.
        is_frozen: whether BatchNorm is frozen.
        options: those of `build`.
    """
    key = json.dumps([rows, epochs, optimizer or {}, is_frozen, options], sort_keys=True)
    if key not in _REFERENCES:
        clip = freeze_norms(build(**options)) if is_frozen else build(**options)
        _REFERENCES[key] = train(clip, pairs(rows), BATCH, epochs, sgd(**optimizer or {}))
    return _REFERENCES[key]


_REFERENCES = {}


def sgd(learning_rate=0.1, **options):
    return keras.optimizers.SGD(learning_rate, **options)


def freeze_norms(clip):
    for layer in compat.all_layers(clip):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    return clip


def distance(one, other):
    """The largest relative distance of two trainings: of the logged losses, and of the change of each weight.

    A step rounds each weight once, and so does each training here.
    """
    (logs, before, after), (other_logs, other_before, other_after) = one, other
    np.testing.assert_equal(before, other_before)
    losses = [np.array([logs[key], other_logs[key]]) for key in ("loss", "image_to_text_accuracy") if key in logs]
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
