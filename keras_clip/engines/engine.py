"""The interfaces of a task and of an engine that runs it on many items."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol


class Task(Protocol):
    """Work to be done on each item, independently of other items.

    A task is sent to the workers by pickling it once, so it is an object of a class or a function at the top level of
    a module and holds only little data. Its results and items are sent too.

    Attributes:
        uses_accelerator: bool. Whether a worker needs a GPU, where a cluster has some.
    """

    uses_accelerator: bool = False

    def start(self) -> Any:
        """Loads what a worker uses for all its items, such as a model.

        Returns:
            Any object, which stays in the worker.
        """
        return None

    def run(self, state: Any, item: Any) -> Any:
        """Does the work.

        It must be possible to repeat it: if a worker dies, its item is given to another.

        Args:
            state: the result of `start` in this worker.
            item: the item.

        Returns:
            The result, which must be small.
        """


class Engine(Protocol):
    """Runs a task on items."""

    def map(self, task: Task, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yields the results in the order in which items are done, which may be any.

        An exception of the task ends the iteration. If the iteration is abandoned, the workers end.

        Args:
            task: the task.
            items: the items.

        Returns:
            Iterator over (number of the item, result).
        """


def check_workers(workers: int | None) -> None:
    """Raises a ValueError unless the number of workers is a positive integer, or None."""
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise ValueError(f"`workers` must be a positive integer, or None. Received: workers={workers!r}.")
