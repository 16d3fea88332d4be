"""Reads and writes the configurations of image preprocessing: open_clip's and those of transformers.

Every entry of a file is honoured, or refused if it would change a pixel. A file may scale pixels by another factor than
1 / 255; mean and standard deviation of the result are those that have the same effect on pixels / 255.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from keras_clip.data.images import INTERPOLATIONS, OPENAI_MEAN, OPENAI_STD, RESIZE_MODES, ImagePreprocessor

ImageSize = int | tuple[int, int]
# The value of an entry that may have any value.
ANY = object()
_OPEN_CLIP_PIXELS = ("mean", "std", "interpolation", "resize_mode")
_RESAMPLING = {2: "bilinear", 3: "bicubic"}
# The image processors of transformers whose steps are those of `ImagePreprocessor`, and what they do where their file
# says nothing.
_SQUARE = {"size": {"height": 224, "width": 224}, "do_center_crop": False, "image_mean": 0.5, "image_std": 0.5}
_PROCESSORS = {
    "CLIP": {
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "crop_size": 224,
        "resample": 3,
        "image_mean": OPENAI_MEAN,
        "image_std": OPENAI_STD,
    },
    "ViT": {**_SQUARE, "resample": 2},
    "Siglip": {**_SQUARE, "resample": 3},
}
_PROCESSOR_TYPE = re.compile(r"(\w+?)(?:ImageProcessor(?:Fast|Pil)?|FeatureExtractor)")
# Entries of their files that change no pixel of an image in RGB.
_NO_PIXELS = (
    "_valid_processor_keys",
    "data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "do_convert_rgb",
    "feature_extractor_type",
    "image_processor_type",
    "input_data_format",
    "processor_class",
    "return_tensors",
    "transformers_version",
    "use_square_size",
)
_PROCESSOR_FIELDS = {*_PROCESSORS["CLIP"], "do_resize", "do_rescale", "rescale_factor", "do_normalize", *_NO_PIXELS}
_PROCESSOR_CURE = (
    "keras_clip resizes the shorter side or both sides, crops the centre to the image size, scales and normalises. "
    "Write these steps as a CLIPImageProcessor into the file, or preprocess images by transformers and pass the model "
    "the result, (B, H, W, 3)."
)


def from_preprocess_cfg(pixels: Mapping[str, Any], image_size: ImageSize, where: str) -> ImagePreprocessor:
    """Returns the preprocessing that the `preprocess_cfg` of an `open_clip_config.json` describes.

    Args:
        pixels: content of `preprocess_cfg`. open_clip skips entries that are None.
        image_size: int or (height, width), pixels, of the model.
        where: name of the file, for messages.

    Returns:
        `ImagePreprocessor`.

    Raises:
        ValueError: an unknown entry or value.
    """
    pixels = {key: value for key, value in pixels.items() if value is not None}
    is_padded = pixels.get("resize_mode") == "longest"
    # open_clip ignores "size" and unknown entries.
    allowed = {"mode": "RGB", "size": ANY, "fill_color": 0 if is_padded else ANY}
    refuse_others(
        {key: value for key, value in pixels.items() if key not in _OPEN_CLIP_PIXELS},
        allowed,
        f"{where}: preprocess_cfg",
        "The preprocessing of open_clip has no other effect than its mean, std, interpolation and resize_mode. Remove "
        "the entry if it has none.",
    )
    arguments = {name: pixels[name] for name in _OPEN_CLIP_PIXELS if name in pixels}
    # In evaluation open_clip resizes by the bicubic filter then.
    if arguments.get("interpolation") == "random":
        arguments["interpolation"] = "bicubic"
    for name, known in (("interpolation", INTERPOLATIONS), ("resize_mode", RESIZE_MODES)):
        if arguments.get(name, known[0]) not in known:
            raise ValueError(f"`{name}` must be one of {known}. Received: {name}={arguments[name]!r} in {where}.")
    for name in ("mean", "std"):
        if name in arguments:
            arguments[name] = _three(arguments[name], name, where)
    return ImagePreprocessor(image_size, **arguments)


def to_preprocess_cfg(preprocessor: ImagePreprocessor) -> dict[str, Any]:
    """The content of `preprocess_cfg`. open_clip rounds half a pixel before the crop to the nearest even number.

    Raises:
        ValueError: the resize size differs from the image size.
    """
    if preprocessor.resize_size is not None:
        raise ValueError(
            "open_clip resizes to the image size. Received: an image_preprocessor with image_size="
            f'{preprocessor.image_size}, resize_size={preprocessor.resize_size}. Save in the layout "hugging_face" or '
            '"keras".'
        )
    return {name: getattr(preprocessor, name) for name in _OPEN_CLIP_PIXELS}


def from_image_processor(pixels: Mapping[str, Any], image_size: ImageSize, where: str) -> ImagePreprocessor:
    """Returns the preprocessing that an image processor of transformers describes.

    Args:
        pixels: content of `preprocessor_config.json`; empty: OpenAI's preprocessing. What it does not say is as of its
            class.
        image_size: int or (height, width), pixels, of the model.
        where: name of the file, for messages.

    Returns:
        `ImagePreprocessor`.

    Raises:
        ValueError: another processor, a step that is not supported, or a result of another size.
    """
    where = f"{where}: image processor"
    # In transformers a step of None is left out; other values of None there are errors.
    pixels = {key: bool(value) if key.startswith("do_") else value for key, value in pixels.items()}
    pixels = {key: value for key, value in pixels.items() if value is not None or key == "resample"}
    kind = pixels.get("image_processor_type", pixels.get("feature_extractor_type", "CLIPImageProcessor"))
    match = _PROCESSOR_TYPE.fullmatch(str(kind))
    if match is None or match[1] not in _PROCESSORS:
        raise ValueError(f"{_PROCESSOR_CURE} Received: {where} of type {kind!r}.")
    refuse_others(
        {key: value for key, value in pixels.items() if key not in _PROCESSOR_FIELDS and value is not False},
        {},
        where,
        _PROCESSOR_CURE,
    )
    default = ImagePreprocessor(image_size)
    if not pixels:
        return default
    rule = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    rule |= _PROCESSORS[match[1]] | pixels
    refuse_others({"do_resize": rule["do_resize"]}, {"do_resize": True}, where, _PROCESSOR_CURE)
    resize_mode, resize_size = _resize_rule(rule, where)
    cropped = resize_size if resize_mode == "squash" else None
    if rule["do_center_crop"]:
        cropped = _crop_sides(rule["crop_size"], where)
    if cropped != default.sides:
        raise ValueError(
            f"The image processor must return images of the model's image size {default.sides}. Received: {where} "
            f"with size={rule['size']}, do_center_crop={rule['do_center_crop']}, crop_size={rule.get('crop_size')}. "
            "Correct the file, or that of the model."
        )
    if rule["resample"] not in _RESAMPLING:
        raise ValueError(
            f"Images are resized by one of PIL's filters {_RESAMPLING}. Received: {where} with "
            f"resample={rule['resample']!r}."
        )
    mean, std = _scaled(rule, where)
    return ImagePreprocessor(
        image_size,
        mean,
        std,
        _RESAMPLING[rule["resample"]],
        resize_mode,
        resize_size=resize_size,
        crop_rounding="down" if rule["do_center_crop"] else "even",
    )


def to_image_processor(pixels: ImagePreprocessor) -> dict[str, Any]:
    """The content of `preprocessor_config.json`. transformers rounds half a pixel before the crop down.

    Raises:
        ValueError: a property that `CLIPImageProcessor` does not have.
    """
    height, width = pixels.resize_sides
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
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": height} if shortest else {"height": height, "width": width},
        "resample": {name: number for number, name in _RESAMPLING.items()}[pixels.interpolation],
        "do_center_crop": shortest or pixels.resize_size is not None,
        "crop_size": dict(zip(("height", "width"), pixels.sides, strict=True)),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pixels.mean),
        "image_std": list(pixels.std),
    }


def _resize_rule(rule, where):
    """Returns the resize mode and (height, width)."""
    size = rule["size"]
    if rule.get("use_square_size"):
        # transformers then takes the default of the class.
        size = {"height": 224, "width": 224}
    elif isinstance(size, int):
        square = rule.get("default_to_square", False)
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    elif isinstance(size, list | tuple):
        size = dict(zip(("height", "width"), size, strict=False))
    size = {key: value for key, value in size.items() if value is not None}
    if size.keys() == {"shortest_edge"}:
        return "shortest", (size["shortest_edge"],) * 2
    if size.keys() == {"height", "width"}:
        return "squash", (size["height"], size["width"])
    raise ValueError(f"{_PROCESSOR_CURE} Received: {where} with size={rule['size']}.")


def _crop_sides(size, where):
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return tuple(size)
    if isinstance(size, Mapping) and size.keys() >= {"height", "width"}:
        return size["height"], size["width"]
    raise ValueError(f"A crop has a height and a width. Received: {where} with crop_size={size}.")


def _scaled(rule, where):
    """Returns mean and standard deviation for pixels / 255 that equal scaling by the factor and normalising."""
    factor = rule["rescale_factor"] if rule["do_rescale"] else 1
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise ValueError(f"`rescale_factor` must be positive. Received: {where} with rescale_factor={factor!r}.")
    mean, std = (rule["image_mean"], rule["image_std"]) if rule["do_normalize"] else (0.0, 1.0)
    mean, std = _three(mean, "image_mean", where), _three(std, "image_std", where)
    # This is exactly 1 for 1 / 255.
    factor *= 255
    return tuple(x / factor for x in mean), tuple(x / factor for x in std)


def _three(value, name, where):
    """Returns one number per colour, from three numbers or a single one."""
    values = value if isinstance(value, list | tuple) else [value] * 3
    if len(values) != 3 or not all(isinstance(x, int | float) for x in values):
        raise ValueError(f"`{name}` must be a number, or one of each colour. Received: {name}={value!r} in {where}.")
    return tuple(map(float, values))


def refuse_others(given: Mapping[str, Any], allowed: Mapping[str, Any], where: str, cure: str) -> None:
    """Raises a ValueError for unsupported values; `ANY` allows every value, where it has no effect on the model."""
    for key, value in given.items():
        known = key in allowed and (value is None or allowed[key] is ANY or value == allowed[key])
        if not known:
            raise ValueError(f"{cure} Received: {where} with {key}={value!r}.")
