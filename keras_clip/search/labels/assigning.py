"""Which pictures belong to which classes: by the model, where the cosine reaches the threshold, unless by hand."""

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_clip.search.labels.classes import MAX_CLASSES, Classes, SavedClass
from keras_clip.zero_shot import unit_length

# Bins of a histogram, and pictures whose cosines are computed at once.
BINS, _BLOCK = 40, 16_384


@dataclass(frozen=True)
class ClassCounts:
    """A class and how many pictures it has.

    Args:
        saved: the `SavedClass`.
        pictures: int, pictures that belong to it.
        by_hand: int, pictures of the index with a label by hand of this class, of either value.
        low: float, the lowest cosine of the histogram.
        high: float, the highest.
        histogram: ints of 40 equal bins from `low` to `high`: the cosines of all pictures with the class.
    """

    saved: SavedClass
    pictures: int
    by_hand: int
    low: float
    high: float
    histogram: tuple[int, ...]


@dataclass(frozen=True)
class LabelledPicture:
    """A class that a picture belongs to.

    Args:
        saved: the `SavedClass`.
        score: float, the cosine with the class.
        by_hand: bool, whether a person said so.
    """

    saved: SavedClass
    score: float
    by_hand: bool


def class_encoder(encode: Callable[[Sequence[str]], np.ndarray]) -> Callable[[tuple[str, ...]], np.ndarray]:
    """Returns a function that embeds classes, and keeps the embeddings of as many as there may be.

    Args:
        encode: function of P texts that returns their embeddings, float32 (P, E) of unit length.

    Returns:
        Function of the prompts of a class that returns its embedding, float32 (E,): the normalised mean of theirs.
    """

    @functools.lru_cache(maxsize=MAX_CLASSES)
    def embedding(prompts: tuple[str, ...]) -> np.ndarray:
        return unit_length(encode(prompts).mean(axis=0, keepdims=True))[0]

    return embedding


