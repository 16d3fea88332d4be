"""Work off the event loop: threads with a bounded number of calls that wait."""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from keras_clip.search.server.errors import ApiError


class Worker:
    """Runs calls in its own threads, in the order in which they come.

    A call whose client has gone is not begun; one that runs is not interrupted.

    Args:
        name: str, what it does, for the names of its threads and for messages.
        threads: int, how many calls run at the same time.
        waiting: int, how many more may wait.
    """

    def __init__(self, name: str, threads: int, waiting: int):
        self._name, self._most = name, threads + waiting
        self._running = 0
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, function: Callable, *arguments: Any) -> Any:
        """Returns what the function returns.

        Args:
            function: called in a thread.
            *arguments: its arguments.

        Returns:
            Its result.

        Raises:
            ApiError: 503 if too many calls wait. What the function raises.
        """
        if self._running >= self._most:
            raise ApiError(503, "busy", f"The server is busy: {self._most} calls of {self._name} wait. Try again.")
        self._running += 1
        future = self._pool.submit(functools.partial(function, *arguments))
        future.add_done_callback(functools.partial(_call_soon, asyncio.get_running_loop(), self._ended))
        return await asyncio.wrap_future(future)

    def _ended(self) -> None:
        self._running -= 1

    def close(self) -> None:
        """Cancels what waits and lets the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _call_soon(loop, function, _):
    # The loop is closed when the server has stopped.
    if not loop.is_closed():
        loop.call_soon_threadsafe(function)
