"""What the API is about, without HTTP: an index of pictures, its queries and its labels."""

import contextlib
import io
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from keras_clip.printable import printable
from keras_clip.search.labels import exports
from keras_clip.search.labels.assigning import ClassCounts, Labelling, class_encoder
from keras_clip.search.labels.classes import Classes, ClassExists
from keras_clip.search.labels.exports import Left, Row
from keras_clip.search.labels.probe import Suggestion, train_probe
from keras_clip.search.pictures.index import Picture, PictureIndex, RemovedPicture
from keras_clip.search.pictures.reading import OutsideOfRoot, open_inside
from keras_clip.search.queries import CursorError, Filters, Query, Searcher, StaleCursor, Term, parse
from keras_clip.search.server.errors import ApiError

# Clusterings that are kept, copies that are listed, and pictures of an export that are read from the index at once.
_KEPT_CLUSTERS, _MOST_COPIES, _BLOCK = 8, 200, 512


@dataclass(frozen=True)
class SearchRequest:
    """A search of a client, checked by type and range.

    Args:
        terms: dicts with one of "text", "picture" and "upload" (bytes of an image file), and a "weight".
        query: str or None, the written form of terms; one of both is empty.
        filters: dict of the fields of `queries.Filters` that are set.
        collapse: float or None, the similarity from which pictures are copies.
        limit: int, results of a page.
        cursor: str or None.
    """

    terms: Sequence[Mapping[str, Any]] = ()
    query: str | None = None
    filters: Mapping[str, Any] = field(default_factory=dict)
    collapse: float | None = None
    limit: int = 100
    cursor: str | None = None


@dataclass(frozen=True)
class Download:
    """A file that is sent to the client.

    Args:
        name: str, its name for the client.
        media_type: str.
        parts: iterator of bytes, which is closed when the client has gone.
        size: int or None, its length in bytes if known.
    """

    name: str
    media_type: str
    parts: Iterator[bytes]
    size: int | None = None


