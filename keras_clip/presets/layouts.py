"""Maps weights to the tensors of checkpoints, in the layouts of open_clip (and OpenAI) and of Hugging Face."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import keras
import numpy as np

from keras_clip.encoders.resnet import ModifiedResNet
from keras_clip.encoders.text import TextTransformer
from keras_clip.encoders.vit import VisionTransformer
from keras_clip.model import CLIPModel, ImageEmbedder, TextEmbedder
from keras_clip.presets.positions import resize_positions, row_count

# The stored axis of each axis of a variable.
_LINEAR = (1, 0)
_CONVOLUTION = (2, 3, 1, 0)
_QUERY_KEY_VALUE = ("query", "key", "value")


@dataclass(frozen=True)
class Slot:
    """The position and form of a weight in a checkpoint.

    Attributes:
        variable: Keras variable.
        key: name of the stored tensor.
        axes: the stored axis of each axis of the variable; None: the same order.
        part: index of the third of the first stored axis, if queries, keys and values are one tensor; None: the whole
            axis.
        sides: rows and columns of the grid of position embeddings, or (L,); None for other weights.
        trained_sides: the sides of the stored position embeddings; None: the same.
    """

    variable: keras.Variable
    key: str
    axes: tuple[int, ...] | None = None
    part: int | None = None
    sides: tuple[int, ...] | None = None
    trained_sides: tuple[int, ...] | None = None

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the whole stored tensor."""
        shape = tuple(self.variable.shape)
        if self.trained_sides is not None:
            shape = (row_count(self.trained_sides), *shape[1:])
        if self.axes is not None:
            shape = tuple(shape[axis] for axis in np.argsort(self.axes))
        return shape if self.part is None else (3 * shape[0], *shape[1:])

    @property
    def is_stored_as_it_is(self) -> bool:
        """Whether the stored tensor has the same rows as the variable."""
        return self.axes is None and self.part is None and self.trained_sides is None and len(self.variable.shape) > 1

    def from_stored(self, tensor: np.ndarray) -> np.ndarray:
        """Converts a stored tensor of `stored_shape` to the value of the variable."""
        if self.trained_sides is not None:
            return resize_positions(tensor, self.trained_sides, self.sides)
        if self.part is not None:
            tensor = np.split(tensor, 3)[self.part]
        return tensor if self.axes is None else tensor.transpose(self.axes)

    def to_stored(self) -> np.ndarray:
        """Converts the value of the variable to the stored tensor, or with `part` to this third of it."""
        array = keras.ops.convert_to_numpy(self.variable)
        return np.asarray(array if self.axes is None else array.transpose(np.argsort(self.axes)), order="C")


def open_clip_slots(model: CLIPModel | ImageEmbedder | TextEmbedder) -> list[Slot]:
    """Returns the slots of a model, or of one tower, in open_clip's layout.

    Args:
        model: model of a `VisionTransformer` or `ModifiedResNet`, and a `TextTransformer`.

    Returns:
        One slot for each weight, statistics of BatchNorm included.

    Raises:
        TypeError: an encoder that the layout does not cover.
    """
    image = model if isinstance(model, ImageEmbedder) else getattr(model, "image_embedder", None)
    text = model if isinstance(model, TextEmbedder) else getattr(model, "text_embedder", None)
    slots = []
    if image is not None:
        kinds = {VisionTransformer: _vision_transformer, ModifiedResNet: _resnet}
        slots += _require(image.encoder, kinds)(image)
    if text is not None:
        slots += _require(text.encoder, {TextTransformer: _text_transformer})(text)
    if isinstance(model, CLIPModel):
        slots.append(Slot(model.logit_scale, "logit_scale"))
        if model.logit_bias is not None:
            slots.append(Slot(model.logit_bias, "logit_bias"))
    return slots


def hugging_face_slots(model: CLIPModel | ImageEmbedder | TextEmbedder) -> list[Slot]:
    """Returns the slots in the layout of Hugging Face's `CLIPModel`, which has Vision Transformers only."""
    image = model if isinstance(model, ImageEmbedder) else getattr(model, "image_embedder", None)
    if image is not None:
        _require(image.encoder, {VisionTransformer: None})
    return [_in_hugging_face(slot) for slot in open_clip_slots(model)]


def by_key(slots: Iterable[Slot]) -> dict[str, list[Slot]]:
    """Groups the slots by stored tensor, in the order of their parts."""
    groups = {}
    for slot in slots:
        groups.setdefault(slot.key, []).append(slot)
    return groups


def _require(encoder, kinds):
    if type(encoder) not in kinds:
        raise TypeError(
            f"The layout covers the weights of {' and '.join(kind.__name__ for kind in kinds)} only. "
            f'Received: {encoder.name!r} of type {type(encoder).__name__}. Save in the layout "keras".'
        )
    return kinds[type(encoder)]


