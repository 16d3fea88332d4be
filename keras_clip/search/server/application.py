"""The Starlette application: the API, the page, and one form for all errors."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

try:
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import FileResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise ImportError(
        'The server needs starlette and uvicorn. Install them by `pip install "keras_clip[search]"`.'
    ) from error

from keras_clip.search.server.errors import ApiError
from keras_clip.search.server.guard import Guard
from keras_clip.search.server.library import Library
from keras_clip.search.server.routes import Routes

PAGE = Path(__file__).resolve().parents[1] / "page"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Seconds between two looks for a newer version of the index.
_REFRESH = 2.0
_LOG = logging.getLogger(__name__)
_INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webp": "image/webp",
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
    ".woff2": "font/woff2",
}


def create_application(
    library: Library,
    hosts: Iterable[str] = LOOPBACK,
    token: str | None = None,
    *,
    any_address: bool = False,
    page: str | os.PathLike = PAGE,
) -> Guard:
    """Makes the ASGI application of the page and its JSON API.

    Args:
        library: the index, its queries and its labels.
        hosts: host names by which clients may address the server.
        token: str or None. What clients must send to be let in.
        any_address: whether clients may address the server by any IP address, too.
        page: folder of the page.

    Returns:
        The application.
    """
    routes, files = Routes(library), _Page(Path(page))

    @contextlib.asynccontextmanager
    async def lifespan(_) -> AsyncIterator[None]:
        await run_in_threadpool(library.prepare)
        refreshing = asyncio.create_task(_refresh(library))
        yield
        refreshing.cancel()
        routes.close()

    application = Starlette(
        routes=[*routes.routes(), *files.routes()],
        exception_handlers={ApiError: _refused, HTTPException: files.error, Exception: _failed},
        lifespan=lifespan,
    )
    application.router.redirect_slashes = False
    # Outside of the application, whose answer to an unexpected exception passes by its middleware.
    return Guard(application, hosts, token, any_address)


async def _refresh(library: Library) -> None:
    """Looks for a newer version of the index from time to time."""
    while True:
        await asyncio.sleep(_REFRESH)
        try:
            await run_in_threadpool(library.refresh)
        except Exception:
            # The disk may be busy, or away for a while; the version that is known goes on being served.
            _LOG.exception("The index could not be refreshed")


class _Page:
    """The files of the page: a list that is made at the start, so that no path of a request is ever looked up.

    Args:
        folder: folder of the page.
    """

    def __init__(self, folder: Path):
        self._files = {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.glob("**/*"))
            if path.is_file() and path.suffix in _TYPES
        }

    def routes(self) -> list[Route]:
        """Returns the routes."""
        return [
            Route("/", self._file, methods=["GET"]),
            Route("/page/{path:path}", self._file, methods=["GET"]),
        ]

    async def _file(self, request: Request) -> Response:
        name = request.path_params.get("path", _INDEX)
        if name not in self._files:
            raise HTTPException(404)
        return self._response(name, 200)

    def _response(self, name: str, status: int) -> Response:
        path = self._files[name]
        return FileResponse(path, status, media_type=_TYPES[path.suffix], headers={"Cache-Control": "no-cache"})

    async def error(self, request: Request, error: HTTPException) -> Response:
        """Answers what no route answers: with JSON, or with the page, which shows that there is nothing."""
        wants_page = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/")
        if error.status_code == 404 and wants_page and _INDEX in self._files and request.method == "GET":
            return self._response(_INDEX, 404)
        code = {404: "not_found", 405: "bad_method", 413: "too_large"}.get(error.status_code, "bad_request")
        message = "There is nothing at this address." if error.status_code == 404 else f"{error.detail}."
        response = ApiError(error.status_code, code, message).response()
        response.headers.update(error.headers or {})
        return response


async def _refused(_: Request, error: ApiError) -> Response:
    return error.response()


async def _failed(_: Request, error: Exception) -> Response:
    # What went wrong may name paths of this machine: Starlette raises it again for the log, and the client is not told.
    return ApiError(500, "failed", "The server could not answer this. Its log says why.").response()
