"""Rematerialisation: the same step, with less memory for the backward pass; layers as functions of their values."""

import keras
import numpy as np
import pytest
from keras import ops
from small_clip import build, distance, pairs, reference, state, train

from keras_clip.encoders import VisionTransformer
from keras_clip.layers.pure_call import PureCall, rematerialize

BACKEND = keras.backend.backend()


# BatchNorm amplifies rounding errors where its moments are those of few rows, so the ResNet has a larger tolerance. Of
# two blocks, one is computed again.
TRAININGS = {
    "vit": ({"patch_dropout": 0.5, "num_layers": 2}, {}, 1e-5),
    "vit, micro-batches": ({"num_layers": 2}, {"microbatch_size": 8}, 1e-5),
    "resnet": ({"image_encoder": "resnet"}, {}, 1e-4),
}


@pytest.mark.parametrize("options, compiling, tolerance", TRAININGS.values(), ids=TRAININGS)
def test_a_training_is_the_same(options, compiling, tolerance):
    # The compared weights include the statistics of BatchNorm, which must not be updated twice.
    one = reference(rows=24, epochs=1, **options)
    assert distance(one, train(build(remat=True, **options), pairs(24), 24, epochs=1, **compiling)) < tolerance


class Penalised(keras.layers.Layer):
    """One dense layer with dropout and a penalty on its output."""

    def __init__(self, remat, **kwargs):
        super().__init__(**kwargs)
        self.remat = remat
        self.dense = keras.layers.Dense(4, kernel_initializer="ones", activity_regularizer=keras.regularizers.L2(0.1))
        self.dropout = keras.layers.Dropout(0.5, seed=7)
        self.dense.build((None, 4))

    def call(self, x):
        def run(x):
            return self.dropout(self.dense(x), training=True)

        return rematerialize(self, run, [self.dense, self.dropout], x) if self.remat else run(x)


def test_random_numbers_and_penalties_are_those_of_one_call():
    from gradients import loss_and_gradients

    x = np.arange(8, dtype="float32").reshape(2, 4)
    results = []
    for remat in (False, True):
        layer = Penalised(remat)
        model = keras.Sequential([keras.Input((4,)), layer])

        def loss(model=model):
            total = ops.sum(ops.square(model(ops.convert_to_tensor(x))))
            return total + sum(model.losses) if BACKEND != "jax" else total

        # The call that built the model has drawn random numbers too.
        layer.dropout.seed_generator.state.assign([7, 0])
        results.append((loss_and_gradients(loss, model.trainable_variables), model.losses))
    (value, gradients), _ = results[0]
    (other_value, other_gradients), _ = results[1]
    assert value > 0 and value == pytest.approx(other_value, rel=1e-6)
    np.testing.assert_allclose(gradients[0], other_gradients[0], rtol=1e-5)


def kept_bytes(encoder, images):
    """Returns the bytes that an encoder stores for its backward pass, without its weights."""
    variables = encoder.trainable_variables
    if BACKEND == "jax":
        import jax

        def call(values, images):
            with keras.StatelessScope(list(zip(variables, values, strict=True))):
                return ops.sum(encoder(images, training=True))

        _, pull = jax.vjp(call, [v.value for v in variables], images)
        sizes = [x.nbytes for x in jax.tree_util.tree_leaves(pull)]
    else:
        import torch

        weights, sizes = {v.value.data_ptr() for v in variables}, []

        def note(tensor):
            if tensor.data_ptr() not in weights:
                sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            ops.sum(encoder(images, training=True))
    return sum(sizes)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="backend unable: does not report the stored activations")
def test_it_keeps_the_inputs_of_blocks():
    images = ops.convert_to_tensor(pairs(8)["images"])
    kept = {}
    for remat in (False, True):
        kept[remat] = [kept_bytes(VisionTransformer(32, 8, 32, layers, 2, remat=remat), images) for layers in (2, 6)]
    # Each block stores its input (8, 17, 32), and on JAX its weights too.
    rows = 8 * 17 * 32 * 4
    weights = 0 if BACKEND == "torch" else 12 * 32 * 32 * 4 * 1.2
    assert (kept[True][1] - kept[True][0]) / 4 <= 1.5 * rows + weights
    assert (kept[False][1] - kept[False][0]) / 4 > 10 * rows


@pytest.mark.skipif(BACKEND != "tensorflow", reason="backend unable: stored activations are measured instead")
def test_it_computes_blocks_twice():
    import tensorflow as tf

    def products(remat):
        encoder = VisionTransformer(32, 8, 32, 3, 2, remat=remat)

        @tf.function
        def step(images):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(encoder(images, training=True))
            return tape.gradient(loss, [v.value for v in encoder.trainable_variables])

        operations = step.get_concrete_function(tf.TensorSpec((8, 32, 32, 3))).graph.get_operations()
        return sum("MatMul" in operation.type for operation in operations)

    # Each block except the last repeats its six products with weights; the products of attention are not MatMul.
    assert products(True) - products(False) == 2 * 6


def test_encoders_save_it_and_inference_ignores_it():
    clip = build(remat=True)
    for encoder in (clip.image_encoder, clip.text_encoder, build("resnet", remat=True).image_encoder):
        assert type(encoder).from_config(encoder.get_config()).remat
    assert clip.image_embedder.predict(pairs(4)["images"], verbose=0).shape == (4, 16)


def test_a_pure_call_does_not_change_the_layers():
    clip, data = build("convolution"), pairs(8)
    before = state(clip)
    pure = PureCall(lambda images: clip.image_embedder(images, training=True), [clip.image_embedder])
    embeddings, penalty, counters, statistics = pure(*pure.values(), ops.convert_to_tensor(data["images"]))
    assert embeddings.shape == (8, 16) and float(penalty) == 0
    assert len(pure.statistics) == len(statistics) > 0 and counters == []
    np.testing.assert_equal(state(clip), before)
    pure.assign(counters, statistics)
    assert any(not np.array_equal(value, before[key]) for key, value in state(clip).items())
