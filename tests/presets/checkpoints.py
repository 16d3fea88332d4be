"""Checkpoints with random weights, made by the peers themselves, in both layouts."""

import json

import torch
import torchvision_shim  # noqa: F401  (before open_clip)
from open_clip.model import CLIP
from safetensors.torch import save_file

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
# Small versions of the nine architectures. The first is as deep as the published one, and its embeddings are in
# `golden_embeddings.json`. One stage of the fifth has more than ten blocks, so that its keys have two-digit numbers.
TINY = {
    "rn50": dict(image_size=64, layers=[3, 4, 6, 3], width=16, head_width=64),
    "rn101": dict(image_size=64, layers=[1, 2, 4, 1], width=16, head_width=64),
    "rn50x4": dict(image_size=96, layers=[2, 1, 2, 1], width=20, head_width=64),
    "rn50x16": dict(image_size=128, layers=[2, 2, 3, 2], width=24, head_width=64),
    "rn50x64": dict(image_size=160, layers=[1, 3, 12, 2], width=16, head_width=64),
    "vit_b32": dict(image_size=96, layers=2, width=128, patch_size=32),
    "vit_b16": dict(image_size=64, layers=2, width=128, patch_size=16),
    "vit_l14": dict(image_size=56, layers=3, width=192, patch_size=14),
    "vit_l14_336": dict(image_size=84, layers=3, width=192, patch_size=14),
}
FULL_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
FULL = {
    "rn50": dict(image_size=224, layers=[3, 4, 6, 3], width=64, head_width=64),
    "vit_b32": dict(image_size=224, layers=12, width=768, patch_size=32),
}
PIXELS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "interpolation": "bilinear", "resize_mode": "squash"}


def shake(peer):
    """Changes all weights and statistics from their initial values, reproducibly."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in peer.state_dict().items():
            if value.dtype.is_floating_point and value.ndim:
                value += 0.02 * torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.abs_().add_(0.5)
            # Activations must not vanish over the layers: embeddings of different images must differ.
            if value.ndim == 4:
                value *= 2.5
            # This scale starts at zero, so that the residual block is the identity.
            if name.endswith("bn3.weight"):
                value += 0.5
    return peer.eval()


def save_open_clip(directory, vision, text=TEXT, embed_dim=24, quick_gelu=True, **more):
    """Writes a directory in open_clip's layout; returns open_clip's model."""
    torch.manual_seed(0)
    peer = shake(CLIP(embed_dim, vision_cfg=dict(vision), text_cfg=dict(text), quick_gelu=quick_gelu))
    directory.mkdir(parents=True, exist_ok=True)
    model = {"embed_dim": embed_dim, "quick_gelu": quick_gelu, "vision_cfg": vision, "text_cfg": text, **more}
    (directory / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": PIXELS}))
    save_file(
        {key: value.contiguous() for key, value in peer.state_dict().items()}, directory / "open_clip_model.safetensors"
    )
    return peer


def save_hugging_face(directory, vision, text=TEXT, embed_dim=24, activation="quick_gelu", **saving):
    """Writes a directory with `save_pretrained`; returns transformers' model."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    sizes = {"hidden_act": activation, "projection_dim": embed_dim}
    config = CLIPConfig(
        text_config={
            **sizes,
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
        },
        vision_config={
            **sizes,
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // 64,
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
        projection_dim=embed_dim,
    )
    peer = shake(CLIPModel(config))
    peer.save_pretrained(directory, **saving)
    size = vision["image_size"]
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}, resample=3)
    processor.save_pretrained(directory)
    return peer
