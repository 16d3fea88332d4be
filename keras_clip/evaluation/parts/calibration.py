"""The part `calibration` of an evaluation."""

from keras_clip.evaluation.metrics import calibration as calibration_metrics
from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.parts.part import ONE_CLASS, Part, ReportTable, has_one_class


def run(case: Case) -> None:
    """Adds calibration errors before and after temperature scaling on the validation split, and reliability curves."""
    test, validation = case.splits.test, case.splits.validation
    logits = {"zero_shot/family": case.zero_shot}
    if case.splits.train is not None:
        logits["linear_probe"] = lambda store: case.probe.probe.decision_function(store.features)
    for method, logits_of in logits.items():
        row = {"dataset": case.name, "method": method, **_calibration_error(case, method, logits_of(test))}
        # The probe was also trained on the validation split, so that a temperature fitted there would be too low.
        if validation is not None and method != "linear_probe":
            temperature = calibration_metrics.fit_temperature(logits_of(validation), validation.labels)
            after = calibration_metrics.softmax(logits_of(test), temperature)
            error = calibration_metrics.expected_calibration_error(after, test.labels)
            row |= {"temperature": temperature, "error_with_temperature": error}
        case.results.tables.setdefault("calibration", []).append(row)


def _calibration_error(case, method, logits):
    labels = case.splits.test.labels
    probabilities = calibration_metrics.softmax(logits)
    debiased = calibration_metrics.debiased_calibration_error(probabilities, labels)
    score = calibration_metrics.METRICS["expected_calibration_error"].measure(
        probabilities,
        labels,
        case.name,
        method,
        case.protocol("15 bins", *(case.training_of_probe if method == "linear_probe" else ())),
        details={"debiased": debiased},
        examples=case.splits.test.examples,
    )
    case.results.add(score)
    curve = calibration_metrics.reliability_curve(probabilities, labels)
    case.results.tables.setdefault("reliability", []).extend(
        {"dataset": case.name, "method": method, "confidence": c, "accuracy": a, "images": int(n)}
        for c, a, n in zip(curve.confidence.tolist(), curve.accuracy.tolist(), curve.count, strict=True)
        if n
    )
    likelihood = calibration_metrics.negative_log_likelihood(logits, labels)
    row = {"error": score.value, "debiased": debiased, "low": score.low, "high": score.high}
    return row | {"negative_log_likelihood": likelihood, "n": len(labels)}


PART = Part(
    "calibration",
    ONE_CLASS,
    has_one_class,
    run,
    tables=(
        ReportTable(
            "calibration",
            "Calibration",
            "The temperature was fitted on the validation data, or on the training data where there is no validation "
            "data.",
        ),
        ReportTable("reliability", "Calibration"),
    ),
)
