"""The part `zero_shot` of an evaluation."""

from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.parts.part import Part, ReportTable


def run(case: Case) -> None:
    """Adds a score for each zero-shot method, and the selected templates."""
    for method, head in case.zero_shot_heads.items():
        count = f"{len(head.templates)} template{'s' if len(head.templates) > 1 else ''}"
        case.add(method, case.zero_shot(case.splits.test, method), case.protocol(count))
    if "zero_shot/selected" in case.zero_shot_heads:
        rows = case.results.tables.setdefault("templates", [])
        rows += [
            {"dataset": case.name, "place": place, "template": template}
            for place, template in enumerate(case.zero_shot_heads["zero_shot/selected"].templates, 1)
        ]


PART = Part(
    "zero_shot",
    "class names",
    lambda splits, _: splits.test.class_names is not None,
    run,
    tables=(ReportTable("templates", "Prompts"),),
)
