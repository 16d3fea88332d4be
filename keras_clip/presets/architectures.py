"""The architectures of the nine published models (Radford et al., 2021, tables 19 and 20), and building them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from keras_clip.data.images import ImagePreprocessor
from keras_clip.encoders.resnet import ModifiedResNet
from keras_clip.encoders.text import TextTransformer
from keras_clip.encoders.vit import VisionTransformer
from keras_clip.model import CLIPModel, ImageEmbedder, TextEmbedder


@dataclass(frozen=True)
class Architecture:
    """The sizes of a CLIP model.

    Attributes:
        image_encoder: arguments of `VisionTransformer`, or (without "patch_size") of `ModifiedResNet`.
        text_encoder: arguments of `TextTransformer`.
        embed_dim: E.
        loss: "contrastive" or "sigmoid".
    """

    image_encoder: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    embed_dim: int
    loss: str = "contrastive"

    @property
    def image_size(self) -> int | tuple[int, int]:
        return self.image_encoder["image_size"]

    @property
    def context_length(self) -> int:
        return self.text_encoder["context_length"]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the position embeddings of the image encoder."""
        size = self.image_size
        sides = (size, size) if isinstance(size, int) else size
        return tuple(side // self.image_encoder.get("patch_size", 32) for side in sides)

    def resized(
        self, image_size: int | tuple[int, int] | None = None, context_length: int | None = None
    ) -> "Architecture":
        """Returns the architecture with another image size or context length; None: unchanged."""
        image, text = dict(self.image_encoder), dict(self.text_encoder)
        if image_size is not None:
            image["image_size"] = image_size
        if context_length is not None:
            text["context_length"] = context_length
        return replace(self, image_encoder=image, text_encoder=text)

    def build(
        self, preprocessor: ImagePreprocessor | None = None, encoder: str | None = None, dtype: str | None = None
    ) -> CLIPModel | ImageEmbedder | TextEmbedder:
        """Builds the model, or one tower of it, with the paper's initialisation.

        Args:
            preprocessor: None: the published preprocessing at the image size.
            encoder: "image" or "text": this tower only; None: the whole model.
            dtype: dtype policy of all parts; None: the default policy of Keras.

        Returns:
            `CLIPModel`; for one tower, `ImageEmbedder` or `TextEmbedder`.
        """
        if encoder != "text":
            kind = VisionTransformer if "patch_size" in self.image_encoder else ModifiedResNet
            image_encoder = kind(**self.image_encoder, dtype=dtype)
        if encoder == "image":
            return ImageEmbedder(image_encoder, self.embed_dim, preprocessor, dtype=dtype)
        text_encoder = TextTransformer(**self.text_encoder, dtype=dtype)
        if encoder == "text":
            return TextEmbedder(text_encoder, self.embed_dim, dtype=dtype)
        parts = image_encoder, text_encoder, self.embed_dim
        return CLIPModel(*parts, image_preprocessor=preprocessor, loss=self.loss, dtype=dtype)


def _vision_transformer(image_size, patch_size, width, layers, text_width, embed_dim):
    image = {
        "image_size": image_size,
        "patch_size": patch_size,
        "width": width,
        "num_layers": layers,
        "num_heads": width // 64,
    }
    return Architecture(image, _text_transformer(text_width), embed_dim)


def _resnet(image_size, blocks, width, text_width, embed_dim):
    return Architecture(
        {"image_size": image_size, "blocks": blocks, "width": width}, _text_transformer(text_width), embed_dim
    )


def _text_transformer(width):
    return {"width": width, "num_layers": 12, "num_heads": width // 64, "context_length": 77}


class Preset(NamedTuple):
    """A published model: its architecture, and the repository of the hub with its weights."""

    architecture: Architecture
    repository: str


# One row a preset; its name is the argument of `presets.load`.
PRESETS = {
    # image size, blocks of the stages, width of the stem, width of the text encoder, E
    "rn50": Preset(_resnet(224, (3, 4, 6, 3), 64, 512, 1024), "timm/resnet50_clip.openai"),
    "rn101": Preset(_resnet(224, (3, 4, 23, 3), 64, 512, 512), "timm/resnet101_clip.openai"),
    "rn50x4": Preset(_resnet(288, (4, 6, 10, 6), 80, 640, 640), "timm/resnet50x4_clip.openai"),
    "rn50x16": Preset(_resnet(384, (6, 8, 18, 8), 96, 768, 768), "timm/resnet50x16_clip.openai"),
    "rn50x64": Preset(_resnet(448, (3, 15, 36, 10), 128, 1024, 1024), "timm/resnet50x64_clip.openai"),
    # image size, patch size, width, blocks, width of the text encoder, E
    "vit_b32": Preset(_vision_transformer(224, 32, 768, 12, 512, 512), "timm/vit_base_patch32_clip_224.openai"),
    "vit_b16": Preset(_vision_transformer(224, 16, 768, 12, 512, 512), "timm/vit_base_patch16_clip_224.openai"),
    "vit_l14": Preset(_vision_transformer(224, 14, 1024, 24, 768, 768), "timm/vit_large_patch14_clip_224.openai"),
    "vit_l14_336": Preset(_vision_transformer(336, 14, 1024, 24, 768, 768), "timm/vit_large_patch14_clip_336.openai"),
}
ARCHITECTURES = {name: preset.architecture for name, preset in PRESETS.items()}
