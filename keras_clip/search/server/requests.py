"""Requests of the JSON API: bounded bodies, strict JSON, and fields that are checked by type and range."""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request

from keras_clip.search.server.errors import ApiError

# Bytes of a JSON body: the ids of 100,000 pictures take 700 kB.
MAX_JSON = 4 * 2**20
# Nesting of arrays and objects; a search needs 3.
MAX_DEPTH = 8
# The largest id: SQLite has no larger integer.
MAX_ID = 2**63 - 1
MAX_PICTURES = 200_000
_MISSING = object()
_ID = re.compile("0|[1-9][0-9]{0,18}")


async def body_of(request: Request, limit: int) -> bytes:
    """Reads a body of at most `limit` bytes, however it is sent.

    Args:
        request: the request.
        limit: int, bytes.

    Returns:
        bytes.

    Raises:
        ApiError: 413 if it is longer, which its header or its content may show; 400 for a wrong header.
    """
    declared = request.headers.get("content-length")
    if declared is not None and not (declared.isascii() and declared.isdigit()):
        raise ApiError(400, "bad_request", "Content-Length must be a number.")
    error = ApiError(413, "too_large", f"The body may have at most {limit:,} bytes. Send less at once.")
    if declared is not None and (len(declared) > 15 or int(declared) > limit):
        raise error
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise error
        parts.append(part)
    return b"".join(parts)


async def json_of(request: Request) -> Mapping[str, Any]:
    """Reads the JSON object of a request.

    Args:
        request: the request, of the type application/json.

    Returns:
        dict.

    Raises:
        ApiError: 415 for another type, 413 for a long body, 400 for what is not a JSON object in UTF-8, or one with
            NaN, a repeated name, or more than 8 levels.
    """
    # A page of another origin may send other types without asking (a "simple request"), but not this one.
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "not_json", "The body must be of the type application/json. Set the header Content-Type.")
    body = await body_of(request, MAX_JSON)
    try:
        text = body.decode("utf-8")
        if _depth(text) > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels of arrays and objects")
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "bad_json", f"The body must be a JSON object in UTF-8. Received: {error}.") from None
    if not isinstance(value, dict):
        raise ApiError(400, "bad_json", f"The body must be a JSON object. Received: {type(value).__name__}.")
    return value


def _refuse(name):
    raise ValueError(f"{name}, which is not JSON")


def _finite(text):
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]}, which is too large")
    return value


def _unique(pairs):
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object with a name that occurs twice")
    return result


def _depth(text: str) -> int:
    """Returns the largest number of open brackets outside strings, without recursion."""
    depth = deepest = 0
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', text, re.DOTALL):
        first = token[0][0]
        depth += (first in "[{") - (first in "]}")
        deepest = max(deepest, depth)
    return deepest


def id_of(text: str) -> int:
    """Returns the id in a path: a decimal integer of at least 0 without sign, spaces or leading zeros.

    Args:
        text: str.

    Returns:
        int.

    Raises:
        ApiError: 404 for anything else, which is no id of a picture or class.
    """
    if not _ID.fullmatch(text) or int(text) > MAX_ID:
        raise ApiError(
            404, "not_found", f"There is nothing here: an id is a number of at least 0. Received: {text[:40]!r}."
        )
    return int(text)


class Fields:
    """The fields of a JSON object, each of which is taken once, with a check; `end` refuses those that are left.

    Args:
        value: the object.
        path: str, where it is in the body, for messages.
    """

    def __init__(self, value: Any, path: str = ""):
        if not isinstance(value, dict):
            raise ApiError(400, "bad_field", f"`{path}` must be an object. Received: {_brief(value)}.")
        self._left, self._path = dict(value), path

    def take(self, name: str, check: Callable[[Any, str], Any], default: Any = _MISSING) -> Any:
        """Returns a checked field.

        Args:
            name: its name.
            check: function of its value and its path for messages, which returns the value or raises an `ApiError`.
            default: what is returned if the field is missing, or null; without one it must be there.

        Returns:
            What `check` returns, or the default.
        """
        value = self._left.pop(name, _MISSING)
        path = f"{self._path}.{name}" if self._path else name
        if value is _MISSING or (value is None and default is not _MISSING):
            if default is _MISSING:
                raise ApiError(400, "missing_field", f"`{path}` is missing.")
            return default
        return check(value, path)

    def has(self, name: str) -> bool:
        """Whether the field is there and has not been taken."""
        return name in self._left

    def end(self) -> None:
        """Raises an `ApiError` if a field is left: it is misspelled, and would have no effect."""
        if self._left:
            raise ApiError(
                400, "unknown_field", f"Unknown fields in {self._path or 'the body'}: {_brief(sorted(self._left))}."
            )


def text(shortest: int = 0, longest: int = 2000) -> Callable:
    """A check: valid Unicode of a number of characters."""

    def check(value, path):
        if not isinstance(value, str) or not shortest <= len(value) <= longest or _surrogates(value):
            raise ApiError(
                400,
                "bad_field",
                f"`{path}` must be a text of {shortest} to {longest} characters. Received: {_brief(value)}.",
            )
        return value

    return check


def number(low: float, high: float) -> Callable:
    """A check: a number in a range."""

    def check(value, path):
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ApiError(
                400, "bad_field", f"`{path}` must be a number from {low} to {high}. Received: {_brief(value)}."
            )
        return float(value)

    return check


def integer(low: int, high: int) -> Callable:
    """A check: an integer in a range."""

    def check(value, path):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ApiError(
                400, "bad_field", f"`{path}` must be an integer from {low} to {high}. Received: {_brief(value)}."
            )
        return value

    return check


def one_of(*choices: Any) -> Callable:
    """A check: one of some values, of the same type."""

    def check(value, path):
        for choice in choices:
            if type(value) is type(choice) and value == choice:
                return choice
        raise ApiError(
            400, "bad_field", f"`{path}` must be one of {', '.join(map(_json, choices))}. Received: {_brief(value)}."
        )

    return check


def array(check_item: Callable, longest: int, shortest: int = 0) -> Callable:
    """A check: an array of a number of items, each of which passes a check."""

    def check(value, path):
        if not isinstance(value, list) or not shortest <= len(value) <= longest:
            raise ApiError(
                400,
                "bad_field",
                f"`{path}` must be an array of {shortest:,} to {longest:,} items. Received: {_brief(value)}.",
            )
        return [check_item(item, f"{path}[{place}]") for place, item in enumerate(value)]

    return check


def picture_ids(value: Any, path: str) -> list[int]:
    """A check: an array of ids of pictures, each once."""
    return list(dict.fromkeys(array(integer(0, MAX_ID), MAX_PICTURES)(value, path)))


def _surrogates(value: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in value)


def _json(value):
    return json.dumps(value)


def _brief(value):
    kind = {list: "an array", dict: "an object", str: "a text"}.get(type(value))
    size = f"{kind} of length {len(value):,}" if kind else ""
    shown = json.dumps(value) if not kind or len(value) < 40 else ""
    return shown if 0 < len(shown) <= 120 else size or f"{shown[:120]}..."
