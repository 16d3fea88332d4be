"""What the API is about, without HTTP: an index of pictures, its queries and its labels."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol


@dataclass(frozen=True)
class SearchRequest:
    """A search as a client asks for it, checked by type and range.

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


class Library(Protocol):
    """The interface between the routes and the index. All methods block, and raise an `ApiError` for what is missing.

    Dicts and lists are those of the JSON API, which docs/search.md describes.
    """

    def refresh(self) -> None:
        """Moves to the newest version of the index on the disk."""

    def index(self) -> dict: ...
    def folders(self) -> list[dict]: ...
    def search(self, request: SearchRequest) -> dict: ...
    def clusters(self, k: int) -> list[dict]: ...
    def picture(self, picture: int) -> dict: ...

    def thumbnail(self, picture: int) -> tuple[bytes, str]:
        """Returns a WebP file and the digest of the picture."""

    def open_file(self, picture: int) -> tuple[BinaryIO, str]:
        """Opens the file of a picture, which is inside its root, and returns it with its name."""

    def classes(self) -> list[dict]: ...
    def add_class(self, name: str, prompts: Sequence[str], threshold: float | None) -> dict: ...
    def change_class(self, class_id: int, changes: Mapping[str, Any]) -> dict: ...
    def remove_class(self, class_id: int) -> None: ...
    def label(self, pictures: Sequence[int], class_id: int, value: bool | None) -> int: ...
    def export(self, format: str, pictures: Sequence[int] | None, classes: Sequence[int] | None) -> Download: ...
    def probe(self, classes: Sequence[int]) -> dict: ...


def encoded(image: Any, longest: int, quality: int = 85) -> bytes:
    """Encodes a decoded picture again, so that nothing of the original file but its pixels reaches the client.

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
