"""Robustness to natural shifts of the data (Radford et al., 2021, section 3.3; figures 13 to 15).

Models trained on ImageNet lie on a line for each shift: logit(accuracy under shift) = slope * logit(accuracy on
ImageNet) + intercept, both on the same classes. How far a model is above it is its effective robustness (Taori et al.,
2020). `SHIFT_LINES` has lines fitted to about 85 standard models; `fit_shift_line` fits one to your own.

Of classes: restrict ImageNet's scores to those of the shift (`restrict_to_classes`); where a class of the shift covers
several of ImageNet's, pool them (`pool_classes`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from keras_clip.evaluation.metrics.intervals import fit_line


@dataclass(frozen=True)
class ShiftLine:
    """How the accuracy of standard models under a shift goes with their accuracy on ImageNet, in logit space.

    Args:
        slope: float.
        intercept: float.
        models: int. To how many models it was fitted.
        r2: share of the variance (in logit space) that the line explains.
        residual: standard deviation around the line, in logits.
        classes: int or None. How many classes of ImageNet the shift has, if not all.
    """

    slope: float
    intercept: float
    models: int
    r2: float
    residual: float
    classes: int | None = None

    def predict(self, accuracy: float) -> float:
        """The accuracy under shift of a standard model.

        Args:
            accuracy: share in (0, 1), or an array of them. Accuracy on ImageNet, on the shift's classes.

        Returns:
            Share in (0, 1), or an array.
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
    """log(share / (1 - share)).

    Args:
        share: float in (0, 1), or an array of them.

    Returns:
        float64, of the same shape.

    Raises:
        ValueError: a share of 0 or 1, or outside.
    """
    share = np.asarray(share, "float64")
    if not ((share > 0) & (share < 1)).all():
        raise ValueError(f"Expected shares in (0, 1), percentages divided by 100. Received: {share.tolist()}.")
    return np.log(share / (1 - share))


def fit_shift_line(imagenet: Sequence[float], shifted: Sequence[float], classes: int | None = None) -> ShiftLine:
    """Fits the line of standard models to accuracies of your own.

    Args:
        imagenet: shares (n,), n >= 3. Accuracy of each model on ImageNet, on the shift's classes.
        shifted: shares (n,). Accuracy of the same models under shift.
        classes: int or None. How many classes the shift has, if not all.

    Returns:
        A `ShiftLine`.

    Raises:
        ValueError: fewer than three models, or shares outside (0, 1).
    """
    fit = fit_line(logit(imagenet), logit(shifted))
    return ShiftLine(fit.slope, fit.intercept, fit.n, fit.r2, fit.residual, classes)


def effective_robustness(shift: str | ShiftLine, imagenet: float, shifted: float) -> float:
    """By how much a model is above what standard models of its ImageNet accuracy reach under a shift.

    Args:
        shift: key of `SHIFT_LINES`, or a line of your own.
        imagenet: share. Accuracy on ImageNet, on the shift's classes.
        shifted: share. Accuracy under shift.

    Returns:
        Difference of shares, in (-1, 1).

    Raises:
        ValueError: an unknown shift, or shares that cannot be.
    """
    if isinstance(shift, str):
        if shift not in SHIFT_LINES:
            raise ValueError(f"Expected a shift of {list(SHIFT_LINES)}, or a line. Received: shift={shift!r}.")
        shift = SHIFT_LINES[shift]
    return float(shifted - shift.predict(imagenet))


def robustness_gaps(accuracies: Mapping[str, float]) -> dict[str, float]:
    """By how much the accuracy falls from ImageNet to each shift.

    Args:
        accuracies: {"ImageNet" or shift: share}, as `published.robustness` gives.

    Returns:
        {shift: difference of shares}; below 0 where the shift is the easier one.

    Raises:
        ValueError: no "ImageNet".
    """
    _check_imagenet(accuracies)
    return {name: accuracies["ImageNet"] - share for name, share in accuracies.items() if name != "ImageNet"}


