"""Random draws of pairs that depend on nothing but a seed, the key of a pair and a query.

The same on every machine, in any order and with any number of workers: a draw is a hash, not the next number of a
generator.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

# All draws are below it.
DRAW_LIMIT = 2**63
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash_strings(strings: Sequence[str]) -> np.ndarray:
    """Returns the first 64 bits of the BLAKE2b hash of each string in UTF-8, uint64 (N,)."""
    digests = b"".join(
        hashlib.blake2b(each.encode("utf-8", "surrogatepass"), digest_size=8).digest() for each in strings
    )
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def mix(values: np.ndarray) -> np.ndarray:
    """Returns the output function of SplitMix64 (Steele et al., 2014), a bijection of 64-bit numbers."""
    values = np.atleast_1d(np.asarray(values, np.uint64)) + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def hash_pairs(keys: Sequence[str], caption_numbers: Iterable[int], seed: int = 0) -> np.ndarray:
    """Returns the hash of each pair, uint64 (N,).

    Args:
        keys: N str, the keys of the samples. Pairs of equal keys and numbers get equal draws.
        caption_numbers: N int, which of the captions of its image a pair has.
        seed: int in [0, 2 ** 64).

    Raises:
        ValueError: an invalid seed.
    """
    check_seed(seed)
    numbers = np.asarray(caption_numbers, np.uint64)
    return mix(mix(hash_strings(keys) + numbers * _GOLDEN) ^ mix(np.uint64(seed)))


def check_seed(seed: int) -> None:
    """Raises a ValueError unless a seed is an integer in [0, 2 ** 64)."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ValueError(f"`seed` must be an integer in [0, 2 ** 64). Received: seed={seed!r}.")


def draw(pairs: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """Returns a uniform draw from [0, 2 ** 63) for each pair and query, uint64 (M,).

    Args:
        pairs: uint64 (M,), from `hash_pairs`.
        entries: uint64 (M,), from `hash_strings`.
    """
    # Without the last bit, so that an exclusive bound of 2 ** 63, which includes all draws, is a number of 64 bits.
    return mix(pairs ^ entries) >> np.uint64(1)
