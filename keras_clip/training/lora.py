"""Low-rank adaptation: a few weights learn beside many that stay (Hu et al., 2021)."""

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
    """Locks an encoder but for low-rank additions to its attention, which alone will learn.

    The encoder gives the same features as before: the additions start as zeros. Call it before `compile` and
    `predict`: what they compiled would not have the additions. When the model is saved, the additions become part of
    the kernels, so it is as large and as fast as it was.

    Args:
        encoder: `VisionTransformer`, `TextTransformer`, or `ModifiedResNet`, whose attention pool learns then.
        rank: int > 0. Columns of the first factor.
        alpha: float or None. The additions are multiplied by alpha / rank; None: by one.
        projections: of "query", "key" and "value".

    Returns:
        How many weights of the encoder learn now.

    Raises:
        ValueError: a rank or projections that do not exist, or an encoder without attention of this library.
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
        # Statistics belong to what is locked.
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    for attention in attentions:
        for name in projections:
            getattr(attention, name).enable_lora(rank, lora_alpha=alpha)
    return sum(math.prod(variable.shape) for variable in encoder.trainable_weights)
