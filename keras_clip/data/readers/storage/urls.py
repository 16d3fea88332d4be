"""The URLs of remote files."""

import re
from typing import Any

# Protocols of remote files, and the package that fsspec needs for each.
PROTOCOLS = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
}
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def protocol_of(path: str) -> str:
    """Returns the protocol of a URL, "" of another path."""
    match = _URL.match(path)
    return match[1].lower() if match else ""


def is_remote(path: Any) -> bool:
    """Returns whether a path is the URL of a remote file."""
    return isinstance(path, str) and protocol_of(path) in PROTOCOLS
