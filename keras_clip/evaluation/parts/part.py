"""What every part of an evaluation declares: what it needs, what it runs and which tables it fills."""

from collections.abc import Callable
from dataclasses import dataclass

from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.tasks import Splits, Task


@dataclass(frozen=True)
class Part:
    """One part of an evaluation.

    Args:
        name: what `evaluate(parts=...)` calls it.
        needs: what it needs of a task, in words, for messages.
        is_possible: function of `Splits` and `Task`: whether the task has that.
        run: function of a `Case`. It adds scores and tables to `case.results`.
        tables: names of the tables that it fills. One that ends in a slash has the name of the data set after it.
    """

    name: str
    needs: str
    is_possible: Callable[[Splits, Task], bool]
    run: Callable[[Case], None]
    tables: tuple[str, ...] = ()


ONE_CLASS = "one class per image"
TRAIN_OF_ONE_CLASS = "`train`, one class per image"


def has_one_class(splits: Splits, task: Task) -> bool:
    """Whether each image has one class, whose name is known."""
    return not splits.test.multi_label and splits.test.class_names is not None


def has_train_of_one_class(splits: Splits, task: Task) -> bool:
    """Whether there is a training split too, and each image has one class."""
    return splits.train is not None and has_one_class(splits, task)
