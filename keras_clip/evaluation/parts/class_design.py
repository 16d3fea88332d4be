"""The part `class_design` of an evaluation."""

from keras_clip.evaluation.classifiers.zero_shot import PromptTable
from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.parts.part import Part
from keras_clip.evaluation.studies.class_design import class_design_rates


def run(case: Case) -> None:
    """How often each group gets a watched label under class sets that differ."""
    sets = case.task.class_sets
    names = list(dict.fromkeys(name for of_set in sets.values() for name in of_set))
    table = PromptTable(case.clip, [[name] for name in names], tuple(case.task.templates))
    test = case.splits.test
    scores = test.embeddings @ table.class_embeddings(case.task.templates).T
    rows = class_design_rates(scores, names, sets, test.groups, case.task.watched)
    case.results.tables[f"class_design/{case.name}"] = rows


PART = Part("class_design", "`class_sets`", lambda _, task: bool(task.class_sets), run, tables=("class_design/",))
