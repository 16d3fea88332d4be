"""The layers of which encoders and models consist."""

from keras_clip.layers.contrastive_loss import ContrastiveLoss
from keras_clip.layers.embeddings import PatchEmbedding, PixelNormalization, TokenEmbedding
from keras_clip.layers.logit_scale import LogitScale
from keras_clip.layers.patch_dropout import PatchDropout
from keras_clip.layers.pooling import AttentionPool
from keras_clip.layers.projection import ProjectionHead
from keras_clip.layers.sync_batch_norm import SyncBatchNorm
from keras_clip.layers.transformer import SelfAttention, TransformerBlock
