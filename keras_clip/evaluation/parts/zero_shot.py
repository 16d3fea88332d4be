"""The part `zero_shot` of an evaluation."""

from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.parts.part import Part, ReportTable


def run(case: Case) -> None:
    """Adds a score for each zero-shot method, and the selected templates."""
    for method, rung in case.rungs.items():
        count = f"{len(rung.templates)} template{'s' if len(rung.templates) > 1 else ''}"
        case.add(method, case.zero_shot(case.splits.test, method), case.protocol(count))
    if "zero_shot/selected" in case.rungs:
        rows = case.results.tables.setdefault("templates", [])
        rows += [
            {"dataset": case.name, "place": place, "template": template}
            for place, template in enumerate(case.rungs["zero_shot/selected"].templates, 1)
        ]


PART = Part(
    "zero_shot",
    "class names",
    lambda splits, _: splits.test.class_names is not None,
    run,
    tables=(ReportTable("templates", "Prompts"),),
)
