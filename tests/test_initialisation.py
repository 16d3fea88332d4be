"""Initial weights follow the paper, as those of open_clip do in its text tower and its ResNets."""

import keras
import numpy as np
import pytest
import torch
import torchvision_shim  # noqa: F401  (before open_clip)
from open_clip.model import CLIP
from peers import copy_open_clip

from keras_clip import CLIPModel
from keras_clip.encoders import ModifiedResNet, TextTransformer, VisionTransformer

WIDTH, LAYERS = 128, 3


def moments(model):
    """Returns {path: (size, mean, standard deviation)} of every weight that is not a statistic or a metric."""
    arrays = {variable.path: keras.ops.convert_to_numpy(variable) for variable in model.trainable_variables}
    return {path: (array.size, array.mean(), array.std()) for path, array in arrays.items()}


def test_as_open_clip_starts():
    keras.utils.set_random_seed(0)
    torch.manual_seed(0)
    text = dict(context_length=12, vocab_size=49408, width=WIDTH, heads=2, layers=LAYERS)
    peer = CLIP(embed_dim=48, vision_cfg=dict(image_size=64, layers=(1, 2, 1, 1), width=16), text_cfg=text)
    image = ModifiedResNet(64, (1, 2, 1, 1), 16, num_heads=8)
    clip = CLIPModel(image, TextTransformer(WIDTH, LAYERS, 2, 12), embed_dim=48)
    ours = moments(clip)
    copy_open_clip(peer, clip)
    theirs = moments(clip)
    assert len(ours) > 80
    for path, (size, mean, deviation) in ours.items():
        # torch draws random biases of convolutions and dense layers; ours start at zero, or do not exist.
        expected = 0.0 if path.endswith("bias") else theirs[path][2]
        # The tolerance is five standard errors of a standard deviation.
        assert deviation == pytest.approx(expected, rel=5 / np.sqrt(2 * size), abs=1e-7), path
        if not path.endswith("bias"):
            assert mean == pytest.approx(theirs[path][1], abs=10 * expected / np.sqrt(size) + 1e-7), path


# Standard deviations of the weights of a Vision Transformer. Its blocks start like those of the text encoder.
VISION = {
    "class_embedding": WIDTH**-0.5,
    "positions": WIDTH**-0.5,
    "patch_embedding/projection/kernel": (3 * 16 * 16 * 3) ** -0.5,
    "query/kernel": WIDTH**-0.5,
    "key/kernel": WIDTH**-0.5,
    "value/kernel": WIDTH**-0.5,
    "output/kernel": WIDTH**-0.5 * (2 * LAYERS) ** -0.5,
    "expand/kernel": (2 * WIDTH) ** -0.5,
    "contract/kernel": WIDTH**-0.5 * (2 * LAYERS) ** -0.5,
    "gamma": 0.0,
    "beta": 0.0,
    "bias": 0.0,
}


def test_vision_transformer():
    keras.utils.set_random_seed(0)
    encoder = VisionTransformer(image_size=96, patch_size=16, width=WIDTH, num_layers=LAYERS, num_heads=2)
    found = set()
    for path, (size, mean, deviation) in moments(encoder).items():
        (name,) = [name for name in VISION if path.endswith(name)]
        found.add(name)
        assert deviation == pytest.approx(VISION[name], rel=5 / np.sqrt(2 * size), abs=1e-7), path
        assert mean == pytest.approx(float(name == "gamma"), abs=5 * deviation / np.sqrt(size) + 1e-7), path
    assert found == set(VISION)
