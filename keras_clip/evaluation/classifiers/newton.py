"""Newton's method for logistic regression, to the minimum at any strength of the penalty.

The linear systems are solved by conjugate gradients, with float32 products while these suffice; objective and gradient
are float64. With fewer images than features, the unknowns are coordinates in the span of the images. The preconditioner
has the curvature of the loss, equal for all classes. It is renewed during the fit: with a weak penalty, only the few
images near a boundary still have curvature. Where it does not suffice, as for features whose scales differ by decades,
the second derivatives themselves replace it if they fit in memory.
"""

from dataclasses import dataclass

import numpy as np

from keras_clip.evaluation.classifiers.logistic_loss import LogisticLoss

GRADIENT_TOLERANCE = 1e-4
# Allowed excess of the objective over its minimum, relative to it.
GAP_TOLERANCE = 1e-7
# Allowed residual of a linear system, relative to the gradient, in the norm of the preconditioner.
RESIDUAL_TOLERANCE = 0.1
# The least gain of a step relative to the gain that the gradient promises, and the number of lengths to try.
LEAST_GAIN, LINE_SEARCH = 1e-4, 40
# Relative gains below this are lost to the rounding of the objective.
ROUNDING = 1e-10
MOST_BEFORE_RENEWAL = 100
# The largest number of parameters whose second derivatives are formed, 128 MiB in float64, and the number of parameters
# for which forming and factorising them costs as much as one more product.
LARGEST_HESSIAN, PARAMETERS_PER_PRODUCT = 4096, 16


@dataclass(frozen=True)
class _Solution:
    """The parameters of the optimisation: `weights` (D, columns) and `bias` (columns,), float64."""

    weights: np.ndarray
    bias: np.ndarray
    objective: float
    iterations: int
    converged: bool
    gradient: float


class Problem:
    """The optimisation problem of one training set, which can be solved for any C."""

    def __init__(self, features, labels, num_classes):
        self.basis, dtype = None, "float32"
        if len(features) < features.shape[1]:
            # The penalty keeps the weights in the span of the rows, which then has fewer dimensions than the features.
            self.basis, coordinates = np.linalg.qr(np.asarray(features, "float32").T.astype("float64"))
            features, dtype = coordinates.T, "float64"
        self.loss = LogisticLoss(features, labels, num_classes, dtype)
        # At zero, where every fit without another start begins.
        self.curvature = self.loss.curvature(*self.zero())

    def zero(self):
        return np.zeros((self.loss.width, self.loss.columns)), np.zeros(self.loss.columns)

    def reduced(self, weights: np.ndarray) -> np.ndarray:
        """Returns weights (D, columns) in the coordinates of the optimisation."""
        return weights if self.basis is None else self.basis.T @ weights

    def expanded(self, weights: np.ndarray) -> np.ndarray:
        """Returns weights, or their gradient, as (D, columns)."""
        return weights if self.basis is None else self.basis @ weights

    def minimise(self, C: float, max_iter: int, start: _Solution | None = None) -> _Solution:
        """Returns the parameters that minimise the objective for this C."""
        try:
            import scipy.linalg  # noqa: F401
            from threadpoolctl import threadpool_limits
        except ImportError as error:
            raise ImportError(
                'The linear probe needs SciPy and threadpoolctl: pip install "keras_clip[evaluation]".'
            ) from error
        # NumPy computes only small products here. Its threads would wait actively and block the cores for the threads
        # of the backend, which made a small search on torch 14 times slower.
        with threadpool_limits(1, "blas"):
            newton = _Newton(self, C, (self.reduced(start.weights), start.bias) if start else self.zero())
            newton.run(max_iter)
        bias = newton.bias
        if self.loss.softmax:  # the logits are determined up to a constant
            bias = bias - bias.mean()
        return _Solution(
            self.expanded(newton.weights),
            bias,
            newton.value,
            newton.iterations,
            newton.converged,
            newton.largest(newton.gradient),
        )