def _vision_transformer(image):
    encoder = image.encoder
    embedding = encoder.patch_embedding
    yield from _convolution(embedding.projection, "visual.conv1")
    yield Slot(embedding.class_embedding, "visual.class_embedding")
    yield Slot(embedding.positions, "visual.positional_embedding", sides=_grid(encoder, encoder.patch_size))
    yield from _norm(encoder.norm_pre, "visual.ln_pre")
    yield from _norm(encoder.norm_post, "visual.ln_post")
    yield from _blocks(encoder.blocks, "visual.transformer.resblocks")
    yield Slot(image.projection.dense.kernel, "visual.proj")


def _resnet(image):
    encoder = image.encoder
    for i in range(3):
        yield from _convolution(encoder.stem[2 * i], f"visual.conv{i + 1}")
        yield from _norm(encoder.stem[2 * i + 1], f"visual.bn{i + 1}")
    keys = [f"visual.layer{stage + 1}.{i}" for stage, count in enumerate(encoder.block_counts) for i in range(count)]
    for block, key in zip(encoder.stages, keys, strict=True):
        for i in (1, 2, 3):
            yield from _convolution(getattr(block, f"convolution_{i}"), f"{key}.conv{i}")
            yield from _norm(getattr(block, f"norm_{i}"), f"{key}.bn{i}")
        if block.shortcut is not None:
            yield from _convolution(block.shortcut, f"{key}.downsample.0")
            yield from _norm(block.shortcut_norm, f"{key}.downsample.1")
    yield Slot(encoder.pool.positions, "visual.attnpool.positional_embedding", sides=encoder.feature_map)
    for name in _QUERY_KEY_VALUE:
        yield from _linear(getattr(encoder.pool, name), f"visual.attnpool.{name[0]}_proj")
    yield from _linear(image.projection.dense, "visual.attnpool.c_proj")


def _text_transformer(text):
    encoder = text.encoder
    yield Slot(encoder.token_embedding.tokens.embeddings, "token_embedding.weight")
    yield Slot(encoder.token_embedding.positions, "positional_embedding", sides=(encoder.context_length,))
    yield from _blocks(encoder.blocks, "transformer.resblocks")
    yield from _norm(encoder.norm_final, "ln_final")
    yield Slot(text.projection.dense.kernel, "text_projection")


def _blocks(blocks, prefix) -> Iterator[Slot]:
    for i, block in enumerate(blocks):
        key = f"{prefix}.{i}"
        yield from _norm(block.norm_1, f"{key}.ln_1")
        for part, name in enumerate(_QUERY_KEY_VALUE):
            dense = getattr(block.attention, name)
            yield Slot(dense.kernel, f"{key}.attn.in_proj_weight", _LINEAR, part)
            yield Slot(dense.bias, f"{key}.attn.in_proj_bias", None, part)
        yield from _linear(block.attention.output_projection, f"{key}.attn.out_proj")
        yield from _norm(block.norm_2, f"{key}.ln_2")
        yield from _linear(block.expand, f"{key}.mlp.c_fc")
        yield from _linear(block.contract, f"{key}.mlp.c_proj")


def _grid(encoder, patch_size):
    size = encoder.image_size
    return tuple(side // patch_size for side in ((size, size) if isinstance(size, int) else size))


def _linear(layer, key) -> Iterator[Slot]:
    yield Slot(layer.kernel, f"{key}.weight", _LINEAR)
    yield Slot(layer.bias, f"{key}.bias")


def _convolution(layer, key) -> Iterator[Slot]:
    yield Slot(layer.kernel, f"{key}.weight", _CONVOLUTION)


def _norm(layer, key) -> Iterator[Slot]:
    yield Slot(layer.gamma, f"{key}.weight")
    yield Slot(layer.beta, f"{key}.bias")
    if isinstance(layer, keras.layers.BatchNormalization):
        yield Slot(layer.moving_mean, f"{key}.running_mean")
        yield Slot(layer.moving_variance, f"{key}.running_var")


# Names of open_clip and the corresponding names of Hugging Face, inside blocks and outside of them.
_IN_BLOCKS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OUTSIDE = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    # Hugging Face misspells this name.
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "logit_scale": "logit_scale",
    "logit_bias": "logit_bias",
}
_BLOCK_KEY = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)")


def _in_hugging_face(slot: Slot) -> Slot:
    match = _BLOCK_KEY.fullmatch(slot.key)
    if match is None:
        axes = _LINEAR if slot.key in ("visual.proj", "text_projection") else slot.axes
        return replace(slot, key=_OUTSIDE[slot.key], axes=axes)
    visual, number, name, kind = match.groups()
    if slot.part is None:
        name = _IN_BLOCKS[name]
    else:
        name = f"self_attn.{_QUERY_KEY_VALUE[slot.part][0]}_proj"
    half = "vision_model" if visual else "text_model"
    return replace(slot, key=f"{half}.encoder.layers.{number}.{name}.{kind}", part=None)
