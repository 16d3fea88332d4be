"""Runs a task in this process, one item after the other."""

from collections.abc import Iterator, Sequence
from typing import Any

from keras_clip.engines.engine import Task


class Serial:
    """The engine for few items, and for tasks that cannot be sent to other processes."""

    def map(self, task: Task, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yields the results in the order of the items.

        Args:
            task: the task.
            items: the items.

        Returns:
            Iterator over (number of the item, result).
        """
        if not items:
            return
        state = task.start()
        for number, item in enumerate(items):
            yield number, task.run(state, item)
