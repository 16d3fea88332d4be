"""The interface of an index of vectors, and what its kinds have in common: checks, and the order of results."""

import hashlib
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

# Rows of a fingerprint.
_SAMPLE = 256


@runtime_checkable
class Index(Protocol):
    """Finds the vectors of the largest inner product with a query; of unit vectors, those of the largest cosine.

    A vector is known by its row. Rows are appended to the embeddings and never change, so an index is extended by
    calling `build` with more rows. Rows that an index does not have yet are no error: see its `open`.
    """

    def build(self, embeddings: np.ndarray) -> None:
        """Indexes all rows of float32 embeddings (N, E), of which those that it has already are not added again."""

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Finds the nearest rows of each query.

        Args:
            queries: float (Q, E).
            k: int >= 1.
            allowed: bool (M,), M <= N, or None. Only these rows are found, and none behind the first M; None: all.

        Returns:
            Rows, int64 (Q, k), and their inner products, float32 (Q, k): the largest first, equal ones by row. Where
            there are fewer than k, -1 and -inf.
        """

    def save(self, path: str | Path) -> None:
        """Writes the index to a file."""

    @classmethod
    def open(cls, path: str | Path, embeddings: np.ndarray) -> "Index":
        """Opens a saved index.

        Args:
            path: the file that `save` wrote.
            embeddings: float32 (N, E), the rows that it was built of; more rows may follow them.

        Returns:
            The index. It finds all N rows.
        """


def checked_embeddings(embeddings: np.ndarray) -> np.ndarray:
    """Returns embeddings unchanged if they are float32 (N, E).

    Args:
        embeddings: the array, which may be memory-mapped.

    Returns:
        The same array.

    Raises:
        ValueError: another dtype or shape.
    """
    if not isinstance(embeddings, np.ndarray) or embeddings.ndim != 2 or embeddings.dtype != np.float32:
        got = (embeddings.dtype, embeddings.shape) if isinstance(embeddings, np.ndarray) else type(embeddings).__name__
        raise ValueError(f"`embeddings` must be float32 (N, E). Received: {got}. Convert them by `.astype('float32')`.")
    return embeddings


def checked_search(
    queries: np.ndarray, k: int, allowed: np.ndarray | None, shape: tuple[int, int]
) -> tuple[np.ndarray, int, np.ndarray | None]:
    """Checks the arguments of `Index.search`.

    Args:
        queries: see `Index.search`.
        k: see `Index.search`.
        allowed: see `Index.search`.
        shape: (N, E) of the embeddings.

    Returns:
        Queries float32 (Q, E); k; allowed, bool (N,) or None if all rows are.

    Raises:
        ValueError: a shape or dtype that does not fit, numbers that are not finite, or k < 1.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    if queries.ndim != 2 or queries.shape[1] != shape[1] or not np.isfinite(queries).all():
        raise ValueError(
            f"`queries` must be finite numbers (Q, {shape[1]}). Received: queries of shape {queries.shape}"
            f"{'' if np.isfinite(queries).all() else ' with NaN or infinity'}. A single query is `query[None]`."
        )
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"`k` must be an integer of at least 1. Received: k={k!r}.")
    if allowed is not None:
        allowed = np.asarray(allowed)
        if allowed.dtype != bool or allowed.ndim != 1 or len(allowed) > shape[0]:
            raise ValueError(
                f"`allowed` must be bool (M,), M <= {shape[0]}, one for each row. Received: {allowed.dtype} of shape "
                f"{allowed.shape}."
            )
        allowed = np.concatenate([allowed, np.zeros(shape[0] - len(allowed), bool)])
        allowed = None if allowed.all() else allowed
    return queries, int(k), allowed


def ranked(scores: np.ndarray, k: int | None = None) -> np.ndarray:
    """Returns the places of the largest scores in descending order; equal scores are ordered by place.

    Score and place are packed into one integer: sorting 100,000 of them takes 4 ms, and no two are equal.

    Args:
        scores: float32 (M,), M < 2**32. NaN counts as the smallest.
        k: int or None. How many; None: all.

    Returns:
        int64 (min(k, M),), places in `scores`.
    """
    size = len(scores)
    # -0.0 + 0.0 is 0.0, so that both zeros are equal.
    bits = (np.where(np.isnan(scores), np.float32(-np.inf), scores).astype(np.float32) + np.float32(0)).view(np.uint32)
    descending = np.where(bits >> 31, bits, ~bits & np.uint32(0x7FFFFFFF)).astype(np.uint64)
    keys = (descending << np.uint64(32)) | np.arange(size, dtype=np.uint64)
    if k is not None and k < size:
        # Sorting few of many.
        keys = np.partition(keys, k - 1)[:k]
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def filled(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the results of one query with k entries, of which the last are -1 and -inf if there are fewer.

    Args:
        rows: int64 (M,), M <= k.
        scores: float32 (M,).
        k: int.

    Returns:
        int64 (k,) and float32 (k,).
    """
    missing = k - len(rows)
    return (
        np.concatenate([rows, np.full(missing, -1, np.int64)]),
        np.concatenate([scores, np.full(missing, -np.inf, np.float32)]),
    )


def fingerprint(embeddings: np.ndarray, rows: int) -> str:
    """Returns a digest of the shape and of up to 256 of the first rows, by which an index recognises its embeddings.

    Args:
        embeddings: float32 (N, E).
        rows: int <= N. The rows before this one count.

    Returns:
        64 hexadecimal digits.
    """
    places = np.unique(np.linspace(0, rows - 1, min(rows, _SAMPLE)).astype(np.int64)) if rows else np.zeros(0, int)
    digest = hashlib.sha256(f"{rows} {embeddings.shape[1]}".encode())
    digest.update(np.ascontiguousarray(embeddings[places]).tobytes())
    return digest.hexdigest()


def require_same(expected: str, embeddings: np.ndarray, rows: int, path: str | Path) -> None:
    """Raises a ValueError unless the embeddings begin with the rows that a saved index was built of.

    Args:
        expected: the `fingerprint` of these rows.
        embeddings: float32 (N, E).
        rows: int, their number.
        path: the file of the index, for the message.
    """
    if len(embeddings) < rows or fingerprint(embeddings, rows) != expected:
        raise ValueError(
            f"The embeddings must begin with the {rows} rows that the index was built of. Received: {path} and "
            f"embeddings of shape {embeddings.shape}, which differ. Build the index again."
        )
