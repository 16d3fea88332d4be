"""Comparison of two models on the same images: the difference of a score, its interval, and a paired test.

The test fits the metric. Fractions of independent examples that are correct (accuracy, recall of captions) have
McNemar's exact test. Every other metric has a paired permutation test: if the models were equally good, the outcomes
of an example could be exchanged between them, so the difference is compared with those after random exchanges. Examples
of one group, such as the captions of an image, are exchanged together. Several p-values have Holm's correction.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_clip.evaluation.metrics import calibration, classification, retrieval
from keras_clip.evaluation.metrics.bootstrap import bootstrap_interval
from keras_clip.evaluation.metrics.intervals import blaker_interval
from keras_clip.evaluation.metrics.metric import MEAN, Metric, Statistic
from keras_clip.evaluation.metrics.significance import holm, mcnemar_test
from keras_clip.evaluation.results import IDENTITY, Results, Score

MCNEMAR, PERMUTATION = "McNemar", "permutation"
# Values of a permutation test in memory at a time.
_CELLS = 2**24


@dataclass(frozen=True)
class Comparison:
    """The difference of a score between two models on the same examples.

    Args:
        n: int. Number of examples.
        first: score of the first model, such as its accuracy in [0, 1].
        second: score of the second model.
        difference: `second - first`.
        low: lower bound of the difference, by default at 95 % confidence.
        high: upper bound of the difference.
        only_first: int. Number of examples that only the first model classifies correctly; None where the metric does
            not count correct examples.
        only_second: int or None. Number of examples that only the second model classifies correctly.
        p_value: two-sided p-value of the test.
        adjusted_p_value: p-value after Holm's correction over all tests; equal to `p_value` for one test.
        test: "McNemar" (exact), or "permutation".
    """

    n: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    only_first: int | None
    only_second: int | None
    p_value: float
    adjusted_p_value: float
    test: str = MCNEMAR


def compare_models(first: np.ndarray, second: np.ndarray, confidence: float = 0.95) -> Comparison:
    """Compares two models by the images that each classifies correctly, with McNemar's test.

    The interval combines Blaker's exact intervals of the fractions of images that only one of the two classifies
    correctly, by the root of the sum of squares (Zou and Donner, 2008): it covers 95 % or more also where the models
    hardly differ.

    Args:
        first: bool (N,). `metrics.correct` of the first model.
        second: bool (N,). `metrics.correct` of the second model, for the same images in the same order.
        confidence: float in (0, 1).

    Returns:
        A `Comparison`.

    Raises:
        ValueError: inputs that are not two boolean vectors of the same length.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.dtype != bool or second.dtype != bool or first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ValueError(
            "Expected for each model which of the images it classifies correctly, bool (N,) with N > 0. "
            f"Received: first: {first.dtype} {first.shape}, second: {second.dtype} {second.shape}."
        )
    n, only_first, only_second = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    difference = (only_second - only_first) / n
    first_low, first_high = (abs(bound - only_first / n) for bound in blaker_interval(only_first, n, confidence))
    second_low, second_high = (abs(bound - only_second / n) for bound in blaker_interval(only_second, n, confidence))
    # An image belongs to one cell of the table only, so that the two fractions are negatively correlated.
    others = (n - only_first) * (n - only_second)
    correlation = -math.sqrt(only_first * only_second / others) if others else 0.0
    p_value = mcnemar_test(only_first, only_second)
    return Comparison(
        n=n,
        first=float(first.mean()),
        second=float(second.mean()),
        difference=difference,
        low=max(-1.0, difference - _combined(second_low, first_high, correlation)),
        high=min(1.0, difference + _combined(second_high, first_low, correlation)),
        only_first=only_first,
        only_second=only_second,
        p_value=p_value,
        adjusted_p_value=p_value,
    )


def _combined(first, second, correlation):
    """Returns the distance of the bound of a difference, from those of its two terms."""
    return math.sqrt(first**2 + second**2 - 2 * correlation * first * second)


def compare_over_datasets(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], confidence: float = 0.95
) -> dict[str, Comparison]:
    """Compares two models on several datasets by McNemar's test, with Holm's correction for multiple tests.

    Args:
        first: {dataset: bool (N,)}, such as `Score.correct` of the first model.
        second: {dataset: bool (N,)} of the second model.
        confidence: float in (0, 1). Confidence of each interval; the intervals are not corrected.

    Returns:
        {dataset: `Comparison`}.

    Raises:
        ValueError: no dataset, or datasets that only one of the two models has.
    """
    if not first or set(first) != set(second):
        raise ValueError(
            "Expected the same datasets for both models, at least one. "
            f"Received: only one of the two models has {sorted(set(first) ^ set(second))}."
        )
    return _adjusted({name: compare_models(first[name], second[name], confidence) for name in first})


def _adjusted(compared: Mapping[Any, Comparison]) -> dict[Any, Comparison]:
    adjusted = holm([comparison.p_value for comparison in compared.values()])
    return {
        name: dataclasses.replace(comparison, adjusted_p_value=float(p_value))
        for (name, comparison), p_value in zip(compared.items(), adjusted, strict=True)
    }


