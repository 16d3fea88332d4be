"""Checks the arguments of `image_text_pairs` and completes them with defaults."""

from collections.abc import Sequence
from typing import Any

from keras_clip.data.readers.brief import brief

CROPS = ("paper", "random_resized")
# The orders of training: see `epochs.order`.
SHUFFLES = ("samples", "blocks")
# Of a random resized crop in open_clip.
_CROP_SCALE = (0.9, 1.0)


def component(name: str, given: Any, model: Any) -> Any:
    """Returns the argument if it is given, otherwise the model's component of this name."""
    component = given if given is not None else getattr(model, name, None)
    if component is None:
        raise ValueError(
            f"`{name}` is required. Received: {name}=None, model={model!r}. Pass it, or a model that has one."
        )
    return component


def increasing_lengths(lengths: Sequence[int] | None, tokenizer: Any) -> tuple[int, ...]:
    """Returns the increasing lengths to which texts are padded; by default 16, 32 and the context length."""
    context = getattr(tokenizer, "context_length", None)
    if not callable(tokenizer) or not context:
        raise TypeError(
            "tokenizer must be callable and have a context_length, like CLIPTokenizer. "
            f"Received: tokenizer={tokenizer!r}."
        )
    if lengths is None:
        return (*(length for length in (16, 32) if length < context), context)
    lengths = tuple(lengths)
    if not lengths or lengths[0] < 3 or lengths[-1] > context or list(lengths) != sorted(set(lengths)):
        raise ValueError(
            f"text_lengths must increase from at least 3 to at most the context length {context}. "
            f"Received: text_lengths={lengths}."
        )
    return lengths


def check_crop(crop: str) -> None:
    """Raises a ValueError for another crop than those of `CROPS`."""
    if crop not in CROPS:
        raise ValueError(f"crop must be one of {', '.join(map(repr, CROPS))}. Received: crop={crop!r}.")


def region_scale(crop: str, crop_scale: tuple[float, float] | None) -> tuple[float, float] | None:
    """Returns the smallest and largest area of a random resized crop, by default open_clip's; None: the paper's crop.

    Raises:
        ValueError: an unknown crop, fractions out of range, or fractions for the paper's crop, which needs none.
    """
    check_crop(crop)
    if crop_scale is None:
        return _CROP_SCALE if crop == "random_resized" else None
    if crop != "random_resized":
        raise ValueError(
            f'crop_scale requires crop="random_resized". Received: crop={crop!r}, crop_scale={crop_scale}. Pass '
            "that crop as well, or no crop_scale for the paper's crop, which keeps the shorter side whole."
        )
    try:
        low, high = map(float, crop_scale)
    except (TypeError, ValueError):
        low = high = 0.0
    if not 0 < low <= high <= 1:
        raise ValueError(
            f"crop_scale must be (low, high) with 0 < low <= high <= 1. Received: crop_scale={crop_scale}."
        )
    return low, high


def check_shuffle(shuffle: str) -> None:
    """Raises a ValueError for another order than those of `SHUFFLES`."""
    if shuffle not in SHUFFLES:
        raise ValueError(
            f"shuffle must be one of {', '.join(map(repr, SHUFFLES))}. Received: shuffle={shuffle!r}. To keep the "
            "order of the samples, pass training=False."
        )


def check_numbers(batch_size: int, seed: int, shard: tuple[int, int], max_broken: float) -> None:
    """Raises a ValueError for numbers out of range."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1. Received: batch_size={batch_size}.")
    if seed < 0:
        raise ValueError(f"seed must not be negative. Received: seed={seed}.")
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard must be (index, count) with 0 <= index < count. Received: shard={shard}.")
    check_max_broken(max_broken)


def check_size(num_samples: int, batch_size: int, training: bool, source: Any) -> None:
    """Raises a ValueError if the source does not have at least one batch."""
    if num_samples is not None and num_samples < (batch_size if training else 1):
        raise ValueError(
            f"The source must have at least one batch. Received: batch_size={batch_size}, source={brief(source)} with "
            f"{num_samples} samples. Pass a smaller batch_size."
        )


def check_max_broken(max_broken: float) -> None:
    """Raises a ValueError unless the fraction of samples that may be broken is one.

    Args:
        max_broken: float in [0, 1].
    """
    if isinstance(max_broken, bool) or not isinstance(max_broken, int | float) or not 0 <= max_broken <= 1:
        raise ValueError(f"max_broken must be a fraction of the samples. Received: max_broken={max_broken!r}.")
