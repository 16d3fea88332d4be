"""Converts weights from and to KerasHub's `CLIPBackbone`."""

from collections.abc import Iterator

import keras
from keras import ops

from keras_clip.data.images import ImagePreprocessor
from keras_clip.encoders.vit import VisionTransformer
from keras_clip.layers.initialisation import skip_initialization
from keras_clip.model import CLIPModel
from keras_clip.presets.architectures import Architecture

_PROJECTIONS = ("query", "key", "value")


def from_keras_hub(backbone: keras.Model, image_preprocessor: ImagePreprocessor | None = None) -> CLIPModel:
    """Makes a `CLIPModel` with the weights of a KerasHub `CLIPBackbone`.

    Args:
        backbone: `keras_hub.models.CLIPBackbone`.
        image_preprocessor: the preprocessing of its weights; None: OpenAI's, which all presets of KerasHub use.

    Returns:
        A `CLIPModel`. Its text embeddings are those of the original weights: the last LayerNorm of KerasHub has an
        epsilon of 1e-6, where the weights were trained with 1e-5.
    """
    image, text = backbone.vision_encoder, backbone.text_encoder
    architecture = Architecture(
        {"image_size": image.embedding.image_size, "patch_size": image.patch_size, **_sizes(image)},
        {"vocabulary_size": text.vocabulary_size, "context_length": text.max_sequence_length, **_sizes(text)},
        backbone.projection_dim,
    )
    with skip_initialization():
        clip = architecture.build(image_preprocessor)
    for ours, theirs in _pairs(clip, backbone):
        ours.assign(ops.reshape(theirs, ours.shape))
    return clip


def to_keras_hub(clip: CLIPModel) -> keras.Model:
    """Makes a KerasHub `CLIPBackbone` with the weights of a `CLIPModel` (requires the extra `hub`).

    Args:
        clip: model of a `VisionTransformer` and a `TextTransformer`, for square images.

    Returns:
        `keras_hub.models.CLIPBackbone`. It has neither a tokenizer nor an image preprocessor.

    Raises:
        TypeError: another image encoder.
        ValueError: a model with the sigmoid loss, or for images that are not square.
    """
    from keras_hub.models import CLIPBackbone, CLIPTextEncoder, CLIPVisionEncoder

    image, text = clip.image_encoder, clip.text_encoder
    if type(image) is not VisionTransformer:
        raise TypeError(f"KerasHub's CLIP has Vision Transformers only. Received: a {type(image).__name__}.")
    if clip.logit_bias is not None or not isinstance(image.image_size, int):
        raise ValueError(
            "KerasHub's CLIP has the contrastive loss and square images. Received: "
            f"loss={clip.contrast.kind!r}, image_size={image.image_size}."
        )

    def sizes(encoder):
        return {
            "hidden_dim": encoder.width,
            "num_layers": encoder.num_layers,
            "num_heads": encoder.num_heads,
            "intermediate_dim": int(encoder.width * encoder.mlp_ratio),
            "intermediate_activation": encoder.activation,
        }

    # Channels last, as our kernels are, whatever `keras.config.image_data_format()` says.
    vision_encoder = CLIPVisionEncoder(
        patch_size=image.patch_size,
        image_shape=(image.image_size, image.image_size, 3),
        data_format="channels_last",
        **sizes(image),
    )
    text_encoder = CLIPTextEncoder(
        text.vocabulary_size, text.width, max_sequence_length=text.context_length, **sizes(text)
    )
    backbone = CLIPBackbone(vision_encoder, text_encoder, clip.embed_dim)
    for ours, theirs in _pairs(clip, backbone):
        theirs.assign(ops.reshape(ours, theirs.shape))
    # KerasHub initialises the position ids to zeros, and sets them when it loads a preset.
    position_ids = vision_encoder.embedding.position_ids
    position_ids.assign(ops.reshape(ops.arange(position_ids.shape[1], dtype=position_ids.dtype), position_ids.shape))
    return backbone


def _sizes(encoder):
    return {
        "width": encoder.hidden_dim,
        "num_layers": encoder.num_layers,
        "num_heads": encoder.num_heads,
        "mlp_ratio": encoder.intermediate_dim / encoder.hidden_dim,
        "activation": encoder.intermediate_activation,
    }


def _pairs(clip: CLIPModel, backbone) -> Iterator[tuple[keras.Variable, keras.Variable]]:
    """Yields pairs of our variables and KerasHub's, which have an axis for the heads where ours do not."""
    image, their_image = clip.image_encoder, backbone.vision_encoder
    patches, their_patches = image.patch_embedding, their_image.embedding
    yield patches.projection.kernel, their_patches.patch_embedding.kernel
    yield patches.class_embedding, their_patches.class_embedding
    yield patches.positions, their_patches.position_embedding.embeddings
    yield from _layer(image.norm_pre, their_image.pre_layer_norm)
    yield from _blocks(image.blocks, their_image.encoder_layers)
    yield from _layer(image.norm_post, their_image.layer_norm)
    yield clip.image_projection.dense.kernel, backbone.vision_projection.kernel
    text, their_text = clip.text_encoder, backbone.text_encoder
    yield text.token_embedding.tokens.embeddings, their_text.embedding.token_embedding.embeddings
    yield text.token_embedding.positions, their_text.embedding.position_embedding.position_embeddings
    yield from _blocks(text.blocks, their_text.encoder_layers)
    yield from _layer(text.norm_final, their_text.layer_norm)
    yield clip.text_projection.dense.kernel, backbone.text_projection.kernel
    yield clip.logit_scale, backbone.clip_head.logit_scale


def _blocks(ours, theirs):
    for block, their_block in zip(ours, theirs, strict=True):
        yield from _layer(block.norm_1, their_block.layer_norm_1)
        for name in _PROJECTIONS:
            yield from _layer(getattr(block.attention, name), getattr(their_block.attention, f"{name}_dense"))
        yield from _layer(block.attention.output_projection, their_block.attention.output_dense)
        yield from _layer(block.norm_2, their_block.layer_norm_2)
        yield from _layer(block.expand, their_block.dense_1)
        yield from _layer(block.contract, their_block.dense_2)


def _layer(ours, theirs):
    """Yields the pairs of kernel and bias, or of gain and bias."""
    yield from zip(ours.weights, theirs.weights, strict=True)
