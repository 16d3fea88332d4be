"""Every entry of a preprocessing file gives the pixels that transformers or open_clip make of it, or is refused."""

import numpy as np
import pytest
import torch
import torchvision_shim  # noqa: F401  (before open_clip)
import transformers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from keras_clip.data.images import ImagePreprocessor
from keras_clip.presets.image_processors import (
    from_image_processor,
    from_preprocess_cfg,
    to_image_processor,
    to_preprocess_cfg,
)

pytestmark = pytest.mark.backend_free

SIZE = 32
# Heights and widths whose resized sides leave odd and even rests, of every remainder by four.
SHAPES = ((40, 41), (32, 35), (61, 40), (33, 32), (100, 45), (64, 64))
CROP = {"crop_size": {"height": SIZE, "width": SIZE}}
PUBLISHED = {**CROP, "size": {"shortest_edge": SIZE}}
HONOURED = {
    "as published": PUBLISHED,
    "resized to more than the crop": {**CROP, "size": {"shortest_edge": 40}},
    # Where a pixel of an odd border goes, the two implementations of transformers differ.
    "resized to less than the crop": {**CROP, "size": {"shortest_edge": 28}},
    "squashed": {"size": {"height": SIZE, "width": SIZE}, "do_center_crop": False},
    "squashed and cropped": {**CROP, "size": {"height": 37, "width": 43}},
    "sizes as numbers": {"size": 36, "crop_size": SIZE},
    "to -1 and 1": {**PUBLISHED, "rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
    "doubled": {**PUBLISHED, "rescale_factor": 2 / 255},
    "not rescaled": {**PUBLISHED, "do_rescale": False, "image_mean": [123.0, 117.0, 104.0], "image_std": [58.0] * 3},
    "not normalised": {**PUBLISHED, "do_normalize": False},
    "neither": {**PUBLISHED, "do_normalize": False, "do_rescale": False},
    "mean and std": {**PUBLISHED, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
    "bilinear": {**PUBLISHED, "resample": 2},
    "no conversion": {**PUBLISHED, "do_convert_rgb": False},
    "entries without a value": {**PUBLISHED, "do_pad": None, "do_normalize": None, "processor_class": None},
    "of a version before": {"feature_extractor_type": "CLIPFeatureExtractor", "size": SIZE, "crop_size": SIZE},
}


def noise(height, width):
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def pixels_of(peer, shape):
    return peer(noise(*shape), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)


@pytest.mark.parametrize("config", HONOURED.values(), ids=HONOURED)
def test_pixels_of_transformers(config):
    ours = from_image_processor(config, SIZE, "a file")
    for file in (config, to_image_processor(ours)):
        peer = CLIPImageProcessorPil.from_dict(file)
        for shape in SHAPES:
            np.testing.assert_allclose(ours(noise(*shape))[0], pixels_of(peer, shape), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["ViTImageProcessor", "SiglipImageProcessor"])
def test_other_classes_have_their_own_defaults(name):
    size = {"height": SIZE, "width": SIZE}
    ours = from_image_processor({"image_processor_type": name, "size": size}, SIZE, "a file")
    peer = getattr(transformers, name)(size=size)
    # torch resizes by the bicubic filter with other roundings, up to a few grey levels on noise.
    difference = np.abs(ours(noise(61, 40))[0] - pixels_of(peer, (61, 40)))
    assert difference.mean() < 0.5 / 255 / min(ours.std) and difference.max() < 12 / 255 / min(ours.std)


REFUSED = {
    "another crop": (
        {"size": {"shortest_edge": SIZE}, "crop_size": 24},
        r"image size \(32, 32\). Received.*crop_size=24",
    ),
    "the default crop": ({"size": {"shortest_edge": SIZE}}, "crop_size=224"),
    "another size": ({"size": {"height": 24, "width": 24}, "do_center_crop": False}, "image size"),
    "no crop": ({"size": {"shortest_edge": SIZE}, "do_center_crop": False}, "image size"),
    "no resizing": ({**PUBLISHED, "do_resize": False}, "do_resize=False"),
    "resizing of None": ({**PUBLISHED, "do_resize": None}, "do_resize=False"),
    "a filter of None": ({**PUBLISHED, "resample": None}, "resample=None"),
    "a longest edge": ({**CROP, "size": {"shortest_edge": SIZE, "longest_edge": 64}}, "longest_edge"),
    "Lanczos": ({**PUBLISHED, "resample": 1}, "resample=1"),
    "no scale": ({**PUBLISHED, "rescale_factor": 0}, "rescale_factor=0"),
    "an offset": ({**PUBLISHED, "rescale_offset": True}, "rescale_offset=True"),
    "padding": ({**PUBLISHED, "do_pad": True}, "do_pad=True"),
    "another colour order": ({**PUBLISHED, "do_flip_channel_order": True}, "do_flip_channel_order=True"),
    "another class": ({**PUBLISHED, "image_processor_type": "ConvNextImageProcessor"}, "ConvNextImageProcessor"),
    "code of its own": ({**PUBLISHED, "auto_map": {"AutoImageProcessor": "x.Y"}}, "auto_map"),
    "two means": ({**PUBLISHED, "image_mean": [0.5, 0.5]}, r"image_mean=\[0.5, 0.5\]"),
}


@pytest.mark.parametrize("config, message", REFUSED.values(), ids=REFUSED)
def test_what_is_not_honoured(config, message):
    with pytest.raises(ValueError, match=message):
        from_image_processor(config, SIZE, "a file")


OPEN_CLIP = {
    "nothing": {},
    "shortest, bilinear": {"interpolation": "bilinear", "resize_mode": "shortest"},
    "squash": {"resize_mode": "squash"},
    "longest": {"resize_mode": "longest", "fill_color": 0},
    "one mean": {"mean": 0.5, "std": 0.25},
    "random": {"interpolation": "random", "mode": "RGB", "size": 100},
    "entries without a value": {"mean": None, "resize_mode": None},
}


@pytest.mark.parametrize(
    "config, size",
    [
        pytest.param(config, size, id=f"{name}, {size}")
        for name, config in OPEN_CLIP.items()
        for size in (SIZE, (24, 40))
        # To rectangles open_clip resizes by the bicubic filter, whatever the configuration says.
        if size == SIZE or config.get("interpolation") != "bilinear"
    ],
)
def test_pixels_of_open_clip(config, size):
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
    from PIL import Image

    ours = from_preprocess_cfg(config, size, "a file")
    rule = {**merge_preprocess_dict(PreprocessCfg(), config), "size": size}
    peer = image_transform_v2(PreprocessCfg(**rule), is_train=False)
    for shape in SHAPES:
        theirs = peer(Image.fromarray(noise(*shape))).permute(1, 2, 0)
        np.testing.assert_allclose(ours(noise(*shape))[0], torch.Tensor(theirs).numpy(), atol=1e-5, err_msg=str(shape))
    assert from_preprocess_cfg(to_preprocess_cfg(ours), size, "a file") == ours


@pytest.mark.parametrize(
    "config, message",
    [
        ({"crop_pct": 0.9}, "crop_pct=0.9"),
        ({"resize_mode": "longest", "fill_color": 255}, "fill_color=255"),
        ({"mode": "L"}, "mode='L'"),
        ({"resize_mode": "crop"}, "resize_mode='crop'"),
        ({"interpolation": "lanczos"}, "interpolation='lanczos'"),
        ({"mean": "imagenet"}, "mean='imagenet'"),
    ],
)
def test_what_open_clip_does_not_do(config, message):
    with pytest.raises(ValueError, match=f"Received.*{message}"):
        from_preprocess_cfg(config, SIZE, "a file")


def test_open_clip_has_no_size_to_resize_to():
    with pytest.raises(ValueError, match="Received.*resize_size=40"):
        to_preprocess_cfg(ImagePreprocessor(SIZE, resize_size=40))
