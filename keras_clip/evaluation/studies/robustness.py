"""Robustness to natural distribution shift (Radford et al., 2021, section 3.3; figures 13 to 15).

For each shift, models trained on ImageNet lie on a line: logit(accuracy under shift) = slope * logit(accuracy on
ImageNet) + intercept, both on the same classes. The difference between a model's accuracy under shift and that line is
its effective robustness (Taori et al., 2020). `SHIFT_LINES` has lines fitted to about 85 standard models;
`fit_shift_line` fits a line to other models.

ImageNet's scores are restricted to the classes of the shift by `restrict_to_classes`; `pool_classes` pools the scores
of several ImageNet classes that one class of the shift covers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from keras_clip.evaluation.metrics.intervals import blaker_interval
from keras_clip.evaluation.metrics.regression import fit_line


@dataclass(frozen=True)
class ShiftLine:
    """The accuracy of standard models under a shift as a linear function of that on ImageNet, in logit space.

    Args:
        slope: float.
        intercept: float.
        models: int. Number of models that the line was fitted to.
        r2: fraction of the variance (in logit space) that the line explains.
        residual: residual standard deviation, in logits.
        classes: int or None. Number of ImageNet classes in the shift, or None for all.
    """

    slope: float
    intercept: float
    models: int
    r2: float
    residual: float
    classes: int | None = None

    def predict(self, accuracy: float) -> float:
        """Returns the accuracy of a standard model under the shift.

        Args:
            accuracy: fraction in (0, 1), or an array. Accuracy on ImageNet, on the classes of the shift.

        Returns:
            Fraction in (0, 1), or an array.
        """
        return 1 / (1 + np.exp(-(self.slope * logit(accuracy) + self.intercept)))


SHIFT_LINES: Mapping[str, ShiftLine] = {
    # slope, intercept, models, R2, residual, classes
    "ImageNetV2": ShiftLine(0.923, -0.498, 85, 0.996, 0.018),
    "ImageNet-Sketch": ShiftLine(1.071, -2.370, 85, 0.869, 0.131),
    "ImageNet-R": ShiftLine(0.637, -2.108, 80, 0.889, 0.099, 200),
    "ImageNet-A": ShiftLine(1.990, -7.632, 84, 0.828, 0.458, 200),
    "ObjectNet": ShiftLine(0.981, -1.928, 85, 0.953, 0.085, 113),
    "ImageNet-Vid PM0": ShiftLine(0.534, -1.462, 85, 0.949, 0.073),
    "ImageNet-Vid PM10": ShiftLine(0.591, -2.428, 85, 0.947, 0.083),
    "YTBB PM0": ShiftLine(0.339, -1.112, 84, 0.830, 0.074),
    "YTBB PM10": ShiftLine(0.470, -2.273, 84, 0.892, 0.078),
}


def logit(share: float) -> np.ndarray:
    """Returns log(share / (1 - share)).

    Args:
        share: fraction in (0, 1), or an array.

    Returns:
        float64, of the same shape.

    Raises:
        ValueError: a fraction outside (0, 1).
    """
    share = np.asarray(share, "float64")
    if not ((share > 0) & (share < 1)).all():
        raise ValueError(
            f"Expected fractions in (0, 1), that is percentages divided by 100. Received: {share.tolist()}."
        )
    return np.log(share / (1 - share))


def fit_shift_line(imagenet: Sequence[float], shifted: Sequence[float], classes: int | None = None) -> ShiftLine:
    """Fits the line of standard models to the accuracies of the given models.

    Args:
        imagenet: fractions (n,), n >= 3. Accuracy of each model on ImageNet, on the classes of the shift.
        shifted: fractions (n,). Accuracy of the same models under shift.
        classes: int or None. Number of ImageNet classes in the shift, or None for all.

    Returns:
        A `ShiftLine`.

    Raises:
        ValueError: fewer than three models, or fractions outside (0, 1).
    """
    fit = fit_line(logit(imagenet), logit(shifted))
    return ShiftLine(fit.slope, fit.intercept, fit.n, fit.r2, fit.residual, classes)


def effective_robustness(shift: str | ShiftLine, imagenet: float, shifted: float) -> float:
    """Returns a model's accuracy under shift minus that of standard models with the same accuracy on ImageNet.

    Args:
        shift: key of `SHIFT_LINES`, or a `ShiftLine`.
        imagenet: fraction. Accuracy on ImageNet, on the classes of the shift.
        shifted: fraction. Accuracy under shift.

    Returns:
        Difference of accuracies, in (-1, 1).

    Raises:
        ValueError: an unknown shift, or an accuracy on ImageNet outside (0, 1).
    """
    return float(shifted - _line(shift).predict(imagenet))


def effective_robustness_interval(
    shift: str | ShiftLine, imagenet: tuple[int, int], shifted: tuple[int, int], confidence: float = 0.95
) -> tuple[float, float]:
    """Returns the interval of `effective_robustness`, for the uncertainty that comes from the two samples of images.

    The distances of both accuracies from the bounds of their exact intervals are combined by the root of the sum of
    squares (Zou and Donner, 2008). The scatter of standard models about the line is not part of it: it is
    `ShiftLine.residual`, in logits.

    Args:
        shift: key of `SHIFT_LINES`, or a `ShiftLine`.
        imagenet: number of correctly classified ImageNet images, of the classes of the shift, and of all of these.
        shifted: number of correctly classified images under shift, and of all.
        confidence: float in (0, 1).

    Returns:
        Lower and upper bound, differences of accuracies.

    Raises:
        ValueError: an unknown shift, or impossible counts.
    """
    line = _line(shift)
    # At an accuracy of 0 or 1 the logit is infinite, and the prediction is 0 or 1 with it.
    predict = lambda accuracy: accuracy if accuracy in (0, 1) else float(line.predict(accuracy))  # noqa: E731
    values = predict(imagenet[0] / imagenet[1]), shifted[0] / shifted[1]
    expected = [predict(bound) for bound in blaker_interval(*imagenet, confidence)]
    bounds = blaker_interval(*shifted, confidence)
    difference = values[1] - values[0]
    low = difference - math.hypot(values[1] - bounds[0], expected[1] - values[0])
    high = difference + math.hypot(bounds[1] - values[1], values[0] - expected[0])
    return max(-1.0, low), min(1.0, high)


def _line(shift):
    if not isinstance(shift, str):
        return shift
    if shift not in SHIFT_LINES:
        raise ValueError(
            f"Expected one of the shifts {list(SHIFT_LINES)}, or a `ShiftLine`. Received: shift={shift!r}."
        )
    return SHIFT_LINES[shift]


def robustness_gaps(accuracies: Mapping[str, float]) -> dict[str, float]:
    """Returns the drop in accuracy from ImageNet to each shift.

    Args:
        accuracies: {"ImageNet" or shift: fraction}, as `published.robustness` returns.

    Returns:
        {shift: difference of accuracies}; below 0 if the accuracy under shift is higher.

    Raises:
        ValueError: no "ImageNet".
    """
    _check_imagenet(accuracies)
    return {name: accuracies["ImageNet"] - accuracy for name, accuracy in accuracies.items() if name != "ImageNet"}


def gap_closed(standard: Mapping[str, float], robust: Mapping[str, float]) -> dict[str, float]:
    """Returns the fraction of a standard model's robustness gap that another model closes.

    Args:
        standard: {"ImageNet" or shift: fraction}, accuracies of the standard model.
        robust: {"ImageNet" or shift: fraction}, accuracies of the other model.

    Returns:
        {shift: 1 - gap of `robust` / gap of `standard`}, for the shifts of both, and "mean" for the mean gaps. Above 1
        if the robust model is better under shift than on ImageNet.

    Raises:
        ValueError: no "ImageNet", or no shift in common.
    """
    standard, robust = robustness_gaps(standard), robustness_gaps(robust)
    shared = [name for name in standard if name in robust]
    if not shared:
        raise ValueError(
            f"Expected at least one shift that both models have. Received: {list(standard)} and {list(robust)}."
        )
    closed = {name: 1 - robust[name] / standard[name] for name in shared}
    means = [np.mean([gaps[name] for name in shared]) for gaps in (standard, robust)]
    return {**closed, "mean": float(1 - means[1] / means[0])}


def adaptation(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Returns the change in accuracy by adaptation, on ImageNet and under each shift (figure 14).

    The paper has two adaptations: to ImageNet's images, by a linear probe; and to the classes of each shift, by a
    zero-shot classifier of their names instead of pooled ImageNet classes.

    Args:
        before: {"ImageNet" or shift: fraction}, zero-shot accuracies with ImageNet's classes.
        after: {"ImageNet" or shift: fraction}, accuracies after adaptation.

    Returns:
        {"ImageNet" or shift: difference of accuracies} for the keys of both, and "mean of shifts".

    Raises:
        ValueError: no shift in common.
    """
    changes = {name: after[name] - before[name] for name in before if name in after}
    shifts = [change for name, change in changes.items() if name != "ImageNet"]
    if not shifts:
        raise ValueError(
            f"Expected at least one shift that both have. Received: before={list(before)}, after={list(after)}."
        )
    return {**changes, "mean of shifts": float(np.mean(shifts))}


