"""Checks that images and token ids have the shapes, and token ids the values, that an encoder was built for.

A wrong size would not always fail by itself: the patches of an image of twice the size are those of four images.
"""

from typing import Any

import keras
import numpy as np

from keras_clip.types import Tensor


def check_images_shape(shape: tuple, sides: tuple[int, int], rank: int | None = 4) -> None:
    """Raises a ValueError unless a shape is that of images (B, H, W, 3); None fits every length.

    Args:
        shape: tuple of ints and None.
        sides: (height, width) in pixels.
        rank: int or None. Number of axes; None: four or more, for encoders of video frames.
    """
    shape = tuple(shape)
    expected = (*sides, 3)
    fits = len(shape) == rank if rank is not None else len(shape) >= 4
    if not fits or any(length not in (None, side) for length, side in zip(shape[-3:], expected, strict=True)):
        raise ValueError(_message(shape, sides))


def _message(shape, sides):
    height, width = sides
    known = len(shape) >= 4 and None not in shape[-3:-1]
    size = f"`image_size={shape[-3] if shape[-3] == shape[-2] else tuple(shape[-3:-1])}`" if known else "`image_size=`"
    single = " One image alone is `image[None]`." if len(shape) == 3 else ""
    return (
        f"Images must be (B, {height}, {width}, 3), the size that the encoder was made for. Received: images.shape="
        f"{tuple(shape)}. Prepare them with the model's `image_preprocessor`, or make the encoder (or load the preset) "
        f"with {size}.{single}"
    )


def check_images(images: Tensor, sides: tuple[int, int], rank: int | None = 4) -> None:
    """Raises a ValueError unless images are (B, H, W, 3).

    Where a graph of TensorFlow does not know the size, the graph raises an InvalidArgumentError when it runs.

    Args:
        images: tensor.
        sides: (height, width) in pixels.
        rank: as in `check_images_shape`.
    """
    check_images_shape(images.shape, sides, rank)
    if None in images.shape[-3:] and _runs_in_graph(images):
        import tensorflow as tf

        shape = tf.shape(images)[-3:]
        tf.debugging.assert_equal(shape, (*sides, 3), _message((None, None, None, 3), sides))


def check_token_ids(token_ids: Tensor, context_length: int) -> None:
    """Raises a ValueError unless token ids are (B, L) with L at most `context_length`; in graphs as `check_images`."""
    shape = tuple(token_ids.shape)
    message = (
        f"`token_ids` must be (B, L), with at most context_length={context_length} tokens per row. Received: "
        f"token_ids.shape={shape}. Tokenize with `truncate=True`, or increase the `context_length` of the encoder."
    )
    if len(shape) != 2 or (shape[1] is not None and shape[1] > context_length):
        raise ValueError(message)
    if shape[1] is None and _runs_in_graph(token_ids):
        import tensorflow as tf

        tf.debugging.assert_less_equal(tf.shape(token_ids)[1], context_length, message)


def check_vocabulary(token_ids: Any, vocabulary_size: int) -> None:
    """Raises a ValueError for token ids outside of the vocabulary, if their values are there to be read at no cost.

    Backends take such ids differently: some fail without a cause, some embed them as NaN, and -1 as the last token.

    Args:
        token_ids: array or tensor of the backend. Graphs, accelerators and files mapped into memory are not read.
        vocabulary_size: int. V.
    """
    values = _values(token_ids)
    if values is None or not values.size or values.dtype.kind not in "iuf":
        return
    lowest, highest = values.min(), values.max()
    if lowest < 0 or highest >= vocabulary_size:
        raise ValueError(
            f"`token_ids` must be from 0 to {vocabulary_size - 1}, the vocabulary of the encoder. Received: values "
            f"from {lowest} to {highest}. Pass what the model's `tokenizer` returns, which pads texts with 0, or "
            "make the encoder with another `vocabulary_size`."
        )


def _values(x) -> np.ndarray | None:
    """The values of an array or of a tensor in the memory of the CPU, or None."""
    if isinstance(x, np.ndarray):
        return None if isinstance(x, np.memmap) else x
    if isinstance(x, keras.KerasTensor) or not keras.ops.is_tensor(x):
        return None
    backend = keras.backend.backend()
    try:
        if backend == "tensorflow":
            return x.numpy() if "CPU" in x.device else None
        if backend == "jax":
            is_near = x.is_fully_addressable and all(device.platform == "cpu" for device in x.devices())
            return np.asarray(x) if is_near else None
        import torch

        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        return x.numpy() if type(x) is torch.Tensor and x.device.type == "cpu" and not is_traced else None
    except Exception:  # Each backend has its own for a value that a graph does not have yet.
        return None


def _runs_in_graph(x):
    return keras.backend.backend() == "tensorflow" and not isinstance(x, keras.KerasTensor)
