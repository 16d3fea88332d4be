"""Few-shot probes, and the shots needed to match zero-shot (Radford et al., 2021, figures 6 and 7)."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from keras_clip.evaluation.classifiers.linear_probe import CSearch, LinearProbe, search_C

SHOTS = (1, 2, 4, 8, 16)


def few_shot_subset(labels: np.ndarray, ids: Sequence[str], shots: int | None, seed: int = 0) -> np.ndarray:
    """Selects the same few images of each class, independent of the order of the dataset.

    The images of a class are ranked by a hash of seed and id, and the first `shots` are taken. So the subsets of a seed
    are nested, and adding or removing an image does not change the rank of the others. A class with fewer images
    contributes all of them. With several labels per image, each class selects among its positive images, and one image
    may be selected for several classes.

    Args:
        labels: class indices (N,), or 0, 1 and `metrics.IGNORED` (N, K).
        ids: N strings, stable and unique, such as `FeatureStore.ids`.
        shots: int >= 1, images per class; None: all images.
        seed: int.

    Returns:
        int64 indices of the images, ascending.

    Raises:
        ValueError: ids that are not unique, another number of ids than labels, or `shots` below 1.
    """
    labels, ids = np.asarray(labels), [str(id) for id in ids]
    if len(ids) != len(labels) or len(set(ids)) != len(ids):
        raise ValueError(
            f"`ids` must be one unique string per image. Received: {len(ids)} ids, {len(set(ids))} of them distinct, "
            f"{len(labels)} labels."
        )
    if shots is None:
        return np.arange(len(labels))
    if shots < 1:
        raise ValueError(f"`shots` must be at least 1, or None for all images. Received: shots={shots}.")
    digests = [hashlib.blake2b(f"{seed}/{id}".encode(), digest_size=16).digest() for id in ids]
    ranked = np.array(sorted(range(len(ids)), key=digests.__getitem__), "int64")
    if labels.ndim == 2:
        chosen = [ranked[labels[ranked, k] == 1][:shots] for k in range(labels.shape[1])]
    else:
        by_class = ranked[np.argsort(labels[ranked], kind="stable")]
        starts = np.flatnonzero(np.diff(labels[by_class], prepend=labels[by_class[:1]] - 1))
        chosen = [of_class[:shots] for of_class in np.split(by_class, starts[1:])]
    return np.unique(np.concatenate(chosen))


@dataclass(frozen=True)
class FewShotScore:
    """The score of one few-shot probe on the test split.

    Args:
        shots: int, images per class; None: all, also where no class has more images than a requested number.
        seed: int. Seed of the subset.
        images: int. Size of the subset.
        C: float. Chosen on the validation split.
        probe: `LinearProbe`, which also scores other images.
        features: (N, D) of the test images.
        value: float. Metric of the scores of the test images.
    """

    shots: int | None
    seed: int
    images: int
    C: float
    probe: LinearProbe
    features: np.ndarray
    value: float

    @property
    def scores(self) -> np.ndarray:
        """The scores of the test images, float64 (N, K), which are computed anew each time."""
        return self.probe.decision_function(self.features)


def few_shot_scores(
    train: tuple[np.ndarray, np.ndarray, Sequence[str]],
    validation: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    shots: Sequence[int | None] = (*SHOTS, None),
    seeds: Sequence[int] = (0, 1, 2),
    metric: Callable[[np.ndarray, np.ndarray], float] | None = None,
    num_classes: int | None = None,
    whole: CSearch | None = None,
) -> list[FewShotScore]:
    """Fits and scores linear probes on 1, 2, 4, 8, 16 and all images per class.

    C is chosen for each subset on the validation split, which the probe itself is not fitted on.

    Args:
        train: features (N, D), labels and ids.
        validation: features and labels of other images.
        test: features and labels of the images to score; no hyperparameter is chosen on them.
        shots: images per class; None: the whole training split, once for all seeds.
        seeds: seeds of the subsets.
        metric: as `search_C` takes it; also the reported metric.
        num_classes: int, K; None: the largest index of the training split + 1.
        whole: the result of `search_C(train, validation, metric, refit=False)` if it is known already: the score on
            all images is that of its probe. None: C is searched on all images too.

    Returns:
        One `FewShotScore` for each number of shots and seed, in that order. Numbers that select every image of the
        training split are one score with `shots=None`.

    Raises:
        ValueError: inputs that `search_C` or `few_shot_subset` rejects.
    """
    from tqdm import tqdm

    features, labels, ids = train
    labels = np.asarray(labels)
    several = labels.ndim == 2
    num_classes = num_classes or (labels.shape[1] if several else int(labels.max()) + 1)
    runs = {}
    for k in shots:
        for seed in seeds if k is not None else seeds[:1]:
            rows = few_shot_subset(labels, ids, k, seed)
            # All images are no number of shots, and the same for every seed.
            runs.setdefault((None, seeds[0]) if len(rows) == len(labels) else (k, seed), rows)
    results = []
    for (k, seed), rows in tqdm(runs.items(), desc="Few-shot probes", leave=False, delay=5):
        found = whole if k is None else None
        if found is None:
            found = search_C((features[rows], labels[rows]), validation, metric, num_classes, refit=False, verbose=0)
        value = found.probe.measured(test[0], np.asarray(test[1]), metric)
        results.append(FewShotScore(k, seed, len(rows), found.C, found.probe, test[0], value))
    return results


@dataclass(frozen=True)
class ShotsToMatch:
    """The shots needed to match zero-shot: labelled images per class with which a probe reaches its score.

    Args:
        shots: float. The smallest number. If `censored` is "below", the first number of the curve, which is an upper
            bound; if it is "above", infinity.
        censored: "": the curve crosses the score. "below": its first point already reaches it. "above": no point does.
        crossings: every number of shots at which the curve crosses the score from below. There are several if the
            curve falls in between; `shots` is the first.
    """

    shots: float
    censored: str
    crossings: tuple[float, ...]


def shots_to_match(curve: Mapping[float, float], target: float) -> ShotsToMatch:
    """Finds where the curve of few-shot probes reaches the zero-shot score (data efficiency, figure 7).

    Between its points the curve is interpolated linearly in the logarithm of shots.

    Args:
        curve: {shots: score}, at least two points; the whole dataset counts as its mean number of images per class.
        target: the zero-shot score.

    Returns:
        A `ShotsToMatch`.

    Raises:
        ValueError: fewer than two points, shots that are not positive, or NaN.
    """
    shots = sorted(curve)
    scores = [float(curve[k]) for k in shots]
    if len(shots) < 2 or not shots[0] > 0 or not all(map(math.isfinite, [*shots, *scores, target])):
        raise ValueError(
            "Expected at least two points {shots > 0: score} and a target, all of them finite. "
            f"Received: curve={dict(curve)}, target={target}."
        )
    crossings = []
    points = list(zip(shots, scores, strict=True))
    for (k, low), (next_k, high) in zip(points, points[1:], strict=False):
        if low < target <= high:
            crossings.append(k * (next_k / k) ** ((target - low) / (high - low)))
    if scores[0] >= target:
        return ShotsToMatch(float(shots[0]), "below", tuple(crossings))
    return ShotsToMatch(*((crossings[0], "") if crossings else (math.inf, "above")), tuple(crossings))
