"""Pictures that clients send as queries: kept in memory for some minutes, never written to the disk."""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from keras_clip.search.server.errors import ApiError


@dataclass(frozen=True)
class Upload:
    """A picture that a client sent.

    Args:
        image: bytes of a PNG or WebP file that this server encoded itself.
        thumbnail: bytes of a WebP file.
        width: int, pixels of the picture as it came.
        height: int.
    """

    image: bytes
    thumbnail: bytes
    width: int
    height: int


class Uploads:
    """The latest uploads by token.

    Args:
        most: int, number of uploads; the oldest goes first.
        most_bytes: int, bytes of all together.
        seconds: float, how long an upload is kept.
        clock: function that returns seconds.
    """

    def __init__(
        self, most: int = 256, most_bytes: int = 64 * 2**20, seconds: float = 900, clock: Callable = time.monotonic
    ):
        self._most, self._most_bytes, self._seconds, self._clock = most, most_bytes, seconds, clock
        self._lock, self._uploads = threading.Lock(), OrderedDict()

    def add(self, upload: Upload) -> str:
        """Keeps an upload and returns its token, which nobody can guess."""
        token = secrets.token_urlsafe(18)
        with self._lock:
            self._uploads[token] = (self._clock() + self._seconds, upload)
            self._forget()
        return token

    def get(self, token: str) -> Upload:
        """Returns the upload of a token; an `ApiError` 404 if it is not there any more."""
        with self._lock:
            self._forget()
            entry = self._uploads.get(token)
        if entry is None:
            raise ApiError(404, "no_upload", "This picture was not sent, or some time ago. Send it again.")
        return entry[1]

    def _forget(self) -> None:
        now, uploads = self._clock(), self._uploads
        while uploads:
            end, _ = next(iter(uploads.values()))
            size = sum(len(upload.image) + len(upload.thumbnail) for _, upload in uploads.values())
            if end > now and len(uploads) <= self._most and size <= self._most_bytes:
                return
            uploads.popitem(last=False)
