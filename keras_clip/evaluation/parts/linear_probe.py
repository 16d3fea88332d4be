"""The part `linear_probe` of an evaluation."""

from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.parts.part import Part


def run(case: Case) -> None:
    """Adds the score of the linear probe whose C was selected on the validation split."""
    scores = case.probe.probe.decision_function(case.splits.test.features)
    case.add("linear_probe", scores, case.protocol(*case.training_of_probe), C=case.probe.C)


PART = Part("linear_probe", "`train`", lambda splits, _: splits.train is not None, run)
