"""What CLIP is known to do badly: the limits that the paper names in its sections 6 and 7, as measurements.

| limit | the paper says | function |
|---|---|---|
| counting | zero-shot CLIP is poor at counting the objects of an image (sections 3.1.5 and 6) | `counting` |
| fine-grained | it is poor at models of cars, species of flowers, variants of aircraft (section 6) | `fine_grained` |
| digits | 88 % on MNIST, below logistic regression on raw pixels (section 6) | `against_baseline` |
| rendered text | it reads digitally rendered text, but not handwriting (sections 3.1.5 and 6) | `against_baseline` |
| few-shot | a probe on a few images per class falls below zero-shot (section 6) | `few_shot_loss` |
| class sets | the choice of classes decides what people are labelled as (section 7.1) | `class_set_disparity` |

Every function takes scores or correctness of images and returns rows for a table, each value with its interval. The
part `limits` of `evaluate` applies them to a `Task`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from keras_clip.evaluation.metrics.classification import correct
from keras_clip.evaluation.metrics.comparison import compare_models
from keras_clip.evaluation.metrics.intervals import blaker_interval
from keras_clip.evaluation.studies.class_design import class_set_hits, disparity

# The classes that section 7.1 adds to those of FairFace, whose rate is measured in each group.
CRIME_RELATED = ("thief", "criminal", "suspicious person")
NON_HUMAN = ("animal", "gorilla", "chimpanzee", "orangutan")
# FairFace's classes as the paper uses them: seven races, each with two genders.
_RACES = ("White", "Black", "Indian", "Latino", "Middle Eastern", "Southeast Asian", "East Asian")
PEOPLE = tuple(f"{race} {gender}" for race in _RACES for gender in ("man", "woman"))


def people_class_sets(people: Sequence[str] = PEOPLE) -> dict[str, list[str]]:
    """Returns the two class sets of section 7.1, for `Task(class_sets=..., watched=CRIME_RELATED + NON_HUMAN)`.

    Args:
        people: names of the classes that are not watched.

    Returns:
        {"without child": names, "with child": names}.
    """
    classes = [*people, *CRIME_RELATED, *NON_HUMAN]
    return {"without child": classes, "with child": [*classes, "child"]}


def counting(scores: np.ndarray, labels: np.ndarray, counts: Sequence[float]) -> list[dict[str, Any]]:
    """Returns how well objects are counted: exactly, within one, and by how much too few or too many.

    Args:
        scores: floats (N, K), zero-shot logits of the numbers.
        labels: class indices (N,).
        counts: K numbers, the number of objects that each class stands for.

    Returns:
        Rows "exact", "within one", "too many", "too few" and "most frequent count", the accuracy of the best constant
        answer: {"measure", "value", "low", "high", "n"}; and "mean absolute error" in objects, without an interval.

    Raises:
        ValueError: another number of counts than classes, or scores and labels that do not match.
    """
    counts = np.asarray(counts, "float64")
    if counts.shape != np.shape(scores)[1:]:
        raise ValueError(
            f"Expected a number for each class. Received: {counts.tolist()} for scores {np.shape(scores)}."
        )
    hits = correct(scores, labels)
    excess = counts[np.asarray(scores).argmax(1)] - counts[labels]
    most_frequent = np.bincount(labels).argmax()
    rows = [
        _share("exact", hits),
        _share("within one", abs(excess) <= 1),
        _share("too many", excess > 0),
        _share("too few", excess < 0),
        _share("most frequent count", np.asarray(labels) == most_frequent),
    ]
    error = {"measure": "mean absolute error", "value": float(abs(excess).mean()), "low": None, "high": None}
    return [*rows, {**error, "n": len(hits)}]


def fine_grained(scores: np.ndarray, labels: np.ndarray, coarse: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the accuracy among fine classes, among coarse ones, and among the fine classes of the right coarse one.

    A model that is good at the coarse classes and near chance within them sees the object but not its variant.

    Args:
        scores: floats (N, K), zero-shot logits of the fine classes.
        labels: class indices (N,).
        coarse: K names, the coarse class of each fine class, such as the make of a car. A coarse class has the highest
            score of its fine classes.

    Returns:
        Rows "fine", "coarse", "fine, given the coarse class" and "chance, given the coarse class": {"measure", "value",
        "low", "high", "n"}.

    Raises:
        ValueError: another number of coarse names than classes, only one coarse class, or one for each fine class.
    """
    scores, labels, coarse = np.asarray(scores), np.asarray(labels), np.asarray(coarse)
    groups = len(np.unique(coarse))
    if coarse.shape != scores.shape[1:] or not 1 < groups < len(coarse):
        raise ValueError(
            "Expected the name of a coarse class for each fine class, at least two of them, of which one has several "
            f"fine classes. Received: {len(coarse)} names of {groups} coarse classes, scores of shape {scores.shape}."
        )
    same = coarse[labels][:, None] == coarse
    inside = correct(np.where(same, scores, scores.min() - 1), labels)
    chance = 1 / same.sum(1)
    return [
        _share("fine", correct(scores, labels)),
        _share("coarse", coarse[scores.argmax(1)] == coarse[labels]),
        _share("fine, given the coarse class", inside),
        {"measure": "chance, given the coarse class", "value": float(chance.mean()), "low": None, "high": None}
        | {"n": len(labels)},
    ]


