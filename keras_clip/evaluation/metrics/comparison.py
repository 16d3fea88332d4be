"""Comparison of two models on the same images: difference in accuracy, its interval, and a test of significance.

The test is McNemar's exact test on the images that only one of the two models classifies correctly; p-values over
several datasets have Holm's correction.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_clip.evaluation.metrics.intervals import blaker_interval, holm, mcnemar_test
from keras_clip.evaluation.results import Results


@dataclass(frozen=True)
class Comparison:
    """The difference in accuracy between two models on the same images.

    Args:
        n: int. Number of images.
        first: accuracy of the first model, in [0, 1].
        second: accuracy of the second model, in [0, 1].
        difference: `second - first`.
        low: lower bound of the difference, by default at 95 % confidence.
        high: upper bound of the difference.
        only_first: int. Number of images that only the first model classifies correctly.
        only_second: int. Number of images that only the second model classifies correctly.
        p_value: p-value of McNemar's test, exact and two-sided.
        adjusted_p_value: p-value after Holm's correction over the datasets; equal to `p_value` for one dataset.
    """

    n: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p_value: float
    adjusted_p_value: float


def compare_models(first: np.ndarray, second: np.ndarray, confidence: float = 0.95) -> Comparison:
    """Compares two models by the images that each classifies correctly.

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
    """Compares two models on several datasets, with Holm's correction for multiple tests.

    Args:
        first: {dataset: bool (N,)}, such as `Results.correct` of the first model.
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
    compared = {name: compare_models(first[name], second[name], confidence) for name in first}
    adjusted = holm([comparison.p_value for comparison in compared.values()])
    return {
        name: Comparison(**{**vars(comparison), "adjusted_p_value": float(p_value)})
        for (name, comparison), p_value in zip(compared.items(), adjusted, strict=True)
    }


def compare(first: Results, second: Results) -> list[dict[str, Any]]:
    """Compares two models on the same images by every method that both have, with McNemar's test and Holm's correction.

    Args:
        first: `Results` of the first model.
        second: `Results` of the second model.

    Returns:
        One dict for each dataset and method: "dataset", "method", "n", "first", "second" (accuracies), "difference"
        (second - first), "low", "high", "only_first", "only_second", "p_value", "adjusted_p_value".

    Raises:
        ValueError: no dataset and method in common, or datasets of the same name with different images.
    """
    pairs = {key: (first.correct[key], second.correct[key]) for key in first.correct if key in second.correct}
    if not pairs:
        raise ValueError(
            "Expected at least one dataset and method that both results have. "
            f"Received: {list(first.correct)[:5]} and {list(second.correct)[:5]}."
        )
    first_images, second_images = (results.info.get("images", {}) for results in (first, second))
    both = [name for name in first_images if name in second_images]
    if differing := [name for name in both if first_images[name] != second_images[name]]:
        raise ValueError(
            "Expected the same images in the same order for both models. Received: different images in the datasets "
            f"{differing}. Evaluate both models on the same dataset."
        )
    compared = compare_over_datasets(*({key: pair[i] for key, pair in pairs.items()} for i in (0, 1)))
    rows = []
    for key, comparison in compared.items():
        # A dataset's name may contain a slash, which is also the separator before the method.
        dataset = max((name for name in first.datasets if key.startswith(f"{name}/")), key=len)
        rows.append({"dataset": dataset, "method": key.removeprefix(f"{dataset}/"), **vars(comparison)})
    return rows
