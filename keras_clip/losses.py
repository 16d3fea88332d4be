"""Contrastive and captioning losses, in float32.

The contrastive loss of CLIP and the sigmoid loss of SigLIP are those of the global batch, and store one tile of the
similarities at a time (see `tiling`). The losses of the baselines, which predict the words of a caption, depend on
each pair alone.
"""

from typing import NamedTuple

from keras import ops

from keras_clip import distribution
from keras_clip.tiling import bidirectional_logsumexp, size, sum_of_softplus
from keras_clip.types import Tensor


class Negatives(NamedTuple):
    """Reductions over the non-matching pairs of the global batch, for each local pair.

    Attributes:
        by_image: float32 (B,). Log-sum-exp of the logits of the image with all other texts.
        by_text: float32 (B,). Log-sum-exp of the logits of the text with all other images.
        highest_by_image: float32 (B,). The largest of the former logits, without a gradient.
        highest_by_text: float32 (B,). The largest of the latter logits, without a gradient.
    """

    by_image: Tensor
    by_text: Tensor
    highest_by_image: Tensor
    highest_by_text: Tensor


class PairLosses(NamedTuple):
    """The results of one pass over the similarities, for each pair.

    Attributes:
        loss: float32 (B,).
        image_matched: float32 (B,). 1 if the similarity of the image to its own text exceeds those to all other texts,
            else 0. Ties count as 0, so a caption that occurs twice in a batch is not matched.
        text_matched: float32 (B,). 1 if the similarity of the text to its own image exceeds those to all other images,
            else 0.
    """

    loss: Tensor
    image_matched: Tensor
    text_matched: Tensor


def contrastive_loss(
    image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor, groups: Tensor | None = None
) -> Tensor:
    """Returns the symmetric cross-entropy of every pair against the batch (Radford et al., 2021, figure 3).

    It is the mean of the cross-entropy over the texts for each image and over the images for each text. The mean over
    pairs is the loss of the batch.

    Args:
        image_embeddings: float tensor (B, E), unit length; it is not normalised again.
        text_embeddings: float tensor (B, E), unit length; row i belongs to image i.
        logit_scale: float scalar, log(1 / temperature), as the weight is stored.
        groups: int tensor (B,) or None. `caption_groups`: pairs of one group are not each other's negatives. None: all
            pairs are.

    Returns:
        float32 (B,). Under a TensorFlow strategy, the losses of the local pairs against the pairs of all replicas.

    Raises:
        ValueError: embeddings of different shapes, not of rank 2, or empty; a scale or bias that is no scalar.
    """
    return contrastive_pairs(image_embeddings, text_embeddings, logit_scale, groups).loss


def sigmoid_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    groups: Tensor | None = None,
) -> Tensor:
    """The binary cross-entropy of each of the B^2 pairs: matching or not (SigLIP; Zhai et al., 2023).

    Args:
        image_embeddings: float tensor (B, E), unit length; it is not normalised again.
        text_embeddings: float tensor (B, E), unit length; row i belongs to image i.
        logit_scale: float scalar, log(1 / temperature), as the weight is stored.
        logit_bias: float scalar.
        groups: as of `contrastive_loss`.

    Returns:
        float32 (B,): the sum over all texts for each image. Under a TensorFlow strategy, for each local image.

    Raises:
        ValueError: embeddings of different shapes, not of rank 2, or empty; a scale or bias that is no scalar.
    """
    return sigmoid_pairs(image_embeddings, text_embeddings, logit_scale, logit_bias, groups).loss


def caption_groups(token_ids: Tensor) -> Tensor:
    """Numbers the captions of the global batch, such that equal captions have equal numbers.

    Captions are compared by two sums of 32 bits, each of all tokens times a number of their position; different
    captions of one number are so rare that they can be neglected.

    Args:
        token_ids: int tensor (B, L), of the local captions.

    Returns:
        int32 (B,), numbers from 1. Under a TensorFlow strategy: numbers within the pairs of all replicas.
    """
    token_ids = ops.cast(ops.convert_to_tensor(token_ids), "int32")
    positions = ops.arange(1, ops.shape(token_ids)[1] + 1, dtype="int32")
    numbers = None
    for factor in (0x2545F491, 0x1B873593):
        # Odd numbers without a pattern; products and sums of int32 are modulo 2 ** 32.
        weights = positions * factor
        weights = ops.bitwise_or(ops.bitwise_xor(weights, ops.right_shift(weights, 15)) * factor, 1)
        own = ops.cast(ops.sum(token_ids * weights, axis=1), "int32")
        rank = _ranks(own)
        numbers = rank if numbers is None else _ranks_within(numbers, rank)
    offset = distribution.replica_offset(size(token_ids))
    return numbers[offset : offset + size(token_ids)] + 1


