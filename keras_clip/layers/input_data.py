"""Checks of what is passed to `fit`, `evaluate` and `predict`, whose errors in Keras do not say what to do."""

import os
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_clip.layers.input_shapes import check_vocabulary


def check_input_data(x: Any, vocabulary_size: int | None = None) -> None:
    """Raises a ValueError for files, texts and PIL images in place of arrays, no rows, and inputs of several lengths.

    Args:
        x: the data of `fit`, `evaluate` or `predict`: an array or tensor, a dict of them, or a source of batches, which
            is not read.
        vocabulary_size: int or None. With it, `x` or its "token_ids" must be of this vocabulary.

    Raises:
        ValueError: see above.
    """
    parts = dict(x) if isinstance(x, Mapping) else {"x": x}
    for name, part in parts.items():
        if _is_raw(part):
            raise ValueError(
                "A model takes arrays: images (B, H, W, 3) and token ids (B, L). "
                f"Received: {name}={reprlib.repr(part)}. Pass `image_preprocessor(images)` for files and PIL images, "
                "and `tokenizer(texts)` for texts."
            )
    shapes = {name: tuple(getattr(part, "shape", None) or ()) for name, part in parts.items()}
    sizes = {name: shape[0] for name, shape in shapes.items() if shape}
    if 0 in sizes.values():
        raise ValueError(
            f"There must be at least one row. Received: {', '.join(f'{name}.shape={shapes[name]}' for name in sizes)}."
        )
    if len(set(sizes.values())) > 1:
        received = ", ".join(f"{size} {name}" for name, size in sizes.items())
        raise ValueError(
            f"All inputs must have one row for each pair. Received: {received}. Pass as many of each, row i of all "
            "being pair i."
        )
    if vocabulary_size is not None:
        check_vocabulary(parts.get("token_ids", parts.get("x")), vocabulary_size)


def _is_raw(part: Any) -> bool:
    """Whether this is a path, a text or a PIL image, or a list or an array of them."""
    if isinstance(part, np.ndarray):
        return part.dtype.kind in "SU" or (part.dtype == object and part.size > 0 and _is_raw(part.flat[0]))
    if isinstance(part, list | tuple):
        return bool(part) and _is_raw(part[0])
    # PIL images; reading PIL here would load it for every model.
    return isinstance(part, str | bytes | os.PathLike) or hasattr(part, "getbands")
