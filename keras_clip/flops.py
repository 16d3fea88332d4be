"""Floating-point operations (FLOPs) of the models, counted from their sizes: two for each multiply-add.

Matrix products are counted (dense layers, convolutions, attention); normalisation, activations and other element-wise
operations are not. No model is built or run. The masked half of causal attention is counted. Each count has two forms:

- the operations of this library, which computes the last block of a transformer for the pooled row only, one query in
  the attention pool, and texts at their truncated length;
- `whole`: all rows of all blocks and the full context, as in published tables.
"""

from collections.abc import Mapping
from typing import Any

import keras

from keras_clip.encoders.resnet import ModifiedResNet
from keras_clip.encoders.text import TextTransformer
from keras_clip.encoders.vit import VisionTransformer


def _block(width: int, hidden: int, rows: int, queries: int) -> int:
    """Returns the multiply-adds of a transformer block over `rows` that computes the outputs of `queries` of them."""
    keys_and_values = 2 * rows * width**2
    attention = 2 * queries * rows * width
    return keys_and_values + attention + queries * (2 * width**2 + 2 * width * hidden)


def _transformer(sizes, rows: int, whole: bool) -> int:
    width, layers = sizes["width"], sizes["num_layers"]
    hidden = int(width * sizes.get("mlp_ratio", 4.0))
    last = _block(width, hidden, rows, rows if whole else 1)
    return (layers - 1) * _block(width, hidden, rows, rows) + last


def _vision_transformer(sizes, height, width_pixels, training, whole):
    patch = sizes["patch_size"]
    patches = (height // patch) * (width_pixels // patch)
    kept = patches
    if training and not whole:
        kept = max(1, round((1 - sizes.get("patch_dropout", 0.0)) * patches))
    return patches * 3 * patch**2 * sizes["width"] + _transformer(sizes, 1 + kept, whole)


def _resnet(sizes, height, width_pixels, whole):
    width, area = sizes.get("width", 64), height * width_pixels
    half = width // 2
    total = 9 * (3 * half + half * half + half * width) * (area // 4)
    area, channels = area // 16, width
    for stage, count in enumerate(sizes.get("blocks", (3, 4, 6, 3))):
        filters = width * 2**stage
        for i in range(count):
            total += (channels * filters + 9 * filters**2) * area
            if stage and not i:
                # The block strides between its second and its third convolution.
                area //= 4
            total += 4 * filters**2 * area
            if channels != 4 * filters or (stage and not i):
                total += channels * 4 * filters * area
            channels = 4 * filters
    rows = 1 + area
    queries = rows if whole else 1
    return total + (2 * rows + queries) * channels**2 + 2 * queries * rows * channels


def image_encoder(sizes: Mapping[str, Any], training: bool = False, whole: bool = False) -> int:
    """Returns the FLOPs of the forward pass of one image, from pixels to features.

    Args:
        sizes: arguments of `VisionTransformer`, or (without "patch_size") of `ModifiedResNet`.
        training: bool. Whether "patch_dropout" applies.
        whole: bool. Whether to count all rows, as in published tables.

    Returns:
        int.
    """
    size = sizes["image_size"]
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if "patch_size" in sizes:
        return 2 * _vision_transformer(sizes, *sides, training, whole)
    return 2 * _resnet(sizes, *sides, whole)


def text_encoder(sizes: Mapping[str, Any], length: int | None = None, whole: bool = False) -> int:
    """Returns the FLOPs of the forward pass of one text, from token ids to features.

    Args:
        sizes: arguments of `TextTransformer`.
        length: int. Number of tokens of the truncated text; None: the context length.
        whole: bool. Whether to count all rows at the context length, as in published tables.

    Returns:
        int.
    """
    context_length = sizes.get("context_length", 77)
    return 2 * _transformer(sizes, context_length if whole or length is None else length, whole)


def projection(width: int, embed_dim: int) -> int:
    """Returns the FLOPs of a projection head for one row.

    Args:
        width: int. D.
        embed_dim: int. E.

    Returns:
        int.
    """
    return 2 * width * embed_dim


def encoder_forward(encoder: keras.layers.Layer, length: int | None = None, training: bool = False) -> int | None:
    """Returns the FLOPs of the forward pass of an encoder for one image or text.

    Args:
        encoder: Keras model or layer.
        length: int. Number of tokens of truncated texts; None: the context length.
        training: bool. Whether patch dropout applies.

    Returns:
        int, or None for an encoder that is not of this library.
    """
    if isinstance(encoder, TextTransformer):
        return text_encoder(encoder.get_config(), length)
    if isinstance(encoder, VisionTransformer | ModifiedResNet):
        return image_encoder(encoder.get_config(), training)
    return None


def train_step(model: keras.Model, batch_size: int, length: int | None = None, replicas: int = 1) -> int | None:
    """Returns the FLOPs of one step of `fit`, over all devices.

    For each encoder that is trained, they are those of a forward pass and twice as many for the gradient; a locked
    encoder has a forward pass only. Micro-batches of a trained encoder and rematerialised blocks have a second forward
    pass. The tiled loss takes 8 E operations for each of the B x B similarities. The optimizer, with a few operations
    per weight, is not counted.

    Args:
        model: `CLIPModel`, compiled.
        batch_size: int. Pairs of the global batch.
        length: int. Number of tokens of the truncated texts; None: the context length.
        replicas: int. Devices that share the batch; each divides its own part into micro-batches.

    Returns:
        int, or None if `encoder_forward` returns None.
    """
    size = model.microbatch_size
    is_cut = size is not None and batch_size > size * replicas
    total = 8 * batch_size**2 * model.embed_dim
    for embedder in (model.image_embedder, model.text_embedder):
        forward = encoder_forward(embedder.encoder, length, training=embedder.encoder.trainable)
        if forward is None:
            return None
        forward += projection(embedder.encoder.width, model.embed_dim)
        total += batch_size * forward * _passes(embedder.encoder, is_cut)
    return total


def _passes(encoder, is_cut):
    """Returns the FLOPs of a step divided by those of the forward pass."""
    if not encoder.trainable:
        return 1
    return 3 + is_cut + bool(getattr(encoder, "remat", False))
