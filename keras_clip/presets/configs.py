"""Reads and writes the configuration files that come with weights: open_clip's and Hugging Face's."""

from collections.abc import Mapping
from typing import Any

from keras_clip.data.images import ImagePreprocessor
from keras_clip.encoders.resnet import ModifiedResNet
from keras_clip.model import CLIPModel
from keras_clip.presets.architectures import Architecture

VOCABULARY_SIZE = 49408
_CURE = (
    "keras_clip reads Vision Transformers and modified ResNets with a causal text encoder: load it with its library."
)

# Entries of open_clip's configurations beside the sizes, and the value that is supported; None is always the default.
_ANY = object()
_OPEN_CLIP_VISION = {
    "attentional_pool": False,
    "attn_pooler_heads": _ANY,
    "attn_pooler_queries": _ANY,
    "ls_init_value": None,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "final_ln_after_pool": False,
    "pool_type": "tok",
    "output_tokens": _ANY,
    "timm_drop": _ANY,
    "timm_drop_path": _ANY,
    "timm_model_pretrained": _ANY,
    "timm_pool": _ANY,
    "timm_proj": _ANY,
    "timm_proj_bias": _ANY,
}
_OPEN_CLIP_TEXT = {
    "ls_init_value": None,
    "embed_cls": False,
    "eos_id": _ANY,
    "hf_model_pretrained": _ANY,
    "hf_pooler_type": _ANY,
    "hf_proj_type": _ANY,
    "no_causal_mask": False,
    "output_tokens": _ANY,
    "pad_id": 0,
    "pool_type": "argmax",
    "proj_bias": False,
    "proj_type": "linear",
    "final_ln_after_pool": False,
    "tokenizer_mode": _ANY,
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
_OPEN_CLIP_MODEL = {"custom_text": False, "multimodal_cfg": None, "nonscalar_logit_scale": False}
_RESAMPLING = {2: "bilinear", 3: "bicubic"}


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
    _refuse_others(vision, _OPEN_CLIP_VISION | _IN_BOTH, f"{where}: vision_cfg")
    _refuse_others(text, _OPEN_CLIP_TEXT | _IN_BOTH, f"{where}: text_cfg")
    _refuse_others(model, _OPEN_CLIP_MODEL, f"{where}: model_cfg")
    pixels = config.get("preprocess_cfg", {})
    _refuse_others({"fill_color": pixels.get("fill_color")}, {"fill_color": 0}, f"{where}: preprocess_cfg")
    names = ("mean", "std", "interpolation", "resize_mode")
    preprocessor = ImagePreprocessor(image["image_size"], **{name: pixels[name] for name in names if name in pixels})
    return Architecture(image, text_encoder, embed_dim, loss), preprocessor


def to_open_clip(clip: CLIPModel) -> dict[str, Any]:
    """Returns the content of `open_clip_config.json` for a model.

    Raises:
        ValueError: a property that the layout cannot represent.
    """
    image, text, pixels = clip.image_encoder, clip.text_encoder, clip.image_preprocessor
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
    names = ("mean", "std", "interpolation", "resize_mode")
    return {"model_cfg": model, "preprocess_cfg": {name: getattr(pixels, name) for name in names}}


def from_hugging_face(
    config: Mapping[str, Any], pixels: Mapping[str, Any] | None, where: str
) -> tuple[Architecture, ImagePreprocessor]:
    """Returns the architecture and preprocessing that a `config.json` of `CLIPModel` and its image processor describe.

    Args:
        config: content of `config.json`.
        pixels: content of `preprocessor_config.json`; None: OpenAI's preprocessing.
        where: name of the file, for error messages.

    Returns:
        `Architecture` and `ImagePreprocessor`.

    Raises:
        ValueError: another family of models, or a missing value.
    """
    family = config.get("model_type")
    if family != "clip":
        raise ValueError(f"{_CURE} Received: {where} of a model of type {family!r}.")
    vision, text = (_half(config, name) for name in ("vision", "text"))
    for half in (vision, text):
        _refuse_others({"layer_norm_eps": half.get("layer_norm_eps", 1e-5)}, {"layer_norm_eps": 1e-5}, where)
        if half.get("hidden_act", "quick_gelu") not in ("quick_gelu", "gelu"):
            raise ValueError(
                f'The activation must be "quick_gelu" or "gelu". Received: {half["hidden_act"]!r} in {where}.'
            )
    _refuse_others({"num_channels": vision.get("num_channels", 3)}, {"num_channels": 3}, where)
    image = {
        "image_size": _size(vision.get("image_size", 224)),
        "patch_size": _patch_size(vision.get("patch_size", 32), where),
        **_blocks(vision, 768, 3072, 12),
    }
    text_encoder = {
        **_blocks(text, 512, 2048, 8),
        "context_length": text.get("max_position_embeddings", 77),
        "vocabulary_size": text.get("vocab_size", VOCABULARY_SIZE),
    }
    # Old configurations have 2, but transformers then pools at the last token of the vocabulary.
    end = text.get("eos_token_id", VOCABULARY_SIZE - 1)
    text_encoder["end_token_id"] = None if end == 2 else end
    preprocessor = _hugging_face_pixels(pixels or {}, image["image_size"], where)
    return Architecture(image, text_encoder, config.get("projection_dim", 512)), preprocessor


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
    image, text, pixels = clip.image_encoder, clip.text_encoder, clip.image_preprocessor

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
    height, width = pixels.sides
    if pixels.resize_mode == "longest":
        raise ValueError(
            'Hugging Face\'s image processor of CLIP has no `resize_mode="longest"`. Received: a model with it. '
            'Save in the layout "open_clip" or "keras".'
        )
    shortest = pixels.resize_mode == "shortest"
    if shortest and height != width:
        raise ValueError(
            "Hugging Face's image processor resizes the shortest side for square crops only. Received: "
            f'image_size={pixels.image_size}. Save in the layout "open_clip" or "keras".'
        )
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": height} if shortest else {"height": height, "width": width},
        "resample": {name: number for number, name in _RESAMPLING.items()}[pixels.interpolation],
        "do_center_crop": shortest,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pixels.mean),
        "image_std": list(pixels.std),
    }
    return config, processor


