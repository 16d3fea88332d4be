"""Approximate search in a graph of neighbours (HNSW) by usearch, for more than a million rows."""

import json
import os
import threading
from pathlib import Path

import numpy as np

from keras_clip import files
from keras_clip.search.vectors.index import checked_embeddings, fingerprint, require_same
from keras_clip.search.vectors.over_fetching import OverFetching

# Rows that are added at a time, while no search runs.
_BLOCK = 2**10


class UsearchIndex(OverFetching):
    """A graph of neighbours over vectors in half precision, which is searched in a memory map after `open`.

    The scores are those of the float32 embeddings. With a filter, more than k neighbours are fetched and those that are
    not allowed are left out; where the filter keeps less than 5 % of the rows, or k is more than a tenth of them, the
    search is exact. Rows that were appended after `build` are compared one by one.

    Args:
        connectivity: int. Edges of a node. More find more of the true neighbours, in a larger graph.
        expansion_add: int. Candidates while a row is added.
        expansion_search: int. Candidates during a search, or k if that is more.

    Raises:
        ImportError: usearch is not installed.
    """

    def __init__(self, connectivity: int = 16, expansion_add: int = 128, expansion_search: int = 128):
        _usearch()
        self.connectivity, self.expansion_add, self.expansion_search = connectivity, expansion_add, expansion_search
        self._state = np.zeros((0, 1), np.float32), None, 0
        # The file of a graph in a memory map.
        self._fingerprint, self._viewed = None, None
        # One thread extends the index; usearch must not search while it makes room.
        self._building, self._lock = threading.Lock(), threading.Lock()

    def build(self, embeddings: np.ndarray) -> None:
        """Adds the rows of float32 embeddings (N, E) that it does not have; begins anew if the first ones differ."""
        embeddings = checked_embeddings(embeddings)
        with self._building:
            _, graph, indexed = self._state
            is_same = len(embeddings) >= indexed and self._fingerprint == fingerprint(embeddings, indexed)
            if graph is None or not is_same:
                graph, indexed, self._viewed = self._new(embeddings.shape[1]), 0, None
            elif self._viewed is not None and len(embeddings) > indexed:
                # A graph in a memory map cannot grow.
                graph, self._viewed = _usearch().restore(str(self._viewed), view=False), None
                graph.expansion_search = self.expansion_search
            for start in range(indexed, len(embeddings), _BLOCK):
                stop = min(start + _BLOCK, len(embeddings))
                with self._lock:
                    graph.add(np.arange(start, stop), np.ascontiguousarray(embeddings[start:stop]))
            self._state, self._fingerprint = (
                (embeddings, graph, len(embeddings)),
                fingerprint(embeddings, len(embeddings)),
            )

    def save(self, path: str | os.PathLike) -> None:
        """Writes the graph to `path` and what it was built of to `path` with the suffix .json."""
        with self._building:
            _, graph, indexed = self._state
            if graph is None:
                raise ValueError("Only an index that was built can be saved. Received: a new one. Call `build` first.")
            with files.replacing(path) as temporary:
                graph.save(str(temporary))
            options = {"connectivity": self.connectivity, "expansion_add": self.expansion_add}
            files.write_json(
                _facts(path),
                {
                    "rows": indexed,
                    "fingerprint": self._fingerprint,
                    "options": {**options, "expansion_search": self.expansion_search},
                },
            )

    @classmethod
    def open(cls, path: str | os.PathLike, embeddings: np.ndarray) -> "UsearchIndex":
        """Opens a saved graph in a memory map.

        Args:
            path: the file that `save` wrote.
            embeddings: float32 (N, E), the rows that it was built of; more rows may follow them.

        Returns:
            The index. Rows that follow are compared one by one until `build` adds them.

        Raises:
            ValueError: embeddings of other rows.
            ImportError: usearch is not installed.
        """
        saved = json.loads(_facts(path).read_text(encoding="utf-8"))
        require_same(saved["fingerprint"], checked_embeddings(embeddings), saved["rows"], path)
        index = cls(**saved["options"])
        graph, index._viewed = _usearch().restore(str(path), view=True), Path(path)
        graph.expansion_search = index.expansion_search
        index._state, index._fingerprint = (embeddings, graph, saved["rows"]), saved["fingerprint"]
        return index

    def _new(self, dimensions):
        return _usearch()(
            ndim=dimensions,
            metric="ip",
            dtype="f16",
            connectivity=self.connectivity,
            expansion_add=self.expansion_add,
            expansion_search=self.expansion_search,
        )

    def _nearest(self, structure, queries, count):
        with self._lock:
            matches = structure.search(queries, count)
        keys, counts = np.atleast_2d(matches.keys), np.atleast_1d(getattr(matches, "counts", len(matches)))
        return [row[:found].astype(np.int64) for row, found in zip(keys, counts, strict=True)]


def _facts(path):
    return Path(f"{path}.json")


def _usearch():
    try:
        from usearch.index import Index
    except ImportError as error:
        raise ImportError(
            'An approximate index needs usearch. Install it by pip install "keras_clip[usearch]", or use ExactIndex.'
        ) from error
    return Index
