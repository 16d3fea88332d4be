"""Files of object stores and web servers, read in ranges by fsspec, with retries and a local cache.

Credentials and options are those of fsspec: environment variables and configuration files of each provider, or
`fsspec.config.conf`. Nothing that a server sends is executed or used as a path. A response that is longer than what was
requested is refused, and https is never left for http.
"""

import functools
import hashlib
import io
import os
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np

from keras_clip.data.readers.storage.block_cache import BLOCK_BYTES, BlockCache
from keras_clip.data.readers.storage.urls import PROTOCOLS, is_remote, protocol_of

# Ranges that are requested at the same time.
_CONNECTIONS = 64
# Ranges of a file with at most this many bytes between them are requested as one, up to a size.
_GAP_BYTES, _RANGE_BYTES = 1 << 16, 1 << 23
# A request is repeated after 0.1, 0.2, 0.4 ... up to 20 seconds: in all, some two minutes.
_ATTEMPTS, _FIRST_DELAY, _LONGEST_DELAY = 12, 0.1, 20.0
# When a source is opened, a wrong name should be an error soon.
_ATTEMPTS_TO_OPEN = 4
# With a smaller cache, the blocks of a window of `shuffle="blocks"` would push one another out.
_WINDOW_BYTES = 256 << 20
# Blocks that are fetched ahead of one that is read in sequence.
_BLOCKS_AHEAD = 8
# Responses of servers that may answer later.
_PASSING = (408, 425, 429)
_SECONDS_SILENT = 60
# What file systems call the version of a file.
_VERSIONS = ("ETag", "etag", "generation", "md5Hash", "blob_id", "LastModified", "updated", "mtime", "last_modified")


def find_urls(pattern: str) -> list[str]:
    """Returns the URLs that a pattern matches, in order.

    Args:
        pattern: a URL, with `*` where the protocol can list files.

    Returns:
        The URLs; none if nothing matches.

    Raises:
        ImportError: the package for the protocol is not installed.
        ValueError: `*` in a web address.
    """
    protocol = protocol_of(pattern)
    if "*" not in pattern:
        return [pattern]
    if protocol.startswith("http"):
        raise ValueError(
            f"Web servers cannot list their files. Received: {pattern!r}. Name them by braces, such as "
            "{00000..00031}.tar, or in a list."
        )
    files = filesystem(pattern)
    found = _repeated(lambda: files.glob(pattern), pattern, _ATTEMPTS_TO_OPEN)
    return [f"{protocol}://{path.removeprefix(f'{protocol}://')}" for path in sorted(found)]


def open_binary(path: str) -> BinaryIO:
    """Opens a local or remote file to read it."""
    return io.BufferedReader(RemoteFile(path), BLOCK_BYTES) if is_remote(path) else open(path, "rb")


def stamp(path: str) -> tuple[int, int]:
    """Returns the size of a file in bytes, and a number that changes with its content.

    Args:
        path: path or URL of the file.

    Returns:
        (int, int). The second is the time of the last change in nanoseconds, or a digest of the version of a URL.

    Raises:
        FileNotFoundError: there is no such file.
        OSError, ValueError: the server does not answer, or does not give ranges.
    """
    if not is_remote(path):
        stat = os.stat(path)
        return stat.st_size, stat.st_mtime_ns
    files = filesystem(path)
    about = _repeated(lambda: files.info(path), path, _ATTEMPTS_TO_OPEN)
    if about.get("size") is None or about.get("type") == "directory":
        raise ValueError(f"A remote source must be files whose size is known. Received: {path!r}.")
    version = next((str(about[name]) for name in _VERSIONS if about.get(name)), "")
    return int(about["size"]), int.from_bytes(hashlib.sha256(version.encode()).digest()[:7], "little")


def stamps(paths: Sequence[str]) -> list[tuple[int, int]]:
    """Returns the `stamp` of each file; those of remote files are requested at the same time."""
    if any(map(is_remote, paths)):
        return list(_pool().map(stamp, paths))
    return list(map(stamp, paths))


