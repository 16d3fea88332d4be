"""Low-rank adaptation of the attention of an encoder (LoRA; Hu et al., 2021)."""

import math
from collections.abc import Sequence

import keras

from keras_clip import compat
from keras_clip.layers.pooling import AttentionPool
from keras_clip.layers.transformer import SelfAttention

PROJECTIONS = ("query", "key", "value")


def enable_lora(
    encoder: keras.Model, rank: int = 8, alpha: float | None = None, projections: Sequence[str] = ("query", "value")
) -> int:
    """Freezes an encoder and adds trainable low-rank updates to the projections of its attention.

    The features are unchanged, since the updates are zero initially. Call it before `compile` and `predict`, whose
    compiled functions would not have the updates. When the model is saved, the updates are merged into the kernels, so
    that it is as large and as fast as before.

    Args:
        encoder: `VisionTransformer`, `TextTransformer`, or `ModifiedResNet`, where it applies to the attention pool.
        rank: int > 0. Columns of the first factor.
        alpha: float or None. The updates are scaled by alpha / rank; None: not scaled.
        projections: those to adapt, among "query", "key" and "value".

    Returns:
        The number of trainable weights of the encoder.

    Raises:
        ValueError: an invalid rank or projection, or an encoder without attention layers of this library.
    """
    if rank < 1 or not projections or not set(projections) <= set(PROJECTIONS):
        raise ValueError(
            f"`rank` must be positive, `projections` some of {PROJECTIONS}. "
            f"Received: rank={rank}, projections={tuple(projections)}."
        )
    layers = compat.all_layers(encoder, include_self=False)
    attentions = [layer for layer in layers if isinstance(layer, SelfAttention | AttentionPool)]
    if not attentions:
        raise ValueError(
            f"The encoder must have attention of keras_clip. Received: {encoder.name!r} of type "
            f"{type(encoder).__name__}. Call `enable_lora` of its own layers."
        )
    for variable in encoder.weights:
        variable.trainable = False
    for layer in layers:
        # The moving statistics are frozen too.
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    for attention in attentions:
        for name in projections:
            getattr(attention, name).enable_lora(rank, lora_alpha=alpha)
    return sum(math.prod(variable.shape) for variable in encoder.trainable_weights)
