"""Reads and writes the configuration files that come with weights: open_clip's and Hugging Face's."""

import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

from keras_clip.data.images import ImagePreprocessor
from keras_clip.data.tokenizer import END, START, vocabulary
from keras_clip.encoders.resnet import ModifiedResNet
from keras_clip.model import CLIPModel
from keras_clip.presets.architectures import Architecture
from keras_clip.presets.image_processors import (
    ANY,
    from_image_processor,
    from_preprocess_cfg,
    refuse_others,
    to_image_processor,
    to_preprocess_cfg,
)

VOCABULARY_SIZE = 49408
_CURE = (
    "keras_clip reads Vision Transformers and modified ResNets with a causal text encoder: load it with its library."
)

# Entries of open_clip's configurations beside the sizes, and the value that is supported.
_OPEN_CLIP_VISION = {
    "attentional_pool": False,
    "attn_pooler_heads": ANY,
    "attn_pooler_queries": ANY,
    "ls_init_value": None,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "final_ln_after_pool": False,
    "pool_type": "tok",
    "output_tokens": ANY,
    "timm_drop": ANY,
    "timm_drop_path": ANY,
    "timm_model_pretrained": ANY,
    "timm_pool": ANY,
    "timm_proj": ANY,
    "timm_proj_bias": ANY,
}
_OPEN_CLIP_TEXT = {
    "ls_init_value": None,
    "embed_cls": False,
    "eos_id": ANY,
    "hf_model_pretrained": ANY,
    "hf_pooler_type": ANY,
    "hf_proj_type": ANY,
    "no_causal_mask": False,
    "output_tokens": ANY,
    "pad_id": 0,
    "pool_type": "argmax",
    "proj_bias": False,
    "proj_type": "linear",
    "final_ln_after_pool": False,
    "tokenizer_kwargs": {},
    "tokenizer_mode": ANY,
}
_IN_BOTH = {
    "act_kwargs": {},
    "block_type": "default",
    "norm_kwargs": {},
    "qk_norm": False,
    "scale_attn": False,
    "scale_attn_inner": False,
    "scale_fc": False,
    "scale_heads": False,
    "scaled_cosine_attn": False,
}
_OPEN_CLIP_MODEL = {"custom_text": False, "multimodal_cfg": None, "nonscalar_logit_scale": ANY}
# The halves of Hugging Face's CLIP that are models of their own, and the name of their class with projection head.
_HALVES = {
    "clip_vision_model": ("vision", "CLIPVisionModelWithProjection"),
    "clip_text_model": ("text", "CLIPTextModelWithProjection"),
}


