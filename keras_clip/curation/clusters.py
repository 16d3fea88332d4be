"""Clusters of the images of a pool by their embeddings, and the semantic duplicates in them (SemDeDup)."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_clip.curation.passes import ShardPass
from keras_clip.curation.pool import Pool
from keras_clip.curation.shards import Shard
from keras_clip.similarity.clusters import semantic_duplicates, spherical_kmeans
from keras_clip.similarity.nearest import nearest_vectors

if TYPE_CHECKING:
    import pyarrow

NAME = "clusters"
# Vectors of a cluster that the centroids are computed from.
_SAMPLE = 256
# A constant, since the result depends on the sample.
_SAMPLE_BYTES = 2**31


class Clusters(ShardPass):
    """The cluster of each pair's image: `cluster` int32, and `centroid_cosine` float32; null without an embedding.

    Args:
        path: file of the centroids, float32 (K, E).
        digest: str, of this file.
        embeddings: (pass, column) of the embeddings.
    """

    name = NAME

    def __init__(self, path: Path, digest: str, embeddings: tuple[str, str]):
        self.inputs = (embeddings[0],)
        self.global_inputs = ("profile", embeddings[0])
        self._path, self._digest, self._embeddings = path, digest, embeddings

    def config(self) -> dict[str, Any]:
        """See `ShardPass.config`."""
        return {"version": 1, "centroids": self._digest, "embeddings": self._embeddings}

    def start(self) -> np.ndarray:
        """See `ShardPass.start`."""
        return np.load(self._path)

    def run(
        self, state: np.ndarray, shard: Shard, inputs: Mapping[str, "pyarrow.Table"]
    ) -> tuple["pyarrow.Table", Mapping[str, int]]:
        """Computes the table of a shard; arguments as of `ShardPass.run`."""
        import pyarrow as pa

        name, column = self._embeddings
        rows, vectors = embedding_rows(inputs[name], column)
        cluster, cosine = np.zeros(inputs[name].num_rows, np.int32), np.zeros(inputs[name].num_rows, np.float32)
        absent = np.ones(inputs[name].num_rows, bool)
        absent[rows] = False
        counts = {}
        if len(rows):
            cosine[rows], cluster[rows] = nearest_vectors(vectors, state)
            there, numbers = np.unique(cluster[rows], return_counts=True)
            counts = dict(zip(map(str, there.tolist()), numbers.tolist(), strict=True))
        table = {"cluster": pa.array(cluster, mask=absent), "centroid_cosine": pa.array(cosine, mask=absent)}
        return pa.table(table), counts


class ClusterDuplicates:
    """The task of an engine that finds the semantic duplicates in a range of clusters.

    Args:
        folder: folder of the pool.
        shards: shards in the order of their names.
        embeddings: (pass, column).
        cosine: float, as of `duplicates.DuplicateSettings`.
        removed: file with the units that earlier methods removed.
    """

    uses_accelerator = False

    def __init__(
        self, folder: Path, shards: Sequence[Shard], embeddings: tuple[str, str], cosine: float, removed: Path
    ):
        self._pool, self._embeddings, self._cosine = Pool(shards, folder), embeddings, cosine
        self._removed = removed

    def start(self) -> np.ndarray:
        """See `ShardPass.start`."""
        return np.load(self._removed, mmap_mode="r")

    def run(self, state: np.ndarray, item: tuple[int, int]) -> np.ndarray:
        """Returns (shard, row, shard of the one that stays, its row), int64 (N, 4), for a range of clusters."""
        name, column = self._embeddings
        places, vectors, clusters, cosines, draws, texts = [], [], [], [], [], []
        for number, shard in enumerate(self._pool.shards):
            cluster_table = self._pool.table(NAME, shard)
            sketch = self._pool.table("duplicates_sketch", shard, ["draw", "text"])
            cluster = cluster_table["cluster"].fill_null(-1).to_numpy()
            chosen = (cluster >= item[0]) & (cluster < item[1])
            chosen &= ~np.asarray(sketch["draw"].is_null().combine_chunks())
            chosen[state["row"][slice(*np.searchsorted(state["shard"], [number, number + 1]))]] = False
            rows = np.flatnonzero(chosen)
            if not len(rows):
                continue
            places.append(np.stack([np.full(len(rows), number), rows], axis=1))
            vectors.append(embedding_rows(self._pool.table(name, shard, [column]), column, rows)[1])
            clusters.append(cluster[rows])
            cosines.append(cluster_table["centroid_cosine"].fill_null(0).to_numpy()[rows])
            draws.append(sketch["draw"].fill_null(0).to_numpy()[rows])
            texts.append(sketch["text"].fill_null(0).to_numpy()[rows])
        if not places:
            return np.zeros((0, 4), np.int64)
        place, vector, cluster = np.concatenate(places), np.concatenate(vectors), np.concatenate(clusters)
        cosine, draw, text = np.concatenate(cosines), np.concatenate(draws), np.concatenate(texts)
        # By cluster, and in an order that does not depend on the shards.
        order = np.lexsort([place[:, 1], place[:, 0], draw, cluster])
        found = []
        for rows in np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1):
            groups = text[rows] if text.any() else None
            by = semantic_duplicates(vector[rows], cosine[rows], self._cosine, draw[rows], groups)
            removed = np.flatnonzero(by >= 0)
            found.append(np.concatenate([place[rows[removed]], place[rows[by[removed]]]], axis=1))
        return np.concatenate(found)


def embedding_rows(
    table: "pyarrow.Table", column: str, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows that have an embedding, int64 (N,), and these as unit vectors, float32 (N, E).

    Args:
        table: a table with the column.
        column: name of a column of lists of numbers of one length.
        rows: int (N,) or None. Only these rows, all of which must have one.
    """
    import pyarrow as pa

    values = table[column].combine_chunks()
    if rows is None:
        rows = np.flatnonzero(~np.asarray(values.is_null()))
    size = values.type.list_size
    flat = values.take(pa.array(rows)).flatten().to_numpy(zero_copy_only=False)
    vectors = flat.astype(np.float32).reshape(-1, size)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return rows, vectors / np.maximum(norms, 1e-12)