class _SharedPreconditioner:
    """The inverse of an approximation of the second derivatives, in which all columns have the same curvature."""

    def __init__(self, curvature, penalty):
        self.by_bias, self.mean, matrix = curvature
        self.inverse = _Inverse(matrix + penalty * np.eye(len(matrix)))

    def __call__(self, d_weights, d_bias):
        weights = self.inverse(d_weights - np.outer(self.mean, d_bias))
        return weights, d_bias / self.by_bias - self.mean @ weights


class _FullPreconditioner:
    """The inverse of the second derivatives themselves."""

    def __init__(self, hessian, penalty, softmax):
        columns, width = hessian.shape[:2]
        matrix = hessian.reshape(columns * width, -1)
        diagonal = hessian[range(columns), :, range(columns), :]
        if softmax:  # a constant added to all biases changes nothing, so that its curvature is free
            hessian[:, -1, :, -1] += diagonal[:, -1, -1].mean()
        matrix[np.diag_indices(len(matrix))] += np.tile(np.append(np.full(width - 1, penalty), 0.0), columns)
        self.inverse = _Inverse(matrix)

    def __call__(self, d_weights, d_bias):
        gradient = np.concatenate([d_weights, d_bias[None]])
        step = self.inverse(gradient.T.reshape(-1, 1)).reshape(gradient.T.shape).T
        return step[:-1], step[-1]


class _Inverse:
    """The inverse of a positive definite matrix by Cholesky's method.

    Its accuracy does not depend on the scales of the features, since the matrix is first scaled to a unit diagonal.
    """

    def __init__(self, matrix):
        from scipy.linalg import LinAlgError, cho_factor

        self.scale = 1 / np.sqrt(np.maximum(matrix.diagonal(), np.finfo(float).tiny))[:, None]
        scaled = matrix * self.scale * self.scale.T
        for jitter in 10.0 ** np.arange(-14, 1):  # rounding can make the smallest eigenvalues negative
            try:
                scaled[np.diag_indices(len(scaled))] = 1 + len(scaled) * jitter
                self.factor = cho_factor(scaled, lower=True)
                return
            except LinAlgError:
                continue
        raise AssertionError("A diagonally dominant matrix is positive definite.")

    def __call__(self, vectors):
        from scipy.linalg import cho_solve

        return self.scale * cho_solve(self.factor, self.scale * vectors)


