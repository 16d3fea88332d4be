"""Starts the server: which address, which token, which limits."""

import contextlib
import ipaddress
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from typing import Any

from keras_clip.evaluation.features.encoding import load_model
from keras_clip.printable import printable
from keras_clip.search.pictures.index import PictureIndex
from keras_clip.search.server.application import LOOPBACK, create_application
from keras_clip.search.server.library import Library

PORT = 8300
# Connections at the same time, and seconds that an idle one is kept.
_CONNECTIONS, _KEEP_ALIVE = 512, 15
# Seconds in which the first lines of a request must come: uvicorn has no limit of its own.
_HEADER_SECONDS = 20
# Shorter tokens could be guessed.
_SHORTEST_TOKEN = 16


def serve(
    folder: str | os.PathLike,
    clip: Any = None,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    token: str | None = None,
    allow_hosts: Sequence[str] = (),
    vectors: Any = None,
    report: Callable[[str], None] = print,
) -> None:
    """Serves the page and the JSON API of an index, until the process is interrupted.

    By default, only programs of this machine can connect. On another address a token is needed, which is made if none
    is given: whoever has the address with the token sees all pictures and may change labels. There is no encryption:
    for other networks than your own, put a server that speaks HTTPS in front.

    Args:
        folder: folder of the index.
        clip: `CLIPModel`, or a model as `presets.load` takes it. None: that of the index.
        host: address to listen on.
        port: int; 0: any free one.
        token: str of at least 16 characters of a-z, A-Z, 0-9, - and _. None: no token on this machine, a new one
            elsewhere.
        allow_hosts: further names by which the server may be addressed.
        vectors: `Index` to search with, see `Searcher`.
        report: is called with lines for the person who starts the server, among them its address.

    Raises:
        ImportError: the extra `search` is not installed.
        FileNotFoundError: there is no index.
        ValueError: another model than that of the index, an invalid token, or an index without a model.
        OSError: the port is in use, or the address is not one of this machine.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise ImportError(
            'The server needs starlette and uvicorn. Install them by `pip install "keras_clip[search]"`.'
        ) from error
    is_local = _is_loopback(host)
    token = _checked_token(token) if token is not None or is_local else secrets.token_urlsafe(24)
    with contextlib.closing(_listening(host, port)) as listener, PictureIndex.open(folder) as index:
        library = Library(index, load_clip(clip, index, folder), vectors)
        try:
            application = create_application(
                library, [*LOOPBACK, *_names(host), *allow_hosts], token, any_address=_is_wildcard(host)
            )
            config = uvicorn.Config(
                application,
                log_level="warning",
                access_log=False,
                server_header=False,
                # Headers of proxies are claims of the client.
                proxy_headers=False,
                http=_protocol(),
                ws="none",
                lifespan="on",
                limit_concurrency=_CONNECTIONS,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=2,
            )
            name = "localhost" if is_local or _is_wildcard(host) else host
            name = f"[{name}]" if ":" in name else name
            report(f"{len(index):,} pictures of {printable(folder)}")
            address = f"http://{name}:{listener.getsockname()[1]}/"
            report(f"Open {address}{f'?token={token}' if token else ''}")
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            library.close()


def load_clip(clip: Any, index: PictureIndex, folder: str | os.PathLike) -> Any:
    """Returns the model of an index, with both towers.

    Args:
        clip: `CLIPModel`, or a model as `presets.load` takes it. None: that of the index.
        index: the index.
        folder: its folder, for messages.

    Returns:
        `CLIPModel`.

    Raises:
        ValueError: another model than that of the index, or none.
    """
    if clip is None:
        clip = index.model
    if clip is None:
        raise ValueError(
            f"The index was made by a model in memory. Received: clip=None for {folder}. Pass the model, or where it "
            "is saved."
        )
    clip = load_model(clip) if isinstance(clip, (str, os.PathLike)) else clip
    if getattr(clip, "text_embedder", None) is None:
        raise ValueError(
            "A search by words needs a model with both towers. "
            f"Received: clip of type {type(clip).__name__}. Pass the `CLIPModel` of the index."
        )
    index.require_model(clip)
    return clip


def _protocol() -> type:
    """Returns uvicorn's protocol with a limit on the time in which a request must be there without its body."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        _deadline = None

        def connection_made(self, transport) -> None:
            super().connection_made(transport)
            self._expect(True)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            # What is left is the beginning of a request; an idle connection has none.
            self._expect(bool(self.conn.trailing_data[0]))

        def connection_lost(self, exc) -> None:
            self._expect(False)
            super().connection_lost(exc)

        def _expect(self, is_incomplete: bool) -> None:
            if not is_incomplete and self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
            elif is_incomplete and self._deadline is None:
                self._deadline = self.loop.call_later(_HEADER_SECONDS, self.transport.close)

    return Protocol


def _listening(host: str, port: int) -> socket.socket:
    """Opens the port before anything is loaded, so that a mistake shows at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise OSError(
            error.errno, f"Cannot listen on {host}, port {port}: {error.strerror}. Choose another with --port."
        ) from None
    return listener


def _checked_token(token: str | None) -> str | None:
    is_valid = token is None or (
        isinstance(token, str)
        and len(token) >= _SHORTEST_TOKEN
        and token.isascii()
        and all(character.isalnum() or character in "-_" for character in token)
    )
    if not is_valid:
        raise ValueError(
            f"A token must have at least {_SHORTEST_TOKEN} letters, digits, - and _. Received: one of {len(token)} "
            "characters. Leave it out, and one is made."
        )
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return not host


def _names(host: str) -> list[str]:
    return [host, socket.gethostname()] if not _is_loopback(host) else [host]