def from_open_clip(config: Mapping[str, Any], where: str) -> tuple[Architecture, ImagePreprocessor]:
    """Returns the architecture and preprocessing that an `open_clip_config.json` describes.

    Args:
        config: content of the file.
        where: name of the file, for error messages.

    Returns:
        `Architecture` and `ImagePreprocessor`.

    Raises:
        ValueError: another family of models, or a missing value.
    """
    if "model_cfg" not in config:
        raise ValueError(f'open_clip\'s configuration has "model_cfg" and "preprocess_cfg". Received: {where}.')
    model = dict(config["model_cfg"])
    vision, text = dict(model.pop("vision_cfg", {})), dict(model.pop("text_cfg", {}))
    for part, key, family in (
        (vision, "timm_model_name", "an image encoder of timm"),
        (text, "hf_model_name", "a text encoder of transformers"),
        (text, "hf_tokenizer_name", "another tokenizer"),
    ):
        if part.pop(key, None):
            raise ValueError(f"{_CURE} Received: {where} with {family}.")
    quick = model.pop("quick_gelu", False)
    loss = "contrastive" if model.pop("init_logit_bias", None) is None else "sigmoid"
    model.pop("init_logit_scale", None)
    activation = "quick_gelu" if quick else "gelu"
    layers, width, head_width = vision.pop("layers", 12), vision.pop("width", 768), vision.pop("head_width", 64)
    image = {"image_size": _size(vision.pop("image_size", 224)), "width": width}
    if isinstance(layers, int):
        image |= {
            "patch_size": _patch_size(vision.pop("patch_size", 16), where),
            "num_layers": layers,
            "num_heads": width // head_width,
            "activation": activation,
            "mlp_ratio": vision.pop("mlp_ratio", 4.0),
            "patch_dropout": vision.pop("patch_dropout", 0.0),
        }
    else:
        image |= {"blocks": tuple(layers), "num_heads": 32 * width // head_width}
        # A ResNet does not use these.
        for key in ("patch_size", "mlp_ratio", "patch_dropout"):
            vision.pop(key, None)
    text_encoder = {
        "width": text.pop("width", 512),
        "num_layers": text.pop("layers", 12),
        "num_heads": text.pop("heads", 8),
        "context_length": text.pop("context_length", 77),
        "vocabulary_size": text.pop("vocab_size", VOCABULARY_SIZE),
        "activation": activation,
        "mlp_ratio": text.pop("mlp_ratio", 4.0),
    }
    embed_dim = _needed(model, "embed_dim", where)
    refuse_others(vision, _OPEN_CLIP_VISION | _IN_BOTH, f"{where}: vision_cfg", _CURE)
    refuse_others(text, _OPEN_CLIP_TEXT | _IN_BOTH, f"{where}: text_cfg", _CURE)
    refuse_others(model, _OPEN_CLIP_MODEL, f"{where}: model_cfg", _CURE)
    preprocessor = from_preprocess_cfg(config.get("preprocess_cfg") or {}, image["image_size"], where)
    return Architecture(image, text_encoder, embed_dim, loss), preprocessor


def to_open_clip(clip: CLIPModel) -> dict[str, Any]:
    """Returns the content of `open_clip_config.json` for a model.

    Raises:
        ValueError: a property that the layout cannot represent.
    """
    image, text = clip.image_encoder, clip.text_encoder
    _require_last_end_token(text)
    if isinstance(image, ModifiedResNet):
        head_width = image.width // image.pool.num_heads
        vision = {"layers": list(image.block_counts), "width": image.stem_width}
    else:
        if image.activation != text.activation:
            raise ValueError(
                "The layout of open_clip has one activation. Received: an image encoder with "
                f"{image.activation!r} and a text encoder with {text.activation!r}. "
                'Save in the layout "hugging_face" or "keras".'
            )
        head_width = image.width // image.num_heads
        vision = {"layers": image.num_layers, "width": image.width, "patch_size": image.patch_size}
        vision["mlp_ratio"] = image.mlp_ratio
    model = {
        "embed_dim": clip.embed_dim,
        "quick_gelu": text.activation == "quick_gelu",
        "vision_cfg": {"image_size": image.image_size, **vision, "head_width": head_width},
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": text.vocabulary_size,
            "width": text.width,
            "heads": text.num_heads,
            "layers": text.num_layers,
            "mlp_ratio": text.mlp_ratio,
        },
    }
    if clip.logit_bias is not None:
        model["init_logit_bias"] = float(clip.logit_bias)
    return {"model_cfg": model, "preprocess_cfg": to_preprocess_cfg(clip.image_preprocessor)}


