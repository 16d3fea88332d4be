"""Selects the weights to which weight decay applies (Radford et al., 2021, section 2.5)."""

from collections.abc import Sequence

import keras

# The role of a variable is the last part of its path, which is the same on every backend and after loading.
# A rule by rank alone would decay the biases of `keras.layers.MultiHeadAttention`, which have rank 2.
UNDECAYED = frozenset({"bias", "beta", "gamma", "scale", "alpha", "logit_scale", "logit_bias"})


def is_decayed(variable: keras.Variable) -> bool:
    """Returns whether weight decay applies to a variable: it has two axes or more, and is not a gain or a bias."""
    return len(variable.shape) >= 2 and variable.path.split("/")[-1] not in UNDECAYED


def decay_mask(variables: Sequence[keras.Variable]) -> list[bool]:
    """Returns for each variable whether weight decay applies to it, as in open_clip.

    "Decoupled weight decay regularization applied to all weights that are not gains or biases" (Radford et al., 2021,
    section 2.5). Kernels, token embeddings and tables of positions decay. Biases, gains of normalisations, the logit
    scale and every other vector, such as the class token, do not. The rule depends on the variable alone, so it is the
    same on every backend, and after saving and loading. `AdamW` and `Muon` of this library apply it; for another
    optimizer: `optimizer.exclude_from_weight_decay([v for v, decayed in zip(variables, mask) if not decayed])`, which
    Keras forgets when the optimizer is saved.

    Args:
        variables: Keras variables, such as `model.trainable_variables`.

    Returns:
        List of bool, one per variable.
    """
    return list(map(is_decayed, variables))
