"""Scaling of scores with compute (Radford et al., 2021, figures 4, 9 and 10), and extrapolation by a power law.

Compute is the number of multiply-adds of one image's forward pass in billions, which the paper's figures call GFLOPs.
It is computed from the sizes of the models (`keras_clip.flops`, which counts a multiply-add as two operations). The
error is modelled as a power of compute: log(error) is linear in log(compute).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_clip import flops
from keras_clip.evaluation.metrics.distributions import student_quantile
from keras_clip.evaluation.metrics.regression import LineFit, fit_line
from keras_clip.evaluation.studies import published
from keras_clip.presets.architectures import ARCHITECTURES

RESNETS = ("rn50", "rn101", "rn50x4", "rn50x16", "rn50x64")
VISION_TRANSFORMERS = ("vit_b32", "vit_b16", "vit_l14", "vit_l14_336")


def gflops_per_image(preset: str) -> float:
    """Returns the multiply-adds of a published model for one image in billions, including the projection.

    Args:
        preset: name of one of the nine published models.

    Returns:
        float; 6.0 for "rn50", 191 for "vit_l14_336". All layers are counted.

    Raises:
        ValueError: an unknown name.
    """
    if preset not in ARCHITECTURES:
        raise ValueError(f"Expected one of {list(ARCHITECTURES)}. Received: preset={preset!r}.")
    sizes = ARCHITECTURES[preset].image_encoder
    width = sizes["width"] if "patch_size" in sizes else 32 * sizes["width"]
    total = flops.image_encoder(sizes, whole=True) + flops.projection(width, ARCHITECTURES[preset].embed_dim)
    return total / 2e9


@dataclass(frozen=True)
class PowerLaw:
    """The power law error = exp(intercept) * compute^slope.

    Args:
        line: the `LineFit` of log(error) against log(compute).
        log_compute: floats (n,). Logarithms of the compute of the fitted models.
        log_error: floats (n,). Logarithms of their errors.
    """

    line: LineFit
    log_compute: np.ndarray
    log_error: np.ndarray

    def error(self, compute: float) -> float:
        """Returns the error that the power law predicts.

        Args:
            compute: float > 0, or an array.

        Returns:
            Fraction, or an array.
        """
        return np.exp(self.line.predict(np.log(compute)))

    def compute_for(self, error: float, confidence: float = 0.95) -> tuple[float, float, float]:
        """Returns the compute at which the power law predicts an error, with Fieller's interval (1954).

        Args:
            error: fraction > 0.
            confidence: float in (0, 1).

        Returns:
            Compute, its lower and its upper bound; 0 and infinity if the interval of the slope includes 0.

        Raises:
            ValueError: an error that is not above 0, or a power law under which errors do not decrease.
        """
        line, x = self.line, self.log_compute
        if not (error > 0 and line.slope < 0):
            raise ValueError(f"Expected error > 0 and a slope below 0. Received: error={error}, slope={line.slope}.")
        height = math.log(error) - self.log_error.mean()
        spread = float(((x - x.mean()) ** 2).sum())
        bound = (student_quantile((1 + confidence) / 2, line.n - 2) * line.residual) ** 2
        # Fieller's bounds solve |height - slope * offset| = t standard errors, quadratic in the offset from mean(x).
        a = line.slope**2 - bound / spread
        b = line.slope * height
        offset = height / line.slope
        if a <= 0:
            return _exp(x.mean() + offset), 0.0, math.inf
        # The discriminant b^2 - a c in a form without cancellation.
        root = math.sqrt(a * bound / line.n + height**2 * bound / spread)
        return tuple(_exp(x.mean() + value) for value in (offset, (b - root) / a, (b + root) / a))


def fit_power_law(compute: Sequence[float], errors: Sequence[float], confidence: float = 0.95) -> PowerLaw:
    """Fits error = constant * compute^slope by least squares of the logarithms (figure 9).

    Args:
        compute: n >= 3 floats > 0.
        errors: n fractions > 0, such as 1 - the mean score of a model.
        confidence: float in (0, 1). Confidence of the bounds of the slope.

    Returns:
        A `PowerLaw`.

    Raises:
        ValueError: fewer than three models, or values that are not above 0.
    """
    compute, errors = np.asarray(compute, "float64"), np.asarray(errors, "float64")
    if not ((compute > 0).all() and (errors > 0).all()):
        raise ValueError(f"Expected values above 0. Received: compute={compute.tolist()}, errors={errors.tolist()}.")
    x, y = np.log(compute), np.log(errors)
    return PowerLaw(fit_line(x, y, confidence), x, y)


def mean_score(scores: Mapping[str, float], datasets: Sequence[str] | None = None) -> float:
    """Returns the mean over datasets, each with its own metric, as the paper averages.

    Args:
        scores: {dataset: fraction}.
        datasets: names to average over; None: all.

    Returns:
        Fraction in [0, 1].

    Raises:
        ValueError: a dataset without a score, or no dataset.
    """
    names = list(scores if datasets is None else datasets)
    missing = [name for name in names if name not in scores]
    if missing or not names:
        raise ValueError(f"Expected at least one dataset, and a score for each. Received: none for {missing}.")
    return float(np.mean([scores[name] for name in names]))


def scaling_rows(
    scores: Mapping[str, Mapping[str, float]],
    datasets: Sequence[str] | None = None,
    gflops: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Returns the compute, mean score and error of each model (figures 9 and 10).

    Args:
        scores: {model: {dataset: fraction}}.
        datasets: names to average over; None: all datasets of each model.
        gflops: {model: compute}; `gflops_per_image` is used for presets that it lacks.

    Returns:
        Rows {"name", "gflops", "score", "error"}, by increasing compute; models of unknown compute (NaN) are last.
    """
    rows = []
    for name, by_dataset in scores.items():
        compute = (gflops or {}).get(name, gflops_per_image(name) if name in ARCHITECTURES else math.nan)
        score = mean_score(by_dataset, datasets)
        rows.append({"name": name, "gflops": compute, "score": score, "error": 1 - score})
    return sorted(rows, key=lambda row: (math.isnan(row["gflops"]), row["gflops"]))