def from_hugging_face(
    config: Mapping[str, Any], pixels: Mapping[str, Any] | None, where: str
) -> tuple[Architecture, ImagePreprocessor | None]:
    """The architecture and preprocessing that a `config.json` of `CLIPModel` and its image processor describe.

    Args:
        config: content of `config.json`, also of `CLIPVisionModelWithProjection` or `CLIPTextModelWithProjection`.
        pixels: content of `preprocessor_config.json`; None: OpenAI's preprocessing.
        where: name of the file, for error messages.

    Returns:
        `Architecture` and `ImagePreprocessor`; of a text encoder alone None in place of the latter.

    Raises:
        ValueError: another family of models, a missing value, or steps of preprocessing that are not supported.
    """
    family = config.get("model_type")
    if family in _HALVES:
        name, with_projection = _HALVES[family]
        classes = config.get("architectures") or [with_projection]
        if with_projection not in classes:
            raise ValueError(
                f"An encoder alone must have its projection head, as {with_projection} has it. Received: {where} of "
                f"{', '.join(map(repr, classes))}. Save the whole CLIPModel, or the encoder as {with_projection}."
            )
        halves = {name: config}
    elif family == "clip":
        halves = {name: _half(config, name) for name in ("vision", "text")}
    else:
        raise ValueError(f"{_CURE} Received: {where} of a model of type {family!r}.")
    image = text_encoder = preprocessor = None
    if "vision" in halves:
        vision = _checked(halves["vision"], where)
        refuse_others({"num_channels": vision.get("num_channels", 3)}, {"num_channels": 3}, where, _CURE)
        image = {
            "image_size": _size(vision.get("image_size", 224)),
            "patch_size": _patch_size(vision.get("patch_size", 32), where),
            **_blocks(vision, 768, 3072, 12),
        }
        preprocessor = from_image_processor(pixels or {}, image["image_size"], where)
    if "text" in halves:
        text = _checked(halves["text"], where)
        text_encoder = {
            **_blocks(text, 512, 2048, 8),
            "context_length": text.get("max_position_embeddings", 77),
            "vocabulary_size": text.get("vocab_size", VOCABULARY_SIZE),
            "end_token_id": _end_token(text.get("eos_token_id", VOCABULARY_SIZE - 1), where),
        }
    return Architecture(image, text_encoder, config.get("projection_dim", 512)), preprocessor


def check_tokenizer(config: Mapping[str, Any], ids: Mapping[str, int] | None, context_length: int, where: str) -> None:
    """Refuses a tokenizer of transformers whose token ids are not those of `CLIPTokenizer`.

    Args:
        config: content of `tokenizer_config.json`.
        ids: content of `vocab.json`, the id of each token; None: unknown.
        context_length: tokens of a text in the model.
        where: name of the directory, for messages.

    Raises:
        ValueError: another class, other special tokens, another vocabulary, or shorter texts.
    """
    found = {
        "tokenizer_class": re.sub("Fast$", "", config.get("tokenizer_class") or "CLIPTokenizer"),
        "do_lower_case": config.get("do_lower_case", True),
    }
    wanted = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    for name, token in (("bos_token", START), ("eos_token", END)):
        value = config.get(name) or token
        found[name], wanted[name] = value.get("content") if isinstance(value, Mapping) else value, token
    cure = (
        'The tokenizer must be CLIP\'s. Load the image half alone (`encoder="image"`), or build a `CLIPModel` with '
        "`tokenizer=` and call `presets.load_weights(model, path)`."
    )
    refuse_others(found, wanted, f"{where}: tokenizer_config.json", cure)
    if ids is not None and ids != {token: i for i, token in enumerate(vocabulary()[0])}:
        raise ValueError(f"{cure} Received: {where}: vocab.json with {len(ids)} tokens, not those of CLIP.")
    if (config.get("model_max_length") or context_length) < context_length:
        raise ValueError(
            f"The tokenizer must cut texts at the model's context length of {context_length}. Received: {where}: "
            f"tokenizer_config.json with model_max_length={config['model_max_length']}. Pass `context_length="
            f"{config['model_max_length']}`."
        )


