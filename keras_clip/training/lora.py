"""Low-rank adaptation (LoRA), which trains low-rank updates of frozen weights (Hu et al., 2021)."""

import math
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import keras

from keras_clip import compat
from keras_clip.layers.pooling import AttentionPool
from keras_clip.layers.transformer import SelfAttention

PROJECTIONS = ("query", "key", "value")


def enable_lora(
    encoder: keras.Model, rank: int = 8, alpha: float | None = None, projections: Sequence[str] = ("query", "value")
) -> int:
    """Freezes an encoder and adds trainable low-rank updates to its attention projections.

    The features do not change at first, since the updates are initialised to zero. A saved model has the updates beside
    the kernels, so that its training can go on; `merge_lora` adds them to the kernels, for the original size and speed.

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


def merge_lora(model: keras.Model) -> keras.Model:
    """Returns a copy of a model in which all LoRA updates are added to the weights that they update.

    The copy computes the same, with the size and speed of the model before `enable_lora`. It is not compiled.

    Args:
        model: any model of this library, such as a `CLIPModel`, whose layers have LoRA updates.

    Returns:
        A model of the same class.

    Raises:
        ValueError: a model without LoRA updates, or with updates of quantised layers.
    """
    adapted = [layer for layer in compat.all_layers(model) if getattr(layer, "lora_enabled", False)]
    if not adapted:
        raise ValueError(f"There is nothing to merge. Received: model={model.name!r} without LoRA updates.")
    if any(layer.quantization_mode is not None for layer in adapted):
        raise ValueError(
            "Updates can be added to weights in floating point only. "
            f"Received: model={model.name!r}, of which {adapted[0].name!r} is quantised. Merge before it is quantised."
        )
    copy = type(model).from_config(_without_lora(model.get_config()))
    with tempfile.TemporaryDirectory() as folder:
        # Layers without updates add them when they load the weights of layers that have some.
        weights = os.path.join(folder, "model.weights.h5")
        model.save_weights(weights)
        copy.load_weights(weights)
    return copy


def _without_lora(config: Any) -> Any:
    """A configuration without what `layers.composite.parts_of` says of LoRA updates."""
    if isinstance(config, dict):
        return {key: _without_lora(value) for key, value in config.items() if key not in ("lora", "lora_rank")}
    return type(config)(map(_without_lora, config)) if isinstance(config, list | tuple) else config
