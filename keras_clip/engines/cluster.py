"""Runs a task on a cluster by Ray, and goes on when workers or whole machines are lost, or others join."""

import os
import socket
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

from keras_clip.engines.engine import Task, check_workers
from keras_clip.engines.processes import THREADS

# An item that is being worked on when workers die may be the reason; after this number of times it is taken for it.
_ATTEMPTS = 3
# Seconds between two looks for cores that joined the cluster.
_LOOK = 5
# Seconds in which a cluster must answer.
_ANSWER = 10
# The begin of a connection to a gRPC server, which answers with its settings (RFC 9113, sections 3.4 and 4.1).
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS_FRAME = b"\x04"
# Workers that die before they have started, in a row.
_FAILED_STARTS = 10
# Settings of this process that its workers on other machines need too.
_SETTINGS = ("KERAS_BACKEND", "KERAS_HOME", "TF_CPP_MIN_LOG_LEVEL", "XLA_FLAGS")


class Ray:
    """The engine for a cluster.

    A worker is a Ray actor, which keeps what the task loads at its start. All machines need the same versions of
    keras_clip and Python, and must see the files of the task under the same paths.

    Args:
        address: str. Address of the cluster, as of `ray.init`, or "auto" for the cluster that this machine belongs to.
            None: the cluster in the environment variable RAY_ADDRESS, or else this machine alone.
        workers: int >= 1. Number of workers. None: one for each core of the cluster, or for each GPU if the task uses
            one and the cluster has some; machines may join later.

    Raises:
        ImportError: Ray is not installed.
        ValueError: not a positive number.
    """

    def __init__(self, address: str | None = None, workers: int | None = None):
        check_workers(workers)
        _require_ray()
        self.address, self.workers = address, workers

    def map(self, task: Task, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yields the results in the order in which items are done.

        Args:
            task: the task.
            items: the items, which are pickled.

        Returns:
            Iterator over (number of the item, result).

        Raises:
            ConnectionError: there is no cluster at the address.
            RuntimeError: workers die again and again while they work on the same item, or before they start.
        """
        if items:
            yield from _Run(self._connect(), task, items, self.workers)

    def _connect(self) -> Any:
        ray = _require_ray()
        if not ray.is_initialized():
            _require_answer(self.address or os.environ.get("RAY_ADDRESS"))
            try:
                ray.init(self.address, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
            except ValueError:
                # Ray refuses other options for a cluster that runs already.
                ray.init(self.address, log_to_driver=False, logging_level="ERROR")
        return ray


class _Run:
    """One call of `Ray.map`: which worker works on which item."""

    def __init__(self, ray: Any, task: Task, items: Sequence[Any], workers: int | None):
        self._ray, self._items, self._workers = ray, items, workers
        has_gpus = ray.cluster_resources().get("GPU", 0) >= 1
        self._resource = "GPU" if getattr(task, "uses_accelerator", False) and has_gpus else "CPU"
        settings = {name: os.environ[name] for name in _SETTINGS if name in os.environ}
        threads = dict.fromkeys(THREADS, "1") if self._resource == "CPU" else {}
        self._actor = ray.remote(_Worker).options(
            num_cpus=1,
            num_gpus=1 if self._resource == "GPU" else 0,
            max_restarts=0,
            runtime_env={"env_vars": {**threads, **settings}},
        )
        self._task = ray.put(task)
        self._waiting, self._deaths, self._failed_starts = deque(range(len(items))), Counter(), 0
        self._starting: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, int]] = {}

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        try:
            while self._waiting or self._running:
                self._recruit()
                done, _ = self._ray.wait([*self._running, *self._starting], timeout=_LOOK)
                for reference in done:
                    if reference in self._starting:
                        self._join(reference)
                    else:
                        yield from self._finish(reference)
        finally:
            for actor in [*self._starting.values(), *self._idle, *(actor for actor, _ in self._running.values())]:
                self._ray.kill(actor)

    def _recruit(self) -> None:
        """Starts as many workers as there is room and work for, and gives items to those that are idle."""
        room = self._workers or max(1, int(self._ray.cluster_resources().get(self._resource, 0)))
        present = len(self._starting) + len(self._idle) + len(self._running)
        for _ in range(min(room - present, len(self._waiting) - len(self._starting) - len(self._idle))):
            actor = self._actor.remote(self._task)
            self._starting[actor.ready.remote()] = actor
        while self._idle and self._waiting:
            actor, number = self._idle.pop(), self._waiting.popleft()
            self._running[actor.run.remote(self._items[number])] = actor, number

    def _join(self, reference: Any) -> None:
        actor = self._starting.pop(reference)
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                raise RuntimeError(f"Workers must start. Received: {_FAILED_STARTS} that did not: {error}") from None
            return
        self._failed_starts = 0
        self._idle.append(actor)

    def _finish(self, reference: Any) -> Iterator[tuple[int, Any]]:
        actor, number = self._running.pop(reference)
        try:
            result = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            # The worker, or its machine, was lost.
            self._waiting.appendleft(number)
            self._deaths[number] += 1
            if self._deaths[number] >= _ATTEMPTS:
                raise RuntimeError(
                    f"Workers must not die. Received: {_ATTEMPTS} deaths while item {number}, "
                    f"{self._items[number]!r}, was worked on: {error}"
                ) from None
            return
        self._idle.append(actor)
        yield number, result


class _Worker:
    """The actor."""

    def __init__(self, task: Task):
        self._task, self._state, self._has_started = task, None, False

    def ready(self) -> None:
        """Returns when the worker has started."""

    def run(self, item: Any) -> Any:
        if not self._has_started:
            self._state, self._has_started = self._task.start(), True
        return self._task.run(self._state, item)


def _require_answer(address: str | None) -> None:
    """Raises a ConnectionError if nothing answers at an address; Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    # With TLS, the answer could not be read.
    if not host or not port.isdecimal() or os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER) as connection:
            connection.sendall(_PREFACE)
            # The fourth byte of the header of a frame is its type.
            if connection.recv(9, socket.MSG_WAITALL)[3:4] != _SETTINGS_FRAME:
                raise OSError("what answers is no gRPC server")
    except OSError as error:
        raise ConnectionError(
            f"A Ray cluster must answer. Received: address={address!r}: {error}. Start one by `ray start --head`, or "
            "name its address."
        ) from None


def _require_ray() -> Any:
    # Counting how Ray is used would send data to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            'Clusters are used by Ray, which is not installed. pip install "keras_clip[cluster]"'
        ) from error
    return ray
