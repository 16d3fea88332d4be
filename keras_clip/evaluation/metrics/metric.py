"""A metric as one object: its score, its interval, its unit, and how two models are compared by it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_clip.evaluation.metrics.correctness import correct
from keras_clip.evaluation.results import Examples, Score


@dataclass(frozen=True)
class Statistic:
    """A metric as a function of the outcomes of the examples, for a paired comparison of two models.

    Args:
        value: function of (outcomes, labels, counts) that returns a float. `outcomes` (N,) or (N, K) are those of the
            metric; `counts` (N,) says how often each example counts, as in a bootstrap resample. None: once each.
        weights: function of (N, labels) that returns floats (N,), if the value is a weighted sum of the outcomes: then
            the permutation test is faster. None: it is no such sum.
        strata: function of the labels that returns ints (N,). A bootstrap resample has as many examples of each stratum
            as the dataset, so that no class is missing. None: one stratum.
        needs_labels: bool. Whether `value` needs the labels.
    """

    value: Callable[[np.ndarray, np.ndarray | None, np.ndarray | None], float]
    weights: Callable[[int, np.ndarray | None], np.ndarray] | None = None
    strata: Callable[[np.ndarray], np.ndarray] | None = None
    needs_labels: bool = False


def _mean(outcomes, labels, counts):
    return float(np.average(outcomes, weights=counts))


def _median(outcomes, labels, counts):
    return float(np.median(outcomes if counts is None else np.repeat(outcomes, counts)))


# Of boolean outcomes of independent examples, `comparison` tests the mean by McNemar's test.
MEAN = Statistic(_mean, weights=lambda n, labels: np.full(n, 1 / n))
MEDIAN = Statistic(_median)


@dataclass(frozen=True)
class Metric:
    """A metric with its confidence interval, its unit, and the statistic by which two models are compared.

    `metric(scores, labels)` returns the score. What scores and labels are depends on the metric: for classification see
    `correctness`, for retrieval they are ranks and the images of the queries.

    Args:
        name: str. The key of the metric in tables of metrics, in `Task.metric` and in results.
        score: function of (scores, labels) that returns a float. For a metric of tasks, higher must be better: C,
            templates and the parameters of adapters are chosen by the maximum.
        interval: function of (scores, labels, confidence, resamples, seed) that returns the lower and the upper bound.
        unit: str. "fraction" for values in [0, 1], which reports show as percentages; another word for other values.
        correct: function of (scores, labels) that returns which examples are correct, bool (N,). None: no example is
            correct or wrong by itself.
        outcomes: function of (scores, labels) that returns the outcome of each example, (N,) or (N, K), from which
            `statistic` computes the metric. None: the outcomes are those of `correct`.
        statistic: `Statistic`. None: two models are compared by their correct examples, as by accuracy.
        stored: function of a `Score` that returns the outcomes from its arrays, where they are not one array of it.
    """

    name: str
    score: Callable[[np.ndarray, np.ndarray], float]
    interval: Callable[..., tuple[float, float]]
    unit: str = "fraction"
    correct: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = correct
    outcomes: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    statistic: Statistic | None = None
    stored: Callable[[Score], np.ndarray | None] | None = None

    def __call__(self, scores: np.ndarray, labels: np.ndarray) -> float:
        return float(self.score(scores, labels))

    def measure(
        self,
        scores: np.ndarray,
        labels: np.ndarray,
        dataset: str,
        method: str,
        protocol: str,
        *,
        published: float | None = None,
        details: Mapping[str, Any] | None = None,
        examples: Examples | None = None,
    ) -> Score:
        """Returns the score with its 95 % interval and the outcomes of the examples.

        Args:
            scores: N scores, in the form that the metric expects.
            labels: N labels, likewise.
            dataset: see `Score`, as for the other arguments.
            method: str.
            protocol: str.
            published: float or None.
            details: JSON values.
            examples: `Examples` or None.

        Returns:
            `Score`.

        Raises:
            ValueError: scores and labels for which the metric is undefined.
        """
        low, high = self.interval(scores, labels, 0.95, 1000, 0)
        return Score(
            dataset,
            method,
            self.name,
            self(scores, labels),
            low,
            high,
            len(labels),
            protocol,
            published,
            dict(details or {}),
            self.unit,
            correct=self.correct and self.correct(scores, labels),
            outcomes=self.outcomes and self.outcomes(scores, labels),
            examples=examples,
        )

    def outcomes_of(self, score: Score) -> np.ndarray | None:
        """Returns the outcomes of a stored score from which `statistic` computes it; None if they are unknown."""
        if self.stored is not None:
            return self.stored(score)
        return score.correct if self.outcomes is None else score.outcomes
