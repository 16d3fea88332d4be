"""The memory of a whole training step whose encoders take almost none."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_clip

PAIRS, EMBED_DIM = 8192, 512


class FewFeatures(layers.Layer):
    """An image or text encoder of four features."""

    image_size, context_length, vocab_size = 2, 4, 10

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def call(self, x):
        x = keras.ops.reshape(keras.ops.cast(x, "float32"), (-1, int(np.prod(x.shape[1:]))))
        return self.dense(x)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="backend unable: XLA's plan of temporaries")
@pytest.mark.parametrize("microbatch_size", [None, 1024])
def test_temporaries_of_a_step(microbatch_size):
    """Both embeddings and their gradients are 64 MiB; four matrices of similarities would be 1024."""
    import jax

    clip = keras_clip.CLIPModel(FewFeatures(), FewFeatures(), EMBED_DIM)
    clip.compile(keras.optimizers.SGD(0.01), microbatch_size=microbatch_size)
    batch = {"images": np.zeros((PAIRS, 2, 2, 3), "float32"), "token_ids": np.zeros((PAIRS, 4), "int32")}
    clip.make_train_function()
    parts = ("trainable_variables", "non_trainable_variables", "optimizer_variables", "metrics_variables")
    state = clip._get_jax_state(**dict.fromkeys(parts, True))
    step = jax.jit(clip.train_step, donate_argnums=0).lower(state, (batch,)).compile()
    temporaries = step.memory_analysis().temp_size_in_bytes / 2**20
    assert 64 < temporaries <= 0.08 * 1024