def few_shot_robustness(
    curve: Mapping[float, Mapping[str, float]], lines: Mapping[str, ShiftLine] = SHIFT_LINES
) -> list[dict[str, float]]:
    """Returns the robustness of a classifier by the number of labelled ImageNet images per class (figure 15).

    Args:
        curve: {labelled images per class: {"ImageNet" or shift: fraction}}; 0 is zero-shot, infinity all images.
        lines: {shift: line of standard models}.

    Returns:
        Rows by increasing number of images: "shots", "imagenet", "shifted" (mean over the shifts) and
        "effective_robustness" (mean over the shifts that have a line; NaN if none has).

    Raises:
        ValueError: no "ImageNet", no shift, or rows of different shifts.
    """
    names = [{name for name in row if name != "ImageNet"} for row in curve.values()]
    if not names or not names[0] or any(other != names[0] for other in names):
        raise ValueError(f"Expected the same shifts, at least one, for all shots. Received: {dict(curve)}.")
    rows = []
    for shots, accuracies in sorted(curve.items()):
        _check_imagenet(accuracies)
        gains = [
            effective_robustness(lines[name], accuracies["ImageNet"], accuracies[name])
            for name in accuracies
            if name in lines
        ]
        rows.append(
            {
                "shots": shots,
                "imagenet": accuracies["ImageNet"],
                "shifted": float(np.mean([accuracies[name] for name in sorted(names[0])])),
                "effective_robustness": float(np.mean(gains)) if gains else float("nan"),
            }
        )
    return rows