def to_hugging_face(clip: CLIPModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the contents of `config.json` and `preprocessor_config.json` for a model.

    Raises:
        ValueError: a property that the layout cannot represent.
    """
    if clip.logit_bias is not None:
        raise ValueError(
            "Hugging Face's CLIPModel has no logit bias. Received: a model with the sigmoid loss. "
            'Save in the layout "open_clip" or "keras".'
        )
    image, text = clip.image_encoder, clip.text_encoder

    def half(encoder):
        return {
            "hidden_size": encoder.width,
            "intermediate_size": int(encoder.width * encoder.mlp_ratio),
            "num_hidden_layers": encoder.num_layers,
            "num_attention_heads": encoder.num_heads,
            "hidden_act": encoder.activation,
            "layer_norm_eps": 1e-5,
            "projection_dim": clip.embed_dim,
        }

    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": clip.embed_dim,
        "vision_config": {
            "model_type": "clip_vision_model",
            **half(image),
            "image_size": image.image_size,
            "patch_size": image.patch_size,
        },
        "text_config": {
            "model_type": "clip_text_model",
            **half(text),
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocabulary_size,
            "bos_token_id": text.vocabulary_size - 2,
            "eos_token_id": text.end_token_id,
        },
    }
    return config, to_image_processor(clip.image_preprocessor)


def _half(config, name):
    """The configuration of one half. Old files have a second copy of it, which replaces the first as a whole."""
    copy = config.get(f"{name}_config_dict")
    return (config.get(f"{name}_config") or {}) if copy is None else copy


def _checked(half, where):
    """The configuration of one half, without entries that are None, which mean the default."""
    half = {key: value for key, value in half.items() if value is not None}
    refuse_others({"layer_norm_eps": half.get("layer_norm_eps", 1e-5)}, {"layer_norm_eps": 1e-5}, where, _CURE)
    if half.get("hidden_act", "quick_gelu") not in ("quick_gelu", "gelu"):
        raise ValueError(f'The activation must be "quick_gelu" or "gelu". Received: {half["hidden_act"]!r} in {where}.')
    for key in ("attention_dropout", "dropout"):
        if half.get(key):
            warnings.warn(
                f"The encoders have no dropout: embeddings are the same, and training goes without it. Received: "
                f"{where} with {key}={half[key]}.",
                stacklevel=2,
            )
    return half


def _end_token(value, where):
    """The id of the end token; None for the last of the vocabulary."""
    ids = value if isinstance(value, list) else [value]
    if len(ids) != 1:
        raise ValueError(f"A text must have one end token. Received: {where} with eos_token_id={value}.")
    # Old configurations have 2, but transformers then pools at the last token of the vocabulary.
    return None if ids[0] == 2 else ids[0]


def _blocks(half, width, hidden, heads):
    width, hidden = half.get("hidden_size", width), half.get("intermediate_size", hidden)
    ratio = hidden / width
    # The encoders round the product of ratio and width down.
    while int(width * ratio) < hidden:
        ratio = math.nextafter(ratio, math.inf)
    return {
        "width": width,
        "num_layers": half.get("num_hidden_layers", 12),
        "num_heads": half.get("num_attention_heads", heads),
        "activation": half.get("hidden_act", "quick_gelu"),
        "mlp_ratio": ratio,
    }


def _size(value):
    """Returns an int if both sides are equal, else (height, width)."""
    if isinstance(value, int):
        return value
    height, width = value if len(value) == 2 else (*value, *value)
    return height if height == width else (height, width)


def _patch_size(value, where):
    size = _size(value)
    if not isinstance(size, int):
        raise ValueError(f"Patches must be square. Received: {value} in {where}.")
    return size


def _needed(config, key, where):
    if key not in config:
        raise ValueError(f"The configuration must say {key!r}. Received: {where} with {sorted(config)}.")
    return config.pop(key)


def _require_last_end_token(text):
    if text.end_token_id != text.vocabulary_size - 1:
        raise ValueError(
            "In open_clip's layout the end token is the last of the vocabulary. Received: end_token_id="
            f'{text.end_token_id} of {text.vocabulary_size}. Save in the layout "hugging_face" or "keras".'
        )
