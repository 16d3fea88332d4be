"""What is saved is what is loaded: locks of any layer, adapters, quantisation, random states and the optimizer."""

import keras
import numpy as np
import pytest
from keras import ops
from small_clip import build, pairs, state

import keras_clip
from keras_clip import compat, encoders
from keras_clip.training import enable_lora


def make(image_encoder="vit", **options):
    # The tokenizer of a smaller vocabulary would not be saved.
    return build(image_encoder, vocabulary_size=49408, **options)


def arrays(variables):
    return [np.array(ops.convert_to_numpy(ops.convert_to_tensor(variable))) for variable in variables]


def flags(model):
    return [layer.trainable for layer in compat.all_layers(model)], [v.trainable for v in model.variables]


def saved_and_loaded(model, tmp_path):
    model.save(tmp_path / "model.keras")
    return keras.saving.load_model(tmp_path / "model.keras")


def lock_all_but_a_block(clip):
    clip.text_encoder.trainable = False
    clip.text_encoder.blocks[0].trainable = True


def lock(*path):
    def change(clip):
        part = clip
        for name in path:
            part = part[name] if isinstance(name, int) else getattr(part, name)
        part.trainable = False

    return change


LOCKS = {
    "nothing": ("vit", lambda clip: None),
    "an encoder": ("vit", lock("image_encoder")),
    "a ResNet": ("resnet", lock("image_encoder")),
    "the moments of one block": ("resnet", lock("image_encoder", "stages", 1, "norm_2")),
    "a block": ("text", lock("text_encoder", "blocks", 0)),
    "all but a block": ("text", lock_all_but_a_block),
    "a projection inside a block": ("vit", lock("image_encoder", "blocks", 0, "attention", "query")),
    "a single weight": ("vit", lock("image_encoder", "patch_embedding", "positions")),
    "the temperature": ("vit", lock("contrast")),
    "a head": ("vit", lock("image_projection")),
    "LoRA": ("vit", lambda clip: enable_lora(clip.image_encoder, rank=2, alpha=6.0)),
    "LoRA of a ResNet": ("resnet", lambda clip: enable_lora(clip.image_encoder, rank=2)),
    "int8 of an encoder alone": ("vit", lambda clip: clip.image_encoder.quantize("int8")),
    "LoRA, then int8": (
        "vit",
        lambda clip: (enable_lora(clip.image_encoder, rank=2, alpha=6.0), clip.image_embedder.quantize("int8")),
    ),
    "int8, then LoRA": ("vit", lambda clip: (clip.quantize("int8"), enable_lora(clip.text_encoder, rank=2))),
}


@pytest.mark.parametrize("encoder, change", LOCKS.values(), ids=LOCKS)
def test_flags_weights_and_optimizer(encoder, change, tmp_path):
    clip = make(encoder if encoder != "text" else "convolution")
    change(clip)
    clip.compile(keras.optimizers.AdamW(1e-3))
    clip.optimizer.build(clip.trainable_variables)
    rng = np.random.default_rng(0)
    for variable in [*clip.optimizer.variables[2:], *[v for v in clip.weights if "lora" in v.name]]:
        variable.assign(rng.normal(size=variable.shape))
    again = saved_and_loaded(clip, tmp_path)
    assert flags(again) == flags(clip)
    assert [v.dtype for v in again.weights] == [v.dtype for v in clip.weights]
    for new, old in ((again.weights, clip.weights), (again.optimizer.variables, clip.optimizer.variables)):
        for a, b in zip(arrays(new), arrays(old), strict=True):
            np.testing.assert_array_equal(a, b)
    data = pairs(4)
    for a, b in zip(again(data).values(), clip(data).values(), strict=True):
        np.testing.assert_array_equal(*arrays([a, b]))


