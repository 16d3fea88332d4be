"""Clusters of pictures, named by the words that distinguish them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_clip.search.queries.encoding import QueryEncoder
from keras_clip.search.queries.query import Query, Term
from keras_clip.search.queries.vocabulary import COMMON_WORDS
from keras_clip.similarity.clusters import spherical_kmeans
from keras_clip.similarity.nearest import nearest_vectors

# Pictures from which the centroids are computed.
_SAMPLE = 20_000


@dataclass(frozen=True)
class Cluster:
    """Pictures that resemble each other.

    Args:
        name: str. The word that resembles them more than it does the other clusters.
        pictures: int, their number.
        cover: int. The id of the picture that is the nearest to the centre.
        query: `Query` that finds such pictures: more like the cover.
    """

    name: str
    pictures: int
    cover: int
    query: Query


def named_clusters(
    embeddings: np.ndarray,
    rows: np.ndarray,
    ids: np.ndarray,
    k: int,
    encoder: QueryEncoder,
    words: Sequence[str] | None = None,
) -> list[Cluster]:
    """Divides pictures into clusters, by k-means with cosines, and names each by a word.

    The name of a cluster is the word whose cosine with its centroid exceeds the mean over all clusters the most, so
    that a word which resembles all pictures names none. No two clusters have one name while there are words left.

    Args:
        embeddings: float32 (N, E), unit vectors.
        rows: int64 (M,), those of the pictures.
        ids: int64 (M,), the ids of the pictures.
        k: int >= 1. Clusters, or pictures if these are fewer.
        encoder: `QueryEncoder` of the model.
        words: texts to name them by, or None: `vocabulary.COMMON_WORDS`.

    Returns:
        List of `Cluster`, the largest first; empty clusters are left out.

    Raises:
        ValueError: k < 1, or no words.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"`k` must be an integer of at least 1. Received: k={k!r}.")
    words = tuple(COMMON_WORDS if words is None else words)
    if not words:
        raise ValueError("`words` must have at least one text to name clusters by. Received: none.")
    if not len(ids):
        return []
    order = np.random.default_rng(0).permutation(len(ids))
    sample = np.sort(order[:_SAMPLE])
    vectors = _spread_first(np.asarray(embeddings[rows[sample]]), min(k, len(sample)))
    centroids = spherical_kmeans(vectors, min(k, len(vectors)))
    cosines, nearest = _assigned(embeddings, rows, centroids)
    counts = np.bincount(nearest, minlength=len(centroids))
    there = np.flatnonzero(counts)
    there = there[np.argsort(-counts[there], kind="stable")]
    names = _names(centroids[there], encoder.texts([f"a photo of {word}" for word in words]), words)
    clusters = []
    for name, cluster in zip(names, there.tolist(), strict=True):
        members = np.flatnonzero(nearest == cluster)
        cover = int(ids[members[cosines[members].argmax()]])
        clusters.append(Cluster(name, int(counts[cluster]), cover, Query([Term(picture=cover)])))
    return clusters


def _spread_first(vectors, k):
    """Returns vectors (N, E) in an order whose first k are far from each other, as the seeds of k-means++."""
    rng = np.random.default_rng(1)
    first = [int(rng.integers(len(vectors)))]
    squares = np.full(len(vectors), np.inf)
    for _ in range(k - 1):
        squares = np.minimum(squares, np.maximum(0, 1 - vectors @ vectors[first[-1]]))
        squares[first] = 0
        total = squares.sum()
        left = np.setdiff1d(np.arange(len(vectors)), first)
        first.append(int(rng.choice(len(vectors), p=squares / total) if total > 0 else left[0]))
    return vectors[np.concatenate([first, np.setdiff1d(np.arange(len(vectors)), first)])]


def _assigned(embeddings, rows, centrorows):
    """Returns the largest cosine with a centroid, float32 (M,), and the centroid, int64 (M,), block by block."""
    parts = []
    for start in range(0, len(rows), _SAMPLE):
        parts.append(nearest_vectors(embeddings[rows[start : start + _SAMPLE]], centrorows))
    return tuple(np.concatenate(values) for values in zip(*parts, strict=True))


def _names(centrorows, word_embeddings, words):
    """Chooses a word for each centroid, the clearest choice first."""
    cosines = centrorows @ word_embeddings.T
    excess = cosines - cosines.mean(axis=0) if len(centrorows) > 1 else cosines
    names = [None] * len(centrorows)
    free = np.ones(len(words), bool)
    open_rows = set(range(len(centrorows)))
    while open_rows:
        if not free.any():
            free[:] = True
        rows = sorted(open_rows)
        masked = np.where(free, excess[rows], -np.inf)
        row, word = np.unravel_index(masked.argmax(), masked.shape)
        names[rows[row]] = words[word]
        free[word] = False
        open_rows.remove(rows[row])
    return names
