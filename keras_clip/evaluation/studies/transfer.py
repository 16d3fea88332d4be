"""Comparison of zero-shot transfer with supervised classifiers (Radford et al., 2021, sections 3.1 and 3.2).

The functions compute the data of figures 5 to 8 and 11. Their inputs are {dataset: score in [0, 1]}, from `published`
or, with `by_dataset`, from the scores of an evaluation.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from keras_clip.evaluation.metrics.regression import LineFit, fit_line
from keras_clip.evaluation.results import Score


def by_dataset(scores: Sequence[Score], method: str) -> dict[str, float]:
    """Returns the scores of a method by dataset, averaged over several scores, such as those of several seeds.

    Args:
        scores: `Score`s, such as `Results.scores`.
        method: str, the full path of the method: "zero_shot/family", "few_shot/4".

    Returns:
        {dataset: value}, in the order of the scores.
    """
    by_name = {}
    for score in scores:
        if score.method == method:
            by_name.setdefault(score.dataset, []).append(score.value)
    return {name: float(np.mean(values)) for name, values in by_name.items()}


def score_differences(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Returns first minus second on the datasets of both (figures 5 and 11).

    Args:
        first: {dataset: fraction}. Figure 5: zero-shot CLIP; figure 11: a linear probe on its features.
        second: {dataset: fraction}. Figure 5: a probe on ResNet-50 features; figure 11: on another model's features.

    Returns:
        {dataset: difference}, in decreasing order.

    Raises:
        ValueError: no dataset in common, or NaN.
    """
    differences = {name: first[name] - second[name] for name in _shared(first, second)}
    return dict(sorted(differences.items(), key=lambda item: -item[1]))


def wins(differences: Mapping[str, float]) -> tuple[int, int]:
    """Returns the number of datasets on which the first is better, and the number of datasets.

    Args:
        differences: {dataset: difference}, from `score_differences`.

    Returns:
        Two ints.
    """
    # Printed scores are multiples of 0.001; smaller differences are floating-point errors.
    return sum(value > 1e-9 for value in differences.values()), len(differences)


def few_shot_curve(scores: Sequence[Score], method: str = "few_shot") -> list[tuple[int, float, float, float]]:
    """Returns the mean score over datasets by the number of labelled images per class (figure 6).

    Only datasets that have every number of shots are included, so that all points average over the same datasets.

    Args:
        scores: `Score`s with methods "few_shot/1", "few_shot/2" ...
        method: str. The path before the number of shots.

    Returns:
        List of (shots, mean, lowest, highest) by increasing shots; lowest and highest are the extremes of the means of
        the seeds in `details["seed"]`.

    Raises:
        ValueError: no such scores, or no dataset that has all shots with all seeds.
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
            f'Expected scores of methods "{method}/1", "{method}/2" ... and a dataset that has all of them. '
            f"Received: {len(table)} datasets, (shots, seed): {cells}."
        )
    means = {cell: np.mean([row[cell] for row in full]) for cell in cells}
    curve = []
    for shots in sorted({shots for shots, _ in cells}):
        seeds = [mean for (other, _), mean in means.items() if other == shots]
        curve.append((shots, float(np.mean(seeds)), float(min(seeds)), float(max(seeds))))
    return curve


@dataclass(frozen=True)
class ShotsSummary:
    """Summary over datasets of the shots needed to match zero-shot (figure 7).

    Args:
        mean: mean over datasets; infinite if the probe never matches zero-shot on a dataset.
        median: median over datasets; finite if the probe matches zero-shot on most datasets.
        n: int. Number of datasets.
        never: int. Number of datasets on which the probe does not match zero-shot with all labels.
    """

    mean: float
    median: float
    n: int
    never: int


def summarise_shots(shots: Mapping[str, float]) -> ShotsSummary:
    """Returns the mean and median of the shots needed to match zero-shot.

    Args:
        shots: {dataset: shots}, from `published.shots_to_match` or measured; infinity if the probe never matches.

    Returns:
        A `ShotsSummary`.

    Raises:
        ValueError: no dataset, NaN, or a number below 0.
    """
    values = np.array(list(shots.values()), "float64")
    if not len(values) or not (values >= 0).all():
        raise ValueError(f"Expected at least one dataset, and shots >= 0 or infinite. Received: shots={dict(shots)}.")
    # If one of the two middle values is infinite, so is the median.
    low, high = np.sort(values)[[(len(values) - 1) // 2, len(values) // 2]]
    never = int(np.isinf(values).sum())
    return ShotsSummary(float(values.mean()), float((low + high) / 2), len(values), never)


@dataclass(frozen=True)
class Transfer:
    """Zero-shot scores against those of linear probes on the same features (figure 8).

    Args:
        points: {dataset: (probe, zero-shot)}, fractions.
        line: `LineFit` of zero-shot against probe; `line.r` is the correlation that the paper reports.
    """

    points: Mapping[str, tuple[float, float]]
    line: LineFit

    def near_optimal(self, within: float = 0.03) -> list[str]:
        """Returns the datasets on which zero-shot is close to the probe.

        Args:
            within: fraction. Maximum difference between probe and zero-shot.

        Returns:
            Names, in the order of the points.
        """
        return [name for name, (probe, zero_shot) in self.points.items() if probe - zero_shot <= within + 1e-9]


def transfer_correlation(zero_shot: Mapping[str, float], probe: Mapping[str, float]) -> Transfer:
    """Correlates zero-shot with linear probe scores on the same features (figure 8).

    Args:
        zero_shot: {dataset: fraction}.
        probe: {dataset: fraction}.

    Returns:
        A `Transfer`.

    Raises:
        ValueError: fewer than three datasets in common, or NaN.
    """
    points = {name: (probe[name], zero_shot[name]) for name in _shared(zero_shot, probe)}
    x, y = zip(*points.values(), strict=True)
    return Transfer(points, fit_line(x, y))


def _shared(first, second):
    names = [name for name in first if name in second]
    if not names or any(math.isnan(scores[name]) for name in names for scores in (first, second)):
        raise ValueError(
            f"Expected at least one dataset that both have, and no NaN. Received: {dict(first)} and {dict(second)}."
        )
    return names
