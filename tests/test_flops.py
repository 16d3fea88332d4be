"""`flops`: counts by hand, published counts, and those of XLA and torch for the same encoders."""

import keras
import numpy as np
import pytest
import small_clip

from keras_clip import encoders, flops
from keras_clip.presets.architectures import ARCHITECTURES

VIT = {"image_size": (48, 32), "patch_size": 8, "width": 128, "num_layers": 3, "num_heads": 2}
RESNET = {"image_size": 64, "blocks": (1, 1, 1, 1), "width": 16, "num_heads": 2}
TEXT = {"width": 128, "num_layers": 3, "num_heads": 2, "context_length": 40, "vocabulary_size": 64}

# GMAC of an image and of a text, as open_clip's table has them.
PUBLISHED = {
    "rn50": (6.14, 2.98),
    "rn50x64": (264.6, 11.8),
    "vit_b32": (4.41, 2.98),
    "vit_b16": (17.58, 2.98),
    "vit_l14": (81.08, 6.66),
    "vit_l14_336": (191.1, 6.66),
}


@pytest.mark.backend_free
@pytest.mark.parametrize("name", PUBLISHED)
def test_whole_networks_count_as_published(name):
    # That table also counts norms (0.1 %) and, for ResNets, a projection of every position in the pool (2 %).
    image, text = PUBLISHED[name]
    sizes = ARCHITECTURES[name]
    tolerance = 0.022 if name.startswith("rn") else 0.002
    assert flops.image_encoder(sizes.image_encoder, whole=True) / 2e9 == pytest.approx(image, rel=tolerance)
    assert flops.text_encoder(sizes.text_encoder, whole=True) / 2e9 == pytest.approx(text, rel=0.005)


@pytest.mark.backend_free
def test_a_transformer_by_hand():
    sizes = {"width": 2, "num_layers": 2, "mlp_ratio": 3.0, "context_length": 5}
    # 5 rows: queries, keys, values and output 4 x 5 x 4 = 80, attention 2 x 25 x 2 = 100, MLP 2 x 5 x 12 = 120.
    # The last block, for one row: keys and values 40, attention 20, query and output 8, MLP 24.
    assert flops.text_encoder(sizes) == 2 * (300 + 92)
    assert flops.text_encoder(sizes, whole=True) == 2 * (300 + 300)
    # 3 rows: 48 + 36 + 72, and 24 + 12 + 8 + 24.
    assert flops.text_encoder(sizes, length=3) == 2 * (156 + 68)
    assert flops.text_encoder(sizes, length=3, whole=True) == flops.text_encoder(sizes, whole=True)
    # 1 x 2 patches of 2 x 2 pixels, 12 numbers each, and the class token: 3 rows.
    image = {**sizes, "image_size": (2, 4), "patch_size": 2, "patch_dropout": 0.5}
    assert flops.image_encoder(image) == 2 * (2 * 12 * 2 + 156 + 68)
    # 2 rows: 32 + 16 + 48, and 16 + 8 + 8 + 24.
    assert flops.image_encoder(image, training=True) == 2 * (2 * 12 * 2 + 96 + 56)
    assert flops.image_encoder(image, training=True, whole=True) == flops.image_encoder(image, whole=True)
    assert flops.projection(3, 5) == 30


def measured(function, *inputs):
    """Returns the operations that the tool of the backend counts."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function).lower(*inputs).compile().cost_analysis()["flops"]
    if keras.backend.backend() == "torch":
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        # The counter does not support the fused attention of CPUs.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            function(*map(keras.ops.convert_to_tensor, inputs))
        return counter.get_total_flops()
    pytest.skip("backend unable: TensorFlow counts no einsum")


# XLA also counts norms and activations, and omits products with padding. Torch counts the same operations as `flops`.
TOLERANCE = {"jax": 0.08, "torch": 1e-9, "tensorflow": 0.0}


@pytest.mark.parametrize("kind, sizes", [(encoders.VisionTransformer, VIT), (encoders.ModifiedResNet, RESNET)])
def test_an_image_counts_as_measured(kind, sizes):
    encoder = kind(**sizes)
    sides = np.broadcast_to(sizes["image_size"], (2,))
    images = np.zeros((4, *sides, 3), "float32")
    tolerance = TOLERANCE[keras.backend.backend()]
    assert measured(encoder, images) / 4 == pytest.approx(flops.encoder_forward(encoder), rel=tolerance)


@pytest.mark.parametrize("length", [9, 40])
def test_a_text_counts_as_measured(length):
    encoder = encoders.TextTransformer(**TEXT)
    count = measured(encoder, np.full((4, length), 63, "int32")) / 4
    tolerance = TOLERANCE[keras.backend.backend()]
    assert count == pytest.approx(flops.encoder_forward(encoder, length), rel=tolerance)


STEPS = {
    "direct": {},
    "micro-batches": {"microbatch_size": 4},
    "micro-batches as large as the batch": {"microbatch_size": 8},
    "one encoder locked": {"locked": True},
    "micro-batches, one encoder locked": {"locked": True, "microbatch_size": 4},
    "patch dropout": {"patch_dropout": 0.5},
}


@pytest.mark.parametrize("case", STEPS.values(), ids=STEPS)
def test_a_step_counts_as_measured(case):
    if keras.backend.backend() != "torch":
        pytest.skip("backend unable: only torch counts the operations of a step that runs")
    case = dict(case)
    clip = small_clip.build(patch_dropout=case.pop("patch_dropout", 0.0), num_layers=2)
    clip.image_encoder.trainable = not case.pop("locked", False)
    clip.compile("sgd", **case)
    batch = small_clip.pairs(8)
    # The first call infers shapes, and these operations would count too.
    clip.train_on_batch(batch)
    count = measured(lambda *x: clip.train_on_batch(dict(zip(batch, x, strict=True))), *batch.values())
    # The gradient of the pixels is not computed: 16 patches of 192 numbers to a width of 32.
    no_gradient = 8 * 2 * 16 * 192 * 32 if clip.image_encoder.trainable else 0
    assert count == pytest.approx(flops.train_step(clip, 8, small_clip.LENGTH) - no_gradient, rel=1e-3)


@pytest.mark.backend_free
def test_replicas_use_micro_batches_by_the_size_of_their_part():
    clip = small_clip.build()
    clip.compile("sgd", microbatch_size=4)
    direct, cut = (flops.train_step(clip, 8, replicas=replicas) for replicas in (2, 1))
    loss = 8 * 8 * 8 * 16
    assert (cut - loss) * 3 == (direct - loss) * 4
    # Only the loss grows with the square of the number of pairs.
    assert flops.train_step(clip, 16) - 2 * cut == 8 * 16 * (16**2 - 2 * 8**2)


@pytest.mark.backend_free
def test_other_encoders_have_no_count():
    encoder = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(4)])
    assert flops.encoder_forward(encoder) is None
