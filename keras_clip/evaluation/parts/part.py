"""The declaration of one part of an evaluation: the data that it requires, its run function and its tables."""

from collections.abc import Callable
from dataclasses import dataclass

from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.tasks import Splits, Task


@dataclass(frozen=True)
class ReportTable:
    """The declaration of a table that a part fills: the report shows the table, or the figure of its name, by it.

    Args:
        name: its name in `Results.tables`. A name that ends in a slash stands for a table per dataset: "errors/digits".
        heading: heading of the section of the report. Tables with equal headings share a section.
        note: text below the heading.
    """

    name: str
    heading: str
    note: str = ""


@dataclass(frozen=True)
class Part:
    """One part of an evaluation.

    Args:
        name: its name in `evaluate(parts=...)`.
        needs: description of the data that it requires, for error messages.
        is_possible: function of the splits and the `Task` that returns whether the task has these data. It is called
            before anything is encoded: the splits are those of the task itself.
        run: function of a `Case` that adds scores and tables to `case.results`.
        tables: `ReportTable` of each table that it fills.
    """

    name: str
    needs: str
    is_possible: Callable[[Splits | Task, Task], bool]
    run: Callable[[Case], None]
    tables: tuple[ReportTable, ...] = ()

    def __call__(self, case: Case) -> None:
        """Runs the part, and adds the declarations of its tables to the results, from which the report reads them."""
        declared = case.results.info.setdefault("tables", {})
        declared |= {table.name: {"heading": table.heading, "note": table.note} for table in self.tables}
        self.run(case)


ONE_CLASS = "one class per image"
TRAIN_OF_ONE_CLASS = "`train`, one class per image"


def has_one_class(splits: Splits | Task, task: Task) -> bool:
    """Returns whether each image has one class and the class names are known."""
    return not splits.test.multi_label and splits.test.class_names is not None


def has_train_of_one_class(splits: Splits | Task, task: Task) -> bool:
    """Returns whether there is a training split, each image has one class and the class names are known."""
    return splits.train is not None and has_one_class(splits, task)