def caption_loss(logits: Tensor, token_ids: Tensor, end_token_id: int) -> Tensor:
    """Returns the cross-entropy of each caption, token by token (Radford et al., 2021, section 2.3, language model).

    It is the mean over the tokens of the caption after the start token, up to and including the first end token. Tokens
    after it are padding, whatever their ids, and do not count.

    Args:
        logits: float tensor (B, L, V). Row i predicts token i + 1; the last row is not used.
        token_ids: int tensor (B, L), L > 1, start token first.
        end_token_id: int. In a caption without it all tokens count.

    Returns:
        float32 (B,), nats per token.

    Raises:
        ValueError: shapes that do not match.
    """
    logits, token_ids = _logits_and_tokens(logits, token_ids, 3)
    logits, targets = logits[:, :-1], token_ids[:, 1:]
    is_end = ops.cast(ops.equal(targets, end_token_id), "int32")
    counted = ops.cast(ops.equal(ops.cumsum(is_end, axis=1) - is_end, 0), "float32")
    own = ops.take_along_axis(logits, targets[:, :, None], axis=2)[:, :, 0]
    costs = ops.logsumexp(logits, axis=2) - own
    return ops.sum(counted * costs, axis=1) / ops.sum(counted, axis=1)


def bag_of_words_loss(logits: Tensor, token_ids: Tensor, end_token_id: int) -> Tensor:
    """Returns the cross-entropy of the words of each caption in any order (Joulin et al., 2016, section 3.2).

    The prediction is one softmax over the vocabulary; the target is uniform over the distinct tokens of the caption,
    without start token, end token and padding.

    Args:
        logits: float tensor (B, V).
        token_ids: int tensor (B, L), L > 1, start token first.
        end_token_id: int. In a caption without it all tokens count.

    Returns:
        float32 (B,), nats per word; 0 for a caption without words.

    Raises:
        ValueError: shapes that do not match.
    """
    logits, token_ids = _logits_and_tokens(logits, token_ids, 2)
    words = token_ids[:, 1:]
    # Repeated tokens are found by comparisons (B, L, L), since L is small, and not in (B, V).
    places = ops.arange(ops.shape(words)[1])
    earlier = ops.less(places[None, :], places[:, None])
    repeated = ops.any(ops.logical_and(ops.equal(words[:, :, None], words[:, None, :]), earlier), axis=2)
    ended = ops.cumsum(ops.cast(ops.equal(words, end_token_id), "int32"), axis=1) > 0
    counted = ops.cast(ops.logical_not(ops.logical_or(ended, repeated)), "float32")
    costs = ops.logsumexp(logits, axis=1, keepdims=True) - ops.take_along_axis(logits, words, axis=1)
    return ops.sum(counted * costs, axis=1) / ops.maximum(ops.sum(counted, axis=1), 1.0)


def contrastive_pairs(
    image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor, groups: Tensor | None = None
) -> PairLosses:
    """`contrastive_loss` and the matches, from one pass; arguments as there."""
    own = positive_logits(image_embeddings, text_embeddings, logit_scale)
    negatives = negatives_logsumexp(image_embeddings, text_embeddings, logit_scale, groups)
    # Cross-entropy as softplus(others - own), without cancellation where the probability of the own pair is nearly one.
    loss = (ops.softplus(negatives.by_image - own) + ops.softplus(negatives.by_text - own)) / 2
    return with_matches(loss, own, negatives)


def positive_logits(image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor) -> Tensor:
    """Returns the logit of each matching pair.

    Args:
        image_embeddings: float tensor (B, E), unit length.
        text_embeddings: float tensor (B, E), unit length; row i belongs to image i.
        logit_scale: float scalar, log of the factor of the similarities.

    Returns:
        float32 (B,).

    Raises:
        ValueError: shapes that do not match.
    """
    images, texts = _pairs(image_embeddings, text_embeddings)
    return ops.exp(_scalar(logit_scale, "logit_scale")) * ops.sum(images * texts, axis=1)


def negatives_logsumexp(
    image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor, groups: Tensor | None = None
) -> Negatives:
    """The log-sum-exp of the logits of all non-matching pairs of the global batch, in both directions.

    Use it to define your own loss of pairs: it is computed tile by tile, so that the matrix of similarities is never
    stored, and its gradient is exact over replicas and micro-batches. It can be called several times with different
    scales; `examples/hard_negative_loss.py` does so.

    Args:
        image_embeddings: float tensor (B, E), unit length.
        text_embeddings: float tensor (B, E), unit length; row i belongs to image i.
        logit_scale: float scalar, log of the factor of the similarities.
        groups: as of `contrastive_loss`.

    Returns:
        `Negatives` of the local pairs, against the pairs of all replicas. In a batch of one pair there are no
        non-matching pairs, and all values are about -1e30.

    Raises:
        ValueError: shapes that do not match.
    """
    images, texts = _pairs(image_embeddings, text_embeddings)
    log_scale = _scalar(logit_scale, "logit_scale")
    offset = distribution.replica_offset(size(images))
    both = bidirectional_logsumexp(images, distribution.gather(texts), log_scale, _positives(offset, groups))
    (by_row, by_column), (row_highest, column_highest) = _by_row_and_column(both, images)
    if distribution.replica_count() > 1:
        by_column = ops.logsumexp(distribution.stack(by_column), axis=0)
    by_column = by_column[offset : offset + size(images)]
    return Negatives(by_row, by_column, row_highest, _own_columns(column_highest, offset, images))


