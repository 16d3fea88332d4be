"""The part `calibration` of an evaluation."""

from keras_clip.evaluation.metrics import calibration as calibrating
from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.parts.part import ONE_CLASS, Part, has_one_class
from keras_clip.evaluation.results import Score

_METRIC = "expected_calibration_error"


def run(case: Case) -> None:
    """How far probabilities can be believed, before and after a temperature fitted to the validation split."""
    test, validation = case.splits.test, case.splits.validation
    logits = {"zero_shot/family": case.zero_shot}
    if case.splits.train is not None:
        logits["linear_probe"] = lambda store: case.probe.probe.decision_function(store.features)
    for method, of_store in logits.items():
        row = {"dataset": case.name, "method": method, **_calibration_error(case, method, of_store(test))}
        # The probe was trained on the validation split too, and is sure of it.
        if validation is not None and method != "linear_probe":
            temperature = calibrating.fit_temperature(of_store(validation), validation.labels)
            after = calibrating.softmax(of_store(test), temperature)
            error = calibrating.expected_calibration_error(after, test.labels)
            row |= {"temperature": temperature, "error_with_temperature": error}
        case.results.tables.setdefault("calibration", []).append(row)


def _calibration_error(case, method, logits):
    labels = case.splits.test.labels
    probabilities = calibrating.softmax(logits)
    error = calibrating.expected_calibration_error(probabilities, labels)
    low, high = calibrating.calibration_error_interval(probabilities, labels)
    case.results.add(Score(case.name, method, _METRIC, error, low, high, len(labels), case.protocol("15 bins")))
    curve = calibrating.reliability_curve(probabilities, labels)
    case.results.tables.setdefault("reliability", []).extend(
        {"dataset": case.name, "method": method, "confidence": c, "accuracy": a, "images": int(n)}
        for c, a, n in zip(curve.confidence.tolist(), curve.accuracy.tolist(), curve.count, strict=True)
        if n
    )
    likelihood = calibrating.negative_log_likelihood(logits, labels)
    return {"error": error, "low": low, "high": high, "negative_log_likelihood": likelihood, "n": len(labels)}


PART = Part(
    "calibration",
    ONE_CLASS,
    has_one_class,
    run,
    tables=(
        "calibration",
        "reliability",
    ),
)