def compare_scores(
    first: Score, second: Score, groups: Sequence | None = None, confidence: float = 0.95, resamples: int = 1999
) -> Comparison:
    """Compares two models by one score each, of the same metric on the same examples.

    Fractions of independent examples have McNemar's test and the interval of `compare_models`: exact Blaker intervals
    combined by the method of Zou and Donner. Other metrics have a permutation test and a bootstrap interval of the
    difference. Scores without the outcomes of their metric, such as
    those of a metric of your own, are compared by their correct examples: `first` and `second` are then accuracies.

    Args:
        first: `Score` of the first model.
        second: `Score` of the second model.
        groups: N names. Examples of one group are not independent, such as the frames of a video. None: those of
            `Score.examples`.
        confidence: float in (0, 1).
        resamples: int. Number of random exchanges of the permutation test, and of bootstrap resamples.

    Returns:
        A `Comparison`.

    Raises:
        ValueError: scores of different metrics or examples, or without outcomes.
    """
    _require_comparable(first, second)
    examples = first.examples or second.examples
    if groups is None and examples is not None:
        groups = examples.groups
    _, statistic, pair, labels = _paired(first, second)
    if statistic is MEAN and groups is None and pair[0].dtype == bool:
        return compare_models(*pair, confidence)
    members = (
        np.arange(first.n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    )
    if len(members) != first.n:
        raise ValueError(f"Expected a group for each of {first.n} examples. Received: {len(members)} groups.")
    values = [statistic.value(outcomes, labels, None) for outcomes in pair]
    low, high = _interval(statistic, pair, labels, groups, confidence, resamples)
    p_value = _permutation_test(statistic, pair, labels, members, resamples)
    return Comparison(
        n=first.n,
        first=values[0],
        second=values[1],
        difference=values[1] - values[0],
        low=low,
        high=high,
        only_first=_only(*pair),
        only_second=_only(*pair[::-1]),
        p_value=p_value,
        adjusted_p_value=p_value,
        test=PERMUTATION,
    )


def _require_comparable(first: Score, second: Score) -> None:
    if first.metric != second.metric or first.n != second.n:
        raise ValueError(
            "Expected scores of one metric on the same examples. "
            f"Received: {first.metric!r} of {first.n} examples, and {second.metric!r} of {second.n}."
        )
    if not _same_examples(first, second):
        raise ValueError(
            "Expected the same images in the same order for both models. Received: different images in the datasets "
            f"{[first.dataset]}. Evaluate both models on the same dataset."
        )


def _same_examples(first: Score, second: Score) -> bool:
    one, other = first.examples, second.examples
    if one is None or other is None:
        return True
    if one.ids != other.ids or (one.images and other.images and one.images != other.images):
        return False
    return one.labels is None or other.labels is None or np.array_equal(one.labels, other.labels)


def _metric_of(score: Score) -> Metric | None:
    tables = classification.METRICS, calibration.METRICS, retrieval.METRICS
    return next((table[score.metric] for table in tables if score.metric in table), None)


def _paired(first: Score, second: Score) -> tuple[str, Statistic, list[np.ndarray], np.ndarray | None]:
    """Returns the inputs of a comparison: name of the metric, its statistic, the outcomes, and the labels."""
    labels = next((score.examples.labels for score in (first, second) if score.examples), None)
    metric = _metric_of(first)
    if metric and metric.statistic and (labels is not None or not metric.statistic.needs_labels):
        pair = [metric.outcomes_of(first), metric.outcomes_of(second)]
        if pair[0] is not None and pair[1] is not None:
            return metric.name, metric.statistic, pair, labels
    if first.correct is None or second.correct is None:
        raise ValueError(
            "Expected scores with the outcome of each example. "
            f"Received: {first.key} without them. Evaluate both models with this version."
        )
    return "accuracy", MEAN, [first.correct, second.correct], labels


def _interval(statistic, pair, labels, groups, confidence, resamples):
    strata = None
    if groups is None and labels is not None and statistic.strata:
        strata = statistic.strata(labels)
    first, second = pair
    low, high = bootstrap_interval(
        lambda counts: statistic.value(second, labels, counts) - statistic.value(first, labels, counts),
        len(first),
        groups,
        strata,
        confidence,
        resamples,
    )
    if low == high and first.dtype == bool:
        # All resamples agree, for instance if both models are correct on the same examples.
        agreeing = compare_models(first, second, confidence)
        return min(low, agreeing.low), max(high, agreeing.high)
    return low, high


def _permutation_test(statistic, pair, labels, members, resamples):
    """Returns the two-sided p-value: the rate of random exchanges with at least the measured difference."""
    first, second = pair
    generator = np.random.default_rng(0)
    measured = statistic.value(second, labels, None) - statistic.value(first, labels, None)
    if statistic.weights:
        # The difference is a sum over examples, whose signs an exchange changes.
        weights = statistic.weights(len(first), labels)
        sums = np.bincount(members, weights * (second.astype("float64") - first.astype("float64")))
        differences = _random_sums(sums[sums != 0], resamples, generator)
    else:
        differences = np.empty(resamples)
        for number in range(resamples):
            exchanged = (generator.integers(0, 2, members.max() + 1) == 1)[members]
            exchanged = exchanged.reshape(-1, *[1] * (first.ndim - 1))
            one, other = np.where(exchanged, second, first), np.where(exchanged, first, second)
            differences[number] = statistic.value(other, labels, None) - statistic.value(one, labels, None)
    # Rounding must not make an equal difference smaller.
    as_large = np.abs(differences) >= abs(measured) * (1 - 1e-9) - 1e-12
    return float((1 + as_large.sum()) / (1 + resamples))


def _random_sums(values, resamples, generator):
    """Returns sums of the values with random signs (resamples,)."""
    rows = max(1, _CELLS // max(1, len(values)))
    blocks = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    return np.concatenate(
        [(2.0 * generator.integers(0, 2, (size, len(values)), "int8") - 1) @ values for size in blocks]
    )


def _only(first, second):
    return int((first & ~second).sum()) if first.dtype == bool else None


def compare(
    first: Results,
    second: Results,
    groups: Mapping[str, Sequence] | None = None,
    confidence: float = 0.95,
    resamples: int = 1999,
) -> list[dict[str, Any]]:
    """Compares two models by every score that both have, shifts and seeds included, with a test that fits the metric.

    See `compare_scores`. The p-values have Holm's correction over all rows.

    Args:
        first: `Results` of the first model.
        second: `Results` of the second model.
        groups: {dataset: N names}. Examples of one group are not independent, such as the frames of a video. Retrieval
            knows its own groups, the captions of an image.
        confidence: float in (0, 1). Confidence of each interval; the intervals are not corrected.
        resamples: int. Number of random exchanges of a permutation test, and of bootstrap resamples.

    Returns:
        One dict for each dataset, method and metric: "dataset", "method", "metric", "reference" of a shift, "seed", and
        the fields of `Comparison`. Scores without the outcomes of their metric, such as those of earlier versions, are
        compared by their correct examples, and their metric is "accuracy".

    Raises:
        ValueError: no score in common, or datasets of the same name with different images.
    """
    pairs = comparable_scores(first, second)
    scores = [score for pair in pairs.values() for score in pair]
    if unknown := {score.dataset for score in scores if not (score.examples and score.examples.images)}:
        logging.getLogger("keras_clip").warning(
            "The images of %s are compared by their ids only: one of the results has no digest of them.",
            ", ".join(sorted(unknown)),
        )
    compared = {
        key: compare_scores(*pair, (groups or {}).get(pair[0].dataset), confidence, resamples)
        for key, pair in pairs.items()
    }
    rows = []
    for key, comparison in _adjusted(compared).items():
        score, other = pairs[key]
        identity = {name: score.details[name] for name in IDENTITY if score.details.get(name) is not None}
        about = {"dataset": score.dataset, "method": score.method, "metric": _paired(score, other)[0], **identity}
        rows.append({**about, **vars(comparison)})
    return rows


def comparable_scores(first: Results, second: Results) -> dict[tuple[str, ...], tuple[Score, Score]]:
    """Returns the scores that both results have, and of which the outcomes of the examples are known.

    Args:
        first: `Results` of the first model.
        second: `Results` of the second model.

    Returns:
        {`Score.key`: (score of the first model, score of the second)}.

    Raises:
        ValueError: no score in common, or datasets of the same name with different images.
    """
    found = [{score.key: score for score in results.scores if _is_known(score)} for results in (first, second)]
    for results, scores in zip((first, second), found, strict=True):
        if len(scores) < sum(map(_is_known, results.scores)):
            keys = [score.key for score in results.scores if _is_known(score)]
            twice = sorted({key for key in keys if keys.count(key) > 1})
            raise ValueError(
                f"Expected one score of each dataset, method, metric, reference and seed. Received: {twice[:3]} twice."
            )
    pairs = {key: (score, found[1][key]) for key, score in found[0].items() if key in found[1]}
    if not pairs:
        raise ValueError(
            "Expected at least one dataset and method that both results have. "
            f"Received: {list(found[0])[:5]} and {list(found[1])[:5]}."
        )
    differing = [one.dataset for one, other in pairs.values() if one.n != other.n or not _same_examples(one, other)]
    # Files of earlier versions have ids alone.
    images = [results.info.get("images", {}) for results in (first, second)]
    differing += [name for name in images[0] if name in images[1] and images[0][name] != images[1][name]]
    if differing:
        raise ValueError(
            "Expected the same images in the same order for both models. Received: different images in the datasets "
            f"{list(dict.fromkeys(differing))}. Evaluate both models on the same dataset."
        )
    return pairs


def _is_known(score: Score) -> bool:
    return score.correct is not None or score.outcomes is not None
