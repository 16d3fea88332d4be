"""Work that is done in a thread beside the training, such as writing a file."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Runs functions one after another in a thread. The interpreter does not exit before the last one has ended."""

    def __init__(self):
        self._threads: ThreadPoolExecutor | None = None
        self._running: Future | None = None

    def start(self, function: Callable[..., None], *args) -> None:
        """Starts a function, after the one before it has ended.

        Args:
            function: the function; what it reads must not change before `wait` returns.
            *args: its arguments.

        Raises:
            Exception: the one that the function before it raised.
        """
        self.wait()
        self._threads = self._threads or ThreadPoolExecutor(1, "keras_clip background")
        self._running = self._threads.submit(function, *args)

    def wait(self) -> None:
        """Waits until the function has ended, and raises the exception that it raised, once."""
        running, self._running = self._running, None
        if running is not None:
            running.result()