def gap_closed(standard: Mapping[str, float], robust: Mapping[str, float]) -> dict[str, float]:
    """Which part of a standard model's gap between ImageNet and each shift another model closes.

    Args:
        standard: {"ImageNet" or shift: share}.
        robust: the same, of the model that is asked about.

    Returns:
        {shift: 1 - gap of `robust` / gap of `standard`}, for the shifts of both, and "mean" of their mean gaps. Above 1
        where the robust model is better under shift than on ImageNet.

    Raises:
        ValueError: no "ImageNet", or no shift in common.
    """
    standard, robust = robustness_gaps(standard), robustness_gaps(robust)
    shared = [name for name in standard if name in robust]
    if not shared:
        raise ValueError(f"Expected a shift of both models. Received: {list(standard)} and {list(robust)}.")
    closed = {name: 1 - robust[name] / standard[name] for name in shared}
    means = [np.mean([gaps[name] for name in shared]) for gaps in (standard, robust)]
    return {**closed, "mean": float(1 - means[1] / means[0])}


def adaptation(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What adapting a model changes on ImageNet and under each shift (figure 14).

    Two adaptations are meant: to ImageNet's images, by a linear probe; and to the classes of each shift, by a zero-shot
    classifier of their own names in place of ImageNet's pooled ones.

    Args:
        before: {"ImageNet" or shift: share}, zero-shot with ImageNet's classes.
        after: the same after adaptation.

    Returns:
        {"ImageNet" or shift: difference of shares} for what both have, and "mean of shifts".

    Raises:
        ValueError: no shift in common.
    """
    changes = {name: after[name] - before[name] for name in before if name in after}
    shifts = [change for name, change in changes.items() if name != "ImageNet"]
    if not shifts:
        raise ValueError(f"Expected a shift of both. Received: before={list(before)}, after={list(after)}.")
    return {**changes, "mean of shifts": float(np.mean(shifts))}


def few_shot_robustness(
    curve: Mapping[float, Mapping[str, float]], lines: Mapping[str, ShiftLine] = SHIFT_LINES
) -> list[dict[str, float]]:
    """How robust a classifier stays as it is given more labelled images of ImageNet (figure 15).

    Args:
        curve: {labelled images per class: {"ImageNet" or shift: share}}; 0 is zero-shot, infinity all images.
        lines: {shift: line of standard models}.

    Returns:
        Rows by growing number of images: "shots", "imagenet", "shifted" (mean over the shifts) and
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
    """The scores of some classes only, and the images of these classes (ImageNet's for ImageNet-A, -R and ObjectNet).

    Args:
        scores: floats (N, K).
        labels: class indices (N,).
        classes: J class indices, without repetition. Their order is that of the columns returned.

    Returns:
        Scores (M, J) and labels (M,), indices below J, of the images whose class is one of them, and which images these
        are: bool (N,).

    Raises:
        ValueError: repeated or unknown classes.
    """
    scores, labels, classes = np.asarray(scores), np.asarray(labels), np.asarray(classes)
    if len(np.unique(classes)) != len(classes) or not len(classes) or not _indices(classes, scores.shape[1]):
        raise ValueError(f"Expected classes below {scores.shape[1]}, each once. Received: {classes.tolist()[:20]}.")
    place = np.full(scores.shape[1], -1)
    place[classes] = np.arange(len(classes))
    kept = place[labels] >= 0
    return scores[kept][:, classes], place[labels[kept]], kept


def pool_classes(scores: np.ndarray, members: Sequence[Sequence[int]], pooling: str = "max") -> np.ndarray:
    """Scores of classes that each cover several others, such as the 30 of ImageNet-Vid among ImageNet's 1000.

    Args:
        scores: floats (N, K), logits or probabilities.
        members: for each of J new classes the indices of those it covers. Classes of none are left out.
        pooling: "max", as the paper does, or "mean".

    Returns:
        Scores (N, J).

    Raises:
        ValueError: an empty new class, an unknown index or pooling.
    """
    scores = np.asarray(scores)
    if pooling not in ("max", "mean"):
        raise ValueError(f'Expected pooling "max" or "mean". Received: pooling={pooling!r}.')
    members = [np.asarray(group, "int64") for group in members]
    faulty = [i for i, group in enumerate(members) if not len(group) or not _indices(group, scores.shape[1])]
    if faulty or not members:
        raise ValueError(
            f"Expected class indices below {scores.shape[1]} for each new class. Received: none or others "
            f"for {faulty[:10]} of {len(members)}."
        )
    pool = np.max if pooling == "max" else np.mean
    return np.stack([pool(scores[:, group], 1) for group in members], 1)


def _indices(classes, size):
    return np.issubdtype(classes.dtype, np.integer) and bool(((classes >= 0) & (classes < size)).all())


def _check_imagenet(accuracies):
    if "ImageNet" not in accuracies:
        raise ValueError(f'Expected an accuracy for "ImageNet". Received: {list(accuracies)}.')
