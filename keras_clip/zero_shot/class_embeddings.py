"""Class embeddings (K, E), the weights of a zero-shot head: from class names and templates by the text encoder."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from keras_clip.model import TextEmbedder
from keras_clip.prompts import validate_class_names, validate_templates, warn_of_equal_prompts
from keras_clip.zero_shot.progress import progress

MAX_WIDTHS = 3
# Each additional width costs a compilation, which must save the computation of this many tokens.
TOKENS_PER_WIDTH = 4096
BATCH_SIZE = 256


def _widths(lengths: np.ndarray) -> list[int]:
    """Returns at most three padded widths, ascending, that minimise the computed tokens for texts of these lengths."""
    known, counts = np.unique(lengths, return_counts=True)
    up_to = dict(zip(known.tolist(), counts.cumsum().tolist(), strict=True))
    longest = int(known[-1])

    def cost(widths):
        held = [up_to[width] for width in widths]
        tokens = sum(w * (b - a) for w, a, b in zip(widths, [0, *held[:-1]], held, strict=True))
        return tokens + TOKENS_PER_WIDTH * len(widths)

    shorter = known[:-1].tolist()
    choices = ([*chosen, longest] for count in range(MAX_WIDTHS) for chosen in itertools.combinations(shorter, count))
    return min(choices, key=cost)


def _embed_rows(text_embedder: TextEmbedder, token_ids: np.ndarray) -> np.ndarray:
    """Returns embeddings (B, E) of token ids (B, L), in batches of few shapes and with few padding tokens."""
    lengths = (token_ids == text_embedder.tokenizer.end_token_id).argmax(axis=1) + 1
    embeddings = np.empty((len(token_ids), text_embedder.embed_dim), np.float32)
    shorter = 0
    with progress(len(token_ids), "Embedding prompts") as bar:
        for width in _widths(lengths):
            rows = np.flatnonzero((lengths > shorter) & (lengths <= width))
            shorter = width
            # All batches of a width have one size, so that it compiles once; the last one is padded with its own rows.
            size = 8 * math.ceil(len(rows) / math.ceil(len(rows) / BATCH_SIZE) / 8)
            for start in range(0, len(rows), size):
                batch = rows[start : start + size]
                filled = token_ids[np.resize(batch, size), :width]
                embeddings[batch] = text_embedder.predict_on_batch(filled)[: len(batch)]
                bar.update(len(batch))
    return embeddings


def unit_length(x: np.ndarray) -> np.ndarray:
    """Returns vectors divided by their length; a zero vector remains zero.

    Args:
        x: floats (..., E).

    Returns:
        Floats (..., E) of unit length.
    """
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


def embed_classes(
    text_embedder: TextEmbedder,
    class_names: Sequence[str | Sequence[str]],
    templates: Sequence[str] = ("a photo of a {}.",),
) -> np.ndarray:
    """Returns the weights of a zero-shot head: the mean of each class's prompt embeddings, scaled to unit length.

    The ensemble is formed over embeddings, not over probabilities (Radford et al., 2021, section 3.1.4). Duplicate
    prompts are encoded once, and short prompts at a shorter sequence length. There is a warning of classes whose
    prompts the tokenizer makes equal, since the second of them is never predicted.

    Args:
        text_embedder: the text embedder of a `CLIPModel`: `clip.text_embedder`.
        class_names: K names. A class with several names is a list of them; all prompts of a class have equal weight.
        templates: texts with one `{}` each, which the class name replaces.

    Returns:
        float32 array (K, E) of unit length.

    Raises:
        ValueError: templates without exactly one `{}`, empty or duplicate names, or a prompt that is too long.
    """
    templates = validate_templates(templates)
    class_names = validate_class_names(class_names)
    prompts = [[t.replace("{}", name) for name in names for t in templates] for names in class_names]
    token_ids = tokenize_prompts(text_embedder.tokenizer, list(itertools.chain.from_iterable(prompts)))
    owners = [(t, k, name) for k, names in enumerate(class_names) for name in names for t in templates]
    warn_of_equal_prompts(owners, token_ids)
    token_ids, inverse = np.unique(token_ids, axis=0, return_inverse=True)
    embeddings = _embed_rows(text_embedder, token_ids)
    ends = np.cumsum([len(class_prompts) for class_prompts in prompts])
    means = [embeddings[rows].mean(axis=0) for rows in np.split(inverse.reshape(-1), ends[:-1])]
    return unit_length(np.stack(means))


def tokenize_prompts(tokenizer: Callable, prompts: list[str]) -> np.ndarray:
    """Returns the token ids of prompts, as long as the longest of them.

    Args:
        tokenizer: the tokenizer of a `CLIPModel`.
        prompts: P texts.

    Returns:
        int32 (P, L).

    Raises:
        ValueError: a prompt that is longer than the context of the text encoder.
    """
    try:
        return tokenizer(prompts, length="longest")
    except ValueError as error:
        longest = max(prompts, key=len)
        raise ValueError(
            f"Every prompt must fit the context length of the text encoder: {error} Received: class_names and "
            f"templates whose longest prompt is {longest!r}. Shorten them."
        ) from error
