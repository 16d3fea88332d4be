"""The effect of class design on the classification of people (Radford et al., 2021, section 7.1; tables 6 and 7).

The same images are classified with sets of classes that differ by a class, such as with and without "child" in addition
to harmful categories. The measure is the rate at which images of each demographic group are assigned a watched class.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_clip.evaluation.metrics.comparison import compare_models
from keras_clip.evaluation.metrics.intervals import blaker_interval
from keras_clip.evaluation.metrics.inversion import inverted_interval, shrunk_values

# The name of the group that contains all images.
EVERYBODY = "all"


def class_set_hits(
    scores: np.ndarray, class_names: Sequence[str], class_set: Sequence[str], watched: Collection[str]
) -> np.ndarray:
    """Returns which images are assigned a watched class when only the classes of a set can be predicted.

    Args:
        scores: floats (N, K) for the classes of all class sets. The zero-shot logits of a class do not depend on the
            other classes, so that one matrix serves all sets.
        class_names: K names.
        class_set: names of the classes that can be predicted.
        watched: names of the classes to count; those that are not in the set are never predicted.

    Returns:
        bool (N,).

    Raises:
        ValueError: names that are not among `class_names`, duplicate names, an empty set, or NaN.
    """
    scores, class_names = np.asarray(scores), list(class_names)
    unknown = sorted({*class_set, *watched} - set(class_names))
    twice = len(set(class_names)) < len(class_names) or len(set(class_set)) < len(class_set)
    if unknown or twice or not len(class_set) or scores.shape[1:] != (len(class_names),):
        raise ValueError(
            f"Expected scores (N, K), K names, and a class set of some of them, each once. Received: scores of shape "
            f"{scores.shape}, {len(class_names)} names, unknown {unknown}, class_set={list(class_set)[:10]}."
        )
    if not np.isfinite(scores).all():
        raise ValueError("Expected finite scores. Received: NaN or infinity.")
    columns = [class_names.index(name) for name in class_set]
    return np.isin(np.array(class_set)[scores[:, columns].argmax(1)], list(watched))


def class_design_rates(
    scores: np.ndarray,
    class_names: Sequence[str],
    class_sets: Mapping[str, Sequence[str]],
    groups: Sequence[str],
    watched: Collection[str],
) -> list[dict[str, Any]]:
    """Returns the rate of watched classes for each group and class set, as in the paper's tables 6 and 7.

    The first class set is the baseline: "change" is the rate of a set minus that of the first set, with an interval and
    McNemar's p-value for paired samples.

    Args:
        scores: floats (N, K) for all classes.
        class_names: K names.
        class_sets: {name of the set: class names that can be predicted}.
        groups: N names, the group of the person in each image.
        watched: class names to count, such as harmful categories.

    Returns:
        Rows, one for each class set and group, including the group "all": "class_set", "group", "n", "share" (the
        rate), "low", "high" (exact, 95 %), and except for the first set "change", "change_low", "change_high",
        "p_value".

    Raises:
        ValueError: no class set, groups that do not match, or inputs that are invalid for `class_set_hits`.
    """
    groups = np.asarray(groups)
    if not class_sets or groups.shape != (len(scores),):
        raise ValueError(
            "Expected at least one class set, and a group for each image. "
            f"Received: {len(class_sets)} sets, groups of shape {groups.shape}, {len(scores)} images."
        )
    rows, first = [], None
    for name, class_set in class_sets.items():
        hits = class_set_hits(scores, class_names, class_set, watched)
        for group in [*np.unique(groups).tolist(), EVERYBODY]:
            members = groups == group if group != EVERYBODY else np.ones(len(hits), bool)
            low, high = blaker_interval(int(hits[members].sum()), int(members.sum()))
            row = {"class_set": name, "group": group, "n": int(members.sum()), "share": float(hits[members].mean())}
            row |= {"low": low, "high": high}
            if first is not None:
                comparison = compare_models(first[members], hits[members])
                row |= {"change": comparison.difference, "change_low": comparison.low, "change_high": comparison.high}
                row |= {"p_value": comparison.p_value}
            rows.append(row)
        first = hits if first is None else first
    return rows


@dataclass(frozen=True)
class Disparity:
    """The largest difference in a rate between groups.

    Args:
        highest: name of the group with the highest rate.
        lowest: name of the group with the lowest rate.
        difference: highest rate minus lowest rate, >= 0.
        low: lower bound of the difference, by default at 95 % confidence.
        high: upper bound of the difference.
        ratio: highest rate divided by lowest rate; infinite if the lowest is 0, and 1 if both are 0.
        p_value: p-value of a permutation test of equal rates in all groups.
        debiased: median-unbiased estimate of the difference, in [low, high]; the observed difference is biased upwards.
    """

    highest: str
    lowest: str
    difference: float
    low: float
    high: float
    ratio: float
    p_value: float
    debiased: float


def disparity(
    hits: np.ndarray, groups: Sequence[str], confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Disparity:
    """Returns the largest difference between groups in the rate of a binary outcome.

    The largest difference is biased upwards, most for small groups. The p-value of a permutation test, the interval
    and the debiased estimate account for this: the interval inverts a test (`inverted_interval`) with simulated
    outcomes of groups of these sizes, whose rates are moved as little as the candidate difference requires.

    Args:
        hits: bool (N,). The outcome of each image, such as `class_set_hits` or `metrics.correct`.
        groups: N names, with at least two distinct names.
        confidence: float in (0, 1).
        resamples: int. Number of simulated samples and of permutations.
        seed: int. Seed of the simulation and of the permutations.

    Returns:
        A `Disparity`.

    Raises:
        ValueError: fewer than two groups, or lengths that differ.
    """
    hits = np.asarray(hits)
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    if hits.dtype != bool or hits.shape != members.shape or len(names) < 2:
        raise ValueError(
            "Expected hits bool (N,), and N names of at least two groups. "
            f"Received: {hits.dtype} {hits.shape}, {len(members)} names of {len(names)} groups."
        )
    counts = np.bincount(members)

    def draws(difference):
        at_difference = _rates_at(_shrunk(observed, counts), counts, difference)
        drawn = np.random.default_rng(seed).binomial(counts, at_difference, (resamples, len(names)))
        return np.ptp(drawn / counts, axis=1)

    observed = np.bincount(members, hits, len(names)) / counts
    top, bottom = int(observed.argmax()), int(observed.argmin())
    low, high, debiased = inverted_interval(float(np.ptp(observed)), draws, 1.0, confidence)
    generator = np.random.default_rng(seed)
    # The outcomes of the groups after a permutation of the images.
    permuted = generator.multivariate_hypergeometric(counts, int(hits.sum()), size=resamples) / counts
    as_large = int((np.ptp(permuted, axis=1) >= np.ptp(observed) - 1e-12).sum())
    ratio = 1.0 if not observed[top] else np.inf if not observed[bottom] else observed[top] / observed[bottom]
    return Disparity(
        highest=str(names[top]),
        lowest=str(names[bottom]),
        difference=float(np.ptp(observed)),
        low=low,
        high=high,
        ratio=float(ratio),
        p_value=(as_large + 1) / (resamples + 1),
        debiased=debiased,
    )


def _shrunk(observed, counts):
    """Returns the rates shrunk towards their mean, by the share of their variance that is due to chance.

    The observed lowest and highest rates are extreme by chance too; a rate of 0 would have no chance to be lower.
    """
    mean = (observed * counts).sum() / counts.sum()
    smoothed = (observed * counts + mean) / (counts + 1)
    chance = smoothed * (1 - smoothed) / counts + 1e-12
    return shrunk_values(observed, chance, mean)


def _rates_at(observed, counts, difference, steps=201):
    """Returns the rates nearest to the observed ones, in units of their variance, whose largest difference is given."""
    smoothed = (observed * counts + 0.5) / (counts + 1)
    weight = counts / (smoothed * (1 - smoothed))
    lowest = np.linspace(0, 1 - difference, steps)[:, None]
    highest = lowest + difference
    moved = np.clip(observed, lowest, highest)
    # One group has to be at each end; the one that it costs least to move there.
    up = weight * ((highest - observed) ** 2 - (moved - observed) ** 2)
    down = weight * ((lowest - observed) ** 2 - (moved - observed) ** 2)
    rows = np.arange(steps)
    cost, best = np.inf, None
    for first in range(len(counts)):
        other = down.copy()
        other[:, first] = np.inf
        second = other.argmin(1)
        total = (weight * (moved - observed) ** 2).sum(1) + up[:, first] + other[rows, second]
        row = int(total.argmin())
        if total[row] < cost:
            cost, best = total[row], (row, first, second[row])
    row, first, second = best
    rates = moved[row].copy()
    rates[first], rates[second] = highest[row, 0], lowest[row, 0]
    return np.clip(rates, 0, 1)
