"""Runs a task in this process, and goes on in several as soon as that saves time."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from keras_clip.engines.engine import Task
from keras_clip.engines.processes import Processes, num_cores, require_sendable
from keras_clip.engines.serial import Serial

# Seconds in which processes start and import this package.
_START = 4.0
# Processes must save this many times the time of their start: the estimate is rough, and other programs want cores too.
_MARGIN = 2.0


class Auto:
    """The engine that is chosen by how long the first items take, whatever their number.

    A task that uses an accelerator stays in this process: each of several would load the model, and one uses all cores
    itself. So does a task that cannot be pickled.
    """

    def map(self, task: Task, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yields the results in the order in which items are done.

        Args:
            task: the task.
            items: the items.

        Returns:
            Iterator over (number of the item, result).

        Raises:
            RuntimeError: as of `Processes.map`.
        """
        if num_cores() == 1 or getattr(task, "uses_accelerator", False) or not _is_sendable(task):
            yield from Serial().map(task, items)
            return
        if not items:
            return
        before = time.monotonic()
        state = task.start()
        startup, spent = time.monotonic() - before, 0.0
        for number, item in enumerate(items):
            if number and is_worth_it(spent / number, len(items) - number, startup, num_cores()):
                rest = Processes().map(task, items[number:])
                yield from ((number + place, result) for place, result in rest)
                return
            before = time.monotonic()
            result = task.run(state, item)
            spent += time.monotonic() - before
            yield number, result


def is_worth_it(seconds: float, left: int, startup: float, cores: int) -> bool:
    """Returns whether the rest of the items is better done in several processes.

    Args:
        seconds: mean time of an item in this process.
        left: int, number of items that are left.
        startup: seconds in which a worker loads what the task needs.
        cores: int, number of processes.

    Returns:
        bool.
    """
    workers = min(cores, left)
    return workers > 1 and seconds * (left - -(-left // workers)) > _MARGIN * (_START + startup)


def _is_sendable(task: Task) -> bool:
    try:
        require_sendable(task)
    except TypeError:
        return False
    return True
