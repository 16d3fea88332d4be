"""A small CLIP that trains on the same pairs in every process, and the distance of two trainings."""

import json

import keras
import numpy as np

import keras_clip
from keras_clip import compat
from keras_clip.layers.sync_batch_norm import SyncBatchNorm

ROWS, LENGTH, SIDE = 48, 8, 32
BATCH = 24
# The number of steps of both trainings together, each of which rounds the weights.
ROUNDINGS = 4
# Options of `compile` for a training of a few steps in a test that is not about graphs. On TensorFlow, such a training
# mostly traces. On JAX, an eager one would compile each operation.
FEW_STEPS = {"run_eagerly": True} if keras.backend.backend() == "tensorflow" else {}


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
    """Returns a CLIP with a few thousand weights, equal in every process.

    Args:
        is_predictor: whether to return a `BagOfWordsPredictor` of the image encoder instead.
        image_encoder: "vit", "resnet", or "convolution": one convolution and BatchNorm, which compile quickly.
        num_layers: blocks of each transformer. One is enough for tests that do not depend on the layers.
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
    # The residual blocks of a ResNet start as the identity, with zero gradients: these scales change that.
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
    """Returns all weights, statistics and the temperature."""
    arrays = [keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(variable)) for variable in clip.weights]
    return {f"{i} {v.name}": np.array(array) for i, (v, array) in enumerate(zip(clip.weights, arrays, strict=True))}


def train(clip, data, batch_size, epochs=2, optimizer=None, **options):
    """Trains with SGD, which unlike Adam reveals constant factors. Returns logs, weights before, and weights after."""
    before = state(clip)
    clip.compile(optimizer or sgd(), **options)
    history = clip.fit(data, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0).history
    return history, before, state(clip)


def reference(rows=ROWS, epochs=2, optimizer=None, is_frozen=False, compile_options=None, **options):
    """Returns the results of `train` on one device, without micro-batches, for a configuration.

    Each configuration is trained once per process; all tests share the results.

    Args:
        optimizer: arguments of SGD.
        is_frozen: whether BatchNorm is frozen.
        compile_options: other arguments of `compile`.
        options: arguments of `build`.
    """
    compile_options = compile_options or {}
    key = json.dumps([rows, epochs, optimizer or {}, is_frozen, compile_options, options], sort_keys=True)
    if key not in _REFERENCES:
        clip = freeze_norms(build(**options)) if is_frozen else build(**options)
        _REFERENCES[key] = train(clip, pairs(rows), BATCH, epochs, sgd(**optimizer or {}), **compile_options)
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
    """Returns the largest relative distance of two trainings, over the logged losses and the change of each weight.

    Each step of each training rounds each weight once; the distance does not count these rounding errors.
    """
    (logs, before, after), (other_logs, other_before, other_after) = one, other
    np.testing.assert_equal(before, other_before)
    losses = [np.array([logs[key], other_logs[key]]) for key in ("loss", "image_to_text_accuracy") if key in logs]
    worst = max(np.max(np.abs(a - b) / np.maximum(np.abs(a), 1e-6)) for a, b in losses)
    changes = {key: after[key] - before[key] for key in after}
    others = {key: other_after[key] - before[key] for key in after}
    # The rounding error of a weight limits the precision of its change.
    rounding = {key: np.linalg.norm(np.spacing(np.abs(before[key]))) for key in after}
    # The gradients of key biases consist of rounding errors only, so small changes are compared with this one.
    least = 0.1 * np.mean([np.linalg.norm(change) for change in changes.values()])
    assert least > 0
    for key, change in changes.items():
        difference = max(np.linalg.norm(change - others[key]) - ROUNDINGS * rounding[key], 0.0)
        worst = max(worst, difference / max(np.linalg.norm(change), least))
    return float(worst)
