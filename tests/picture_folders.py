"""Folders of pictures for the tests of search, and a model that encodes them in milliseconds."""

import os

import keras
import numpy as np
from PIL import Image

import keras_clip

SIDE, WIDTH = 16, 6


@keras.saving.register_keras_serializable(package="tests")
class MeanColours(keras.layers.Layer):
    """Maps images (B, H, W, 3) to the mean colours of their four quarters and their contrast (B, 13)."""

    def __init__(self, **options):
        super().__init__(**options)
        self.built = True

    def call(self, images):
        height, width = images.shape[1] // 2, images.shape[2] // 2
        quarters = [images[:, y : y + height, x : x + width] for y in (0, height) for x in (0, width)]
        means = [keras.ops.mean(quarter, (1, 2)) for quarter in quarters]
        return keras.ops.concatenate([*means, keras.ops.std(images, (1, 2, 3))[:, None]], axis=1)

    def compute_output_shape(self, input_shape):
        return input_shape[0], 13


def build_embedder(seed=0):
    """Returns an `ImageEmbedder` of 13 features and 6 dimensions."""
    keras.utils.set_random_seed(seed)
    encoder = keras.Sequential([keras.Input((SIDE, SIDE, 3)), MeanColours()])
    return keras_clip.ImageEmbedder(encoder, WIDTH)


def draw(path, seed=0, size=(40, 30), **options):
    """Writes a picture of four random colours, different for each seed."""
    colours = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colours).resize(size, Image.Resampling.NEAREST).save(path, **options)
    return age(path)


def age(path, seconds=100):
    """Makes a file look as if it was written some time ago: a new one is read twice, since it may still change."""
    facts = os.stat(path)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns - seconds * 10**9))
    return path


def names(index):
    """The paths below the root of an index by picture, as one sorted list."""
    columns = index.columns(["folder", "name"])
    return sorted("/".join(filter(None, pair)) for pair in zip(columns["folder"], columns["name"], strict=True))