def test_the_next_fit_moves_the_same(tmp_path):
    """Locks of several kinds, some of them from after the first `fit`, and patch dropout."""
    clip, data = make(num_layers=2, patch_dropout=0.5), pairs(24)
    enable_lora(clip.text_encoder, rank=2, alpha=6.0)
    clip.image_encoder.blocks[0].attention.trainable = False
    clip.compile(keras.optimizers.Adam(1e-2))
    clip.fit(data, batch_size=24, shuffle=False, verbose=0)
    clip.image_encoder.patch_embedding.trainable = False
    clip.contrast.trainable = False
    again = saved_and_loaded(clip, tmp_path)
    # The file has what the optimizer was built for before the last locks.
    for a, b in zip(arrays(again.optimizer.variables), arrays(clip.optimizer.variables), strict=True):
        np.testing.assert_array_equal(a, b)
    before, changes = state(clip), []
    for model in (clip, again):
        model.fit(data, batch_size=24, shuffle=False, verbose=0)
        changes.append([name for name, value in state(model).items() if not np.array_equal(value, before[name])])
    moved = {v.path for v in clip.trainable_weights}
    names = [weight.path for weight in clip.weights]
    assert {names[int(change.split()[0])] for change in changes[0]} == moved
    assert changes[0] == changes[1] and 20 < len(moved) < len(names)
    for a, b in zip(state(clip).values(), state(again).values(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_every_public_model_alone(tmp_path):
    clip = make("convolution")
    vit = encoders.VisionTransformer(16, 8, 16, 1, 2, patch_dropout=0.5)
    vit.blocks[0].attention.trainable = False
    clip.text_embedder.projection.trainable = False
    clip.image_encoder.layers[0].trainable = False
    classifier = keras_clip.ZeroShotClassifier(
        clip.image_embedder, ["a", "b"], class_embeddings=np.eye(2, 16), logit_scale=1.0
    )
    bag = keras_clip.baselines.BagOfWordsPredictor(vit, keras_clip.data.CLIPTokenizer(8), vocabulary=range(9))
    wrapped = encoders.wrap(feature_map())
    wrapped.model.layers[1].trainable = False
    for model in (vit, clip.text_embedder, clip.image_embedder, classifier, bag, wrapped):
        again = saved_and_loaded(model, tmp_path)
        assert flags(again) == flags(model)
        assert not all(flags(again)[1]) or model is clip
        for a, b in zip(arrays(again.variables), arrays(model.variables), strict=True):
            np.testing.assert_array_equal(a, b)


def test_layers_in_a_model_of_your_own(tmp_path):
    tokens = keras.Input((6, 16))
    block = keras_clip.layers.TransformerBlock(2, name="ours")
    model = keras.Model(tokens, block(tokens))
    block.attention.key.trainable = False
    block.expand.kernel.trainable = False
    again = saved_and_loaded(model, tmp_path)
    assert flags(again) == flags(model)
    assert len(again.trainable_weights) == len(block.weights) - 3


def feature_map():
    images = keras.Input((8, 8, 3))
    return keras.Model(images, keras.layers.Dense(4)(keras.layers.Conv2D(4, 3)(images)))


LOCKED = {
    "VisionTransformer": lambda: encoders.VisionTransformer(16, 8, 16, 1, 2, trainable=False),
    "TextTransformer": lambda: encoders.TextTransformer(16, 1, 2, 8, vocabulary_size=50, trainable=False),
    "ModifiedResNet": lambda: encoders.ModifiedResNet(32, (1, 1, 1, 1), 4, 2, trainable=False),
    "ImageEmbedder": lambda: keras_clip.ImageEmbedder(encoders.VisionTransformer(16, 8, 16, 1, 2), 8, trainable=False),
    "wrap": lambda: encoders.wrapped.WrappedImageEncoder(feature_map(), image_size=8, trainable=False),
}


@pytest.mark.parametrize("make_locked", LOCKED.values(), ids=LOCKED)
def test_a_lock_given_before_there_are_weights(make_locked):
    model = make_locked()
    assert model.weights and not any(v.trainable for v in model.variables)
    assert not any(layer.trainable for layer in compat.all_layers(model))
    model.trainable = True
    assert model.trainable_weights


def test_a_locked_layer_locks_what_it_builds():
    block = keras_clip.layers.TransformerBlock(2, trainable=False)
    block.build((None, None, 8))
    assert len(block.weights) > 8 and not any(weight.trainable for weight in block.weights)


@pytest.mark.parametrize("optimizer", ["sgd with averages", "adam"])
def test_locked_and_unlocked_after_fit(optimizer):
    clip, data = make("convolution"), pairs(24)
    averages = keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True, ema_momentum=0.0)
    clip.compile(averages if optimizer != "adam" else keras.optimizers.Adam(1e-2))

    def moved():
        before = state(clip)
        clip.fit(data, batch_size=24, shuffle=False, verbose=0)
        names = [name for name, value in state(clip).items() if not np.array_equal(value, before[name])]
        return {clip.weights[int(name.split()[0])].path for name in names}

    def learning():
        return {weight.path for weight in clip.trainable_weights}

    statistics = {weight.path for weight in clip.image_encoder.weights if "moving" in weight.path}
    everything = learning()
    assert moved() == everything | statistics
    kept = arrays(clip.optimizer.variables)
    clip.image_encoder.trainable = False
    assert moved() == learning() < everything
    clip.text_encoder.trainable, clip.image_encoder.trainable = False, True
    assert moved() == learning() | statistics
    clip.text_encoder.trainable = True
    assert moved() == everything | statistics
    assert len(kept) == len(clip.optimizer.variables)
    assert int(arrays([clip.optimizer.iterations])[0]) == 4


def test_predict_follows_a_lock_of_other_layers_of_the_same_shapes():
    encoder = encoders.VisionTransformer(16, 8, 16, 2, 2)
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype("float32")
    encoder.blocks[0].trainable = False
    before = encoder.predict(images, verbose=0)
    encoder.blocks[0].trainable, encoder.blocks[1].trainable = True, False
    np.testing.assert_allclose(encoder.predict(images, verbose=0), before, atol=1e-6)
