"""Searches of an index of pictures: query and filters to pages of results."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from keras import ops

from keras_clip.model import CLIPModel
from keras_clip.search.queries import filters as filtering
from keras_clip.search.queries.clustering import Cluster, named_clusters
from keras_clip.search.queries.copies import FLOOR, Copies
from keras_clip.search.queries.cursors import Cursor, CursorError, StaleCursor
from keras_clip.search.queries.encoding import NEUTRAL_TEXTS, QueryEncoder
from keras_clip.search.queries.filters import Filters
from keras_clip.search.queries.query import Query, parse
from keras_clip.search.queries.ranking import Ranking, RankingCache, best_of_groups, first_below
from keras_clip.search.queries.relevance import Levels, Scale
from keras_clip.search.vectors.exact import ExactIndex
from keras_clip.search.vectors.index import Index, ranked

MAX_LIMIT = 1000
# How many results an approximate index is searched for. An exact one ranks all pictures.
APPROXIMATE_RESULTS = 10_000
# Memory of the rankings that later pages are cut from: about 80 of 100,000 pictures.
_CACHE_BYTES = 2**27
# Versions of the index on which cursors continue.
_VERSIONS = 4
# Fewer pictures than this fraction of all are read one by one.
_SPARSE = 0.1


@dataclass(frozen=True)
class Result:
    """A picture that a search found.

    Args:
        id: int. The picture of the index.
        score: float, the cosine with the query; None if the query has no terms.
        relevance: float in [0, 1]: with the sigmoid loss and a query of one text the probability that it belongs to the
            picture, else above 0.5 where the picture resembles the query more than a neutral one; None without terms.
        copies: int. The number of pictures in its near-duplicate group that meet the filters, itself included; 1 if
            the search does not collapse them.
    """

    id: int
    score: float | None
    relevance: float | None
    copies: int


@dataclass(frozen=True)
class Page:
    """A page of results.

    Args:
        results: the `Result`s.
        total: int. The number of results on all pages.
        cursor: str. Given to the next search, it continues after this page; None: this is the last page.
        version: int. The version of the index that was searched.
        cutoff: int. The number of results, over all pages, that resemble the query more than a neutral one.
        is_probability: bool. Whether the relevance is a probability.
    """

    results: tuple[Result, ...]
    total: int
    cursor: str | None
    version: int
    cutoff: int
    is_probability: bool


class Snapshot:
    """The pictures of one version of an index, in the order of their ids. It does not change when the index does.

    Args:
        index: the `PictureIndex`.

    Attributes:
        version: int.
        generation: int. Rows keep their number within one.
        embeddings: float32 (N, E), memory-mapped.
        ids: int64 (M,), ascending.
        rows: int64 (M,), the rows of the pictures in `embeddings`.
        columns: arrays (M,) by name, as of `PictureIndex.columns`, with `taken` in seconds, int64.
    """

    def __init__(self, index: Any):
        self.version: int = index.version
        self.generation: int = index.generation
        self.embeddings: np.ndarray = index.embeddings
        self.ids, self.rows = np.asarray(index.ids, np.int64), np.asarray(index.rows, np.int64)
        self.columns: dict[str, np.ndarray] = dict(index.columns(filtering.COLUMNS))
        self.columns["taken"] = self.columns["taken"].astype("datetime64[s]").astype(np.int64)
        self._grouped: OrderedDict[float, np.ndarray] = OrderedDict()

    @cached_property
    def words(self) -> list[str]:
        """For each picture its caption, name and folder, in the form of `filters.searchable`."""
        columns = (self.columns[name].tolist() for name in ("caption", "name", "folder"))
        return [filtering.searchable("\n".join(texts)) for texts in zip(*columns, strict=True)]

    @cached_property
    def best_first(self) -> np.ndarray:
        """Positions of the pictures, int64 (M,): the largest resolution first, then the largest file, then the id."""
        return np.lexsort([self.ids, -self.columns["size"], -self.columns["width"] * self.columns["height"]])

    @cached_property
    def newest_first(self) -> np.ndarray:
        """Positions of the pictures, int64 (M,): the newest first, then by id."""
        return np.lexsort([self.ids, -self.columns["taken"]])

    @cached_property
    def position_of_row(self) -> np.ndarray:
        """The position of the picture of each row, int64 (N,); -1 for rows of pictures that were removed."""
        positions = np.full(len(self.embeddings), -1, np.int64)
        positions[self.rows] = np.arange(len(self.rows))
        return positions

    def among(self, ids: Iterable[int]) -> np.ndarray:
        """Returns which of the pictures have one of these ids, bool (M,)."""
        return np.isin(self.ids, np.fromiter(ids, np.int64))

    def position(self, picture: int) -> int:
        """Returns the position of a picture; a ValueError if there is none of this id."""
        place = int(np.searchsorted(self.ids, picture)) if picture < 2**63 else len(self.ids)
        if place == len(self.ids) or self.ids[place] != picture:
            raise ValueError(
                f"There must be a picture of this id in the index. Received: picture:{picture}, in an index of "
                f"{len(self.ids)} pictures. It may have been removed."
            )
        return place

    def embedding(self, picture: int) -> np.ndarray:
        """Returns the embedding (E,) of a picture; a ValueError if there is none of this id."""
        return np.asarray(self.embeddings[self.rows[self.position(picture)]])

    def groups(self, copies: Copies, threshold: float) -> np.ndarray:
        """Returns the near-duplicate group of each picture.

        Args:
            copies: the `Copies` of the index.
            threshold: float, as of `Copies.groups`.

        Returns:
            int64 (M,), numbers below N.
        """
        groups = self._grouped.get(threshold)
        if groups is None:
            groups = self._grouped[threshold] = copies.groups(self.embeddings, threshold)[self.rows]
            while len(self._grouped) > _VERSIONS:
                self._grouped.popitem(last=False)
        return groups


class Searcher:
    """Searches a `PictureIndex` by text and pictures. Several threads may use one.

    All pages of a search together equal one search of everything. A cursor continues on the version of the index on
    which the first page was, also after `refresh`; only when that version is one of long ago, the search must begin
    again (`StaleCursor`). Pictures of equal score are ordered by id.

    Args:
        index: `PictureIndex`.
        clip: `CLIPModel`, the one of the index.
        vectors: `Index` to search with, or None: an exact one. With an approximate index, a search ranks up to 10,000
            pictures.
        labelled: name of a class -> ids of its pictures, for the filters `label` and `not_label`; or None.
    """

    def __init__(
        self,
        index: Any,
        clip: CLIPModel,
        vectors: Index | None = None,
        labelled: Callable[[str], Iterable[int]] | None = None,
    ):
        self.index, self.clip, self.labelled = index, clip, labelled
        self.encoder = QueryEncoder(clip)
        self.vectors = ExactIndex() if vectors is None else vectors
        self._copies = Copies.of(index)
        self._rankings = RankingCache(_CACHE_BYTES)
        self._snapshots: OrderedDict[int, Snapshot] = OrderedDict()
        self._levels: dict[int, Levels] = {}
        # The generation of the rows that `vectors` has.
        self._generation: int | None = None
        self._lock, self._refreshing = threading.Lock(), threading.Lock()
        if index.embeddings.shape[1] != clip.embed_dim and len(index.ids):
            raise ValueError(
                f"`clip` must be the model of the index. Received: embeddings of {clip.embed_dim} dimensions, and an "
                f"index of {index.embeddings.shape[1]}."
            )
        self._take_snapshot()

    @property
    def is_probability(self) -> bool:
        """Whether the relevance of one text is a probability: the model was trained with the sigmoid loss."""
        return self.clip.logit_bias is not None

    @property
    def version(self) -> int:
        """The version of the index that a search without a cursor searches."""
        return self._newest().version

    @property
    def neutral_cosine(self) -> float:
        """The cosine with a text from which a picture resembles it more than a neutral prompt: a first threshold."""
        return self._levels_of(self._newest()).text

    def refresh(self) -> bool:
        """Moves on to the newest version of the index; returns whether there was one. Cursors remain valid."""
        with self._refreshing:
            is_newer = bool(self.index.refresh())
            if is_newer or self.index.version != self.version:
                self._take_snapshot()
            return is_newer

    def prepare(self) -> None:
        """Computes what the first searches would wait for: near-duplicates, neutral prompts and words of filters."""
        snapshot = self._newest()
        self._levels_of(snapshot)
        for name in ("words", "best_first", "newest_first"):
            getattr(snapshot, name)
        self._copies.update(snapshot.embeddings)

    def search(
        self,
        query: Query | str,
        filters: Filters | None = None,
        limit: int = 100,
        cursor: str | None = None,
        collapse: float | None = None,
    ) -> Page:
        """Returns a page of results.

        Args:
            query: `Query`, or a text that `parse` reads. Without terms, the pictures are listed by date.
            filters: `Filters`, or None.
            limit: int in [1, 1000]. Results on the page.
            cursor: the cursor of the page before, or None for the first page.
            collapse: float in [0.9, 1], or None. Pictures whose embeddings have at least this cosine are
                near-duplicates, of which only the one of the largest resolution is found, then of the largest file.

        Returns:
            `Page`.

        Raises:
            ValueError: arguments out of range, a picture that is not in the index, terms that cancel each other out.
            CursorError: a cursor of another search.
            StaleCursor: a cursor of a version of the index or of labels that are no longer known.
        """
        query = parse(query) if isinstance(query, str) else query
        filters = Filters() if filters is None else filters
        _check(limit, collapse)
        key = _digest(query.digest(), filters.written(), repr(None if collapse is None else float(collapse)))[:16]
        if cursor is None:
            snapshot = self._newest()
            labels = self._labels_of(snapshot, filters)
            place = Cursor(snapshot.version, 0, key, labels.digest)
            ranking = self._rankings.get(place._replace(offset=0)) or self._rank(
                snapshot, query, filters, collapse, labels, place
            )
        else:
            place = Cursor.read(cursor)
            if place.key != key:
                raise CursorError(
                    "A cursor continues the search that returned it. Received: a cursor of another query, other "
                    "filters or another `collapse`. Search without a cursor to begin at the first page."
                )
            ranking = self._rankings.get(place._replace(offset=0)) or self._again(query, filters, collapse, place)
        return _page(ranking, place, limit)

    def copies(self, picture: int, collapse: float = 0.95) -> list[int]:
        """Returns the near-duplicates of a picture.

        Args:
            picture: int, its id.
            collapse: float in [0.9, 1], as of `search`.

        Returns:
            The ids of its group, itself included, the best first.

        Raises:
            ValueError: a picture that is not in the index, or a threshold out of range.
        """
        _check(1, collapse)
        snapshot = self._newest()
        groups = snapshot.groups(self._copies, float(collapse))
        is_copy = groups == groups[snapshot.position(picture)]
        return snapshot.ids[snapshot.best_first[is_copy[snapshot.best_first]]].tolist()

    def clusters(self, k: int = 24, words: Sequence[str] | None = None) -> list[Cluster]:
        """Divides the pictures into clusters of similar ones, each named by the word that distinguishes it.

        Args:
            k: int >= 1. The number of clusters, or of pictures if these are fewer.
            words: texts to name them by; None: common English nouns.

        Returns:
            List of `Cluster`, the largest first.
        """
        snapshot = self._newest()
        return named_clusters(snapshot.embeddings, snapshot.rows, snapshot.ids, k, self.encoder, words)

    def _newest(self):
        with self._lock:
            return next(reversed(self._snapshots.values()))

    def _take_snapshot(self):
        try:
            snapshot = Snapshot(self.index)
        except RuntimeError:
            # Pictures of the state that the index was read in are no longer in it.
            self.index.refresh()
            snapshot = Snapshot(self.index)
        if self._generation != snapshot.generation:
            # Until it is built anew, searches are exact.
            self._generation = None
        self.vectors.build(snapshot.embeddings)
        self._generation = snapshot.generation
        with self._lock:
            self._snapshots[snapshot.version] = snapshot
            self._snapshots.move_to_end(snapshot.version)
            while len(self._snapshots) > _VERSIONS:
                version, _ = self._snapshots.popitem(last=False)
                self._levels.pop(version, None)

    def _levels_of(self, snapshot):
        if snapshot.version not in self._levels:
            neutral = self.encoder.texts(NEUTRAL_TEXTS)
            self._levels[snapshot.version] = Levels.measure(snapshot.embeddings, snapshot.rows, neutral)
        return self._levels[snapshot.version]

    def _labels_of(self, snapshot, filters):
        names = [name for name in (filters.label, filters.not_label) if name is not None]
        if names and self.labelled is None:
            raise ValueError(
                f"Filters by label need labels. Received: label={filters.label!r}, not_label={filters.not_label!r}, "
                "and a Searcher without `labelled`."
            )
        return _Labels({name: snapshot.among(self.labelled(name)) for name in names})

    def _again(self, query, filters, collapse, place):
        """Ranks anew on the version of a cursor whose ranking is no longer kept."""
        with self._lock:
            snapshot = self._snapshots.get(place.version)
        if snapshot is None:
            raise StaleCursor(
                f"The cursor must be of a recent version of the index. Received: one of version {place.version}, which "
                f"is no longer known; the index is at {self.version}. Search without a cursor to begin at the first "
                "page."
            )
        labels = self._labels_of(snapshot, filters)
        if labels.digest != place.labels:
            raise StaleCursor(
                "The labels must be those of the first page. Received: a cursor of an earlier state of the labels. "
                "Search without a cursor to begin at the first page."
            )
        return self._rank(snapshot, query, filters, collapse, labels, place)

    def _rank(self, snapshot, query, filters, collapse, labels, place):
        allowed = filters.mask(snapshot.columns, lambda: snapshot.words, labels.masks.__getitem__)
        positions, counts = np.flatnonzero(allowed), None
        if collapse is not None:
            best_first = snapshot.best_first[allowed[snapshot.best_first]]
            groups = snapshot.groups(self._copies, float(collapse))
            positions, counts = best_of_groups(groups, best_first, len(snapshot.embeddings))
        if query.terms:
            ranking = self._by_score(snapshot, query, filters, positions, counts)
        else:
            is_found = np.zeros(len(snapshot.ids), bool)
            is_found[positions] = True
            found = snapshot.newest_first[is_found[snapshot.newest_first]]
            copies = None if counts is None else counts[np.searchsorted(positions, found)]
            ranking = Ranking(snapshot.ids[found], None, copies, None, len(found))
        self._rankings.put(place._replace(offset=0), ranking)
        return ranking

    def _by_score(self, snapshot, query, filters, positions, counts):
        vector, length = self.encoder.vector(query, snapshot.embedding)
        found, scores = self._nearest(snapshot, vector, positions)
        neutral = self._levels_of(snapshot).of(query, length)
        scale = self._scale(query, neutral)
        end = len(found)
        if filters.min_score is not None:
            end = min(end, first_below(scores, filters.min_score))
        if filters.min_relevance is not None:
            end = min(end, first_below(scale(scores), filters.min_relevance))
        found, scores = found[:end], scores[:end]
        copies = None if counts is None else counts[np.searchsorted(positions, found)]
        return Ranking(snapshot.ids[found], scores, copies, scale, first_below(scores, neutral))

    def _nearest(self, snapshot, vector, positions):
        """Returns the positions of pictures and their scores in order: of all, or of the first ones if approximate."""
        size, rows = len(snapshot.embeddings), snapshot.rows[positions]
        found = None
        if not isinstance(self.vectors, ExactIndex) and self._generation == snapshot.generation and len(rows):
            allowed = np.zeros(size, bool)
            allowed[rows] = True
            found = self.vectors.search(vector[None], min(APPROXIMATE_RESULTS, len(rows)), allowed)
        # Rows may have been renumbered meanwhile.
        if found is not None and self._generation == snapshot.generation:
            rows, scores = (values[0][found[0][0] >= 0] for values in found)
            positions = snapshot.position_of_row[rows]
            by_id = np.argsort(positions)
            positions, scores = positions[by_id], scores[by_id]
        else:
            exact = ExactIndex()
            exact.build(snapshot.embeddings)
            is_sparse = len(rows) < _SPARSE * size
            scores = exact.scores(vector[None], rows)[0] if is_sparse else exact.scores(vector[None])[0][rows]
        order = ranked(scores)
        return positions[order], scores[order]

    def _scale(self, query, neutral):
        factor = 1.0 if self.clip.logit_scale is None else float(np.exp(_number(self.clip.logit_scale)))
        # A weighted sum is no text that the model was trained with.
        if self.is_probability and len(query.terms) == 1 and query.terms[0].is_text and query.terms[0].weight > 0:
            return Scale(factor, _number(self.clip.logit_bias), True)
        return Scale(factor, -factor * neutral, False)


class _Labels:
    """Which pictures have the labels of some filters, and a digest of that."""

    def __init__(self, masks):
        self.masks = masks
        self.digest = _digest(*(np.packbits(mask).tobytes() for _, mask in sorted(masks.items())))[:8]


def _digest(*parts):
    digest = hashlib.sha256()
    for part in parts:
        part = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def _page(ranking, place, limit):
    start, stop = place.offset, min(place.offset + limit, len(ranking.ids))
    if start > len(ranking.ids):
        raise CursorError("A cursor must be one that a page returned. Received: one behind the last result.")
    ids = ranking.ids[start:stop].tolist()
    copies = [1] * len(ids) if ranking.copies is None else ranking.copies[start:stop].tolist()
    if ranking.scores is None:
        scores = relevance = [None] * len(ids)
    else:
        scores, relevance = ranking.scores[start:stop].tolist(), ranking.scale(ranking.scores[start:stop]).tolist()
    cursor = str(place._replace(offset=stop)) if stop < len(ranking.ids) else None
    results = tuple(map(Result, ids, scores, relevance, copies))
    is_probability = ranking.scale is not None and ranking.scale.is_probability
    return Page(results, len(ranking.ids), cursor, place.version, ranking.cutoff, is_probability)


def _check(limit, collapse):
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"`limit` must be an integer in [1, {MAX_LIMIT}]. Received: limit={limit!r}.")
    is_number = isinstance(collapse, int | float) and not isinstance(collapse, bool)
    if collapse is not None and not (is_number and FLOOR <= collapse <= 1):
        raise ValueError(f"`collapse` must be a cosine in [{FLOOR}, 1], or None. Received: collapse={collapse!r}.")


def _number(variable):
    return float(ops.convert_to_numpy(ops.convert_to_tensor(variable)))
