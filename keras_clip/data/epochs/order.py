"""The order of the samples of an epoch, computed position by position: no permutation is held in memory.

A Feistel network permutes the numbers of a rectangle with at least as many cells as there are samples; cells beyond the
last sample are permuted again until a sample comes out (cycle walking). The keys are drawn from the seed and the epoch.
"""

import math

import numpy as np

# Consecutive samples that stay together until they are in a window, and blocks in a window.
BLOCK, WINDOW_BLOCKS = 256, 64
# Rounds of the network. From four on, it is as good as a random permutation for this purpose.
_ROUNDS = 6


class SampleOrder:
    """The order of an epoch.

    Args:
        size: int >= 1. Number of samples.
        shuffle: "samples": any sample may be at any position. "blocks": blocks of 256 consecutive samples are permuted,
            and the samples within windows of 64 blocks, so that a file is read at nearly one place. None: no shuffling.
        seed: int >= 0.
        epoch: int >= 0.
    """

    def __init__(self, size: int, shuffle: str | None, seed: int, epoch: int):
        self._size, self._shuffle = size, shuffle
        self._keys = np.random.SeedSequence([seed, epoch]).generate_state(2 * _ROUNDS + 1, np.uint64)
        # Blocks begin elsewhere in every epoch. The samples that fill no block are therefore other ones, too.
        self._first = int(self._keys[-1] % np.uint64(size))

    def samples(self, positions: np.ndarray) -> np.ndarray:
        """Returns the samples at positions of the epoch.

        Args:
            positions: int64 (B,), in [0, size).

        Returns:
            int64 (B,).
        """
        if self._shuffle is None:
            return positions
        if self._shuffle == "samples":
            return permute(positions, self._size, self._keys[:_ROUNDS])
        windows, places = np.divmod(positions, BLOCK * WINDOW_BLOCKS)
        slots = np.empty_like(positions)
        for window in np.unique(windows).tolist():
            chosen, start = windows == window, window * BLOCK * WINDOW_BLOCKS
            size = min(BLOCK * WINDOW_BLOCKS, self._size - start)
            keys = _mix(self._keys[:_ROUNDS] + np.uint64(window))
            slots[chosen] = start + permute(places[chosen], size, keys)
        blocks = self._size // BLOCK
        whole = slots < blocks * BLOCK
        blocked = permute(slots[whole] // BLOCK, blocks, self._keys[_ROUNDS:-1])
        slots[whole] = blocked * BLOCK + slots[whole] % BLOCK
        return (slots + self._first) % self._size


def permute(numbers: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Returns the values of a permutation of `range(size)` that depends on keys.

    Args:
        numbers: int64 (B,), in [0, size).
        size: int >= 0.
        keys: uint64 (rounds,).

    Returns:
        int64 (B,).
    """
    rows = max(1, math.isqrt(max(0, size - 1)) + 1)
    columns = -(-size // rows) if size else 1
    values, outside = numbers.astype(np.int64), np.arange(len(numbers))
    while len(outside):
        values[outside] = _feistel(values[outside], rows, columns, keys)
        outside = outside[values[outside] >= size]
    return values


def _feistel(values: np.ndarray, rows: int, columns: int, keys: np.ndarray) -> np.ndarray:
    """Permutes the cells of a rectangle: the row is moved by a function of the column, then the column by one of it."""
    row, column = np.divmod(values, columns)
    for turn, key in enumerate(keys):
        if turn % 2:
            column = (column + _draw(row, key, columns)) % columns
        else:
            row = (row + _draw(column, key, rows)) % rows
    return row * columns + column


def _draw(numbers: np.ndarray, key: np.uint64, size: int) -> np.ndarray:
    return (_mix(numbers.astype(np.uint64) ^ key) % np.uint64(size)).astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """Returns a random 64-bit number for each number (SplitMix64)."""
    with np.errstate(over="ignore"):
        x = (x + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
        x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