def with_matches(loss: Tensor, own: Tensor, negatives: Negatives) -> PairLosses:
    """Adds to the loss of each pair whether image and text retrieve each other.

    Args:
        loss: float32 (B,).
        own: float32 (B,). `positive_logits`.
        negatives: `Negatives` of the same scale.

    Returns:
        `PairLosses`.
    """
    return PairLosses(loss, *_matched(own, negatives.highest_by_image, negatives.highest_by_text))


def sigmoid_pairs(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    groups: Tensor | None = None,
) -> PairLosses:
    """Returns `sigmoid_loss` and the matches, from one pass; arguments as of `sigmoid_loss`."""
    images, texts = _pairs(image_embeddings, text_embeddings)
    log_scale, bias = _scalar(logit_scale, "logit_scale"), _scalar(logit_bias, "logit_bias")
    own = ops.exp(log_scale) * ops.sum(images * texts, axis=1) + bias
    offset = distribution.replica_offset(size(images))
    both = sum_of_softplus(images, distribution.gather(texts), log_scale, bias, _positives(offset, groups))
    (by_row, _), (row_highest, column_highest) = _by_row_and_column(both, images)
    return PairLosses(
        ops.softplus(-own) + by_row, *_matched(own, row_highest, _own_columns(column_highest, offset, images))
    )


def _pairs(image_embeddings, text_embeddings):
    images, texts = (ops.cast(ops.convert_to_tensor(x), "float32") for x in (image_embeddings, text_embeddings))
    shapes = tuple(images.shape), tuple(texts.shape)
    differ = any(None not in lengths and lengths[0] != lengths[1] for lengths in zip(*shapes, strict=False))
    if len(shapes[0]) != 2 or len(shapes[1]) != 2 or differ or 0 in shapes[0]:
        raise ValueError(
            "Image and text embeddings must have one shape (B, E), B > 0, row i of both being pair i. "
            f"Received: image_embeddings.shape={shapes[0]}, text_embeddings.shape={shapes[1]}."
        )
    return images, texts


def _logits_and_tokens(logits, token_ids, rank):
    logits, token_ids = ops.cast(ops.convert_to_tensor(logits), "float32"), ops.cast(token_ids, "int32")
    shape, tokens_shape = tuple(logits.shape), tuple(token_ids.shape)
    fits = len(shape) == rank and len(tokens_shape) == 2 and tokens_shape[1] not in (0, 1)
    pairs = zip(shape[: rank - 1], tokens_shape, strict=False)
    if not fits or any(None not in pair and pair[0] != pair[1] for pair in pairs):
        raise ValueError(
            f"`logits` must be {'(B, L, V)' if rank == 3 else '(B, V)'} and `token_ids` (B, L), L > 1. "
            f"Received: logits.shape={shape}, token_ids.shape={tokens_shape}."
        )
    return logits, token_ids


def _scalar(x, name):
    x = ops.cast(ops.convert_to_tensor(x), "float32")
    if len(x.shape):
        raise ValueError(f"`{name}` must be a scalar. Received: {name}.shape={tuple(x.shape)}. Reshape it to ().")
    return x


def _positives(offset, groups):
    """The offset, or the groups of the local and of all pairs; float32 for custom gradients, exact up to 16 million."""
    if groups is None:
        return ops.cast(ops.convert_to_tensor(offset), "float32")
    groups = ops.cast(ops.convert_to_tensor(groups), "float32")
    return ops.concatenate([groups, distribution.gather(groups)])


def _ranks(own):
    """Returns the number of smaller values on all replicas for each value: int32 (N,)."""
    values = distribution.gather(own)
    return ops.cast(ops.searchsorted(ops.sort(values), values), "int32")


def _ranks_within(first, second):
    """Returns the ranks of the pairs of both. Above 46,340 pairs int32 wraps, and unequal pairs may rarely collide."""
    values = first * size(first) + second
    return ops.cast(ops.searchsorted(ops.sort(values), values), "int32")


def _by_row_and_column(both, images):
    """Splits the result of a primitive into ((by row, by column), (maximum by row, maximum by column))."""
    count = size(images)
    return (both[0, :count], both[0, count:]), (both[1, :count], both[1, count:])


def _own_columns(column_highest, offset, images):
    """Returns the maxima over the images of all replicas, for the texts of this replica."""
    if distribution.replica_count() > 1:
        column_highest = ops.max(distribution.stack(column_highest), axis=0)
    return column_highest[offset : offset + size(images)]


def _matched(own, row_highest, column_highest):
    own = ops.stop_gradient(own)
    return tuple(ops.cast(own > ops.stop_gradient(x), "float32") for x in (row_highest, column_highest))
