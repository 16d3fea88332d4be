"""Two models on the same images: is one better, by how much, and does it hold over many data sets?

The test is McNemar's exact one, on the images that just one of the two has right; over data sets Holm's correction.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from keras_clip.evaluation.metrics.intervals import holm, mcnemar_test
from keras_clip.evaluation.results import Results


@dataclass(frozen=True)
class Comparison:
    """How two models differ on one set of images.

    Args:
        n: int. Images.
        first: share that the first model has right.
        second: share that the second model has right.
        difference: `second - first`.
        low: lower bound of the difference, by default at 95 %.
        high: upper bound of the difference.
        only_first: int. Images that the first alone has right.
        only_second: int. Images that the second alone has right.
        p_value: McNemar's, exact and two-sided.
        adjusted_p_value: the same after Holm's correction over the data sets; of one data set, `p_value`.
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
    """Compares two models by which images each has right.

    The interval is Agresti and Min's (2005) for paired shares: half an image is added to each of the four cells.

    Args:
        first: bool (N,). `metrics.correct` of the first model.
        second: bool (N,). That of the second, for the same images in the same order.
        confidence: float in (0, 1).

    Returns:
        A `Comparison`.

    Raises:
        ValueError: other than two vectors of booleans of one length.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.dtype != bool or second.dtype != bool or first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ValueError(
            "Expected for each model which of the same images are right, bool (N,) with N > 0. "
            f"Received: first: {first.dtype} {first.shape}, second: {second.dtype} {second.shape}."
        )
    n, only_first, only_second = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    total, gain, differing = n + 2, only_second - only_first, only_first + only_second + 1
    half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(differing - gain**2 / total) / total
    p_value = mcnemar_test(only_first, only_second)
    return Comparison(
        n=n,
        first=float(first.mean()),
        second=float(second.mean()),
        difference=gain / n,
        low=max(-1.0, gain / total - half),
        high=min(1.0, gain / total + half),
        only_first=only_first,
        only_second=only_second,
        p_value=p_value,
        adjusted_p_value=p_value,
    )


def compare_over_datasets(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], confidence: float = 0.95
) -> dict[str, Comparison]:
    """Compares two models on several data sets, with Holm's correction for having looked at several.

    Args:
        first: {data set: bool (N,)}, such as `Results.correct` of the first model.
        second: the same of the second model.
        confidence: float in (0, 1). Of each interval by itself.

    Returns:
        {data set: `Comparison`}.

    Raises:
        ValueError: data sets that only one of the two has.
    """
    if not first or set(first) != set(second):
        raise ValueError(
            "Expected the same data sets for both models, at least one. "
            f"Received: only one of the two has {sorted(set(first) ^ set(second))}."
        )
    compared = {name: compare_models(first[name], second[name], confidence) for name in first}
    adjusted = holm([comparison.p_value for comparison in compared.values()])
    return {
        name: Comparison(**{**vars(comparison), "adjusted_p_value": float(p_value)})
        for (name, comparison), p_value in zip(compared.items(), adjusted, strict=True)
    }


def compare(first: Results, second: Results) -> list[dict[str, Any]]:
    """Two models on the same images, by every method of both, with McNemar's test and Holm's correction.

    Args:
        first: `Results` of one model.
        second: those of the other.

    Returns:
        Rows: "dataset", "method", "n", "first", "second" (shares of right answers), "difference" (second - first),
        "low", "high", "p_value", "adjusted_p_value".

    Raises:
        ValueError: nothing in common, or data sets of one name with other images.
    """
    pairs = {key: (first.correct[key], second.correct[key]) for key in first.correct if key in second.correct}
    if not pairs:
        raise ValueError(
            "Expected a data set and a method that both results have. "
            f"Received: {list(first.correct)[:5]} and {list(second.correct)[:5]}."
        )
    ours, theirs = (results.info.get("images", {}) for results in (first, second))
    if differing := [name for name in ours if name in theirs and ours[name] != theirs[name]]:
        raise ValueError(
            f"Expected the same images in the same order for both models. Received: others of {differing}. Evaluate "
            "both on one data set."
        )
    compared = compare_over_datasets(*({key: pair[i] for key, pair in pairs.items()} for i in (0, 1)))
    rows = []
    for key, found in compared.items():
        # Names of data sets may have the slash that stands before the method.
        dataset = max((name for name in first.datasets if key.startswith(f"{name}/")), key=len)
        rows.append({"dataset": dataset, "method": key.removeprefix(f"{dataset}/"), **vars(found)})
    return rows