class Library:
    """An index of pictures with its searches and labels, as the routes see it. Any threads may use it.

    Its methods block, return the dicts and lists of the JSON API, which docs/search.md describes, and raise an
    `ApiError` for what is missing or wrong.

    Args:
        index: `PictureIndex`.
        clip: `CLIPModel`, the one of the index.
        vectors: `Index` to search with, see `Searcher`.
    """

    def __init__(self, index: PictureIndex, clip: Any, vectors: Any = None):
        self._index, self.classes_of_index = index, Classes(index.folder)
        self.searcher = Searcher(index, clip, vectors, labelled=self._members)
        self._embed_class = class_encoder(self.searcher.encoder.texts)
        self._refreshing, self._clusters = threading.Lock(), OrderedDict()
        self._state = self._take_state()

    def _take_state(self) -> "_State":
        columns = self._index.columns(["root", "folder", "taken"])
        return _State(
            Labelling(self._index, self.classes_of_index, self._embed_class),
            Counter(zip(columns["root"].tolist(), columns["folder"].tolist(), strict=True)),
            *((str(columns["taken"].min()), str(columns["taken"].max())) if len(columns["taken"]) else (None, None)),
        )

    def prepare(self) -> None:
        """Computes what the first requests would wait for."""
        self.searcher.prepare()
        self._state.labelling.counts()

    def refresh(self) -> bool:
        """Moves to the newest version of the index on the disk; returns whether there was one."""
        with self._refreshing:
            if not self.searcher.refresh():
                return False
            self._state = self._take_state()
            return True

    def close(self) -> None:
        """Closes the databases."""
        self.classes_of_index.close()
        self._index.close()

    def index(self) -> dict:
        state = self._state
        return {
            "version": state.labelling.version,
            "pictures": len(state.labelling.ids),
            "broken": sum(self._index.broken_counts().values()),
            "roots": [{"id": root, "name": printable(path.name)} for root, path in sorted(self._index.roots.items())],
            "model": None if self._index.model is None else printable(self._index.model),
            "probability": self.searcher.is_probability,
            "oldest": state.oldest,
            "newest": state.newest,
            "writable_labels": True,
        }

    def folders(self) -> list[dict]:
        counts = sorted(self._state.folders.items())
        return [{"root": root, "path": path, "pictures": count} for (root, path), count in counts]

    def search(self, request: SearchRequest) -> dict:
        with _refused("bad_query"):
            query = Query([Term(**term) for term in request.terms]) if request.query is None else parse(request.query)
        with _refused("bad_filter"):
            filters = Filters(**request.filters)
        with _refused("bad_query"):
            page = self.searcher.search(query, filters, request.limit, request.cursor, request.collapse)
        ids = [result.id for result in page.results]
        pictures = self._index.pictures(ids)
        labels = self._state.labelling.of_pictures(ids)
        results = [
            {
                **_brief(pictures[result.id]),
                "score": result.score,
                "relevance": result.relevance,
                "copies": result.copies,
                "labels": [label.saved.name for label in of_picture],
            }
            for result, of_picture in zip(page.results, labels, strict=True)
            if result.id in pictures
        ]
        return {
            "version": page.version,
            "total": page.total,
            "cutoff": page.cutoff,
            "cursor": page.cursor,
            "results": results,
        }

    def clusters(self, k: int) -> list[dict]:
        key = (self.searcher.version, k)
        found = self._clusters.get(key)
        if found is None:
            found = [
                {
                    "name": cluster.name,
                    "pictures": cluster.pictures,
                    "cover": cluster.cover,
                    "query": {"terms": [_term(term) for term in cluster.query.terms]},
                }
                for cluster in self.searcher.clusters(k)
            ]
            self._clusters[key] = found
            while len(self._clusters) > _KEPT_CLUSTERS:
                self._clusters.popitem(last=False)
        return found

    def picture(self, picture: int) -> dict:
        facts, labelling = self._picture(picture), self._state.labelling
        (labels,) = labelling.of_pictures([picture])
        try:
            copies = [copy for copy in self.searcher.copies(picture) if copy != picture][:_MOST_COPIES]
        except ValueError:
            # It is newer than the version that is searched.
            copies = []
        return {
            **_brief(facts),
            "view": f"/pictures/{picture}/view",
            "file": f"/pictures/{picture}/file",
            "size": facts.size,
            "taken": facts.taken.isoformat(),
            "caption": facts.caption,
            "format": facts.format,
            "sha256": facts.sha256,
            "labels": [
                {"id": label.saved.id, "name": label.saved.name, "score": label.score, "by_hand": label.by_hand}
                for label in labels
            ],
            "best_classes": [
                {"id": saved.id, "name": saved.name, "score": score}
                for saved, score in labelling.nearest_classes(picture)
            ],
            "copies": [_brief(copy) for copy in self._index.pictures(copies).values()],
        }

    def thumbnail(self, picture: int) -> tuple[bytes, str]:
        """Returns a WebP file and the digest of the picture."""
        facts = self._picture(picture)
        with _missing_file():
            try:
                return self._index.thumbnail(picture), facts.sha256
            except ValueError as error:
                raise ApiError(422, "bad_image", printable(error)) from None

    def open_file(self, picture: int) -> tuple[BinaryIO, str]:
        """Opens the file of a picture, which is inside its root, and returns it with its name."""
        facts = self._picture(picture)
        with _missing_file():
            return self._open(facts), facts.name

    def _open(self, facts: Any) -> BinaryIO:
        return open_inside(self._index.roots[facts.root], facts.path)

    def classes(self) -> list[dict]:
        return [_class(counts) for counts in self._state.labelling.counts()]

    def add_class(self, name: str, prompts: Sequence[str], threshold: float | None) -> dict:
        with _refused("bad_class"):
            if threshold is None:
                threshold = self.searcher.neutral_cosine
            saved = self.classes_of_index.add(name, list(prompts), threshold)
        return _class(self._state.labelling.count(saved))

    def change_class(self, class_id: int, changes: Mapping[str, Any]) -> dict:
        with _refused("bad_class"):
            saved = self.classes_of_index.change(class_id, **changes)
        return _class(self._state.labelling.count(saved))

    def remove_class(self, class_id: int) -> None:
        with _refused("bad_class"):
            self.classes_of_index.remove(class_id)

    def label(self, pictures: Sequence[int], class_id: int, value: bool | None) -> int:
        with _refused("bad_label"):
            return self._state.labelling.set(pictures, class_id, value)

    def export(self, format: str, pictures: Sequence[int] | None, classes: Sequence[int] | None) -> Download:
        name, media_type = exports.FORMATS[format]
        with _refused("bad_export"):
            rows = self.rows(pictures, classes)
            return Download(name, media_type, exports.parts(format, rows, self._open))

    def write(
        self,
        format: str,
        target: str | os.PathLike,
        pictures: Sequence[int] | None = None,
        classes: Sequence[int] | None = None,
    ) -> Left:
        """Writes an export to a file or folder: see `exports.export` and `rows`; returns what was left out."""
        return exports.export(format, self.rows(pictures, classes), self._open, target)

    def rows(self, pictures: Sequence[int] | None = None, classes: Sequence[int] | None = None) -> Iterator[Row]:
        """Yields the pictures of an export with their labels.

        Args:
            pictures: ids. None: all that have one of the classes, or all if there are no classes.
            classes: ids of the classes. None: all.

        Returns:
            Iterator of `exports.Row`; pictures that have been removed are left out.

        Raises:
            KeyError: no such class.
        """
        labelling = self._state.labelling
        for class_id in classes or ():
            self.classes_of_index.get(class_id)
        only_labelled = pictures is None and bool(self.classes_of_index.all())
        return self._rows(labelling, labelling.ids.tolist() if pictures is None else pictures, classes, only_labelled)

    def _rows(self, labelling, ids, classes, only_labelled):
        for start in range(0, len(ids), _BLOCK):
            block = ids[start : start + _BLOCK]
            found = self._index.pictures(block, removed=False)
            for picture, labels in zip(block, labelling.of_pictures(block, classes), strict=True):
                if picture in found and (labels or not only_labelled):
                    yield Row(found[picture], labels)

    def probe(self, classes: Sequence[int]) -> dict:
        with self._refreshing, _refused("bad_probe"):
            # The index stays at the version of the labels meanwhile.
            result = train_probe(self._index, self._state.labelling, classes)
        return {
            "accuracy": result.accuracy,
            "low": result.low,
            "high": result.high,
            "pictures": result.pictures,
            "suggestions": [_suggestion(each) for each in result.suggestions],
            "uncertain": [_suggestion(each) for each in result.uncertain],
        }

    def _members(self, name: str) -> Sequence[int]:
        try:
            return self._state.labelling.members(name)
        except KeyError as error:
            raise ApiError(404, "no_class", str(error.args[0])) from None

    def _picture(self, picture: int) -> Picture:
        try:
            return self._index.picture(picture)
        except RemovedPicture:
            raise ApiError(410, "removed", f"Picture {picture} is no longer in the index: its file is gone.") from None
        except (KeyError, OverflowError):
            raise ApiError(404, "no_picture", f"There is no picture {picture} in the index.") from None