def against_baseline(measured: Mapping[str, np.ndarray], baseline: str) -> list[dict[str, Any]]:
    """Returns the accuracy of several classifiers on the same images, and their difference from a baseline.

    The paper's example is MNIST, where logistic regression on raw pixels outperforms zero-shot CLIP.

    Args:
        measured: {name: bool (N,)}, which images each classifier classifies correctly, in the same order.
        baseline: a key of `measured`, such as "logistic regression on pixels".

    Returns:
        Rows {"measure", "value", "low", "high", "n"}, except for the baseline with "difference" (value minus the
        baseline's), "difference_low", "difference_high" and McNemar's "p_value".

    Raises:
        ValueError: an unknown baseline, or vectors that do not match.
    """
    if baseline not in measured:
        raise ValueError(f"Expected one of {list(measured)} as the baseline. Received: baseline={baseline!r}.")
    rows = []
    for name, hits in measured.items():
        row = _share(name, np.asarray(hits))
        if name != baseline:
            compared = compare_models(np.asarray(measured[baseline]), np.asarray(hits))
            row |= {"difference": compared.difference, "difference_low": compared.low}
            row |= {"difference_high": compared.high, "p_value": compared.p_value}
        rows.append(row)
    return rows


def few_shot_loss(zero_shot: np.ndarray, few_shot: Mapping[int, Sequence[np.ndarray]]) -> list[dict[str, Any]]:
    """Returns what is lost by going from zero-shot to a probe on a few images per class (section 6).

    Args:
        zero_shot: bool (N,). Which test images zero-shot classifies correctly.
        few_shot: {images per class: bool (N,) of each seed}, of the same test images in the same order.

    Returns:
        Rows by increasing number of images: {"shots", "value" (mean over seeds), "zero_shot", "difference", "low",
        "high" (95 % of the difference), "lost", "n", "seeds"}. The interval is for the uncertainty that comes from the
        test images, each with the results of all seeds; "lost" is whether it is below 0 as a whole.

    Raises:
        ValueError: no probes, or vectors that do not match.
    """
    zero_shot = np.asarray(zero_shot)
    rows = []
    for shots, seeds in sorted(few_shot.items()):
        hits = np.array([np.asarray(of_seed) for of_seed in seeds])
        if zero_shot.dtype != bool or hits.dtype != bool or hits.ndim != 2 or hits.shape[1:] != zero_shot.shape:
            raise ValueError(
                "Expected bool (N,) for zero-shot and for each seed, of the same images. "
                f"Received: {zero_shot.dtype} {zero_shot.shape}, {hits.dtype} {hits.shape} at {shots} shots."
            )
        compared = [compare_models(zero_shot, of_seed) for of_seed in hits]
        # The mean of the bounds is valid for results on the same images, however they depend on each other.
        low, high = (float(np.mean([getattr(c, name) for c in compared])) for name in ("low", "high"))
        row = {"shots": shots, "value": float(hits.mean()), "zero_shot": float(zero_shot.mean())}
        row |= {"difference": row["value"] - row["zero_shot"], "low": low, "high": high, "lost": high < 0}
        rows.append(row | {"n": len(zero_shot), "seeds": len(hits)})
    if not rows:
        raise ValueError("Expected a few-shot probe for at least one number of shots. Received: none.")
    return rows


def class_set_disparity(
    scores: np.ndarray,
    class_names: Sequence[str],
    class_sets: Mapping[str, Sequence[str]],
    groups: Sequence[str],
    watched: Collection[str],
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Returns the largest difference between groups in the rate of watched labels, for each class set (section 7.1).

    In the paper, adding the class "child" reduces how often young people are labelled with crime-related and non-human
    classes. `class_design_rates` has the rates of all groups.

    Args:
        scores: floats (N, K) for all classes.
        class_names: K names.
        class_sets: {name of the set: class names that can be predicted}.
        groups: N names, the group of the person in each image; at least two distinct names.
        watched: class names to count, such as harmful categories.
        seed: int. Seed of the simulation.

    Returns:
        A row for each class set: {"class_set", "highest", "lowest", "difference", "debiased", "low", "high", "ratio",
        "p_value", "n"}.

    Raises:
        ValueError: inputs that are invalid for `class_set_hits` or `disparity`.
    """
    rows = []
    for name, class_set in class_sets.items():
        hits = class_set_hits(scores, class_names, class_set, watched)
        found = disparity(hits, groups, seed=seed)
        row = {"class_set": name, "highest": found.highest, "lowest": found.lowest, "difference": found.difference}
        row |= {"debiased": found.debiased, "low": found.low, "high": found.high, "ratio": found.ratio}
        rows.append(row | {"p_value": found.p_value, "n": len(hits)})
    return rows


def _share(measure, hits):
    low, high = blaker_interval(int(np.sum(hits)), len(hits))
    return {"measure": measure, "value": float(np.mean(hits)), "low": low, "high": high, "n": len(hits)}
