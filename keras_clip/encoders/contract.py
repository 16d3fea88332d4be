"""What `CLIPModel` requires of a Keras model that is used as an encoder: features (B, D) and a known input size."""

import keras

from keras_clip.data.images import ImagePreprocessor


def features_shape(encoder: keras.layers.Layer, inputs: keras.KerasTensor, wanted: str) -> tuple:
    """The shape (B, D) of the features of an encoder; builds the encoder.

    Args:
        encoder: Keras model or layer.
        inputs: symbolic input of the encoder.
        wanted: name of the argument that it was passed as, for the error.

    Returns:
        (None or B, D).

    Raises:
        ValueError: the output of the encoder has another shape.
    """
    features = encoder(inputs)
    shape = tuple(getattr(features, "shape", ()))
    if len(shape) != 2 or shape[-1] is None:
        raise ValueError(
            f"`{wanted}` must return features (B, D) of known D. Received: {encoder.name!r}, which returns "
            f"{features if not shape else shape} for an input of shape {inputs.shape}. Pool its output, for instance "
            "with `keras_clip.encoders.wrap(model, pooling='mean')`."
        )
    return shape


def attribute(encoder: keras.layers.Layer, name: str, axes: slice) -> int | tuple[int, ...]:
    """A size of the input of an encoder: its attribute of that name, or what its input shape says.

    Args:
        encoder: Keras model or layer.
        name: str. The attribute, such as "image_size".
        axes: the axes of the input shape that hold the size.

    Returns:
        int, or a tuple of ints where the axes differ.

    Raises:
        ValueError: the encoder has neither the attribute nor a known input shape.
    """
    value = getattr(encoder, name, None)
    if value is None:
        shape = getattr(encoder, "input_shape", None)
        value = shape[axes] if isinstance(shape, tuple) and None not in shape[axes] else None
        if value is None:
            raise ValueError(
                f"The encoder must have an attribute `{name}` or a known input shape. Received: {encoder.name!r}, "
                "which has neither. Set one, or wrap the encoder: `keras_clip.encoders.wrap(model, ...)`."
            )
        value = value[0] if len(set(value)) == 1 else tuple(value)
    return value


def preprocessor_for(encoder: keras.layers.Layer) -> ImagePreprocessor:
    """An `ImagePreprocessor` for the image size and the pixel range of an image encoder.

    Args:
        encoder: Keras model or layer, images (B, H, W, 3) -> features.

    Returns:
        The preprocessor; with OpenAI's mean and standard deviation if the encoder has no `pixel_mean` and `pixel_std`.

    Raises:
        ValueError: the image size is not known.
    """
    size = attribute(encoder, "image_size", slice(1, 3))
    known = {"mean": getattr(encoder, "pixel_mean", None), "std": getattr(encoder, "pixel_std", None)}
    return ImagePreprocessor(size, **{key: value for key, value in known.items() if value})
