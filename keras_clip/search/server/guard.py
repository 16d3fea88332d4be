"""Who may ask, and what a browser may do with the answer: hosts, origins, tokens, methods and headers."""

import asyncio
import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from keras_clip.search.server.errors import ApiError

COOKIE = "keras_clip_search"
HEADERS = {
    # No inline script or style, nothing from elsewhere. `blob:` shows a picture that the person has just dropped.
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# Seconds in which a client must take a part of an answer, 256 KB at most.
_SEND_SECONDS = 60
_METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE")


class Guard:
    """ASGI middleware in front of all routes.

    A page of a stranger that is open in the same browser can reach this server, by a name that it lets point to
    127.0.0.1 (DNS rebinding) or by a form (cross-site request forgery). The first has a wrong `Host`, the second a
    wrong `Origin`.

    Args:
        app: the application behind it.
        hosts: host names, without port, by which the server may be addressed.
        token: str or None. Clients must send it: as `?token=` once, which sets a cookie, or as a Bearer token.
        any_address: whether every IP address is a known host, too: names can be made to point here, addresses cannot.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str], token: str | None = None, any_address: bool = False):
        self._app, self._token, self._any_address = app, token, any_address
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            # A client that takes nothing would hold its file, its thread and its connection for good.
            async with asyncio.timeout(_SEND_SECONDS):
                await send(message)

        try:
            response = self._response(scope)
        except ApiError as error:
            response = error.response()
        await (response or self._app)(scope, receive, send_with_headers)

    def _response(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_known(_name(hosts[0])):
            raise ApiError(
                403,
                "bad_host",
                "This server is addressed by another name. Open the address that it printed when it started, or start "
                "it with --allow-host NAME.",
            )
        method = scope["method"]
        if method not in _METHODS:
            raise ApiError(405, "bad_method", f"The methods are {', '.join(_METHODS)}.")
        origins = headers.getlist("origin")
        own = f"{scope['scheme']}://{hosts[0]}".lower()
        site = headers.get("sec-fetch-site", "same-origin")
        if method not in ("GET", "HEAD") and (
            any(origin.lower() != own for origin in origins) or site not in ("same-origin", "none")
        ):
            raise ApiError(
                403, "bad_origin", "Only the page of this server may change something. Open its own address."
            )
        return self._authenticated(scope, headers) if self._token is not None else None

    def _is_known(self, name: str) -> bool:
        if name in self._hosts:
            return True
        if not self._any_address:
            return False
        try:
            return bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    def _authenticated(self, scope: Scope, headers: Headers) -> Response | None:
        query = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=None)
        given = query.get("token", [])
        if scope["method"] == "GET" and len(given) == 1 and self._is_token(given[0]):
            # The address with the token goes no further: not into the history, nor into a bookmark that is shared. The
            # target is fixed, since a path such as //name would lead to another server.
            response = RedirectResponse("/", 303)
            response.set_cookie(
                COOKIE, self._token, httponly=True, samesite="strict", secure=scope["scheme"] == "https"
            )
            return response
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        cookies = [part.strip() for line in headers.getlist("cookie") for part in line.split(";")]
        values = [value for name, _, value in (cookie.partition("=") for cookie in cookies) if name == COOKIE]
        values += [bearer.strip()] * (scheme.lower() == "bearer")
        if not any([self._is_token(value) for value in values]):
            raise ApiError(
                401,
                "no_token",
                "A token is needed: open the address with ?token= that the server printed at its start.",
            )
        return None

    def _is_token(self, value: str) -> bool:
        return hmac.compare_digest(value.encode("utf-8", "replace"), self._token.encode())


def _name(host: str) -> str:
    """Returns the name in a `Host` header, without its port; "" for a wrong one."""
    try:
        parts = urlsplit(f"//{host}")
        port_is_valid = parts.port is None or parts.port >= 0
    except ValueError:
        return ""
    is_plain = not (parts.path or parts.query or parts.fragment or "@" in host)
    return (parts.hostname or "") if port_is_valid and is_plain else ""
