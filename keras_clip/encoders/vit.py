"""The Vision Transformer of CLIP: Dosovitskiy et al. (2020) with a LayerNorm before the first block."""

import keras

from keras_clip.encoders.contract import ImageEncoder
from keras_clip.layers.embeddings import PatchEmbedding
from keras_clip.layers.input_shapes import check_images_shape
from keras_clip.layers.patch_dropout import PatchDropout
from keras_clip.layers.pure_call import rematerialize
from keras_clip.layers.transformer import TransformerBlock


@keras.saving.register_keras_serializable(package="keras_clip")
class VisionTransformer(ImageEncoder):
    """Encodes images with a pre-LN transformer over patches and a class token, pooled at the class token.

    Radford et al. (2021), section 2.4 and table 20. The weights are created at construction with the paper's
    initialisation.

    Args:
        image_size: int or (height, width), pixels; multiples of `patch_size`.
        patch_size: int, pixels.
        width: int. D, the width of the residual stream and of the features.
        num_layers: int. Number of blocks.
        num_heads: int. Divides `width`; width / 64 in the published models.
        activation: "quick_gelu" (published models) or "gelu". It must match the weights; see `presets`.
        mlp_ratio: float. Hidden width of the MLPs divided by `width`.
        patch_dropout: float in [0, 1). Fraction of the patches dropped in training (FLIP).
        seed: int or None. Seed of the patch dropout.
        remat: bool. Rematerialisation: in training, stores only the input of each block and recomputes its other
            activations in the backward pass.

    Call arguments:
        images: float tensor (B, H, W, 3), normalised.
        training: bool.

    Returns:
        Features (B, D) in the compute dtype.

    Raises:
        ValueError: `patch_size` does not divide the image size, `num_heads` does not divide `width`, the activation is
            unknown, or images of another size.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int,
        width: int,
        num_layers: int,
        num_heads: int,
        activation: str = "quick_gelu",
        mlp_ratio: float = 4.0,
        patch_dropout: float = 0.0,
        seed: int | None = None,
        remat: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.image_size = image_size
        self.patch_size = patch_size
        self.width = width
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.activation = activation
        self.mlp_ratio = mlp_ratio
        self.remat = remat
        policy = self.dtype_policy
        self.patch_embedding = PatchEmbedding(image_size, patch_size, width, dtype=policy, name="patch_embedding")
        self.patch_dropout = PatchDropout(patch_dropout, seed, dtype=policy, name="patch_dropout")
        self.norm_pre = keras.layers.LayerNormalization(epsilon=1e-5, dtype=policy, name="norm_pre")
        self.blocks = [
            TransformerBlock(
                num_heads, num_layers, activation=activation, mlp_ratio=mlp_ratio, dtype=policy, name=f"block_{i}"
            )
            for i in range(num_layers)
        ]
        self.norm_post = keras.layers.LayerNormalization(epsilon=1e-5, dtype=policy, name="norm_post")
        self.build()

    def build(self, images_shape=None):
        if self.built:
            return
        self.patch_embedding.build()
        for layer in (self.norm_pre, *self.blocks, self.norm_post):
            layer.build((None, None, self.width))
        self.built = True

    def call(self, images, training=False):
        x = self.patch_dropout(self.patch_embedding(images), training=training)
        x = self.norm_pre(x)
        for block in self.blocks[:-1]:
            x = rematerialize(self, block, [block], x) if self.remat and training else block(x)
        # Only the class token is pooled, so the last block computes one row. It is not rematerialised, since the
        # backward pass uses its activations first.
        x = self.blocks[-1](x, queries=x[:, :1])
        return self.norm_post(x[:, 0])

    def compute_output_shape(self, images_shape):
        check_images_shape(images_shape, self.patch_embedding.sides)
        return (images_shape[0], self.width)

    def get_config(self):
        return {
            **super().get_config(),
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "width": self.width,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "activation": self.activation,
            "mlp_ratio": self.mlp_ratio,
            "patch_dropout": self.patch_dropout.rate,
            "seed": self.patch_dropout.seed,
            "remat": self.remat,
        }
