"""Logistic regression on features: the paper's measure of representations (Radford et al., 2021, appendix A.3).

It minimises the objective of scikit-learn's `LogisticRegression`, mean loss + |W|^2 / (2 C n) with an unpenalised bias,
until no element of the gradient exceeds 1e-4 / n, which is what `tol=1e-4` meant when the paper was written, and the
objective is within 1e-7 of its minimum: with a weak penalty, a gradient of that size can be far from the minimum.
`newton` has the method.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from keras_clip.evaluation.classifiers.inputs import check_features, check_labels, check_split
from keras_clip.evaluation.classifiers.matmul import multiply
from keras_clip.evaluation.classifiers.newton import Problem
from keras_clip.evaluation.classifiers.tuning import Metric, metric_of_choices
from keras_clip.evaluation.rows import Rows

# C is 10 ** (step / 8): from 1e-6 to 1e6, first in steps of two decades.
STEPS_PER_DECADE, LAST_STEP, FIRST_INTERVAL = 8, 48, 16


class LinearProbe:
    """L2-regularised logistic regression, equal to scikit-learn's in float64 (Radford et al., 2021, appendix A.3).

    Single-label classes use a softmax, or one sigmoid if there are two; several labels per image use one sigmoid each
    (one-vs-rest in scikit-learn). The same data give bitwise equal results on the same machine.

    Args:
        C: float > 0. Inverse strength of the penalty.
        max_iter: int >= 1. Limit of iterations; reaching it gives a warning.

    Attributes:
        coef: float64 (K, D).
        intercept: float64 (K,). For two classes the rows are opposite halves of the sigmoid's parameters, so that the
            softmax of the scores equals the probabilities.
        objective: float. Final value of mean loss + penalty, in nats.
        iterations: int. Iterations of conjugate gradients; each costs about as much as a gradient.
        converged: bool. Whether the gradient is within tolerance, and the objective within 1e-7 of its minimum.
        gradient: float. Largest absolute element of the gradient that remains; the tolerance is 1e-4 / N.
        multi_label: bool.
    """

    def __init__(self, C: float = 1.0, max_iter: int = 1000):
        if not (0 < C < math.inf and max_iter >= 1):
            raise ValueError(f"`C` must be positive, `max_iter` at least 1. Received: C={C}, max_iter={max_iter}.")
        self.C, self.max_iter = float(C), int(max_iter)

    def fit(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        num_classes: int | None = None,
        start: "LinearProbe | None" = None,
    ) -> "LinearProbe":
        """Fits the probe.

        Args:
            features: (N, D), taken as float32. They are not standardised, as in the paper.
            labels: class indices (N,), or 0, 1 and `metrics.IGNORED` (N, K).
            num_classes: int, K; None: the largest index + 1.
            start: a probe of the same shapes as the starting point: faster, with the same result.

        Returns:
            The probe itself.

        Raises:
            ValueError: NaN, labels out of range, one class only, a class without an image.
        """
        features = check_features(features)
        labels, num_classes = check_labels(labels, len(features), num_classes)
        problem = Problem(features, labels, num_classes)
        solution = problem.minimise(self.C, self.max_iter, start and start._solution)
        return self._take(solution, labels.ndim == 2)

    def _take(self, solution, multi_label):
        self._solution, self.multi_label = solution, multi_label
        weights, bias = solution.weights, solution.bias
        if not multi_label and len(bias) == 1:
            weights, bias = np.concatenate([-weights, weights], axis=1) / 2, np.concatenate([-bias, bias]) / 2
        self.coef, self.intercept = np.ascontiguousarray(weights.T), bias
        self.objective, self.gradient = solution.objective, solution.gradient
        self.iterations, self.converged = solution.iterations, solution.converged
        if not self.converged:
            warnings.warn(
                f"The linear probe with C={self.C:g} has not converged after {self.iterations} iterations: its "
                f"gradient is up to {self.gradient:.1e}, and its objective is not minimal. Raise `max_iter`, lower "
                "`C`, or scale the features to similar variances.",
                stacklevel=3,
            )
        return self

    def decision_function(self, features: np.ndarray) -> np.ndarray:
        """Returns scores of the classes; a higher score is more probable.

        Args:
            features: (N, D).

        Returns:
            float64 (N, K): logits of a softmax, or of a sigmoid each if `multi_label`.
        """
        scores = multiply(check_features(features), self.coef, "float64")
        scores += self.intercept
        return scores

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Predicts the most probable class.

        Args:
            features: (N, D).

        Returns:
            int64 (N,); if `multi_label`, uint8 (N, K), 1 where the probability of the class exceeds 0.5.
        """
        scores = self.decision_function(features)
        return (scores > 0).astype("uint8") if self.multi_label else scores.argmax(axis=1)

    def measured(self, features: np.ndarray, labels: np.ndarray, metric: Metric | None = None) -> float:
        """Returns the metric of the scores of images, which are computed in blocks if it is a mean over images.

        Args:
            features: (N, D).
            labels: (N,) or (N, K).
            metric: function of scores (N, K) and labels; None: as of `search_C`.

        Returns:
            float.
        """
        return metric_of_choices(
            lambda rows: [("", self.decision_function(features[rows]))], labels, len(self.coef), metric
        )[""]


