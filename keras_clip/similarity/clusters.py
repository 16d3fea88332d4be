"""Clusters of embeddings, and the semantic duplicates inside each of them (SemDeDup, Abbas et al., 2023)."""

import numpy as np

from keras_clip.similarity.nearest import nearest_vectors

# Rows of a block of cosines.
_BLOCK = 2**11


def spherical_kmeans(vectors: np.ndarray, clusters: int, iterations: int = 20) -> np.ndarray:
    """Returns the centroids of clusters of unit vectors, by Lloyd's algorithm with cosines.

    The first vectors are the initial centroids, so the caller's order decides: shuffle the vectors by a hash of their
    keys. A cluster that loses all vectors gets the vector that is the farthest from its own centroid.

    Args:
        vectors: float (N, E), unit vectors.
        clusters: int, K <= N.
        iterations: int >= 0.

    Returns:
        float32 (K, E), unit vectors.

    Raises:
        ValueError: more clusters than vectors, or none.
    """
    vectors = np.asarray(vectors, np.float32)
    if not 1 <= clusters <= len(vectors):
        raise ValueError(
            f"`clusters` must be in [1, number of vectors]. Received: clusters={clusters}, {len(vectors)} vectors."
        )
    centroids = vectors[:clusters].copy()
    for _ in range(iterations):
        cosines, nearest = nearest_vectors(vectors, centroids)
        order = np.argsort(nearest, kind="stable")
        there, starts = np.unique(nearest[order], return_index=True)
        sums = np.zeros((clusters, vectors.shape[1]))
        sums[there] = np.add.reduceat(vectors[order].astype(np.float64), starts, axis=0)
        empty = np.setdiff1d(np.arange(clusters), there)
        sums[empty] = vectors[np.argsort(cosines, kind="stable")[: len(empty)]]
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        updated = np.where(norms > 1e-12, sums / np.maximum(norms, 1e-12), centroids).astype(np.float32)
        if np.array_equal(updated, centroids):
            break
        centroids = updated
    return centroids


def semantic_duplicates(
    vectors: np.ndarray,
    centroid_cosines: np.ndarray,
    threshold: float,
    ties: np.ndarray,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Finds the vectors of one cluster that SemDeDup removes.

    As published (section 3): the vectors are sorted by their cosine with the centroid, the farthest first, and one is
    removed if its cosine with any vector before it, removed or not, is above the threshold, 1 - epsilon.

    Args:
        vectors: float (N, E), unit vectors of one cluster.
        centroid_cosines: float (N,). Their cosines with the centroid.
        threshold: float. Cosine, 1 - epsilon.
        ties: uint64 (N,). Order of those with equal cosines.
        groups: int (N,) or None. Only vectors of one group are duplicates of each other.

    Returns:
        int64 (N,): for each vector the row of the most similar one before it if that makes it a duplicate; -1 if it is
        kept.
    """
    order = np.lexsort([ties, centroid_cosines])
    ordered = np.asarray(vectors, np.float32)[order]
    groups = None if groups is None else np.asarray(groups)[order]
    removed_by = np.full(len(order), -1)
    for start in range(0, len(ordered), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(ordered)))
        best, nearest = np.full(rows.stop - start, -np.inf, np.float32), np.zeros(rows.stop - start, np.int64)
        for first in range(0, rows.stop, _BLOCK):
            before = slice(first, min(first + _BLOCK, rows.stop))
            cosines = ordered[rows] @ ordered[before].T
            # Only those strictly before count.
            is_later = np.arange(before.start, before.stop)[None] >= np.arange(start, rows.stop)[:, None]
            if groups is not None:
                is_later |= groups[rows][:, None] != groups[before][None]
            cosines[is_later] = -np.inf
            position = cosines.argmax(axis=1)
            value = np.take_along_axis(cosines, position[:, None], axis=1)[:, 0]
            nearest = np.where(value > best, position + first, nearest)
            best = np.maximum(best, value)
        is_duplicate = best > threshold
        removed_by[order[rows][is_duplicate]] = order[nearest[is_duplicate]]
    return removed_by