def restrict_to_classes(
    scores: np.ndarray, labels: np.ndarray, classes: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Restricts scores and images to a subset of classes, such as those of ImageNet-A, ImageNet-R or ObjectNet.

    Args:
        scores: floats (N, K).
        labels: class indices (N,).
        classes: J distinct class indices, in the order of the returned columns.

    Returns:
        Scores (M, J) and labels (M,), indices below J, of the M images of these classes, and a mask of these images,
        bool (N,).

    Raises:
        ValueError: repeated or unknown classes.
    """
    scores, labels, classes = np.asarray(scores), np.asarray(labels), np.asarray(classes)
    if len(np.unique(classes)) != len(classes) or not len(classes) or not _indices(classes, scores.shape[1]):
        raise ValueError(f"Expected classes below {scores.shape[1]}, each once. Received: {classes.tolist()[:20]}.")
    new_index = np.full(scores.shape[1], -1)
    new_index[classes] = np.arange(len(classes))
    mask = new_index[labels] >= 0
    return scores[mask][:, classes], new_index[labels[mask]], mask


def pool_classes(scores: np.ndarray, members: Sequence[Sequence[int]], pooling: str = "max") -> np.ndarray:
    """Pools the scores of classes into classes that cover several, such as ImageNet's 1000 into ImageNet-Vid's 30.

    Args:
        scores: floats (N, K), logits or probabilities.
        members: for each of J pooled classes the indices of the classes it covers. Other classes are dropped.
        pooling: "max", as in the paper, or "mean".

    Returns:
        Scores (N, J).

    Raises:
        ValueError: an empty pooled class, an unknown index or pooling.
    """
    scores = np.asarray(scores)
    if pooling not in ("max", "mean"):
        raise ValueError(f'Expected pooling "max" or "mean". Received: pooling={pooling!r}.')
    members = [np.asarray(group, "int64") for group in members]
    invalid = [i for i, group in enumerate(members) if not len(group) or not _indices(group, scores.shape[1])]
    if invalid or not members:
        raise ValueError(
            f"Expected class indices below {scores.shape[1]} for each pooled class. Received: none or invalid indices "
            f"for {invalid[:10]} of {len(members)} pooled classes."
        )
    pool = np.max if pooling == "max" else np.mean
    return np.stack([pool(scores[:, group], 1) for group in members], 1)


def _indices(classes, size):
    return np.issubdtype(classes.dtype, np.integer) and bool(((classes >= 0) & (classes < size)).all())


def _check_imagenet(accuracies):
    if "ImageNet" not in accuracies:
        raise ValueError(f'Expected an accuracy for "ImageNet". Received: {list(accuracies)}.')