class _Newton:
    """Newton's method for one C, whose linear systems are solved by preconditioned conjugate gradients."""

    def __init__(self, problem, C, start):
        self.problem, self.loss, (self.weights, self.bias) = problem, problem.loss, start
        self.penalty = 1 / (C * problem.loss.rows)
        self.preconditioner = _SharedPreconditioner(problem.curvature, self.penalty)
        # A new preconditioner costs about as much as this number of iterations: its moments and eigenvectors.
        width, columns, rows = self.loss.width, self.loss.columns, self.loss.rows
        self.renewal = int(np.clip(width / columns * (1 + 4 * width / rows), 5, MOST_BEFORE_RENEWAL))
        self.since_renewal, self.stale = 0, bool(np.any(self.weights))
        size = columns * (width + 1)
        # One column has the shared curvature exactly.
        self.full, self.full_allowed = False, 1 < columns and size <= LARGEST_HESSIAN
        self.full_renewal = int(np.clip(size / PARAMETERS_PER_PRODUCT, 10, MOST_BEFORE_RENEWAL))
        self.dtype, self.iterations, self.converged = "float32", 0, False
        self.value, *self.gradient = self.evaluate(self.weights, self.bias)

    def evaluate(self, weights, bias):
        value, d_weights, d_bias = self.loss(weights, bias, "float64")
        return value + self.penalty / 2 * np.sum(weights * weights), d_weights + self.penalty * weights, d_bias

    def largest(self, gradient):
        """Returns the largest absolute element of a gradient by the weights of the features and by the bias."""
        return max(float(np.abs(x).max()) for x in (self.problem.expanded(gradient[0]), gradient[1]))

    def is_flat(self):
        """Returns whether the gradient is within scikit-learn's tolerance."""
        return self.largest(self.gradient) <= GRADIENT_TOLERANCE / self.loss.rows

    def run(self, max_iter):
        while True:
            step, decrement, solved = self.solve(max_iter - self.iterations)
            # Half the decrement estimates how far the objective is above its minimum.
            self.converged = solved and self.is_flat() and decrement / 2 <= GAP_TOLERANCE * self.value
            if self.converged or not self.advance(step, decrement) or self.iterations >= max_iter:
                return

    def renew(self):
        """Computes the preconditioner at the current parameters."""
        if self.full:
            hessian = self.loss.hessian(self.weights, self.bias)
            self.preconditioner = _FullPreconditioner(hessian, self.penalty, self.loss.softmax)
        else:
            self.preconditioner = _SharedPreconditioner(self.loss.curvature(self.weights, self.bias), self.penalty)
        self.since_renewal, self.stale = 0, False

    def solve(self, limit):
        """Returns Newton's step, its decrement (gradient times step), and whether the residual is small."""
        if self.since_renewal >= self.renewal:
            self.renew()
        if not (self.stale or self.full) and self.full_allowed:
            limit = min(limit, self.full_renewal)
        if self.stale:  # rather renew it than continue with it
            limit = min(limit, self.renewal)
        elif self.dtype == "float32":
            limit = min(limit, MOST_BEFORE_RENEWAL)
        residual = [-x for x in self.gradient]
        step = [np.zeros_like(x) for x in residual]
        direction = scaled = self.preconditioner(*residual)
        first = size = _dot(residual, scaled)
        for _ in range(limit):
            if size <= RESIDUAL_TOLERANCE**2 * first:
                break
            product = self.loss.hessian_product(self.weights, self.bias, *direction, self.dtype)
            product = [product[0] + self.penalty * direction[0], product[1]]
            self.iterations += 1
            self.since_renewal += 1
            curvature = _dot(direction, product)
            if not curvature > self.penalty / 2 * np.sum(direction[0] ** 2):  # rounding
                self.dtype = "float64"
                break
            step = [x + size / curvature * d for x, d in zip(step, direction, strict=True)]
            residual = [r - size / curvature * p for r, p in zip(residual, product, strict=True)]
            scaled = self.preconditioner(*residual)
            before, size = size, _dot(residual, scaled)
            direction = [z + size / before * d for z, d in zip(scaled, direction, strict=True)]
        solved = size <= RESIDUAL_TOLERANCE**2 * first
        if not (solved or self.stale or self.full) and self.full_allowed:
            self.full, self.since_renewal, self.renewal = True, self.full_renewal, self.full_renewal
        elif not (solved or self.stale):  # the rounding of float32 may be larger than the residual
            self.dtype = "float64"
        return step, -_dot(self.gradient, step), solved

    def advance(self, step, decrement):
        """Takes the step, halved until it lowers the objective; returns False if no length does."""
        for length in 0.5 ** np.arange(LINE_SEARCH):
            weights, bias = self.weights + length * step[0], self.bias + length * step[1]
            value, *gradient = self.evaluate(weights, bias)
            if value < self.value and value <= self.value - LEAST_GAIN * length * decrement:
                break
            # Where rounding hides the gain, a smaller gradient shows that the point is better.
            if decrement <= ROUNDING * self.value and self.largest(gradient) < self.largest(self.gradient):
                break
        else:
            # The products of a step from float32 were too inaccurate, or the objective has no lower float64 value.
            again, self.dtype = self.dtype == "float32", "float64"
            return again
        # Close to the minimum a step gains half its decrement, unless float32 was too inaccurate.
        if decrement < 1e-2 * self.value and self.value - value < decrement / 4:
            self.dtype = "float64"
        self.weights, self.bias, self.value, self.gradient, self.stale = weights, bias, value, gradient, True
        return True


def _dot(left, right):
    return sum(float(np.sum(x * y)) for x, y in zip(left, right, strict=True))
