"""`adamw`: the variables with weight decay, also after loading; the schedule; its steps against torch's AdamW."""

import keras
import numpy as np
import pytest

import keras_clip
from keras_clip.training import adamw


def tiny_model():
    return keras_clip.CLIPModel(
        keras_clip.encoders.VisionTransformer(8, 4, 8, 1, 2),
        keras_clip.encoders.TextTransformer(8, 1, 2, context_length=4),
        embed_dim=4,
    )


def decayed(optimizer, model):
    """Returns the paths of the variables that change when all gradients are zero."""
    for variable in model.trainable_variables:
        variable.assign(keras.ops.ones(variable.shape))
    zeros = [keras.ops.zeros(variable.shape) for variable in model.trainable_variables]
    optimizer.apply(zeros, model.trainable_variables)
    moved = set()
    for variable in model.trainable_variables:
        if not np.array_equal(keras.ops.convert_to_numpy(variable), np.ones(variable.shape)):
            moved.add("/".join(variable.path.split("/")[-3:]))
    return moved


EXPECTED = {
    *(f"patch_embedding/{name}" for name in ("positions", "projection/kernel")),
    *(f"token_embedding/{name}" for name in ("positions", "tokens/embeddings")),
    *(f"attention/{name}/kernel" for name in ("query", "key", "value", "output")),
    *(f"block_0/{name}/kernel" for name in ("expand", "contract")),
    *(f"{name}_projection/dense/kernel" for name in ("image", "text")),
}


def matches(path):
    return any(path.endswith(expected) for expected in EXPECTED)


def test_kernels_embeddings_and_positions_decay_and_nothing_else(tmp_path):
    model = tiny_model()
    optimizer = adamw(model, learning_rate=0.1, warmup_steps=0, total_steps=10)
    moved = decayed(optimizer, model)
    assert all(matches(path) for path in moved), moved
    # Both transformers have the same names inside: 2 x (4 + 2), and six outside of the blocks.
    assert len([v for v in model.trainable_variables if matches(v.path)]) == 18
    assert len(moved) == len({"/".join(v.path.split("/")[-3:]) for v in model.trainable_variables if matches(v.path)})

    model.compile(optimizer)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is keras_clip.training.AdamW
    assert decayed(loaded.optimizer, loaded) == moved


def test_biases_of_rank_two_do_not_decay():
    layer = keras.layers.MultiHeadAttention(2, 3)
    layer.build((None, 4, 6), (None, 4, 6))
    assert any(len(variable.shape) == 2 and variable.path.endswith("bias") for variable in layer.weights)
    optimizer = adamw(layer, warmup_steps=0, total_steps=10, learning_rate=0.1)
    assert all("kernel" in path for path in decayed(optimizer, layer))


def test_schedule_by_hand():
    schedule = adamw(tiny_model(), learning_rate=1.0, warmup_steps=4, total_steps=12)._learning_rate
    values = [float(schedule(step)) for step in (0, 2, 4, 8, 12, 20)]
    np.testing.assert_allclose(values, [0.25, 0.625, 1.0, 0.5, 0.0, 0.0], atol=1e-6)


def test_steps_equal_torch():
    torch = pytest.importorskip("torch")
    layer = keras.layers.Dense(3)
    layer.build((None, 2))
    linear = torch.nn.Linear(2, 3)
    layer.set_weights([linear.weight.detach().numpy().T.copy(), linear.bias.detach().numpy().copy()])
    options = dict(lr=0.1, betas=(0.9, 0.98), eps=1e-6)
    peer = torch.optim.AdamW(
        [{"params": [linear.weight], "weight_decay": 0.2}, {"params": [linear.bias], "weight_decay": 0.0}], **options
    )
    optimizer = keras_clip.training.AdamW(0.1, weight_decay=0.2, beta_1=0.9, beta_2=0.98, epsilon=1e-6)
    generator = np.random.default_rng(0)
    for _ in range(3):
        gradients = [generator.normal(size=shape).astype("float32") for shape in ((2, 3), (3,))]
        linear.weight.grad, linear.bias.grad = torch.tensor(gradients[0].T.copy()), torch.tensor(gradients[1])
        peer.step()
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients], layer.trainable_variables)
    np.testing.assert_allclose(layer.get_weights()[0], linear.weight.detach().numpy().T, atol=1e-5)
    np.testing.assert_allclose(layer.get_weights()[1], linear.bias.detach().numpy(), atol=1e-5)


REFUSED = {
    "no step after the warm-up": (dict(warmup_steps=10, total_steps=10), "total_steps"),
    "a rate of zero": (dict(learning_rate=0.0), "learning_rate"),
}


@pytest.mark.parametrize("arguments, message", REFUSED.values(), ids=REFUSED)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=f"{message}.*Received"):
        adamw(tiny_model(), **arguments)


def test_nothing_to_train_is_refused():
    model = tiny_model()
    model.trainable = False
    with pytest.raises(ValueError, match="nothing to train"):
        adamw(model)
