"""The interface that a `CLIPModel` requires of its encoders."""

import os

import keras

from keras_clip.data.images import ImagePreprocessor
from keras_clip.export import export_image_model, export_text_model
from keras_clip.layers.composite import CompositeModel


class Encoder(CompositeModel):
    """Base of the encoders of this library."""

    def export(self, filepath: str | os.PathLike, format: str = "tf_saved_model") -> None:
        """Writes the encoder as a file that runs without Keras, from "images" or "token_ids" to "features" (B, D).

        Args:
            filepath: folder of a SavedModel, or file of an ONNX or LiteRT graph.
            format: "tf_saved_model" (computes in this model's dtype policy), "onnx" or "litert" (always in float32).

        Raises:
            ValueError: an unknown format.
            ImportError: TensorFlow or the ONNX converter is not installed.
            RuntimeError: on JAX and torch: the TensorFlow process that exports failed.
        """
        self._export(filepath, format)

    def _export(self, filepath, format):
        raise NotImplementedError


class ImageEncoder(Encoder):
    """Base of the image encoders of this library: normalised images (B, H, W, 3) -> features (B, D)."""

    def _export(self, filepath, format):
        export_image_model(self, filepath, format, images_shape(self)[1:-1], "features", "float32")


class TextEncoder(Encoder):
    """Base of the text encoders of this library: token ids (B, L) -> features (B, D)."""

    @property
    def _vocabulary(self):
        return getattr(self, "vocabulary_size", None)

    def _export(self, filepath, format):
        export_text_model(self, filepath, format, self.context_length, output_name="features")


def features_shape(encoder: keras.layers.Layer, inputs: keras.KerasTensor, argument: str) -> tuple:
    """Builds an encoder and returns the shape (B, D) of its features.

    Args:
        encoder: Keras model or layer.
        inputs: symbolic input of the encoder.
        argument: str. Name of the argument that holds the encoder, for the error message.

    Returns:
        (None or B, D).

    Raises:
        ValueError: the encoder does not return features (B, D).
    """
    features = encoder(inputs)
    shape = tuple(getattr(features, "shape", ()))
    if len(shape) != 2 or shape[-1] is None:
        raise ValueError(
            f"`{argument}` must return features (B, D) of known D. Received: {encoder.name!r}, which returns "
            f"{features if not shape else shape} for an input of shape {inputs.shape}. Pool its output, for instance "
            "with `keras_clip.encoders.wrap(model, pooling='mean')`."
        )
    return shape


def attribute(encoder: keras.layers.Layer, name: str, axes: slice) -> int | tuple[int, ...]:
    """Returns an attribute of the encoder, or its value from the encoder's input shape.

    Args:
        encoder: Keras model or layer.
        name: str. Name of the attribute.
        axes: axes of the input shape that have the value.

    Returns:
        int, or a tuple of ints if they differ.

    Raises:
        ValueError: neither is known.
    """
    value = getattr(encoder, name, None)
    if value is None:
        shape = getattr(encoder, "input_shape", None)
        value = shape[axes] if isinstance(shape, tuple) and None not in shape[axes] else None
        if value is None:
            raise ValueError(
                f"The encoder must have an attribute `{name}` or an input shape. Received: {encoder.name!r} with "
                "neither. Add one, or wrap the encoder: `keras_clip.encoders.wrap(model, ...)`."
            )
        value = value[0] if len(set(value)) == 1 else tuple(value)
    return value


def images_shape(encoder: keras.layers.Layer) -> tuple:
    """Returns the shape of an image encoder's input: (None, H, W, 3), or with more axes (None, ..., H, W, 3).

    Args:
        encoder: Keras model or layer.

    Returns:
        Tuple of None and ints.

    Raises:
        ValueError: neither the input shape nor the image size is known.
    """
    shape = getattr(encoder, "input_shape", None)
    if isinstance(shape, tuple) and len(shape) > 4 and None not in shape[1:]:
        return (None, *shape[1:])
    size = attribute(encoder, "image_size", slice(1, 3))
    return (None, *((size, size) if isinstance(size, int) else tuple(size)), 3)


def preprocessor_for(encoder: keras.layers.Layer) -> ImagePreprocessor:
    """Returns an `ImagePreprocessor` for the image size and the pixel range of an image encoder.

    Args:
        encoder: Keras model or layer, images (B, H, W, 3) -> features.

    Returns:
        The preprocessor, with OpenAI's mean and standard deviation if the encoder does not have its own.

    Raises:
        ValueError: the image size of the encoder is unknown.
    """
    # The last axes are height, width and colours, also of video frames.
    size = attribute(encoder, "image_size", slice(-3, -1))
    known = {"mean": getattr(encoder, "pixel_mean", None), "std": getattr(encoder, "pixel_std", None)}
    return ImagePreprocessor(size, **{key: value for key, value in known.items() if value})