def filesystem(url: str) -> Any:
    """Returns the file system of fsspec for a URL.

    Raises:
        ImportError: it is not installed.
    """
    protocol = protocol_of(url)
    try:
        if protocol.startswith("http"):
            return _web_filesystem()
        import fsspec

        return fsspec.filesystem(protocol)
    except ImportError as error:
        raise ImportError(
            f"{url} is read by fsspec and {PROTOCOLS[protocol]}, which are not installed. "
            f'pip install "keras_clip[remote]" {PROTOCOLS[protocol]}'
        ) from error


def read_range(url: str, start: int, stop: int, attempts: int = _ATTEMPTS) -> bytes:
    """Returns the bytes of a file from `start` up to `stop`.

    A request that fails or is cut is repeated.

    Args:
        url: the file.
        start: place of the first byte.
        stop: place after the last byte.
        attempts: how often it is tried.

    Returns:
        bytes, `stop - start` of them.

    Raises:
        OSError: all attempts failed.
    """
    if start >= stop:
        return b""
    files = filesystem(url)

    def read() -> bytes:
        content = files.cat_file(url, start=start, end=stop)
        if len(content) != stop - start:
            raise ConnectionError(f"{len(content):,} of {stop - start:,} bytes arrived")
        return content

    return _repeated(read, url, attempts)


def _repeated(request: Callable[[], Any], url: str, attempts: int) -> Any:
    """Returns the result of a request, which is repeated with growing delays if its failure may pass."""
    for attempt in range(attempts):
        try:
            return request()
        except Exception as error:  # Each protocol raises exceptions of its own libraries.
            if not _may_pass(error):
                raise
            failure = error
        if attempt + 1 < attempts:
            # The delays are random, so that the processes of a job do not come back all at the same time.
            time.sleep(min(_LONGEST_DELAY, _FIRST_DELAY * 2**attempt) * random.uniform(0.5, 1))
    raise OSError(
        f"A remote source must answer. Received: {url}, {attempts} times without success, at last "
        f"{type(failure).__name__}: {failure}. Start again when it does: a training resumes at its last checkpoint."
    ) from failure


def _may_pass(error: Exception) -> bool:
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status in _PASSING
    if isinstance(error, (FileNotFoundError, PermissionError, ImportError, TypeError, ValueError, NotImplementedError)):
        return False
    return "Credential" not in type(error).__name__


def check_redirect(url: str, target: str) -> None:
    """Raises a ValueError if a web server leads from https to another protocol."""
    if protocol_of(url) == "https" and protocol_of(urllib.parse.urljoin(url, target)) != "https":
        raise ValueError(f"https must not be left. Received: {url}, which leads to {target[:200]!r}.")


