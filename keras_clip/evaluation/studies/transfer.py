"""Zero-shot against training on labels (Radford et al., 2021, section 3.1 and 3.2; figures 5 to 8 and 11).

All of it works on {data set: share}, from `published` or, by `by_dataset`, from the scores of an evaluation.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from keras_clip.evaluation.metrics.intervals import LineFit, fit_line
from keras_clip.evaluation.results import Score


def by_dataset(scores: Sequence[Score], method: str) -> dict[str, float]:
    """The scores of a method by data set; the mean where there are several, such as those of several seeds.

    Args:
        scores: `Score`s, such as `Results.scores`.
        method: str, the whole path of the method: "zero_shot/family", "few_shot/4".

    Returns:
        {data set: value}, in the order in which they came.
    """
    found = {}
    for score in scores:
        if score.method == method:
            found.setdefault(score.dataset, []).append(score.value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def score_differences(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """By how much the first is better, on the data sets of both (figures 5 and 11).

    Args:
        first: {data set: share}. Figure 5: CLIP zero-shot; figure 11: a probe of its features.
        second: the same. Figure 5: a probe of a ResNet-50's features; figure 11: of another model's.

    Returns:
        {data set: difference of shares}, the largest first.

    Raises:
        ValueError: no data set in common.
    """
    differences = {name: first[name] - second[name] for name in _shared(first, second)}
    return dict(sorted(differences.items(), key=lambda item: -item[1]))


def wins(differences: Mapping[str, float]) -> tuple[int, int]:
    """On how many data sets the first is better, and out of how many.

    Args:
        differences: {data set: difference}, of `score_differences`.

    Returns:
        Two ints.
    """
    # Shares of printed tables differ by 0.001 or by nothing: the rest is rounding.
    return sum(value > 1e-9 for value in differences.values()), len(differences)


def few_shot_curve(scores: Sequence[Score], method: str = "few_shot") -> list[tuple[int, float, float, float]]:
    """Mean score over data sets against labelled images per class (figure 6).

    Only data sets that have every number of shots count, so that all points average over the same ones.

    Args:
        scores: `Score`s with methods "few_shot/1", "few_shot/2" ...
        method: str. What stands before the number of shots.

    Returns:
        List of (shots, mean, lowest, highest) by growing shots; lowest and highest are those of the seeds' means, where
        the scores say `details["seed"]`.

    Raises:
        ValueError: no such scores, or no data set that has all shots with all seeds.
    """
    table = {}
    for score in scores:
        before, _, shots = score.method.rpartition("/")
        if before == method and shots.isdecimal():
            table.setdefault(score.dataset, {})[int(shots), score.details.get("seed", 0)] = score.value
    cells = sorted({cell for row in table.values() for cell in row})
    full = [row for row in table.values() if len(row) == len(cells)]
    if not full:
        raise ValueError(
            f'Expected scores of methods "{method}/1", "{method}/2" ... and a data set that has all of them. '
            f"Received: {len(table)} data sets, (shots, seed): {cells}."
        )
    means = {cell: np.mean([row[cell] for row in full]) for cell in cells}
    curve = []
    for shots in sorted({shots for shots, _ in cells}):
        seeds = [mean for (other, _), mean in means.items() if other == shots]
        curve.append((shots, float(np.mean(seeds)), float(min(seeds)), float(max(seeds))))
    return curve


@dataclass(frozen=True)
class ShotsSummary:
    """How many labelled images per class zero-shot is worth, over data sets (figure 7).

    Args:
        mean: over data sets; infinite where one never matches zero-shot.
        median: over data sets; the middle is known even where some never match.
        n: int. Data sets.
        never: int. Data sets whose probe does not match zero-shot with all labels there are.
    """

    mean: float
    median: float
    n: int
    never: int


def summarise_shots(shots: Mapping[str, float]) -> ShotsSummary:
    """Mean and median of the shots at which a probe matches zero-shot.

    Args:
        shots: {data set: shots}, of `published.shots_to_match` or the same measured; infinite: never.

    Returns:
        A `ShotsSummary`.

    Raises:
        ValueError: no data set, NaN, or a number below 0.
    """
    values = np.array(list(shots.values()), "float64")
    if not len(values) or not (values >= 0).all():
        raise ValueError(f"Expected at least one data set, shots >= 0 or infinite. Received: shots={dict(shots)}.")
    # Of the two in the middle one may be infinite: then so is their mean.
    low, high = np.sort(values)[[(len(values) - 1) // 2, len(values) // 2]]
    never = int(np.isinf(values).sum())
    return ShotsSummary(float(values.mean()), float((low + high) / 2), len(values), never)


@dataclass(frozen=True)
class Transfer:
    """Zero-shot against the probe on the same features (figure 8).

    Args:
        points: {data set: (probe, zero-shot)}, shares.
        line: `LineFit` of zero-shot against probe; `line.r` is the correlation that the figure gives.
    """

    points: Mapping[str, tuple[float, float]]
    line: LineFit

    def near_optimal(self, within: float = 0.03) -> list[str]:
        """The data sets on which zero-shot is close to the probe.

        Args:
            within: share. How far below the probe zero-shot may be.

        Returns:
            Names, in the order of the points.
        """
        return [name for name, (probe, zero_shot) in self.points.items() if probe - zero_shot <= within + 1e-9]


def transfer_correlation(zero_shot: Mapping[str, float], probe: Mapping[str, float]) -> Transfer:
    """Holds zero-shot against the linear probe of the same features (figure 8).

    Args:
        zero_shot: {data set: share}.
        probe: {data set: share}.

    Returns:
        A `Transfer`.

    Raises:
        ValueError: fewer than three data sets in common.
    """
    points = {name: (probe[name], zero_shot[name]) for name in _shared(zero_shot, probe)}
    x, y = zip(*points.values(), strict=True)
    return Transfer(points, fit_line(x, y))


def _shared(first, second):
    names = [name for name in first if name in second]
    if not names or any(math.isnan(scores[name]) for name in names for scores in (first, second)):
        raise ValueError(
            f"Expected at least one data set that both have, and no NaN. Received: {dict(first)} and {dict(second)}."
        )
    return names
