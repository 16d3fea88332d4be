"""Search in a collection of a Qdrant server or cluster, for indexes that several machines share."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from keras_clip import files
from keras_clip.search.vectors.index import checked_embeddings, checked_search, filled, ranked
from keras_clip.search.vectors.over_fetching import SPARSE

# Rows of a request.
_BLOCK = 1024
# Ids of a filter, which is a part of each request.
_MOST_IDS = 10_000
# Rows that are compared to recognise a collection.
_SAMPLE = 16
# The payload of row 0, by which a collection is known to be ours and may be replaced.
_OURS = {"keras_clip": "search"}


class QdrantIndex:
    """The rows of embeddings as the points of a Qdrant collection; the server searches, and it may be a cluster.

    The id of a point is its row. A filter becomes a filter by ids where few rows are allowed or few are not, which the
    server applies while it searches; between these, more than k neighbours are fetched and those that are not allowed
    are left out.

    Args:
        url: address of the server.
        collection: name of the collection.
        api_key: key of the server, or None. It is not saved.
        client: a `qdrant_client.QdrantClient`, instead of `url`; its local mode, `QdrantClient(":memory:")`, is for
            tests.

    Raises:
        ImportError: qdrant-client is not installed.
    """

    def __init__(
        self,
        url: str = "http://localhost:6333",
        collection: str = "keras_clip",
        api_key: str | None = None,
        client: Any = None,
    ):
        self.url, self.collection = url, collection
        self._client = client or _qdrant().QdrantClient(url=url, api_key=api_key)
        self._shape = (0, 1)

    def build(self, embeddings: np.ndarray) -> None:
        """Uploads the rows of float32 embeddings (N, E) that the collection does not have.

        A collection of other rows that `build` made is replaced. After an interruption, the next call resumes.

        Args:
            embeddings: float32 (N, E).

        Raises:
            ValueError: a collection of this name that holds something else.
        """
        rows, dimensions = checked_embeddings(embeddings).shape
        models = _qdrant().models
        present = self._rows_of(embeddings)
        if present is None:
            if self._client.collection_exists(self.collection):
                self._require_ours()
                self._client.delete_collection(self.collection)
            # The rows have unit length. Their dot products are cosines, and the server stores them unchanged.
            parameters = models.VectorParams(size=dimensions, distance=models.Distance.DOT)
            self._client.create_collection(self.collection, vectors_config=parameters)
            present = 0
        for start in range(present, rows, _BLOCK):
            block = range(start, min(start + _BLOCK, rows))
            vectors = embeddings[block.start : block.stop].tolist()
            payloads = [_OURS if row == 0 else {} for row in block]
            points = models.Batch(ids=list(block), vectors=vectors, payloads=payloads)
            self._client.upsert(self.collection, points=points, wait=True)
        self._shape = (rows, dimensions)

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Finds the nearest rows: arguments as of `Index.search`. Which rows are found is approximate."""
        queries, k, allowed = checked_search(queries, k, allowed, self._shape)
        rows = self._shape[0]
        inside = rows if allowed is None else int(np.count_nonzero(allowed))
        wanted = min(k, inside)
        results = [filled(np.zeros(0, np.int64), np.zeros(0, np.float32), k)] * len(queries)
        waiting = np.arange(len(queries) if wanted else 0)
        by_ids, fetch = self._filter(allowed, inside), wanted
        if allowed is not None and by_ids is None:
            fetch = int(wanted / inside * rows) + 16
        while len(waiting):
            short = []
            found = self._nearest(queries[waiting], min(fetch, rows), by_ids, inside < SPARSE * rows)
            for query, (ids, scores) in zip(waiting, found, strict=True):
                if by_ids is None and allowed is not None:
                    ids, scores = ids[allowed[ids]], scores[allowed[ids]]
                if len(ids) < wanted and fetch < rows:
                    short.append(query)
                    continue
                order = np.argsort(ids)
                ids, scores = ids[order], scores[order]
                places = ranked(scores, k)
                results[query] = filled(ids[places], scores[places], k)
            waiting, fetch = np.array(short, np.int64), 4 * fetch
        return (
            np.array([ids for ids, _ in results], np.int64).reshape(-1, k),
            np.array([scores for _, scores in results], np.float32).reshape(-1, k),
        )

    def save(self, path: str | os.PathLike) -> None:
        """Writes the address and the name of the collection; the vectors stay on the server, and no key is written."""
        files.write_json(path, {"url": self.url, "collection": self.collection})

    @classmethod
    def open(
        cls, path: str | os.PathLike, embeddings: np.ndarray, api_key: str | None = None, client: Any = None
    ) -> "QdrantIndex":
        """Connects to a collection, and uploads rows that it does not have yet.

        Args:
            path: the file that `save` wrote.
            embeddings: float32 (N, E), the rows that it was built of; more rows may follow them.
            api_key: see the class.
            client: see the class.

        Returns:
            The index of all N rows.

        Raises:
            ValueError: a collection of other rows.
        """
        saved = json.loads(Path(path).read_text(encoding="utf-8"))
        index = cls(saved["url"], saved["collection"], api_key, client)
        if index._rows_of(checked_embeddings(embeddings)) is None:
            raise ValueError(
                f"The embeddings must begin with the rows that the collection was built of. Received: {path}, the "
                f"collection {index.collection!r} of {index.url} and embeddings of shape {embeddings.shape}, which "
                "differ. Build the index again."
            )
        index.build(embeddings)
        return index

    def _rows_of(self, embeddings):
        """Returns how many rows the collection has; None if they are not the first of the embeddings."""
        if not self._client.collection_exists(self.collection):
            return None
        vectors = self._client.get_collection(self.collection).config.params.vectors
        count = self._client.count(self.collection, exact=True).count
        if getattr(vectors, "size", None) != embeddings.shape[1] or count > len(embeddings):
            return None
        places = np.unique(np.linspace(0, count - 1, min(count, _SAMPLE)).astype(int)).tolist() if count else []
        points = self._client.retrieve(self.collection, ids=places, with_vectors=True) if places else []
        theirs = {point.id: np.asarray(point.vector, np.float32) for point in points}
        is_same = all(place in theirs and np.allclose(theirs[place], embeddings[place], atol=1e-4) for place in places)
        return count if is_same else None

    def _require_ours(self):
        count = self._client.count(self.collection, exact=True).count
        first = self._client.retrieve(self.collection, ids=[0], with_payload=True)
        if count and (not first or (first[0].payload or {}) != _OURS):
            raise ValueError(
                f"The collection must be absent, or one that `build` made. Received: collection={self.collection!r} of "
                f"{self.url}, with {count} points of another origin. Choose another name."
            )

    def _filter(self, allowed, inside):
        """Returns the filter by ids; None if there is nothing to filter or there are too many ids for it."""
        models = _qdrant().models
        if allowed is None or min(inside, len(allowed) - inside) > _MOST_IDS:
            return None
        if inside <= len(allowed) - inside:
            return models.Filter(must=[models.HasIdCondition(has_id=np.flatnonzero(allowed).tolist())])
        return models.Filter(must_not=[models.HasIdCondition(has_id=np.flatnonzero(~allowed).tolist())])

    def _nearest(self, queries, count, by_ids, is_exact):
        models = _qdrant().models
        requests = [
            models.QueryRequest(
                query=query.tolist(), limit=count, filter=by_ids, params=models.SearchParams(exact=is_exact)
            )
            for query in queries
        ]
        for answer in self._client.query_batch_points(self.collection, requests=requests):
            ids = np.array([point.id for point in answer.points], np.int64)
            yield ids, np.array([point.score for point in answer.points], np.float32)


def _qdrant():
    try:
        import qdrant_client
    except ImportError as error:
        raise ImportError(
            'An index on a Qdrant server needs qdrant-client. Install it by pip install "keras_clip[qdrant]", or use '
            "ExactIndex."
        ) from error
    return qdrant_client
