"""Wraps any Keras model as an encoder: a KerasHub backbone, a `keras.applications` network, or your own model."""

from collections.abc import Sequence

import keras
from keras import ops

from keras_clip.encoders.contract import ImageEncoder, TextEncoder
from keras_clip.layers.composite import CompositeModel
from keras_clip.layers.input_shapes import check_images, check_images_shape, check_token_ids
from keras_clip.layers.pooling import end_positions

# Inputs of a text model that are computed from the token ids.
_DERIVED_INPUTS = ("padding_mask", "segment_ids")
POOLINGS = ("mean", "max", "first", "end", None)


def wrap(
    model: keras.Model,
    pooling: str | None = "mean",
    pixel_range: tuple[float, float] | None = None,
    image_size: int | tuple[int, int] | None = None,
    context_length: int | None = None,
    output: str | None = None,
    end_token_id: int = 49407,
) -> keras.Model:
    """Wraps an image model or a text model as an encoder for `CLIPModel`.

    A model whose only input is an image tensor becomes an image encoder; a model with an input "token_ids", or with a
    single input (B, L), becomes a text encoder. An input "padding_mask" is computed from the position of the end token,
    since the padding id 0 is also a valid token; an input "segment_ids" is filled with zeros.

    Args:
        model: built Keras model. Its output: features (B, D), a feature map (B, h, w, D), a sequence (B, L, D), or a
            dict of these.
        pooling: how a map or a sequence is pooled to one vector: "mean" or "max" (both without padding), "first" (class
            token), "end" (end token of a text), or None if the output is (B, D).
        pixel_range: (lowest, highest) pixel value in the training of an image model, such as (0, 255) or (-1, 1). None:
            normalisation by CLIP's mean and standard deviation. The default preprocessor of `CLIPModel` uses it.
        image_size: int or (height, width); required if the model's input shape does not define it.
        context_length: int, maximum text length in tokens; required if the model's input shape does not define it.
        output: str. Key of the output in a dict of outputs; required if there are several.
        end_token_id: int. End token of texts.

    Returns:
        A Keras model: images (B, H, W, 3) or token ids (B, L) -> features (B, D).

    Raises:
        ValueError: an unknown `pooling`, or one that does not match the output, or an unknown image size or length.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"`pooling` must be one of {POOLINGS}. Received: pooling={pooling!r}.")
    inputs = _named_inputs(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    if "token_ids" in shapes or all(len(shape) == 2 for shape in shapes.values()):
        _check_text_inputs(shapes)
        length = context_length or next(iter(shapes.values()))[1]
        return WrappedTextEncoder(model, pooling, length, output, end_token_id)
    if len(shapes) != 1 or len(next(iter(shapes.values()))) != 4:
        raise ValueError(
            "`wrap` requires a model whose input is one image tensor (B, H, W, 3) or token ids (B, L). "
            f"Received: a model with inputs of shapes {shapes}."
        )
    return WrappedImageEncoder(model, pooling, pixel_range, image_size or next(iter(shapes.values()))[1:3], output)


def _check_text_inputs(names) -> None:
    if len(names) > 1 and not set(names) <= {"token_ids", *_DERIVED_INPUTS}:
        raise ValueError(
            f"A text model may have the inputs 'token_ids', {', '.join(map(repr, _DERIVED_INPUTS))}, or a single "
            f"input. Received: a model with the inputs {sorted(names)}. Rename them, or pass `CLIPModel` a model of "
            "your own that computes them from token ids (B, L)."
        )


def _named_inputs(model: keras.Model) -> dict:
    if not hasattr(model, "inputs") or model.inputs is None:
        raise ValueError(
            "`wrap` requires a functional model, whose inputs are known. "
            f"Received: model={model.name!r} of type {type(model).__name__}. Pass a layer or model that returns "
            "features (B, D) to `CLIPModel` directly."
        )
    structure = model.input
    return structure if isinstance(structure, dict) else {tensor.name: tensor for tensor in model.inputs}


def _select(outputs, name: str | None):
    if not isinstance(outputs, dict):
        return outputs
    if name is None and len(outputs) == 1:
        return next(iter(outputs.values()))
    if name not in outputs:
        raise ValueError(f"`output` must name one of the model's outputs {sorted(outputs)}. Received: output={name!r}.")
    return outputs[name]


def _check_rank(features, pooling: str | None) -> None:
    if (len(features.shape) == 2) != (pooling is None):
        raise ValueError(
            "`pooling` must be None for features (B, D), and must not be None for a map (B, h, w, D) or a sequence "
            f"(B, L, D). Received: an output of shape {tuple(features.shape)}, pooling={pooling!r}."
        )


class _Wrapped(CompositeModel):
    def __init__(self, model: keras.Model, pooling: str | None, output: str | None, **kwargs):
        kwargs.setdefault("name", f"{model.name}_encoder")
        super().__init__(**kwargs)
        self.model = model
        self.pooling = pooling
        self.output_key = output
        features = _select(model.output, output)
        _check_rank(features, pooling)
        self.width = features.shape[-1]
        self.mark_built()

    def build(self, input_shape=None):
        """Does nothing: the wrapped model is already built."""

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.width)

    def get_config(self):
        return {
            **super().get_config(),
            "model": keras.saving.serialize_keras_object(self.model),
            "pooling": self.pooling,
            "output": self.output_key,
        }

    @classmethod
    def _from_own_config(cls, config):
        return cls(model=keras.saving.deserialize_keras_object(config.pop("model")), **config)


@keras.saving.register_keras_serializable(package="keras_clip")
class WrappedImageEncoder(_Wrapped, ImageEncoder):
    """An image encoder that wraps a model; created by `wrap`.

    Args:
        model, pooling, pixel_range, output: as `wrap` takes them.
        image_size: int or (height, width).

    Call arguments:
        images: float tensor (B, H, W, 3).
        training: bool.

    Returns:
        Features (B, D) in the model's compute dtype.
    """

    def __init__(
        self,
        model: keras.Model,
        pooling: str | None = "mean",
        pixel_range: tuple[float, float] | None = None,
        image_size: int | Sequence[int] | None = None,
        output: str | None = None,
        **kwargs,
    ):
        super().__init__(model, pooling, output, **kwargs)
        if image_size is None or (not isinstance(image_size, int) and None in image_size):
            raise ValueError(
                f"The image size of {model.name!r} must be known. Received: image_size={image_size}. "
                "Pass `image_size` to `wrap`."
            )
        if pooling == "end":
            raise ValueError("`pooling='end'` requires a text model. Received: pooling='end' for an image model.")
        sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.image_size = sides[0] if sides[0] == sides[1] else sides
        self.pixel_range = pixel_range
        if pixel_range is not None:
            low, high = pixel_range
            # (pixels - mean) / std maps pixels in [0, 1] to that range.
            self.pixel_mean = (-low / (high - low),) * 3
            self.pixel_std = (1 / (high - low),) * 3

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else tuple(self.image_size)

    def compute_output_shape(self, input_shape):
        check_images_shape(input_shape, self.sides)
        return super().compute_output_shape(input_shape)

    def call(self, images, training=False):
        check_images(images, self.sides)
        structure = self.model.input
        inputs = {next(iter(structure)): images} if isinstance(structure, dict) else images
        features = _select(self.model(inputs, training=training), self.output_key)
        axes = tuple(range(1, len(features.shape) - 1))
        if self.pooling == "mean":
            return ops.mean(features, axis=axes)
        if self.pooling == "max":
            return ops.max(features, axis=axes)
        if self.pooling == "first":
            return features[:, 0] if len(axes) == 1 else features[:, 0, 0]
        return features

    def get_config(self):
        return {**super().get_config(), "pixel_range": self.pixel_range, "image_size": self.image_size}


@keras.saving.register_keras_serializable(package="keras_clip")
class WrappedTextEncoder(_Wrapped, TextEncoder):
    """A text encoder that wraps a model; created by `wrap`.

    Args:
        model, pooling, output, end_token_id: as `wrap` takes them.
        context_length: int.

    Call arguments:
        token_ids: int tensor (B, L).
        training: bool.

    Returns:
        Features (B, D) in the model's compute dtype.
    """

    def __init__(
        self,
        model: keras.Model,
        pooling: str | None = "mean",
        context_length: int | None = None,
        output: str | None = None,
        end_token_id: int = 49407,
        **kwargs,
    ):
        super().__init__(model, pooling, output, **kwargs)
        if context_length is None:
            raise ValueError(
                f"The context length of {model.name!r} must be known. Received: context_length=None. "
                "Pass `context_length` to `wrap`."
            )
        self.context_length = context_length
        self.end_token_id = end_token_id

    def call(self, token_ids, training=False):
        check_token_ids(token_ids, self.context_length)
        ends = end_positions(token_ids, self.end_token_id)[:, None]
        is_text = ops.arange(ops.shape(token_ids)[1], dtype="int32")[None] <= ends
        derived = {
            "padding_mask": ops.cast(is_text, "int32"),
            "segment_ids": ops.zeros_like(token_ids),
        }
        structure = self.model.input
        if isinstance(structure, dict):
            inputs = {name: derived.get(name, token_ids) for name in structure}
        else:
            inputs = token_ids
        features = _select(self.model(inputs, training=training), self.output_key)
        if self.pooling is None:
            return features
        if self.pooling == "first":
            return features[:, 0]
        if self.pooling == "end":
            return ops.take_along_axis(features, ends[:, :, None], axis=1)[:, 0]
        weights = ops.cast(is_text, features.dtype)[:, :, None]
        if self.pooling == "max":
            return ops.max(ops.where(weights > 0, features, -3e4), axis=1)
        return ops.sum(features * weights, axis=1) / ops.sum(weights, axis=1)

    def get_config(self):
        return {**super().get_config(), "context_length": self.context_length, "end_token_id": self.end_token_id}
