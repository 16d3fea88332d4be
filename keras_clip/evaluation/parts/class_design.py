"""The part `class_design` of an evaluation."""

from keras_clip.evaluation.classifiers.zero_shot import PromptTable
from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.parts.part import Part, ReportTable
from keras_clip.evaluation.studies.class_design import class_design_rates
from keras_clip.evaluation.studies.limits import class_set_disparity


def run(case: Case) -> None:
    """Adds the rate at which images of each group are assigned a watched class, and how far the groups differ."""
    sets = case.task.class_sets
    names = list(dict.fromkeys(name for class_names in sets.values() for name in class_names))
    table = PromptTable(case.clip, [[name] for name in names], tuple(case.task.templates))
    test = case.splits.test
    scores = test.embeddings @ table.class_embeddings(case.task.templates).T
    rows = class_design_rates(scores, names, sets, test.groups, case.task.watched)
    case.results.tables[f"class_design/{case.name}"] = rows
    if len(set(test.groups)) > 1:
        found = class_set_disparity(scores, names, sets, test.groups, case.task.watched)
        table = case.results.tables.setdefault("class_set_disparity", [])
        table.extend({"dataset": case.name, **row} for row in found)


PART = Part(
    "class_design",
    "`class_sets`",
    lambda _, task: bool(task.class_sets),
    run,
    tables=(
        ReportTable(
            "class_design/",
            "Class design",
            "How often each group is assigned one of the watched labels, for several class sets on the same images; "
            "and the largest difference between two groups (paper, section 7.1).",
        ),
        ReportTable("class_set_disparity", "Class design"),
    ),
)