@dataclass(frozen=True)
class _State:
    """What depends on the version of the index: its labels, its folders with their counts, its first and last date."""

    labelling: Labelling
    folders: Mapping[tuple[int, str], int]
    oldest: str | None
    newest: str | None


def _brief(picture: Picture) -> dict:
    return {
        "id": picture.id,
        "name": picture.name,
        "folder": f"{picture.root}:{picture.folder}",
        "width": picture.width,
        "height": picture.height,
        "thumbnail": f"/pictures/{picture.id}/thumbnail",
    }


def _class(counts: ClassCounts) -> dict:
    return {
        "id": counts.saved.id,
        "name": counts.saved.name,
        "prompts": list(counts.saved.prompts),
        "threshold": counts.saved.threshold,
        "pictures": counts.pictures,
        "by_hand": counts.by_hand,
        "histogram": {"low": counts.low, "high": counts.high, "counts": list(counts.histogram)},
    }


def _term(term: Term) -> dict:
    return (
        {"text": term.text, "weight": term.weight} if term.is_text else {"picture": term.picture, "weight": term.weight}
    )


def _suggestion(suggestion: Suggestion) -> dict:
    return {"picture": suggestion.picture, "class": suggestion.class_id, "probability": suggestion.probability}


@contextlib.contextmanager
def _refused(code: str) -> Iterator[None]:
    """A block whose errors are those of the client."""
    try:
        yield
    except StaleCursor as error:
        raise ApiError(409, "stale_cursor", str(error)) from None
    except CursorError as error:
        raise ApiError(400, "bad_cursor", str(error)) from None
    except ClassExists as error:
        raise ApiError(409, "class_exists", str(error)) from None
    except KeyError as error:
        raise ApiError(404, "not_found", str(error.args[0])) from None
    except ValueError as error:
        raise ApiError(400, code, str(error)) from None


@contextlib.contextmanager
def _missing_file() -> Iterator[None]:
    """A block that reads the file of a picture."""
    try:
        yield
    except FileNotFoundError:
        raise ApiError(410, "gone", "The file of this picture is gone. Update the index.") from None
    except OutsideOfRoot:
        raise ApiError(403, "outside", "The file of this picture is no longer inside its folder.") from None
    except OSError as error:
        raise ApiError(410, "unreadable", f"The file of this picture cannot be read: {error.strerror}.") from None


def encoded(image: Any, longest: int, quality: int = 85) -> bytes:
    """Encodes a decoded picture again, so that the client gets its pixels and no other part of the file.

    Args:
        image: PIL image in RGB.
        longest: int, pixels of its longer side at most.
        quality: int, of the WebP file.

    Returns:
        bytes of a WebP file.
    """
    image = image.copy()
    image.thumbnail((longest, longest))
    target = io.BytesIO()
    image.save(target, "WEBP", quality=quality, method=2)
    return target.getvalue()