class Labelling:
    """The labels of the pictures of one version of an index. Any threads may use it.

    Args:
        index: `PictureIndex`, in a state that does not change while this object is made.
        classes: `Classes`.
        encode: what `class_encoder` returns.

    Attributes:
        version: int, of the index.
        ids: int64 (M,), the ids of the pictures, ascending.
        sha256: str objects (M,).
    """

    def __init__(self, index: Any, classes: Classes, encode: Callable[[tuple[str, ...]], np.ndarray]):
        self.version, self.ids = index.version, np.asarray(index.ids, np.int64)
        self._embeddings, self._rows = index.embeddings, np.asarray(index.rows, np.int64)
        self.sha256: np.ndarray = index.columns(["sha256"])["sha256"]
        self.classes, self._encode = classes, encode
        digests = self.sha256.astype("S64")
        self._order = np.argsort(digests, kind="stable")
        self._sorted = digests[self._order]
        self._counts: dict[tuple, ClassCounts] = {}
        self._mutex = threading.Lock()

    def embeddings_of(self, classes: Sequence[SavedClass]) -> np.ndarray:
        """Returns the class embeddings, float32 (K, E)."""
        if not classes:
            return np.zeros((0, self._embeddings.shape[1]), np.float32)
        return np.stack([self._encode(each.prompts) for each in classes])

    def scores(self, class_id: int) -> np.ndarray:
        """Returns the cosine of each picture with a class, float32 (M,)."""
        embedding = self.embeddings_of([self.classes.get(class_id)])[0]
        return self._cosines(embedding)

    def _cosines(self, embedding: np.ndarray) -> np.ndarray:
        scores = np.empty(len(self.ids), np.float32)
        for start in range(0, len(scores), _BLOCK):
            rows = self._rows[start : start + _BLOCK]
            # Where no picture was removed, the rows are read in one piece.
            is_whole = len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all()
            block = self._embeddings[rows[0] : rows[-1] + 1] if is_whole else self._embeddings[rows]
            scores[start : start + len(rows)] = block @ embedding
        return scores

    def members(self, name: str) -> np.ndarray:
        """Returns the ids of the pictures that belong to the class of a name, int64; a `KeyError` if there is none."""
        saved = self.classes.named(name)
        return self.ids[self._mask(saved, self.scores(saved.id))]

    def _mask(self, saved: SavedClass, scores: np.ndarray) -> np.ndarray:
        mask = scores >= saved.threshold
        places, values = self.by_hand(saved.id)
        mask[places] = values
        return mask

    def by_hand(self, class_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the places in `ids` of pictures with a label by hand, int64 (H,), and the labels, bool (H,)."""
        labels = self.classes.by_hand(class_id)
        if not labels:
            return np.empty(0, np.int64), np.empty(0, bool)
        digests = np.array(list(labels), "S64")
        values = np.fromiter(labels.values(), bool, len(labels))
        starts = np.searchsorted(self._sorted, digests)
        # All copies of a file have its labels.
        counts = np.searchsorted(self._sorted, digests, "right") - starts
        places = np.repeat(starts - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts) + np.arange(counts.sum())
        return self._order[places], np.repeat(values, counts)

    def counts(self) -> list[ClassCounts]:
        """Returns all classes by name, with the numbers of their pictures."""
        with self._mutex:
            revision = self.classes.revision
            found = {}
            for saved in self.classes.all():
                key = (revision, saved)
                found[key] = self._counts.get(key) or self._count(saved)
            self._counts = found
            return list(found.values())

    def count(self, saved: SavedClass) -> ClassCounts:
        """Returns the numbers of one class."""
        return self._count(saved)

    def _count(self, saved: SavedClass) -> ClassCounts:
        scores = self._cosines(self.embeddings_of([saved])[0])
        low, high = (float(scores.min()), float(scores.max())) if len(scores) else (-1.0, 1.0)
        low, high = (low, high) if high > low else (low - 0.01, high + 0.01)
        histogram = np.histogram(scores, BINS, (low, high))[0].tolist()
        places, _ = self.by_hand(saved.id)
        return ClassCounts(saved, int(self._mask(saved, scores).sum()), len(places), low, high, tuple(histogram))

    def of_pictures(
        self, pictures: Sequence[int], class_ids: Sequence[int] | None = None
    ) -> list[list[LabelledPicture]]:
        """Returns the classes that pictures belong to: those by hand first, then those of the highest cosine.

        Args:
            pictures: ids; what is not in the index has no class.
            class_ids: the classes to look for. None: all.

        Returns:
            For each picture a list of `LabelledPicture`.
        """
        classes = [each for each in self.classes.all() if class_ids is None or each.id in set(class_ids)]
        ids = np.asarray(pictures, np.int64)
        found: list[list[LabelledPicture]] = [[] for _ in ids]
        if not classes or not len(ids):
            return found
        embeddings = self.embeddings_of(classes)
        for start in range(0, len(ids), _BLOCK):
            self._add(found, ids, slice(start, start + _BLOCK), classes, embeddings)
        return found

    def _add(self, found, ids, block, classes, embeddings):
        places, is_known = self._places(ids[block])
        where = np.flatnonzero(is_known)
        scores = self._embeddings[self._rows[places[where]]] @ embeddings.T
        belongs = scores >= np.array([each.threshold for each in classes], np.float32)
        digests = self.sha256[places[where]]
        by_hand = self.classes.by_hand_of(digests.tolist())
        is_by_hand = np.zeros(belongs.shape, bool)
        if by_hand:
            columns = {each.id: column for column, each in enumerate(classes)}
            of_digest: dict[str, list[tuple[int, bool]]] = {}
            for (digest, class_id), value in by_hand.items():
                if class_id in columns:
                    of_digest.setdefault(digest, []).append((columns[class_id], value))
            for row, digest in enumerate(digests):
                for column, value in of_digest.get(digest, ()):
                    belongs[row, column], is_by_hand[row, column] = value, True
        for row, column in zip(*np.nonzero(belongs), strict=True):
            label = LabelledPicture(classes[column], float(scores[row, column]), bool(is_by_hand[row, column]))
            found[block.start + where[row]].append(label)
        for row in where:
            found[block.start + row].sort(key=lambda label: (not label.by_hand, -label.score, label.saved.id))

    def nearest_classes(self, picture: int, most: int = 5) -> list[tuple[SavedClass, float]]:
        """Returns the classes that are the nearest to a picture, whether it belongs to them or not.

        Args:
            picture: its id.
            most: int, how many at most.

        Returns:
            List of (`SavedClass`, cosine), the nearest first; empty if the index does not have the picture.
        """
        classes = self.classes.all()
        (place,), (is_known,) = self._places(np.array([picture]))
        if not classes or not is_known:
            return []
        scores = self.embeddings_of(classes) @ self._embeddings[self._rows[place]]
        best = np.argsort(-scores, kind="stable")[:most]
        return [(classes[place], float(scores[place])) for place in best]

    def set(self, pictures: Sequence[int], class_id: int, value: bool | None) -> int:
        """Labels pictures by hand.

        Args:
            pictures: ids.
            class_id: int.
            value: as of `Classes.set`.

        Returns:
            int, the number of labels that changed.

        Raises:
            KeyError: no such class or picture.
        """
        places, is_known = self._places(np.asarray(pictures, np.int64))
        if not is_known.all():
            missing = np.asarray(pictures)[~is_known][0]
            raise KeyError(f"There must be a picture of this id. Received: {missing}. It may have been removed.")
        return self.classes.set(self.sha256[places].tolist(), class_id, value)

    def _places(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the place of each id, int64 (N,), 0 where it is unknown, and whether it is known."""
        places = np.searchsorted(self.ids, ids)
        places[places == len(self.ids)] = 0
        is_known = self.ids[places] == ids if len(self.ids) else np.zeros(len(ids), bool)
        return places, is_known
