"""The nine published architectures can be expressed: parameter counts equal the published ones."""

import math

import pytest

from keras_clip.encoders import ModifiedResNet, TextTransformer, VisionTransformer
from keras_clip.layers import ProjectionHead

RESNETS = {
    # image size, blocks, width, text width, E, parameters of the image half, of the whole model
    "rn50": (224, (3, 4, 6, 3), 64, 512, 1024, 38_316_896, 102_007_137),
    "rn101": (224, (3, 4, 23, 3), 64, 512, 512, 56_259_936, 119_688_033),
    "rn50x4": (288, (4, 6, 10, 6), 80, 640, 640, 87_137_080, 178_300_601),
    "rn50x16": (384, (6, 8, 18, 8), 96, 768, 768, 167_328_912, 290_979_217),
    "rn50x64": (448, (3, 15, 36, 10), 128, 1024, 1024, 420_380_352, 623_258_305),
}
VISION_TRANSFORMERS = {
    # image size, patch size, width, layers, text width, E, parameters of the image half, of the whole model
    "vit_b32": (224, 32, 768, 12, 512, 512, 87_849_216, 151_277_313),
    "vit_b16": (224, 16, 768, 12, 512, 512, 86_192_640, 149_620_737),
    "vit_l14": (224, 14, 1024, 24, 768, 768, 303_966_208, 427_616_513),
    "vit_l14_336": (336, 14, 1024, 24, 768, 768, 304_293_888, 427_944_193),
}

pytestmark = [pytest.mark.backend_free, pytest.mark.slow]


def parameters(layer):
    return sum(math.prod(variable.shape) for variable in layer.trainable_variables)


def check(image, text_width, embed_dim, image_parameters, all_parameters):
    image_head = ProjectionHead(embed_dim, use_bias=getattr(image, "projection_bias", False))
    image_head.build((None, image.width))
    text = TextTransformer(text_width, 12, text_width // 64)
    text_head = ProjectionHead(embed_dim)
    text_head.build((None, text_width))
    assert parameters(image) + parameters(image_head) == image_parameters
    # One more: the temperature.
    assert sum(map(parameters, (image, image_head, text, text_head))) + 1 == all_parameters


@pytest.mark.parametrize("name", RESNETS)
def test_resnet(name):
    image_size, blocks, width, *rest = RESNETS[name]
    check(ModifiedResNet(image_size, blocks, width), *rest)


@pytest.mark.parametrize("name", VISION_TRANSFORMERS)
def test_vision_transformer(name):
    image_size, patch_size, width, layers, *rest = VISION_TRANSFORMERS[name]
    check(VisionTransformer(image_size, patch_size, width, layers, width // 64), *rest)