def train_centroids(
    parts: Iterator[tuple["pyarrow.Table", np.ndarray, np.ndarray]], column: str, clusters: int, units: int
) -> np.ndarray | None:
    """Returns the centroids of a sample of the embeddings, those with the smallest draws.

    Args:
        parts: for each shard a table with the embeddings, its rows that are compared, and their
            draws, uint64.
        column: name of the column of the embeddings.
        clusters: int, K. Number of clusters; fewer if there are fewer embeddings.
        units: int. Number of rows that are compared in all shards.

    Returns:
        float32 (K, E); None if no row has an embedding.
    """
    share, draws, vectors = None, [], []
    for table, rows, row_draws in parts:
        if share is None:
            size = table[column].type.list_size
            share = min(1.0, max(clusters, min(clusters * _SAMPLE, _SAMPLE_BYTES // (4 * size))) / max(1, units))
        has = ~np.asarray(table[column].is_null().combine_chunks())[rows]
        is_drawn = has & (row_draws.astype(np.float64) <= share * 2.0**64)
        if is_drawn.any():
            vectors.append(embedding_rows(table, column, rows[is_drawn])[1])
            draws.append(row_draws[is_drawn])
    if not vectors:
        return None
    sample = np.concatenate(vectors)[np.argsort(np.concatenate(draws), kind="stable")]
    return spherical_kmeans(sample, min(clusters, len(sample)))


def cluster_ranges(counts: Mapping[str, int], clusters: int, size: int, memory: int) -> list[tuple[int, int]]:
    """Divides the clusters into ranges whose embeddings fit into the memory; a large cluster is a range by itself.

    Args:
        counts: number of embeddings of each cluster, by its number as a text.
        clusters: int, K.
        size: int, E.
        memory: bytes.
    """
    ranges, start, held = [], 0, 0
    for cluster in range(clusters):
        # The embeddings twice, since they are sorted.
        needed = counts.get(str(cluster), 0) * size * 8
        if cluster > start and held + needed > memory:
            ranges.append((start, cluster))
            start, held = cluster, 0
        held += needed
    return [*ranges, (start, clusters)]
