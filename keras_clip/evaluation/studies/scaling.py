"""Score against compute (Radford et al., 2021, figures 4, 9 and 10), and what a power law says of the distance left.

Compute is multiply-adds of one image's forward pass in billions, which is what the paper's figures call GFLOPs. Ours
are counted from the sizes of the models (`keras_clip.flops`, which counts a multiply-add as two). Errors fall as a
power of compute: a straight line of log(error) against log(compute).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_clip import flops
from keras_clip.evaluation.metrics.intervals import LineFit, fit_line, student_quantile
from keras_clip.evaluation.studies import published
from keras_clip.presets.architectures import ARCHITECTURES

RESNETS = ("rn50", "rn101", "rn50x4", "rn50x16", "rn50x64")
VISION_TRANSFORMERS = ("vit_b32", "vit_b16", "vit_l14", "vit_l14_336")


def gflops_per_image(preset: str) -> float:
    """Billions of multiply-adds that a published model does for one image, its projection to an embedding included.

    Args:
        preset: name of one of the nine published models.

    Returns:
        float; 6.0 for "rn50", 191 for "vit_l14_336". The whole network is counted, as tables do.

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
    """error = exp(intercept) * compute^slope.

    Args:
        line: the `LineFit` of log(error) against log(compute).
        log_compute: floats (n,), what it was fitted to.
        log_error: floats (n,).
    """

    line: LineFit
    log_compute: np.ndarray
    log_error: np.ndarray

    def error(self, compute: float) -> float:
        """The error that the law gives a model.

        Args:
            compute: float > 0, or an array.

        Returns:
            Share, or an array.
        """
        return np.exp(self.line.predict(np.log(compute)))

    def compute_for(self, error: float, confidence: float = 0.95) -> tuple[float, float, float]:
        """How much compute the law wants for an error, with Fieller's (1954) interval for where a line has a height.

        Args:
            error: share > 0.
            confidence: float in (0, 1).

        Returns:
            Compute, its lower and its upper bound; 0 and infinity where the slope could be 0 at this confidence.

        Raises:
            ValueError: an error that is not above 0, or a law under which errors do not fall.
        """
        line, x = self.line, self.log_compute
        if not (error > 0 and line.slope < 0):
            raise ValueError(f"Expected error > 0 and a slope below 0. Received: error={error}, slope={line.slope}.")
        height = math.log(error) - self.log_error.mean()
        spread = float(((x - x.mean()) ** 2).sum())
        bound = (student_quantile((1 + confidence) / 2, line.n - 2) * line.residual) ** 2
        # The offsets from the mean at which |height - slope * offset| is t standard errors: a quadratic equation.
        a = line.slope**2 - bound / spread
        b = line.slope * height
        offset = height / line.slope
        if a <= 0:
            return _exp(x.mean() + offset), 0.0, math.inf
        # b^2 - a c, without the difference of large numbers.
        root = math.sqrt(a * bound / line.n + height**2 * bound / spread)
        return tuple(_exp(x.mean() + place) for place in (offset, (b - root) / a, (b + root) / a))


def fit_power_law(compute: Sequence[float], errors: Sequence[float], confidence: float = 0.95) -> PowerLaw:
    """Fits error = constant * compute^slope by least squares of the logarithms (figure 9).

    Args:
        compute: n >= 3 floats > 0.
        errors: n shares > 0, such as 1 - the mean score of a model.
        confidence: float in (0, 1). Of the bounds of the slope.

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
    """The mean over data sets, each with its own metric, as the paper averages.

    Args:
        scores: {data set: share}.
        datasets: names to average over; None: all.

    Returns:
        Share in [0, 1].

    Raises:
        ValueError: a data set without a score, or none at all.
    """
    names = list(scores if datasets is None else datasets)
    missing = [name for name in names if name not in scores]
    if missing or not names:
        raise ValueError(f"Expected a score for each data set, at least one. Received: none for {missing}.")
    return float(np.mean([scores[name] for name in names]))


def scaling_rows(
    scores: Mapping[str, Mapping[str, float]],
    datasets: Sequence[str] | None = None,
    gflops: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Mean score and error of each model beside its compute (figures 9 and 10).

    Args:
        scores: {model: {data set: share}}.
        datasets: names to average over; None: all that each model has.
        gflops: {model: compute}; for presets, and where it lacks a model, our own count.

    Returns:
        Rows {"name", "gflops", "score", "error"}, by growing compute; NaN, at the end, for models without a count.
    """
    rows = []
    for name, by_dataset in scores.items():
        compute = (gflops or {}).get(name, gflops_per_image(name) if name in ARCHITECTURES else math.nan)
        score = mean_score(by_dataset, datasets)
        rows.append({"name": name, "gflops": compute, "score": score, "error": 1 - score})
    return sorted(rows, key=lambda row: (math.isnan(row["gflops"]), row["gflops"]))


def compute_gain(compute: Sequence[float], plain: Sequence[float], improved: Sequence[float]) -> list[float]:
    """How many times the compute a better method is worth (figure 4: prompts and their ensemble, "4 times").

    For each model the compute at which the plain curve, linear in log(compute), has the improved score, over the
    model's own.

    Args:
        compute: n >= 2 floats > 0, growing.
        plain: n scores of the models without the improvement, growing.
        improved: n scores with it.

    Returns:
        n factors; infinite where the plain curve never gets that far, 0 where it starts above.

    Raises:
        ValueError: lengths that differ, or a curve that does not grow.
    """
    compute, plain, improved = (np.asarray(values, "float64") for values in (compute, plain, improved))
    if len(compute) < 2 or not len(compute) == len(plain) == len(improved):
        raise ValueError(
            f"Expected three lists of one length. Received: {len(compute)}, {len(plain)}, {len(improved)}."
        )
    if (np.diff(compute) <= 0).any() or (np.diff(plain) <= 0).any():
        raise ValueError(
            "Expected growing compute and growing scores of the plain method. "
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
    """How much compute zero-shot CLIP wants for a mean score, if its power law goes on.

    The paper (section 6) says that about 1000 times more compute is needed to reach the state of the art. The interval
    is that of the line through few models, and no line says how long it stays straight.

    Args:
        target: share below 1. The mean score to reach.
        models: names of `scores`, presets. The paper's figure 9 has the five ResNets.
        datasets: names to average over; None: the paper's 27.
        scores: {model: {data set: share}}; None: the paper's zero-shot scores (table 11).
        confidence: float in (0, 1).

    Returns:
        {"slope", "slope_low", "slope_high", "r2", "gflops", "factor", "factor_low", "factor_high"}; the factors are
        over the compute of the largest of the models.

    Raises:
        ValueError: fewer than three models, or a target that no compute reaches.
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
