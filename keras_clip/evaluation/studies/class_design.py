"""How the choice of classes decides what people are called (Radford et al., 2021, section 7.1; tables 6 and 7).

The same images are classified under class sets that differ by a label, such as with and without "child" beside
categories that are harmful for a person; what is counted is how often each group of people gets one of these.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_clip.evaluation.metrics.comparison import compare_models
from keras_clip.evaluation.metrics.intervals import bootstrap_interval, wilson_interval

EVERYBODY = "all"


def class_set_hits(
    scores: np.ndarray, class_names: Sequence[str], class_set: Sequence[str], watched: Collection[str]
) -> np.ndarray:
    """Which images get a watched label when only the classes of a set may be named.

    Args:
        scores: floats (N, K) for all classes that any class set has. Zero-shot logits of a class do not depend on the
            other classes, so one matrix serves all sets.
        class_names: K names.
        class_set: those that may be named.
        watched: those to count; the ones the set lacks cannot be hit.

    Returns:
        bool (N,).

    Raises:
        ValueError: names that are not among `class_names`, names given twice, an empty set, NaN.
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
    """How often each group gets a watched label under each class set, as the paper's tables 6 and 7.

    The first class set is the one that others are compared with: "change" is a set's share minus its share, with an
    interval and McNemar's p-value, since the images are the same.

    Args:
        scores: floats (N, K) for all classes.
        class_names: K names.
        class_sets: {name of the set: class names that may be named}.
        groups: N names, the group of each image's person.
        watched: class names to count, such as the harmful ones.

    Returns:
        Rows, one for each class set and group and for "all": "class_set", "group", "n", "share", "low", "high" (Wilson,
        95 %), and but for the first set "change", "change_low", "change_high", "p_value".

    Raises:
        ValueError: no class set, groups that do not match, or what `class_set_hits` refuses.
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
            chosen = groups == group if group != EVERYBODY else np.ones(len(hits), bool)
            low, high = wilson_interval(int(hits[chosen].sum()), int(chosen.sum()))
            row = {"class_set": name, "group": group, "n": int(chosen.sum()), "share": float(hits[chosen].mean())}
            row |= {"low": low, "high": high}
            if first is not None:
                compared = compare_models(first[chosen], hits[chosen])
                row |= {"change": compared.difference, "change_low": compared.low, "change_high": compared.high}
                row |= {"p_value": compared.p_value}
            rows.append(row)
        first = hits if first is None else first
    return rows


@dataclass(frozen=True)
class Disparity:
    """How differently groups fare.

    Args:
        highest: name of the group with the highest share.
        lowest: name of the group with the lowest share.
        difference: share of the one minus share of the other, >= 0.
        low: lower bound of the difference, by default at 95 %.
        high: upper bound of the difference.
        ratio: share of the one over share of the other; infinite where the other is 0, 1 where both are.
        p_value: how often groups put together at random differ as much.
    """

    highest: str
    lowest: str
    difference: float
    low: float
    high: float
    ratio: float
    p_value: float


def disparity(
    hits: np.ndarray, groups: Sequence[str], confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Disparity:
    """The largest difference between groups, of anything that is true or false of an image.

    The largest difference is above 0 by chance too, the more the smaller the groups are: the p-value, of a permutation
    of the groups, says whether it is more than that. The interval is a bootstrap within the groups.

    Args:
        hits: bool (N,), such as `class_set_hits` or `metrics.correct`.
        groups: N names, at least two different ones.
        confidence: float in (0, 1).
        resamples: int. Of the bootstrap and of the permutation.
        seed: int.

    Returns:
        A `Disparity`.

    Raises:
        ValueError: one group only, or lengths that differ.
    """
    hits = np.asarray(hits)
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    if hits.dtype != bool or hits.shape != members.shape or len(names) < 2:
        raise ValueError(
            "Expected hits bool (N,), and N names of at least two groups. "
            f"Received: {hits.dtype} {hits.shape}, {len(members)} names of {len(names)} groups."
        )
    counts = np.bincount(members)

    def shares(hit, drawn=1):
        return np.bincount(members, hit * drawn, len(names)) / counts

    observed = shares(hits)
    top, bottom = int(observed.argmax()), int(observed.argmin())
    low, high = bootstrap_interval(
        lambda drawn: np.ptp(shares(hits, drawn)),
        len(hits),
        strata=members,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    generator = np.random.default_rng(seed)
    shuffled = np.array([np.ptp(shares(generator.permutation(hits))) for _ in range(resamples)])
    as_large = int((shuffled >= np.ptp(observed) - 1e-12).sum())
    ratio = 1.0 if not observed[top] else np.inf if not observed[bottom] else observed[top] / observed[bottom]
    return Disparity(
        highest=str(names[top]),
        lowest=str(names[bottom]),
        difference=float(np.ptp(observed)),
        low=low,
        high=high,
        ratio=float(ratio),
        p_value=(as_large + 1) / (resamples + 1),
    )
