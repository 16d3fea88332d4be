"""The Starlette application: the API, the page, and one form for all errors."""

import contextlib
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from keras_clip.search.server.errors import ApiError
from keras_clip.search.server.guard import Guard
from keras_clip.search.server.library import Library
from keras_clip.search.server.routes import Routes

PAGE = Path(__file__).resolve().parents[1] / "page"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
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
    library: Library, hosts: Iterable[str] = LOOPBACK, token: str | None = None, page: str | os.PathLike = PAGE
) -> Guard:
    """Makes the ASGI application of the page and its JSON API.

    Args:
        library: the index, its queries and its labels.
        hosts: host names by which clients may address the server.
        token: str or None. What clients must send to be let in.
        page: folder of the page.

    Returns:
        The application.
    """
    routes = Routes(library)

    @contextlib.asynccontextmanager
    async def lifespan(_) -> AsyncIterator[None]:
        yield
        routes.close()

    application = Starlette(
        routes=[*routes.routes(), *_page_routes(Path(page))],
        exception_handlers={ApiError: _refused, HTTPException: _http_error, Exception: _failed},
        lifespan=lifespan,
    )
    # Outside of the application, whose answer to an unexpected exception passes by its middleware.
    return Guard(application, hosts, token)


def _page_routes(folder: Path) -> list[Route]:
    """Returns the routes of the files of the page: a list that is made at the start, so that no path is looked up."""
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in _TYPES
    }

    async def page_file(request: Request) -> Response:
        path = files.get(request.path_params.get("path", "index.html"))
        if path is None:
            return await not_found(request)
        return FileResponse(path, media_type=_TYPES[path.suffix], headers={"Cache-Control": "no-cache"})

    async def not_found(request: Request) -> Response:
        """The page shows its own state for addresses that do not exist; programs get JSON."""
        wants_page = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/")
        if wants_page and "index.html" in files and request.method == "GET":
            return FileResponse(files["index.html"], 404, media_type=_TYPES[".html"])
        raise ApiError(404, "not_found", "There is nothing at this address.")

    return [
        Route("/", page_file, methods=["GET"]),
        Route("/page/{path:path}", page_file, methods=["GET"]),
        Route("/{path:path}", not_found, methods=["GET", "POST", "PATCH", "DELETE"]),
    ]


async def _refused(_: Request, error: ApiError) -> Response:
    return error.response()


async def _http_error(_: Request, error: HTTPException) -> Response:
    code = {404: "not_found", 405: "bad_method", 413: "too_large"}.get(error.status_code, "bad_request")
    response = ApiError(error.status_code, code, f"{error.detail}.").response()
    response.headers.update(error.headers or {})
    return response


async def _failed(_: Request, error: Exception) -> Response:
    # What went wrong may name paths of this machine: Starlette raises it again for the log, and the client is not told.
    return ApiError(500, "failed", "The server could not answer this. Its log says why.").response()
