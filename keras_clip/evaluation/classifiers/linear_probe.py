"""Logistic regression on features: the paper's measure of representations (Radford et al., 2021, appendix A.3).

It minimises the objective of scikit-learn's `LogisticRegression`, mean loss + |W|^2 / (2 C n) with an unpenalised bias,
by SciPy's L-BFGS-B until no element of the gradient exceeds 1e-4 / n, which is what `tol=1e-4` meant when the paper was
written. Two measures make it faster. The optimisation is preconditioned: its coordinates are the principal components
of the features, scaled by the approximate curvature of the loss, so that dozens of iterations replace a thousand. And
products are float32 while a step gains far more than rounding loses, and float64 from there on.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from keras_clip.evaluation.classifiers.inputs import check_features, check_labels, check_split
from keras_clip.evaluation.classifiers.logistic_loss import LogisticLoss
from keras_clip.evaluation.classifiers.matmul import multiply
from keras_clip.evaluation.metrics.classification import accuracy, map_11pt

GRADIENT_TOLERANCE = 1e-4
# The smallest relative gain of a step for which float32 suffices: its rounding is about 1e-8 of the objective.
FLOAT32_GAIN = 1e-6
# The settings of L-BFGS-B that scikit-learn uses.
MEMORY, LINE_SEARCH, LEAST_GAIN = 10, 50, 64 * np.finfo(float).eps
# C is 10 ** (step / 8): from 1e-6 to 1e6, first in steps of two decades.
STEPS_PER_DECADE, LAST_STEP, FIRST_INTERVAL = 8, 48, 16


@dataclass(frozen=True)
class _Solution:
    """The parameters of the optimisation: `weights` (D, columns) and `bias` (columns,), float64."""

    weights: np.ndarray
    bias: np.ndarray
    objective: float
    iterations: int
    converged: bool


class _Problem:
    """The optimisation problem of one training set, which can be solved for any C.

    Where all classes are equally likely, a softmax over K of them has the curvature variance / K along a principal
    component, and a sigmoid variance / 4; the penalty adds 1 / (C n).
    """

    def __init__(self, features, labels, num_classes):
        self.loss = LogisticLoss(features, labels, num_classes)
        self.mean, covariance = self.loss.moments()
        variances, self.components = np.linalg.eigh(covariance)
        self.flatness = num_classes if self.loss.softmax else 4
        self.curvatures = np.maximum(variances, 0) / self.flatness

    def minimise(self, C: float, max_iter: int, start: _Solution | None = None) -> _Solution:
        """Returns the parameters that minimise the objective for this C."""
        try:
            from scipy import optimize
            from threadpoolctl import threadpool_limits
        except ImportError as error:
            raise ImportError(
                'The linear probe needs SciPy and threadpoolctl: pip install "keras_clip[evaluation]".'
            ) from error
        descent, iterations = _Descent(self, C), 0
        point = descent.point(start)
        # The first round changes to float64 itself; the second is needed if the first ends or fails before that.
        for descent.dtype in ("float32", "float64"):
            options = {
                "maxiter": max_iter - iterations,
                "maxfun": 50 * max_iter,
                "maxcor": MEMORY,
                "maxls": LINE_SEARCH,
            }
            # NumPy and SciPy compute only small products here. Their threads would wait actively and block the cores
            # for the threads of the backend, which made a small search on torch 14 times slower.
            with threadpool_limits(1, "blas"):
                result = optimize.minimize(
                    descent,
                    point,
                    jac=True,
                    method="L-BFGS-B",
                    callback=descent.after_step,
                    options={**options, "ftol": LEAST_GAIN, "gtol": 0.0},
                )
            point, iterations = result.x, iterations + result.nit
            if descent.exact_steps or iterations >= max_iter:
                break
        weights, bias = descent.parameters(point)
        converged = result.status == 0 or descent.is_flat(result.jac)
        if self.loss.softmax:  # the logits are determined up to a constant
            bias = bias - bias.mean()
        return _Solution(weights, bias, float(result.fun), iterations, bool(converged))


class _Descent:
    """The objective of a problem for one C, as a function of a flat vector of scaled coordinates for L-BFGS-B."""

    def __init__(self, problem, C):
        self.problem = problem
        self.penalty = 1 / (C * problem.loss.rows)
        self.scale = 1 / np.sqrt(problem.curvatures + self.penalty)[:, None]
        self.bias_scale = math.sqrt(problem.flatness)
        self.dtype, self.exact_steps, self.last = "float32", 0, math.inf
        self.gradient = None

    def point(self, start):
        problem = self.problem
        if start is None:
            return np.zeros((problem.loss.width + 1) * problem.loss.columns)
        rotated = problem.components.T @ start.weights / self.scale
        bias = (start.bias + problem.mean @ start.weights) / self.bias_scale
        return np.concatenate([rotated, bias[None]]).ravel()

    def parameters(self, point):
        point = point.reshape(-1, self.problem.loss.columns)
        weights = self.problem.components @ (self.scale * point[:-1])
        # The coordinates are those of centred features.
        return weights, self.bias_scale * point[-1] - self.problem.mean @ weights

    def __call__(self, point):
        weights, bias = self.parameters(point)
        value, d_weights, d_bias = self.problem.loss(weights, bias, self.dtype)
        value += self.penalty / 2 * np.sum(weights * weights)
        d_weights += self.penalty * weights
        centred = self.problem.components.T @ (d_weights - np.outer(self.problem.mean, d_bias))
        self.gradient = np.concatenate([self.scale * centred, self.bias_scale * d_bias[None]]).ravel()
        return value, self.gradient

    def is_flat(self, gradient):
        """Returns whether the gradient with respect to weights and biases is within scikit-learn's tolerance."""
        gradient = gradient.reshape(-1, self.problem.loss.columns)
        d_bias = gradient[-1] / self.bias_scale
        d_weights = self.problem.components @ (gradient[:-1] / self.scale) + np.outer(self.problem.mean, d_bias)
        return max(np.abs(d_weights).max(), np.abs(d_bias).max()) <= GRADIENT_TOLERANCE / self.problem.loss.rows

    def after_step(self, intermediate_result):
        value = intermediate_result.fun
        if self.dtype == "float64":
            self.exact_steps += 1
            if self.is_flat(self.gradient):
                raise StopIteration
        elif self.last - value < FLOAT32_GAIN * value:
            self.dtype = "float64"
        self.last = value


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
        iterations: int.
        converged: bool.
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
        problem = _Problem(features, labels, num_classes)
        solution = problem.minimise(self.C, self.max_iter, start and start._solution)
        return self._take(solution, labels.ndim == 2)

    def _take(self, solution, multi_label):
        self._solution, self.multi_label = solution, multi_label
        weights, bias = solution.weights, solution.bias
        if not multi_label and len(bias) == 1:
            weights, bias = np.concatenate([-weights, weights], axis=1) / 2, np.concatenate([-bias, bias]) / 2
        self.coef, self.intercept = np.ascontiguousarray(weights.T), bias
        self.objective, self.iterations, self.converged = solution.objective, solution.iterations, solution.converged
        if not self.converged:
            warnings.warn(
                f"The linear probe with C={self.C:g} has not converged after {self.iterations} iterations; its "
                "objective is not minimal. Raise `max_iter`, or lower `C`.",
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
        return multiply(check_features(features), self.coef, "float64") + self.intercept

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Predicts the most probable class.

        Args:
            features: (N, D).

        Returns:
            int64 (N,); if `multi_label`, uint8 (N, K), 1 where the probability of the class exceeds 0.5.
        """
        scores = self.decision_function(features)
        return (scores > 0).astype("uint8") if self.multi_label else scores.argmax(axis=1)


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
    metric = metric or (map_11pt if labels.ndim == 2 else accuracy)
    problem, found, scores = _Problem(features, labels, num_classes), {}, {}

    with tqdm(total=15 + refit, desc="Searching C", disable=not verbose, leave=False) as bar:
        for step in _Steps(scores):
            nearest = found[min(found, key=lambda other: abs(other - step))]._solution if found else None
            probe = LinearProbe(_C(step), max_iter)
            found[step] = probe._take(problem.minimise(probe.C, max_iter, nearest), labels.ndim == 2)
            scores[step] = float(metric(probe.decision_function(held_out[0]), held_out[1]))
            if not math.isfinite(scores[step]):
                raise ValueError(f"`metric` must return a finite number. Received: {scores[step]} for C={probe.C:g}.")
            bar.update()
        best = found[_best(scores)]
        if refit:
            both = [np.concatenate(parts) for parts in zip((features, labels), held_out, strict=True)]
            best = LinearProbe(best.C, max_iter).fit(*both, num_classes, start=best)
            bar.update()
    return CSearch(best.C, {_C(step): scores[step] for step in sorted(scores)}, best)


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
