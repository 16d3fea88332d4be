"""Joins several sources, of equal or different forms, into one."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_clip.data.readers.reader import Captions, Reader
from keras_clip.data.readers.storage.shards import SamplesOfSeveral


class JoinedReader(SamplesOfSeveral):
    """The samples of several readers, one after the other.

    Args:
        readers: the readers of the sources.
        names: prefixes of the keys of each source, used if several sources have equal keys.
    """

    def __init__(self, readers: Sequence[Reader], names: Sequence[str]):
        super().__init__(names, list(map(len, readers)))
        self._readers = list(readers)
        for reader in readers:
            self.blocks_ahead = max(self.blocks_ahead, getattr(reader, "blocks_ahead", 0))
            if reader_skipped := getattr(reader, "skipped", None):
                self.skipped.merge(reader_skipped)

    def expect_neighbours(self) -> None:
        """States, to the readers that can use it, that neighbours are needed soon."""
        for reader in self._readers:
            if hasattr(reader, "expect_neighbours"):
                reader.expect_neighbours()

    @property
    def _names(self) -> list[str]:
        return self.paths

    def name(self, index: int) -> str:
        """Returns the name that the reader of its source gives the sample."""
        return self._readers[int(self._shards(index))].name(int(self._rows_in_shard(np.array([index]))[0]))

    def keys_in_shard(self, ids: np.ndarray) -> list[str]:
        """Returns the keys from the readers."""
        return self._gather(ids, "keys")

    def read(self, ids: np.ndarray) -> tuple[list[bytes], list[Captions]]:
        """The images and the captions."""
        pairs = self._gather(ids, "_pairs_of")
        return [image for image, _ in pairs], [captions for _, captions in pairs]

    def captions(self, ids: np.ndarray) -> list[Captions]:
        """The captions of each sample."""
        return self._gather(ids, "captions")

    def metadata(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """The metadata of each sample."""
        return self._gather(ids, "metadata")

    def _gather(self, ids: np.ndarray, method: str) -> list[Any]:
        """Calls a method of the readers and returns its results in the order of the samples."""
        shards, rows = self._shards(ids), self._rows_in_shard(ids)
        found: list[Any] = [None] * len(ids)
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            reader = self._readers[shard]
            if method == "_pairs_of":
                values = zip(*reader.read(rows[places]), strict=True)
            else:
                values = getattr(reader, method)(rows[places])
            for place, value in zip(places.tolist(), values, strict=True):
                found[place] = value
        return found
