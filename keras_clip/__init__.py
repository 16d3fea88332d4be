"""CLIP for Keras 3: components to build, train and use contrastive image-text models."""

from keras_clip import (
    baselines,
    curation,
    data,
    distribution,
    encoders,
    engines,
    evaluation,
    flops,
    layers,
    losses,
    presets,
    prompts,
    search,
    similarity,
    step,
    training,
)
from keras_clip.model import CLIPModel, ImageEmbedder, TextEmbedder
from keras_clip.zero_shot import ZeroShotClassifier