@functools.lru_cache(maxsize=1)
def _web_class() -> type:
    """The file system of fsspec for web servers, with limits."""
    import aiohttp
    from fsspec.implementations.http import HTTPFileSystem

    async def check(session: Any, context: Any, about: Any) -> None:
        check_redirect(str(about.url), about.response.headers.get("Location", ""))

    async def client(loop: Any = None, **options: Any) -> Any:
        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(check)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SECONDS_SILENT, sock_read=_SECONDS_SILENT)
        connector = aiohttp.TCPConnector(limit=_CONNECTIONS)
        return aiohttp.ClientSession(
            **{"timeout": timeout, "connector": connector, "trace_configs": [trace], **options}
        )

    class Web(HTTPFileSystem):
        """Requests ranges only, and reads no more than it requested."""

        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **{"get_client": client, **options})

        async def _cat_file(self, url: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
            return (await self._range(url, start or 0, end))[0]

        async def _info(self, url: str, **options: Any) -> dict[str, Any]:
            _, headers = await self._range(url, 0, 1)
            total = headers.get("Content-Range", "").rpartition("/")[2]
            size = total if total.isdecimal() else headers.get("Content-Length")
            version = headers.get("ETag") or headers.get("Last-Modified")
            return {"name": url, "size": int(size), "type": "file", "ETag": version}

        async def _range(self, url: str, start: int, end: int) -> tuple[bytes, Any]:
            options = {**self.kwargs}
            asked = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
            options["headers"] = {**options.get("headers", {}), **asked}
            session = await self.set_session()
            async with session.get(self.encode_url(url), **options) as response:
                if response.status in (404, 410):
                    raise FileNotFoundError(url)
                response.raise_for_status()
                given = re.match(r"bytes (\d+)-(\d+)/", response.headers.get("Content-Range", ""))
                is_whole = response.status == 200 and start == 0 and response.content_length in range(end + 1)
                if not is_whole and (response.status != 206 or given is None or int(given[1]) != start):
                    raise ValueError(
                        "A web server must give ranges of its files. "
                        f"Received: {url}, which answered with status {response.status}. Download the file first."
                    )
                content = bytearray()
                async for chunk in response.content.iter_any():
                    content += chunk
                    if len(content) > end - start:
                        raise ValueError(f"A web server must send no more than was requested. Received: {url}.")
                return bytes(content), response.headers

    return Web


def _web_filesystem() -> Any:
    return _web_class()()


class RemoteShards:
    """Reads parts of remote files, many at a time.

    Ranges that are near to one another are requested as one. If the files fit into the cache, or if neighbours are
    needed soon, whole blocks are fetched and kept there.

    Args:
        urls: the files.
        sizes: bytes of each.
        versions: the second part of the `stamp` of each.
    """

    def __init__(self, urls: Sequence[str], sizes: Sequence[int], versions: Sequence[int]):
        self._urls, self._sizes, self._versions = list(urls), list(map(int, sizes)), list(map(int, versions))
        self.uses_blocks = sum(self._sizes) <= BlockCache.default().limit

    def expect_neighbours(self) -> None:
        """States that samples near to one another are needed soon after one another: blocks are worth keeping."""
        self.uses_blocks = self.uses_blocks or BlockCache.default().limit >= _WINDOW_BYTES

    def read(self, shards: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> list[list[bytes]]:
        """Returns parts of samples.

        Args:
            shards: int64 (B,). Number of the file of each sample.
            offsets: int64 (B, P). Where the parts are.
            sizes: int64 (B, P). Bytes of the parts.

        Returns:
            P lists of B bytes.

        Raises:
            OSError: a file cannot be read.
        """
        places = [
            (shard, offset, offset + size)
            for column in range(offsets.shape[1])
            for shard, offset, size in zip(
                shards.tolist(), offsets[:, column].tolist(), sizes[:, column].tolist(), strict=True
            )
        ]
        found = self._in_blocks(places) if self.uses_blocks else self._in_ranges(places)
        count = len(shards)
        return [found[part * count : (part + 1) * count] for part in range(offsets.shape[1])]

    def _in_blocks(self, places: Sequence[tuple[int, int, int]]) -> list[bytes]:
        wanted = {
            (shard, block)
            for shard, start, stop in places
            if stop > start
            for block in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
        }
        arriving = {place: fetch_block(*self._file(place[0]), place[1]) for place in sorted(wanted)}
        # None of blocks that are in the cache.
        arrived = {place: future.result() for place, future in arriving.items()}
        return [self._from_blocks(arrived, *place) for place in places]

    def _file(self, shard: int) -> tuple[str, int, int]:
        return self._urls[shard], self._sizes[shard], self._versions[shard]

    def _from_blocks(self, arrived: dict[tuple[int, int], bytes | None], shard: int, start: int, stop: int) -> bytes:
        found = []
        for block in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES) if stop > start else 0):
            first, last = max(0, start - block * BLOCK_BYTES), stop - block * BLOCK_BYTES
            content = arrived[shard, block]
            if content is None:
                found.append(read_block(*self._file(shard), block, first, last))
            else:
                found.append(content[first:last])
        return b"".join(found)

    def _in_ranges(self, places: Sequence[tuple[int, int, int]]) -> list[bytes]:
        ranges: list[list[int]] = []
        for shard, start, stop in sorted(place for place in places if place[2] > place[1]):
            last = ranges[-1] if ranges else None
            if last and last[0] == shard and start - last[2] <= _GAP_BYTES and stop - last[1] <= _RANGE_BYTES:
                last[2] = max(last[2], stop)
            else:
                ranges.append([shard, start, stop])
        arriving = [_pool().submit(read_range, self._urls[shard], start, stop) for shard, start, stop in ranges]
        keys = np.array([(shard, start) for shard, start, _ in ranges], [("shard", "<i8"), ("start", "<i8")])
        contents = [future.result() for future in arriving]
        found = []
        for shard, start, stop in places:
            if stop <= start:
                found.append(b"")
                continue
            number = int(np.searchsorted(keys, np.array((shard, start), keys.dtype), side="right")) - 1
            begin = start - ranges[number][1]
            found.append(contents[number][begin : begin + stop - start])
        return found


