"""The parts of an evaluation that give scores: zero-shot, probes, few-shot, other heads, calibration, shifts."""

from collections.abc import Iterator

import numpy as np

from keras_clip.evaluation import metrics
from keras_clip.evaluation.classifiers.few_shot import shots_to_match
from keras_clip.evaluation.classifiers.heads import tune_nearest_neighbours, tune_tip_adapter, tune_wise_ft
from keras_clip.evaluation.classifiers.linear_probe import search_C
from keras_clip.evaluation.metrics import calibration as calibrating
from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.results import Score
from keras_clip.evaluation.studies.robustness import SHIFT_LINES, effective_robustness, restrict_to_classes

ECE = "expected_calibration_error"


def zero_shot(case: Case) -> None:
    """A score for each rung of the ladder, and the templates that were selected."""
    for method, rung in case.rungs.items():
        count = f"{len(rung.templates)} template{'s' if len(rung.templates) > 1 else ''}"
        case.add(method, case.zero_shot(case.splits.test, method), case.protocol(count))
    if "zero_shot/selected" in case.rungs:
        rows = case.results.tables.setdefault("templates", [])
        rows += [
            {"dataset": case.name, "place": place, "template": template}
            for place, template in enumerate(case.rungs["zero_shot/selected"].templates, 1)
        ]


def linear_probe(case: Case) -> None:
    """The probe with the C of the search."""
    scores = case.probe.probe.decision_function(case.splits.test.features)
    case.add("linear_probe", scores, case.trained_protocol(case.splits.train), C=case.probe.C)


def calibration(case: Case) -> None:
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
    case.results.add(Score(case.name, method, ECE, error, low, high, len(labels), case.protocol("15 bins")))
    curve = calibrating.reliability_curve(probabilities, labels)
    case.results.tables.setdefault("reliability", []).extend(
        {"dataset": case.name, "method": method, "confidence": c, "accuracy": a, "images": int(n)}
        for c, a, n in zip(curve.confidence.tolist(), curve.accuracy.tolist(), curve.count, strict=True)
        if n
    )
    likelihood = calibrating.negative_log_likelihood(logits, labels)
    return {"error": error, "low": low, "high": high, "negative_log_likelihood": likelihood, "n": len(labels)}


def few_shot(case: Case) -> None:
    """Probes on few images per class, and how many of these zero-shot is worth."""
    test, curve = case.splits.test, {}
    for found in case.few_shot:
        scores = found.scores[: len(test)]
        value = float(metrics.METRICS[case.task.metric](scores, test.labels))
        per_class = found.shots or len(case.splits.train) / len(test.class_names)
        curve.setdefault(per_class, []).append(value)
        if found.shots is not None:
            details = {"seed": found.seed, "C": found.C, "images": found.images}
            case.add(f"few_shot/{found.shots}", scores, case.trained_protocol(case.splits.train), **details)
    means = {per_class: float(np.mean(values)) for per_class, values in curve.items()}
    scores = case.zero_shot(test)
    matched = shots_to_match(means, float(metrics.METRICS[case.task.metric](scores, test.labels)))
    row = {"dataset": case.name, "shots": matched.shots, "censored": matched.censored}
    row |= {"crossings": list(matched.crossings), "largest": max(means)}
    case.results.tables.setdefault("shots_to_match", []).append(row)


def robustness(case: Case) -> None:
    """Accuracy on each shift beside that on the test split's images of the same classes."""
    rows = case.results.tables.setdefault("robustness", [])
    for method, details, scores in _classifiers(case):
        reference = scores[0]
        for (name, shift), shifted in zip(case.splits.shifts.items(), scores[1:], strict=True):
            columns = case.columns(shift)
            shifted = shifted[:, columns]
            of_test, labels, _ = restrict_to_classes(reference, case.splits.test.labels, columns)
            pair = metrics.accuracy(of_test, labels), metrics.accuracy(shifted, shift.labels)
            low, high = metrics.interval("accuracy", shifted, shift.labels)
            protocol = case.protocol(f"shift {shift.name}/{shift.split}, {len(columns)} classes")
            score = Score(
                name, f"shift/{method}", "accuracy", pair[1], low, high, len(shift), protocol, details=details
            )
            case.results.add(score, metrics.correct(shifted, shift.labels))
            row = {"reference": case.name, "shift": name, "method": method, **details, "n": len(shift)}
            row |= {"reference_accuracy": pair[0], "accuracy": pair[1], "low": low, "high": high}
            if name in SHIFT_LINES and 0 < pair[0] < 1:
                row["effective_robustness"] = effective_robustness(name, *pair)
            rows.append(row)


def _classifiers(case: Case) -> Iterator[tuple[str, dict, list[np.ndarray]]]:
    """(method, details, scores of each of `case.scored`) of zero-shot and, where there is training data, of probes."""
    yield "zero_shot/family", {}, [case.zero_shot(store) for store in case.scored]
    if case.splits.train is None:
        return
    ends = np.cumsum([len(store) for store in case.scored])[:-1]
    for found in case.few_shot:
        if found.shots is not None:
            yield f"few_shot/{found.shots}", {"seed": found.seed}, np.split(found.scores, ends)
    probe = case.probe.probe
    yield "linear_probe", {"C": probe.C}, [probe.decision_function(store.features) for store in case.scored]


def heads(case: Case) -> None:
    """Nearest neighbours, Tip-Adapter and WiSE-FT on embeddings, tuned on the validation split."""
    train, validation, test = case.splits.train, case.splits.validation, case.splits.test
    metric, protocol = metrics.METRICS[case.task.metric], case.trained_protocol(train)
    parts = [(store.embeddings, store.labels) for store in (train, validation)]
    class_embeddings = case.rungs["zero_shot/family"].class_embeddings
    num_classes, logit_scale = len(class_embeddings), test.logit_scale
    probe = search_C(*parts, metric, num_classes, refit=False, verbose=0).probe
    tuned = {
        "knn": tune_nearest_neighbours(*parts, metric, num_classes),
        "tip_adapter": tune_tip_adapter(class_embeddings, logit_scale, *parts, metric),
        "wise_ft": tune_wise_ft(class_embeddings, logit_scale, probe, parts[1], metric),
    }
    for method, found in tuned.items():
        case.add(method, found.head.decision_function(test.embeddings), protocol, **found.choices)
