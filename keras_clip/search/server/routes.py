"""The routes of the JSON API: each checks its request, does its work in a thread, and returns JSON or a picture."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from keras_clip.data import image_files
from keras_clip.printable import printable
from keras_clip.search.server import requests as fields
from keras_clip.search.server.errors import ApiError
from keras_clip.search.server.library import Download, Library, SearchRequest, encoded
from keras_clip.search.server.requests import Fields, body_of, id_of, json_of
from keras_clip.search.server.uploads import Upload, Uploads
from keras_clip.search.server.work import Worker

MAX_UPLOAD = 10 * 2**20
MAX_LIMIT = 1000
MAX_TERMS = 64
MAX_CLUSTERS = 256
MAX_CLASSES = 1000
# Pixels of the longer side: what the detail view shows, what a query needs, and a thumbnail.
VIEW, QUERY, THUMBNAIL = 2048, 1024, 256
FORMATS = ("csv", "json", "paths", "tar", "folder")
# A picture of the index is immutable under its digest, but what an id refers to is asked again.
_REVALIDATE = "private, no-cache"
_CHUNK = 2**18
_TOKEN = re.compile("[A-Za-z0-9_-]{1,64}")
# Seconds in which a body must have come: 10 MB by a slow wireless network.
_BODY_SECONDS = 60

_name = fields.text(1, 200)
_prompts = fields.array(fields.text(1, 500), 100, 1)
_threshold = fields.number(-1, 1)
_class_ids = fields.array(fields.integer(0, fields.MAX_ID), MAX_CLASSES, 1)
_FILTERS: dict[str, Callable] = {
    "folder": fields.text(1, 4096),
    "taken_after": fields.text(1, 40),
    "taken_before": fields.text(1, 40),
    "min_width": fields.integer(0, 2**31 - 1),
    "min_height": fields.integer(0, 2**31 - 1),
    "words": fields.text(0, 1000),
    "label": fields.text(1, 200),
    "not_label": fields.text(1, 200),
    "min_score": fields.number(-1, 1),
    "min_relevance": fields.number(0, 1),
}


class Routes:
    """The handlers of all routes of the API.

    Args:
        library: what they are about.
    """

    def __init__(self, library: Library):
        self._library, self._uploads = library, Uploads()
        # One at a time: an encoder uses all cores, and two at once only slow each other down.
        self._searching = Worker("search", 1, 200)
        self._reading = Worker("read", 4, 400)
        self._slow = Worker("slow", 1, 8)
        self._exports = asyncio.Semaphore(4)

    def close(self) -> None:
        """Ends the threads."""
        for worker in (self._searching, self._reading, self._slow):
            worker.close()

    def routes(self) -> list[Route]:
        """Returns the routes."""
        return [
            Route("/api/index", self.index, methods=["GET"]),
            Route("/api/folders", self.folders, methods=["GET"]),
            Route("/api/search", self.search, methods=["POST"]),
            Route("/api/clusters", self.clusters, methods=["GET"]),
            Route("/api/pictures/{id}", self.picture, methods=["GET"]),
            Route("/pictures/{id}/thumbnail", self.thumbnail, methods=["GET"]),
            Route("/pictures/{id}/view", self.view, methods=["GET"]),
            Route("/pictures/{id}/file", self.file, methods=["GET"]),
            Route("/api/uploads", self.upload, methods=["POST"]),
            Route("/uploads/{token}/thumbnail", self.upload_thumbnail, methods=["GET"]),
            Route("/api/classes", self.classes, methods=["GET"]),
            Route("/api/classes", self.add_class, methods=["POST"]),
            Route("/api/classes/{id}", self.change_class, methods=["PATCH"]),
            Route("/api/classes/{id}", self.remove_class, methods=["DELETE"]),
            Route("/api/labels", self.label, methods=["POST"]),
            Route("/api/export", self.export, methods=["POST"]),
            Route("/api/probe", self.probe, methods=["POST"]),
        ]

    async def index(self, request: Request) -> Response:
        _no_query(request)
        return JSONResponse(await self._reading.run(self._library.index))

    async def folders(self, request: Request) -> Response:
        _no_query(request)
        return JSONResponse({"folders": await self._reading.run(self._library.folders)})

    async def search(self, request: Request) -> Response:
        given = Fields(await _json(request))
        terms = given.take("terms", fields.array(self._term, MAX_TERMS), ())
        query = given.take("query", fields.text(0, 2000), None)
        if terms and query is not None:
            raise ApiError(400, "bad_query", "A search has `terms` or a `query`, not both.")
        wanted = SearchRequest(
            terms=terms,
            query=query,
            filters=given.take("filters", _filters, {}),
            collapse=given.take("collapse", fields.number(0, 1), None),
            limit=given.take("limit", fields.integer(1, MAX_LIMIT), 100),
            cursor=given.take("cursor", fields.text(1, 500), None),
        )
        given.end()
        return JSONResponse(await self._searching.run(self._library.search, wanted))

    def _term(self, value: Any, path: str) -> dict:
        given = Fields(value, path)
        term = {
            "text": given.take("text", fields.text(1, 2000), None),
            "picture": given.take("picture", fields.integer(0, fields.MAX_ID), None),
            "upload": given.take("upload", fields.text(1, 64), None),
        }
        term = {name: part for name, part in term.items() if part is not None}
        weight = given.take("weight", fields.number(-1000, 1000), 1.0)
        given.end()
        if len(term) != 1 or not weight:
            raise ApiError(
                400, "bad_query", f"`{path}` must have one of text, picture and upload, and a weight other than 0."
            )
        if "upload" in term:
            term["upload"] = self._uploads.get(term["upload"]).image
        return {**term, "weight": weight}

    async def clusters(self, request: Request) -> Response:
        given = _query(request, "k")
        k = given.get("k", "24")
        if not re.fullmatch("[1-9][0-9]{0,3}", k) or int(k) > MAX_CLUSTERS:
            raise ApiError(400, "bad_field", f"`k` must be an integer from 1 to {MAX_CLUSTERS}.")
        return JSONResponse({"clusters": await self._slow.run(self._library.clusters, int(k))})

    async def picture(self, request: Request) -> Response:
        _no_query(request)
        return JSONResponse(await self._reading.run(self._library.picture, _path_id(request)))

    async def thumbnail(self, request: Request) -> Response:
        data, digest = await self._reading.run(self._library.thumbnail, _path_id(request))
        return _image(request, data, digest)

    async def view(self, request: Request) -> Response:
        return Response(await self._reading.run(self._view, _path_id(request)), headers=_NO_SNIFF_IMAGE)

    def _view(self, picture: int) -> bytes:
        file, name = self._library.open_file(picture)
        with file:
            data = file.read()
        return encoded(_opened(data, 422, name, VIEW), VIEW)

    async def file(self, request: Request) -> Response:
        file, name = await self._reading.run(self._library.open_file, _path_id(request))
        size = file.seek(0, 2)
        file.seek(0)
        download = Download(name, "application/octet-stream", _Chunks(file, size), size)
        return _DownloadResponse(download, lambda: None)

    async def upload(self, request: Request) -> Response:
        _no_query(request)
        async with _in_time():
            data = await body_of(request, MAX_UPLOAD)
        if not data:
            raise ApiError(400, "bad_image", "The body must be an image file. Received: nothing.")
        upload = await self._reading.run(_as_upload, data)
        token = self._uploads.add(upload)
        return JSONResponse({"upload": token, "width": upload.width, "height": upload.height}, 201)

    async def upload_thumbnail(self, request: Request) -> Response:
        token = request.path_params["token"]
        if not _TOKEN.fullmatch(token):
            raise ApiError(404, "no_upload", "This is no token of an upload.")
        return Response(self._uploads.get(token).thumbnail, headers=_NO_SNIFF_IMAGE)

    async def classes(self, request: Request) -> Response:
        _no_query(request)
        return JSONResponse({"classes": await self._reading.run(self._library.classes)})

    async def add_class(self, request: Request) -> Response:
        given = Fields(await _json(request))
        name = given.take("name", _name)
        prompts = given.take("prompts", _prompts, [name])
        threshold = given.take("threshold", _threshold, None)
        given.end()
        return JSONResponse(await self._searching.run(self._library.add_class, name, prompts, threshold), 201)

    async def change_class(self, request: Request) -> Response:
        given = Fields(await _json(request))
        changes = {
            "name": given.take("name", _name, None),
            "prompts": given.take("prompts", _prompts, None),
            "threshold": given.take("threshold", _threshold, None),
        }
        given.end()
        changes = {name: value for name, value in changes.items() if value is not None}
        return JSONResponse(await self._searching.run(self._library.change_class, _path_id(request), changes))

    async def remove_class(self, request: Request) -> Response:
        await self._reading.run(self._library.remove_class, _path_id(request))
        return Response(status_code=204)

    async def label(self, request: Request) -> Response:
        given = Fields(await _json(request))
        pictures = given.take("pictures", fields.picture_ids)
        class_id = given.take("class", fields.integer(0, fields.MAX_ID))
        value = given.take("value", fields.one_of(True, False), None)
        given.end()
        changed = await self._reading.run(self._library.label, pictures, class_id, value)
        return JSONResponse({"changed": changed})

    async def export(self, request: Request) -> Response:
        given = Fields(await _json(request))
        wanted = (
            given.take("format", fields.one_of(*FORMATS)),
            given.take("pictures", fields.picture_ids, None),
            given.take("classes", _class_ids, None),
        )
        given.end()
        if self._exports.locked():
            raise ApiError(503, "busy", "Several exports are running. Try again when one has ended.")
        await self._exports.acquire()
        try:
            return _DownloadResponse(await self._slow.run(self._library.export, *wanted), self._exports.release)
        except BaseException:
            self._exports.release()
            raise

    async def probe(self, request: Request) -> Response:
        given = Fields(await _json(request))
        classes = given.take("classes", _class_ids)
        given.end()
        return JSONResponse(await self._slow.run(self._library.probe, classes))


_NO_SNIFF_IMAGE = {"Content-Type": "image/webp", "Cache-Control": "private, max-age=300"}


def _path_id(request: Request) -> int:
    return id_of(request.path_params["id"])


def _query(request: Request, *names: str) -> dict[str, str]:
    given = request.query_params.multi_items()
    unknown = [name for name, _ in given if name not in names]
    if unknown or len(given) != len(dict(given)):
        raise ApiError(400, "unknown_field", f"Unknown or repeated in the address: {unknown or [n for n, _ in given]}.")
    return dict(given)


def _no_query(request: Request) -> None:
    _query(request)


def _filters(value: Any, path: str) -> dict:
    given = Fields(value, path)
    taken = {name: given.take(name, check, None) for name, check in _FILTERS.items()}
    given.end()
    return {name: part for name, part in taken.items() if part is not None}


class _in_time:
    """A block in which a body must come; a slower client gets 408."""

    async def __aenter__(self):
        self._timeout = asyncio.timeout(_BODY_SECONDS)
        await self._timeout.__aenter__()

    async def __aexit__(self, *error):
        try:
            await self._timeout.__aexit__(*error)
        except TimeoutError:
            raise ApiError(408, "too_slow", f"The body must come in {_BODY_SECONDS} s. Send it again.") from None


async def _json(request: Request) -> Any:
    _no_query(request)
    async with _in_time():
        return await json_of(request)


def _opened(data: bytes, status: int, name: str, longest: int):
    """Decodes an image file by the one function that opens images from outside."""
    try:
        with image_files.default_budget().hold(_pixels(data)):
            return image_files.open_image(data, "image", image_files.MAX_PIXELS, longest)
    except ValueError as error:
        code = "image_too_large" if image_files.reason_of(error) == "image too large" else "bad_image"
        raise ApiError(413 if code == "image_too_large" and status == 415 else status, code, str(error)) from None


def _pixels(data: bytes) -> int:
    header = image_files.open_header(data, "image", image_files.MAX_PIXELS)
    return header.width * header.height


def _as_upload(data: bytes) -> Upload:
    image = _opened(data, 415, "image", 2 * QUERY)
    width, height = image.size
    return Upload(encoded(image, QUERY, 92), encoded(image, THUMBNAIL), width, height)


def _image(request: Request, data: bytes, digest: str) -> Response:
    tag = f'"{digest}"'
    headers = {"ETag": tag, "Cache-Control": _REVALIDATE, "Content-Type": "image/webp"}
    tags = [part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")]
    if tag in tags or tags == ["*"]:
        return Response(status_code=304, headers=headers)
    return Response(data, headers=headers)


class _Chunks:
    """Iterates over at most `size` bytes of a file, which may grow while it is sent."""

    def __init__(self, file: Any, size: int):
        self._file, self._left = file, size

    def __iter__(self):
        return self

    def __next__(self) -> bytes:
        part = self._file.read(min(self._left, _CHUNK))
        self._left -= len(part)
        if not part:
            raise StopIteration
        return part

    def close(self) -> None:
        self._file.close()


class _DownloadResponse(StreamingResponse):
    """Sends a download, and ends it in any case: also when the client went before its first byte."""

    def __init__(self, download: Download, ended: Callable[[], None]):
        headers = {"Content-Disposition": disposition(download.name), "Content-Type": download.media_type}
        if download.size is not None:
            headers["Content-Length"] = str(download.size)
        self._parts, self._ended = download.parts, ended
        super().__init__(_in_threads(download.parts), headers=headers)

    async def __call__(self, scope, receive, send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._parts.close()
            self._ended()


async def _in_threads(parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (part := await run_in_threadpool(next, parts, None)) is not None:
        yield part


def disposition(name: str) -> str:
    """Returns the header that makes a browser save a file under a name, whatever characters the name has.

    Args:
        name: str.

    Returns:
        str in ASCII, without line breaks, quotes or separators that the name brought.
    """
    name = printable(name).replace("/", "_").replace("\\", "_").strip(". ") or "download"
    plain = "".join(c if c.isascii() and (c.isalnum() or c in " ._-()") else "_" for c in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
