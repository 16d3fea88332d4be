"""Low-rank adaptation (LoRA), which trains low-rank updates of frozen weights (Hu et al., 2021)."""

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
    """Freezes an encoder and adds trainable low-rank updates to its attention projections.

    The features do not change at first, since the updates are initialised to zero. Call this function before `compile`
    and `predict`, as functions compiled earlier do not contain the updates. Saving the model merges the updates into
    the kernels, so that the saved model has the original size and speed.

    Args:
        encoder: `VisionTransformer`, `TextTransformer`, or `ModifiedResNet`, of which the attention pool is adapted.
        rank: int > 0. Rank of the updates.
        alpha: float or None. The updates are multiplied by alpha / rank; None: by one.
        projections: projections to adapt, among "query", "key" and "value".

    Returns:
        Number of trainable weights of the encoder.

    Raises:
        ValueError: an invalid rank or unknown projections, or an encoder without attention layers of this library.
    """
    if rank < 1 or not projections or not set(projections) <= set(PROJECTIONS):
        raise ValueError(
            f"`rank` must be positive, and `projections` a non-empty subset of {PROJECTIONS}. "
            f"Received: rank={rank}, projections={tuple(projections)}."
        )
    layers = compat.all_layers(encoder, include_self=False)
    attentions = [layer for layer in layers if isinstance(layer, SelfAttention | AttentionPool)]
    if not attentions:
        raise ValueError(
            f"The encoder must have attention layers of keras_clip. Received: {encoder.name!r} of type "
            f"{type(encoder).__name__}. Call the method `enable_lora` of its own layers."
        )
    for variable in encoder.weights:
        variable.trainable = False
    for layer in layers:
        # The moving statistics are frozen with the weights.
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    for attention in attentions:
        for name in projections:
            getattr(attention, name).enable_lora(rank, lora_alpha=alpha)
    return sum(math.prod(variable.shape) for variable in encoder.trainable_weights)
