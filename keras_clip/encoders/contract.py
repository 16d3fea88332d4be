"""What a model asks of the encoders it is given, whoever made them."""

import keras

from keras_clip.data.images import ImagePreprocessor


def features_shape(encoder: keras.layers.Layer, inputs: keras.KerasTensor, wanted: str) -> tuple:
    """The shape (B, D) of the features that an encoder gives; builds the encoder.

    Args:
        encoder: Keras model or layer.
        inputs: what it is called with.
        wanted: the argument it was passed as, for the error.

    Returns:
        (None or B, D).

    Raises:
        ValueError: it gives something else.
    """
    features = encoder(inputs)
    shape = tuple(getattr(features, "shape", ()))
    if len(shape) != 2 or shape[-1] is None:
        raise ValueError(
            f"`{wanted}` must give features (B, D) of known D. Received: {encoder.name!r}, which gives "
            f"{features if not shape else shape} for an input of shape {inputs.shape}. Pool its output, for instance "
            "with `keras_clip.encoders.wrap(model, pooling='mean')`."
        )
    return shape


def attribute(encoder: keras.layers.Layer, name: str, axes: slice) -> int | tuple[int, ...]:
    """The encoder's own attribute, or what its input shape says.

    Args:
        encoder: Keras model or layer.
        name: of the attribute.
        axes: the axes of the input shape that have it.

    Returns:
        int, or a tuple of ints where they differ.

    Raises:
        ValueError: neither is known.
    """
    value = getattr(encoder, name, None)
    if value is None:
        shape = getattr(encoder, "input_shape", None)
        value = shape[axes] if isinstance(shape, tuple) and None not in shape[axes] else None
        if value is None:
            raise ValueError(
                f"The encoder does not tell its `{name}`. Received: {encoder.name!r}. Give it an attribute `{name}` or "
                "an input shape, or wrap it: `keras_clip.encoders.wrap(model, ...)`."
            )
        value = value[0] if len(set(value)) == 1 else tuple(value)
    return value


def preprocessor_for(encoder: keras.layers.Layer) -> ImagePreprocessor:
    """An `ImagePreprocessor` for the image size and the pixel range that an image encoder tells.

    Args:
        encoder: Keras model or layer, images (B, H, W, 3) -> features.

    Returns:
        The preprocessor; with OpenAI's mean and standard deviation where the encoder has none of its own.

    Raises:
        ValueError: it does not tell its image size.
    """
    size = attribute(encoder, "image_size", slice(1, 3))
    known = {"mean": getattr(encoder, "pixel_mean", None), "std": getattr(encoder, "pixel_std", None)}
    return ImagePreprocessor(size, **{key: value for key, value in known.items() if value})
