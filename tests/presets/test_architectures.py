"""The nine published architectures have the published numbers of parameters."""

import gc
import math

import numpy as np
import pytest

from keras_clip import CLIPModel, ImageEmbedder, TextEmbedder
from keras_clip.layers.initialisation import skip_initialization
from keras_clip.presets.architectures import ARCHITECTURES, Architecture
from keras_clip.presets.positions import resize_positions

# Parameters of the whole model, and of its image tower.
PUBLISHED = {
    "rn50": (102_007_137, 38_316_896),
    "rn101": (119_688_033, 56_259_936),
    "rn50x4": (178_300_601, 87_137_080),
    "rn50x16": (290_979_217, 167_328_912),
    "rn50x64": (623_258_305, 420_380_352),
    "vit_b32": (151_277_313, 87_849_216),
    "vit_b16": (149_620_737, 86_192_640),
    "vit_l14": (427_616_513, 303_966_208),
    "vit_l14_336": (427_944_193, 304_293_888),
}
TINY = Architecture(
    {"image_size": 32, "patch_size": 8, "width": 32, "num_layers": 1, "num_heads": 2},
    {"width": 24, "num_layers": 1, "num_heads": 2, "context_length": 12},
    embed_dim=16,
)


def parameters(layer):
    return sum(math.prod(variable.shape) for variable in layer.trainable_variables)


@pytest.mark.backend_free
@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name):
    assert ARCHITECTURES.keys() == PUBLISHED.keys()
    # Models contain reference cycles: without a collection, several GiB of earlier models stay in memory.
    gc.collect()
    with skip_initialization():
        clip = ARCHITECTURES[name].build()
    assert (parameters(clip), parameters(clip.image_embedder)) == PUBLISHED[name]
    assert clip.text_encoder.num_heads == clip.text_encoder.width // 64
    if "rn" in name:
        assert clip.image_encoder.pool.num_heads == clip.image_encoder.width // 64
    else:
        assert clip.image_encoder.num_heads == clip.image_encoder.width // 64


def test_towers_and_other_sizes():
    clip = TINY.resized(image_size=48, context_length=20).build(dtype="mixed_bfloat16")
    assert type(clip) is CLIPModel
    assert clip.image_encoder.image_size == clip.image_preprocessor.image_size == 48
    assert clip.text_encoder.context_length == clip.tokenizer.context_length == 20
    assert clip.image_encoder.dtype_policy.name == clip.image_projection.dtype_policy.name == "mixed_bfloat16"
    assert type(TINY.build(encoder="image")) is ImageEmbedder
    assert type(TINY.build(encoder="text")) is TextEmbedder
    assert TINY.image_size == 32 and TINY.grid == (4, 4)


@pytest.mark.backend_free
def test_positions_of_a_longer_text_by_hand():
    table = np.array([[0.0, 8.0], [1.0, 0.0]])
    # The centres of four intervals, in units of the two.
    expected = [[0.0, 8.0], [0.25, 6.0], [0.75, 2.0], [1.0, 0.0]]
    np.testing.assert_allclose(resize_positions(table, (2,), (4,)), expected)
    np.testing.assert_array_equal(resize_positions(table, (2,), (1,)), table[:1])
