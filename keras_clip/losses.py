"""What a batch of pairs costs: the contrastive loss of CLIP and the sigmoid loss of SigLIP.

Both are those of the global batch, in float32, and hold a tile of the similarities at a time (see `tiling`).
"""

from typing import NamedTuple

from keras import ops

from keras_clip import distribution
from keras_clip.tiling import bidirectional_logsumexp, sum_of_softplus
from keras_clip.types import Tensor


class PairLosses(NamedTuple):
    """What one pass over the similarities tells of each pair.

    Attributes:
        loss: float32 (B,).
        image_matched: float32 (B,). 1 where the image's own text is nearer than all others; a tie is a miss.
        text_matched: float32 (B,). 1 where the text's own image is nearer than all others.
    """

    loss: Tensor
    image_matched: Tensor
    text_matched: Tensor


def contrastive_loss(image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor) -> Tensor:
    """The symmetric cross-entropy of every pair against the batch (Radford et al., 2021, figure 3).

    Half of what it costs to find the text by the image, half of what it costs to find the image by the text. Its mean
    is the loss of the batch.

    Args:
        image_embeddings: float tensor (B, E), unit length; it is not normalised again.
        text_embeddings: float tensor (B, E), unit length; row i belongs to image i.
        logit_scale: float scalar, log(1 / temperature), as the weight is stored.

    Returns:
        float32 (B,). Under a TensorFlow strategy: of the local pairs, against the pairs of all replicas.

    Raises:
        ValueError: embeddings of different shapes, or not of rank 2.
    """
    return contrastive_pairs(image_embeddings, text_embeddings, logit_scale).loss


def sigmoid_loss(image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """Each of the B^2 pairs as a question of its own: do the two belong together? (Zhai et al., 2023)

    Args:
        image_embeddings: float tensor (B, E), unit length; it is not normalised again.
        text_embeddings: float tensor (B, E), unit length; row i belongs to image i.
        logit_scale: float scalar, log(1 / temperature), as the weight is stored.
        logit_bias: float scalar.

    Returns:
        float32 (B,): the sum over all texts for each image. Under a TensorFlow strategy: of the local images.

    Raises:
        ValueError: embeddings of different shapes, or not of rank 2.
    """
    return sigmoid_pairs(image_embeddings, text_embeddings, logit_scale, logit_bias).loss


def contrastive_pairs(image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor) -> PairLosses:
    """`contrastive_loss` with what the same pass tells of the matches; arguments as there."""
    images, texts, log_scale, bias, positives = _prepare(image_embeddings, text_embeddings, logit_scale, 0.0)
    reduced, row_highest, column_highest, offset = _against_batch(
        bidirectional_logsumexp, images, texts, log_scale, bias
    )
    count = _rows(images)
    columns = reduced[count:]
    if distribution.replica_count() > 1:
        columns = ops.logsumexp(distribution.gather(columns[None]), axis=0)
    columns = _own(columns, offset, count)
    # Cross-entropy as softplus(others - own): nothing cancels where the own pair has nearly all of the probability.
    loss = (ops.softplus(reduced[:count] - positives) + ops.softplus(columns - positives)) / 2
    return PairLosses(loss, _exceeds(positives, row_highest), _exceeds(positives, column_highest))


def sigmoid_pairs(
    image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor, logit_bias: Tensor
) -> PairLosses:
    """`sigmoid_loss` with what the same pass tells of the matches; arguments as there."""
    images, texts, log_scale, bias, positives = _prepare(image_embeddings, text_embeddings, logit_scale, logit_bias)
    reduced, row_highest, column_highest, _ = _against_batch(sum_of_softplus, images, texts, log_scale, bias)
    loss = ops.softplus(-positives) + reduced[: _rows(images)]
    return PairLosses(loss, _exceeds(positives, row_highest), _exceeds(positives, column_highest))


def _rows(x):
    return x.shape[0] if x.shape[0] is not None else ops.shape(x)[0]


def _prepare(image_embeddings, text_embeddings, logit_scale, logit_bias):
    images, texts, log_scale, bias = (
        ops.cast(ops.convert_to_tensor(x), "float32")
        for x in (image_embeddings, text_embeddings, logit_scale, logit_bias)
    )
    if len(images.shape) != 2 or tuple(images.shape) != tuple(texts.shape):
        raise ValueError(
            "Image and text embeddings must have one shape (B, E), row i of both being pair i. "
            f"Received: image_embeddings.shape={tuple(images.shape)}, text_embeddings.shape={tuple(texts.shape)}."
        )
    positives = ops.exp(log_scale) * ops.sum(images * texts, axis=1) + bias
    return images, texts, log_scale, bias, positives


def _against_batch(primitive, images, texts, log_scale, bias):
    """Own images against the texts of all replicas."""
    count = _rows(images)
    offset = distribution.replica_index() * count
    both = primitive(
        images, distribution.gather(texts), log_scale, bias, ops.cast(ops.convert_to_tensor(offset), "float32")
    )
    highest = ops.stop_gradient(both[1])
    column_highest = highest[count:]
    if distribution.replica_count() > 1:
        column_highest = ops.max(distribution.gather(column_highest[None]), axis=0)
    return both[0], highest[:count], _own(column_highest, offset, count), offset


def _own(columns, offset, count):
    return columns[offset : offset + count]


def _exceeds(positives, highest):
    return ops.cast(ops.stop_gradient(positives) > highest, "float32")