def _half(config, name):
    """Returns the configuration of one tower; old files have a second copy of it, which takes precedence."""
    return {**(config.get(f"{name}_config") or {}), **(config.get(f"{name}_config_dict") or {})}


def _blocks(half, width, hidden, heads):
    width = half.get("hidden_size", width)
    return {
        "width": width,
        "num_layers": half.get("num_hidden_layers", 12),
        "num_heads": half.get("num_attention_heads", heads),
        "activation": half.get("hidden_act", "quick_gelu"),
        "mlp_ratio": half.get("intermediate_size", hidden) / width,
    }


def _hugging_face_pixels(pixels, image_size, where):
    for step in ("do_resize", "do_normalize", "do_rescale"):
        _refuse_others({step: pixels.get(step, True)}, {step: True}, f"{where}: image processor")
    size, crop = pixels.get("size", {}), pixels.get("do_center_crop", True)
    squash = isinstance(size, Mapping) and "height" in size
    if not squash and not crop:
        raise ValueError(f"Images must be cropped, or resized on both sides. Received: {dict(pixels)} in {where}.")
    number = pixels.get("resample", 3)
    if number not in _RESAMPLING:
        raise ValueError(f"Images are resized by one of PIL's filters {_RESAMPLING}. Received: {number} in {where}.")
    arguments = {"interpolation": _RESAMPLING[number], "resize_mode": "squash" if squash else "shortest"}
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if theirs in pixels:
            arguments[ours] = pixels[theirs]
    return ImagePreprocessor(image_size, **arguments)


def _size(value):
    """Returns an int if both sides are equal, else (height, width)."""
    if isinstance(value, int):
        return value
    height, width = value
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


def _refuse_others(given, allowed, where):
    """Raises a ValueError for unsupported values; `_ANY` allows every value, where it has no effect on the model."""
    for key, value in given.items():
        known = key in allowed and (value is None or allowed[key] is _ANY or value == allowed[key])
        if not known:
            raise ValueError(f"{_CURE} Received: {where} with {key}={value!r}.")


def _require_last_end_token(text):
    if text.end_token_id != text.vocabulary_size - 1:
        raise ValueError(
            "In open_clip's layout the end token is the last of the vocabulary. Received: end_token_id="
            f'{text.end_token_id} of {text.vocabulary_size}. Save in the layout "hugging_face" or "keras".'
        )