def compute_gain(compute: Sequence[float], plain: Sequence[float], improved: Sequence[float]) -> list[float]:
    """Returns the factor of compute that matches the improvement by a method (figure 4: about 4 for prompt ensembles).

    For each model, the factor is the compute at which the plain curve, interpolated linearly in log(compute), reaches
    the improved score, divided by the compute of the model.

    Args:
        compute: n >= 2 floats > 0, strictly increasing.
        plain: n scores of the models without the improvement, strictly increasing.
        improved: n scores with the improvement.

    Returns:
        n factors; infinite if the plain curve does not reach the score, 0 if it starts above it.

    Raises:
        ValueError: lengths that differ, or a curve that is not increasing.
    """
    compute, plain, improved = (np.asarray(values, "float64") for values in (compute, plain, improved))
    if len(compute) < 2 or not len(compute) == len(plain) == len(improved):
        raise ValueError(
            "Expected three lists of the same length, at least two. Received: lengths "
            f"{len(compute)}, {len(plain)}, {len(improved)}."
        )
    if (np.diff(compute) <= 0).any() or (np.diff(plain) <= 0).any():
        raise ValueError(
            "Expected strictly increasing compute and scores of the plain method. "
            f"Received: compute={compute.tolist()}, plain={plain.tolist()}."
        )
    equal = np.exp(np.interp(improved, plain, np.log(compute), left=-np.inf, right=np.inf))
    return (equal / compute).tolist()


def compute_to_reach(
    target: float,
    models: Sequence[str] = RESNETS,
    datasets: Sequence[str] | None = None,
    scores: Mapping[str, Mapping[str, float]] | None = None,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Extrapolates the power law of zero-shot CLIP to the compute that a mean score requires.

    The paper (section 6) estimates that about 1000 times more compute is required to reach the state of the art. The
    interval is that of a line through few models; it does not cover deviations from the power law beyond them.

    Args:
        target: fraction below 1. The mean score to reach.
        models: keys of `scores`, names of presets. The paper's figure 9 has the five ResNets.
        datasets: names to average over; None: the paper's 27.
        scores: {model: {dataset: fraction}}; None: the paper's zero-shot scores (table 11).
        confidence: float in (0, 1).

    Returns:
        {"slope", "slope_low", "slope_high", "r2", "gflops", "factor", "factor_low", "factor_high"}; the factors are
        relative to the compute of the largest model.

    Raises:
        ValueError: fewer than three models, or a target that no amount of compute reaches.
    """
    names = published.datasets() if datasets is None else datasets
    scores = {name: published.zero_shot(name) for name in models} if scores is None else scores
    rows = scaling_rows({name: scores[name] for name in models}, names)
    law = fit_power_law([row["gflops"] for row in rows], [row["error"] for row in rows], confidence)
    compute, low, high = law.compute_for(1 - target, confidence)
    largest = rows[-1]["gflops"]
    return {
        "slope": law.line.slope,
        "slope_low": law.line.slope_low,
        "slope_high": law.line.slope_high,
        "r2": law.line.r2,
        "gflops": compute,
        "factor": compute / largest,
        "factor_low": low / largest,
        "factor_high": high / largest,
    }


def _exp(x):
    return math.exp(x) if x < 700 else math.inf
