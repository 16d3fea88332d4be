"""The text encoder of CLIP: a causal transformer, pooled at the end token."""

import keras
from keras import ops

from keras_clip.encoders.contract import TextEncoder
from keras_clip.layers.embeddings import TokenEmbedding
from keras_clip.layers.input_shapes import check_token_ids
from keras_clip.layers.pooling import end_positions
from keras_clip.layers.pure_call import rematerialize
from keras_clip.layers.transformer import TransformerBlock


@keras.saving.register_keras_serializable(package="keras_clip")
class TextTransformer(TextEncoder):
    """Encodes texts with a causal pre-LN transformer, pooled at the first end token.

    Radford et al. (2021), section 2.4. As the attention is causal, a batch may be truncated to its longest text without
    a change of the features. The weights are created at construction with the paper's initialisation.

    Args:
        width: int. D, the width of the residual stream and of the features.
        num_layers: int. Number of blocks.
        num_heads: int. Divides `width`; width / 64 in the published models.
        context_length: int. Maximum text length in tokens, including start and end tokens.
        vocabulary_size: int. V.
        end_token_id: int or None. None: the last id of the vocabulary, as in CLIP's tokenizer.
        activation: "quick_gelu" (published models) or "gelu". It must match the weights; see `presets`.
        mlp_ratio: float. Hidden width of the MLPs divided by `width`.
        remat: bool. Rematerialisation: in training, stores only the input of each block and recomputes its other
            activations in the backward pass.

    Call arguments:
        token_ids: int tensor (B, L), L at most `context_length`. A row without end token is pooled at its last token.
        training: bool.

    Returns:
        Features (B, D) in the compute dtype.

    Raises:
        ValueError: texts longer than `context_length`, token ids that are not (B, L) or, where they can be read, not of
            the vocabulary, or an unknown activation.
    """

    def __init__(
        self,
        width: int,
        num_layers: int,
        num_heads: int,
        context_length: int = 77,
        vocabulary_size: int = 49408,
        end_token_id: int | None = None,
        activation: str = "quick_gelu",
        mlp_ratio: float = 4.0,
        remat: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.width = width
        self.context_length = context_length
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.activation = activation
        self.mlp_ratio = mlp_ratio
        self.remat = remat
        self.end_token_id = vocabulary_size - 1 if end_token_id is None else end_token_id
        policy = self.dtype_policy
        self.token_embedding = TokenEmbedding(
            vocabulary_size, context_length, width, dtype=policy, name="token_embedding"
        )
        self.blocks = [
            TransformerBlock(
                num_heads,
                num_layers,
                causal=True,
                activation=activation,
                mlp_ratio=mlp_ratio,
                dtype=policy,
                name=f"block_{i}",
            )
            for i in range(num_layers)
        ]
        self.norm_final = keras.layers.LayerNormalization(epsilon=1e-5, dtype=policy, name="norm_final")
        self.build()

    def build(self, token_ids_shape=None):
        if self.built:
            return
        self.token_embedding.build()
        for layer in (*self.blocks, self.norm_final):
            layer.build((None, None, self.width))
        self.built = True

    def call(self, token_ids, training=False):
        x = self.token_embedding(token_ids)
        for block in self.blocks[:-1]:
            x = rematerialize(self, block, [block], x) if self.remat and training else block(x)
        # Only the end token is pooled, so the last block computes one row. It is not rematerialised, since the backward
        # pass uses its activations first.
        ends = end_positions(token_ids, self.end_token_id)[:, None]
        end_rows = ops.take_along_axis(x, ends[:, :, None], axis=1)
        visible = ops.arange(ops.shape(token_ids)[1], dtype="int32")[None, None] <= ends[:, :, None]
        x = self.blocks[-1](x, queries=end_rows, visible=visible)
        return self.norm_final(x[:, 0])

    def compute_output_shape(self, token_ids_shape):
        check_token_ids(keras.KerasTensor(token_ids_shape, "int32"), self.context_length)
        return (token_ids_shape[0], self.width)

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "context_length": self.context_length,
            "vocabulary_size": self.vocabulary_size,
            "end_token_id": self.end_token_id,
            "activation": self.activation,
            "mlp_ratio": self.mlp_ratio,
            "remat": self.remat,
        }
