"""The part `class_design` of an evaluation."""

from keras_clip.evaluation.classifiers.zero_shot import PromptTable
from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.parts.part import Part
from keras_clip.evaluation.studies.class_design import class_design_rates


def run(case: Case) -> None:
    """Adds the rate at which images of each group are assigned a watched class, for each set of classes."""
    sets = case.task.class_sets
    names = list(dict.fromkeys(name for class_names in sets.values() for name in class_names))
    table = PromptTable(case.clip, [[name] for name in names], tuple(case.task.templates))
    test = case.splits.test
    scores = test.embeddings @ table.class_embeddings(case.task.templates).T
    rows = class_design_rates(scores, names, sets, test.groups, case.task.watched)
    case.results.tables[f"class_design/{case.name}"] = rows


PART = Part("class_design", "`class_sets`", lambda _, task: bool(task.class_sets), run, tables=("class_design/",))