class RemoteFile(io.RawIOBase):
    """A remote file that is read in sequence, in blocks that are fetched ahead and kept in the cache.

    Args:
        url: the file.
    """

    def __init__(self, url: str):
        self._url, (self._size, self._version) = url, stamp(url)
        self._place = 0
        # The block that was read last, and those after it, which are on their way.
        self._blocks: dict[int, Future] = {}

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to a place; returns it."""
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def tell(self) -> int:
        """Returns the place."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Reads up to the end of a block; returns the number of bytes."""
        block, start = divmod(self._place, BLOCK_BYTES)
        count = min(len(buffer), BLOCK_BYTES - start, max(0, self._size - self._place))
        if count:
            whole = self._block(block)
            if whole is None:
                buffer[:count] = read_block(self._url, self._size, self._version, block, start, start + count)
            else:
                buffer[:count] = whole[start : start + count]
            self._place += count
        return count

    def _block(self, block: int) -> bytes | None:
        """A block, None if it is in the cache. Of a file that is read in sequence, the next ones are requested."""
        is_next = block in self._blocks or not block
        last = min(block + _BLOCKS_AHEAD * is_next, (self._size - 1) // BLOCK_BYTES)
        wanted = range(block, last + 1)
        self._blocks = {number: future for number, future in self._blocks.items() if number in wanted}
        for number in wanted:
            if number not in self._blocks:
                self._blocks[number] = fetch_block(self._url, self._size, self._version, number)
        if not is_next and last * BLOCK_BYTES + BLOCK_BYTES < self._size:
            # Then the following block counts as in sequence.
            self._blocks[block + 1] = fetch_block(self._url, self._size, self._version, block + 1)
        return self._blocks[block].result()


_fetching: dict[tuple, Future] = {}
_fetching_lock = threading.Lock()


def fetch_block(url: str, size: int, version: int, block: int) -> Future:
    """Fetches a block into the cache, unless it is there or on its way.

    Args:
        url: the file.
        size: its bytes.
        version: the second part of its `stamp`.
        block: number of the block.

    Returns:
        Future of the content, which is None if the block is in the cache.
    """
    name, cache = _block_name(url, size, version, block), BlockCache.default()
    with _fetching_lock:
        if (future := _fetching.get(name)) is not None:
            return future
        if cache.has(name):
            future = Future()
            future.set_result(None)
            return future
        future = _fetching[name] = _pool().submit(_fetch, cache, name, url, size, block)
    future.add_done_callback(lambda _: _fetching.pop(name, None))
    return future


def _fetch(cache: BlockCache, name: str, url: str, size: int, block: int) -> bytes:
    start = block * BLOCK_BYTES
    content = read_range(url, start, min(size, start + BLOCK_BYTES))
    cache.write(name, content)
    return content


def read_block(url: str, size: int, version: int, block: int, start: int, stop: int) -> bytes:
    """Returns the bytes of a block from `start` up to `stop`, from the cache, or fetched if they are not there."""
    name, cache = _block_name(url, size, version, block), BlockCache.default()
    # In between, it may be found to be damaged, or be removed by another process.
    for _ in range(3):
        whole = fetch_block(url, size, version, block).result()
        content = cache.read(name, start, stop) if whole is None else whole[start:stop]
        if content is not None:
            return content
    first = block * BLOCK_BYTES
    return read_range(url, first + start, min(size, first + BLOCK_BYTES, first + stop))


def _block_name(url: str, size: int, version: int, block: int) -> str:
    return hashlib.sha256(f"{url}\0{size}\0{version}\0{block}".encode("utf-8", "surrogateescape")).hexdigest()[:40]


@functools.lru_cache(maxsize=1)
def _pool_of(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_CONNECTIONS, "remote")


def _pool() -> ThreadPoolExecutor:
    # The threads of a process do not exist in its forks.
    return _pool_of(os.getpid())
