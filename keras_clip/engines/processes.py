"""Runs a task in several processes of this machine, and goes on with new ones if some are killed."""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import types
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any

from keras_clip.engines.engine import Task, check_workers

# An item that is being worked on when workers die may be the reason; after this number of times, the last time by
# itself, it is taken for it.
_ATTEMPTS = 3
# Set in the workers, so that the libraries of all of them together use as many threads as there are cores.
THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "RAYON_NUM_THREADS",
)

# The task of a worker process and its state.
_working: dict[str, Any] = {}


class Processes:
    """The engine for one machine.

    The processes are started anew, not forked, because a fork of a process with threads can hang: a script that uses
    this engine needs `if __name__ == "__main__":` around its calls.

    Args:
        workers: int >= 1. Number of processes. None: one for each core.
        main: bool. Whether the processes import the script that was started. False: tasks and items must not come from
            it, and it needs no `if __name__ == "__main__":`.

    Raises:
        ValueError: not a positive number.
    """

    def __init__(self, workers: int | None = None, main: bool = True):
        check_workers(workers)
        self.workers, self._main = workers, main

    def map(self, task: Task, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yields the results in the order in which items are done.

        Args:
            task: the task.
            items: the items, which are pickled.

        Returns:
            Iterator over (number of the item, result).

        Raises:
            TypeError: the task or an item cannot be sent to another process.
            RuntimeError: workers die again and again while they work on the same item.
        """
        if not items:
            return
        require_sendable(task)
        waiting, deaths = set(range(len(items))), Counter()
        while waiting:
            # The death of a worker ends the others too. Before an item is blamed, it is worked on by itself.
            alone = [number for number in sorted(waiting) if deaths[number] >= _ATTEMPTS - 1][:1]
            lost: list[int] = []
            for number, result in self._until_a_death(task, items, alone or sorted(waiting), lost):
                waiting.remove(number)
                yield number, result
            deaths.update(lost)
            if waiting & {*alone}:
                raise RuntimeError(
                    f"Workers must not die. Received: {deaths[alone[0]]} deaths while item {alone[0]}, "
                    f"{items[alone[0]]!r}, was worked on, the last time by itself. Often the memory is too small, or "
                    'a script has no `if __name__ == "__main__":` around its calls.'
                )

    def _until_a_death(
        self, task: Task, items: Sequence[Any], numbers: Sequence[int], lost: list[int]
    ) -> Iterator[tuple[int, Any]]:
        """Yields the results of some items. If workers die, ends, and adds those that were worked on to `lost`."""
        workers = min(self.workers or num_cores(), len(numbers))
        waiting, running = deque(numbers), {}
        executor, processes = _start(task, workers, self._main)
        try:
            while waiting or running:
                # None ahead of time: an item in a queue has no part in a death.
                while waiting and len(running) < workers:
                    future = executor.submit(_run, items[waiting[0]])
                    running[future] = waiting.popleft()
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                # Results that came before the death first.
                for future in sorted(done, key=lambda future: isinstance(future.exception(), BrokenProcessPool)):
                    result = future.result()
                    yield running.pop(future), result
        except BrokenProcessPool:
            lost += running.values() or waiting
        finally:
            _stop(executor, processes)


def num_cores() -> int:
    """Returns the number of cores that this process may use.

    Returns:
        int.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def require_sendable(task: Task) -> None:
    """Raises a TypeError if a task cannot be sent to another process."""
    try:
        pickle.dumps(task)
    except Exception as error:  # Objects raise many types of exceptions when they are pickled.
        raise TypeError(
            f"A task must be sent to other processes. Received: {type(task).__name__}, which cannot be pickled: "
            f'{error}. Use engine="serial".'
        ) from error


def _start(task: Task, workers: int, main: bool) -> tuple[ProcessPoolExecutor, list[Any]]:
    """Starts workers and returns their executor, and their processes, which it has no public name for."""
    others = multiprocessing.active_children()
    threads = str(max(1, num_cores() // workers))
    before = {name: os.environ.get(name) for name in THREADS}
    script = sys.modules["__main__"]
    # Libraries read these when they are loaded, which is before any code of ours runs in a worker.
    os.environ.update(dict.fromkeys(THREADS, threads))
    try:
        if not main:
            # A new process imports the file of this module.
            sys.modules["__main__"] = types.ModuleType("__main__")
        context = multiprocessing.get_context("spawn")
        executor = ProcessPoolExecutor(workers, context, _begin, (task,))
        # All processes start now, while the variables are set.
        for process in range(workers):
            executor.submit(_nothing, process)
        return executor, [each for each in multiprocessing.active_children() if each not in others]
    finally:
        sys.modules["__main__"] = script
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _stop(executor: ProcessPoolExecutor, processes: Sequence[Any]) -> None:
    """Ends the workers, also those in the middle of an item, whose output is written whole or not at all."""
    executor.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


def _begin(task: Task) -> None:
    # Ctrl-C reaches all processes of a terminal; the parent ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _working.clear()
    _working["task"] = task


def _end_with_parent() -> None:
    """Ends this process when its parent is killed; otherwise it would wait for items forever."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _run(item: Any) -> Any:
    # Here and not in `_begin`, so that its exception reaches the caller.
    if "state" not in _working:
        _working["state"] = _working["task"].start()
    return _working["task"].run(_working["state"], item)


def _nothing(process: int) -> int:
    return process