@dataclass(frozen=True)
class CSearch:
    """Result of `search_C`.

    Args:
        C: float. The best value; the smallest of equally good values.
        scores: {C: score on the validation split} in ascending order of C.
        probe: `LinearProbe` with that C.
    """

    C: float
    scores: dict[float, float]
    probe: LinearProbe

    def refitted(
        self,
        train: tuple[np.ndarray, np.ndarray],
        validation: tuple[np.ndarray, np.ndarray],
        num_classes: int | None = None,
    ) -> "CSearch":
        """Fits the probe with the best C on both splits together, as `search_C(refit=True)` does.

        Args:
            train: features (N, D) and labels, as in the search.
            validation: features and labels, as in the search.
            num_classes: int, K; None: the largest index + 1.

        Returns:
            A `CSearch` with the new probe.
        """
        features = Rows([check_features(part) for part, _ in (train, validation)])
        labels = np.concatenate([part for _, part in (train, validation)])
        probe = LinearProbe(self.C, self.probe.max_iter).fit(features, labels, num_classes, start=self.probe)
        return CSearch(self.C, self.scores, probe)


def search_C(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    metric: Callable[[np.ndarray, np.ndarray], float] | None = None,
    num_classes: int | None = None,
    max_iter: int = 1000,
    refit: bool = True,
    verbose: int = 1,
) -> CSearch:
    """Chooses C as the paper did: from 1e-6 to 1e6, eight steps per decade, by halving the interval around the best.

    The search makes seven fits two decades apart, then four times two fits beside the best at half the interval, and
    one fit with the best C on both splits together: 16 fits, or fewer at the ends of the range (appendix A.3). Each fit
    starts from the one with the nearest C.

    Args:
        train: features (N, D) and labels, as `LinearProbe.fit` takes them.
        validation: features and labels of other images, never of the test split.
        metric: function of scores (N, K) and labels, where higher is better; None: `metrics.accuracy`, or
            `metrics.map_11pt` for several labels.
        num_classes: int, K; None: the largest index of the training split + 1.
        max_iter: int. Iterations of a fit.
        refit: bool. Whether the last fit uses both splits; False: the training split only.
        verbose: int. 0 hides the progress bar.

    Returns:
        A `CSearch`.

    Raises:
        ValueError: inputs that `LinearProbe.fit` rejects, splits that do not match, or a metric that is not a number.
    """
    from tqdm import tqdm

    features, (labels, num_classes) = check_features(train[0]), check_labels(train[1], len(train[0]), num_classes)
    held_out = check_split(*validation, features.shape[1], num_classes)
    problem, found, scores = Problem(features, labels, num_classes), {}, {}

    with tqdm(total=15 + refit, desc="Searching C", disable=not verbose, leave=False) as bar:
        for step in _Steps(scores):
            nearest = found[min(found, key=lambda other: abs(other - step))]._solution if found else None
            probe = LinearProbe(_C(step), max_iter)
            found[step] = probe._take(problem.minimise(probe.C, max_iter, nearest), labels.ndim == 2)
            scores[step] = probe.measured(*held_out, metric)
            if not math.isfinite(scores[step]):
                raise ValueError(f"`metric` must return a finite number. Received: {scores[step]} for C={probe.C:g}.")
            bar.update()
        best = _best(scores)
        result = CSearch(_C(best), {_C(step): scores[step] for step in sorted(scores)}, found[best])
        if refit:
            result = result.refitted((features, labels), held_out, num_classes)
            bar.update()
    return result


class _Steps:
    """Iterates over the steps to try; it depends on the scores that are added during the iteration."""

    def __init__(self, scores):
        self.scores = scores

    def __iter__(self):
        yield from range(-LAST_STEP, LAST_STEP + 1, FIRST_INTERVAL)
        interval = FIRST_INTERVAL // 2
        while interval:
            best = _best(self.scores)
            for step in (best - interval, best + interval):
                if abs(step) <= LAST_STEP:
                    yield step
            interval //= 2


def _best(scores):
    return max(sorted(scores), key=scores.get)


def _C(step):
    return 10.0 ** (step / STEPS_PER_DECADE)
