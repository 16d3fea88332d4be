"""Data overlap analysis: test images in the training data and their effect (Radford et al., 2021, section 5).

`keras_clip.similarity` has the fingerprints of images and the search for the nearest vector, and `duplicate_detector` a
trained fingerprint. `analyse_overlap` splits a test set by the similarity of each image to the nearest training image.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_clip.evaluation.metrics.intervals import clopper_pearson_interval
from keras_clip.evaluation.metrics.significance import binomial_test, bonferroni
from keras_clip.similarity import hash_vectors, nearest_vectors, perceptual_hash, pixel_digest  # noqa: F401 (old names)

# As in the paper.
CONFIDENCE = 0.995


def recall_at_precision(
    similarities: np.ndarray, is_right: np.ndarray, duplicates: int, precision: float = 0.99
) -> tuple[float, float]:
    """Returns the highest recall of duplicates at which precision is at least the given value.

    Args:
        similarities: float (N,). Similarity of each query to its nearest vector.
        is_right: bool (N,). Whether the match is a true positive: the query is a duplicate of the matched image.
        duplicates: int >= 1. Number of duplicates among the queries.
        precision: float in (0, 1]. Minimum fraction of matches that are true positives.

    Returns:
        The recall and its threshold: queries with a similarity at or above the threshold are matches. 0 and infinity if
        no threshold has sufficient precision.

    Raises:
        ValueError: arrays that do not match, or more true positives than duplicates.
    """
    similarities, is_right = np.asarray(similarities), np.asarray(is_right, bool)
    if similarities.ndim != 1 or similarities.shape != is_right.shape or not is_right.sum() <= duplicates > 0:
        raise ValueError(
            "Expected similarities (N,), is_right (N,), and at least as many duplicates as true positives. Received: "
            f"shapes {similarities.shape} and {is_right.shape}, {is_right.sum()} true positives, "
            f"duplicates={duplicates}."
        )
    order = np.argsort(-similarities, kind="stable")
    ordered, hits = similarities[order], is_right[order].cumsum()
    # A threshold includes all queries of equal similarity.
    is_last = np.append(ordered[1:] != ordered[:-1], True)
    usable = is_last & (hits >= precision * np.arange(1, len(order) + 1)) & (hits > 0)
    if not usable.any():
        return 0.0, math.inf
    best = np.flatnonzero(usable)[-1]
    return float(hits[best] / duplicates), float(ordered[best])


@dataclasses.dataclass(frozen=True)
class Overlap:
    """The effect on accuracy of an overlap between a test set and the training data.

    Args:
        threshold: float. The subset Overlap has the images whose similarity to a training image is at least this; the
            subset Clean has the others.
        n: int. Number of images.
        n_overlap: int. Number of images in Overlap.
        accuracy: float. Accuracy on all images.
        accuracy_clean: float. Accuracy on Clean; NaN if it is empty.
        accuracy_overlap: float. Accuracy on Overlap; NaN if it is empty, as are its interval and the p-value.
        low: float, lower bound of the 99.5 % interval (Clopper and Pearson, 1934) of `accuracy_overlap`.
        high: float, upper bound.
        p_value: float. One-sided p-value of the binomial test that Overlap has the accuracy of Clean.
    """

    threshold: float
    n: int
    n_overlap: int
    accuracy: float
    accuracy_clean: float
    accuracy_overlap: float
    low: float
    high: float
    p_value: float

    @property
    def share(self) -> float:
        """The fraction of the images that overlap: the degree of contamination."""
        return self.n_overlap / self.n

    @property
    def inflation(self) -> float:
        """Accuracy on all images minus accuracy on Clean: the effect of the overlap, the paper's main measure."""
        return self.accuracy - self.accuracy_clean


def analyse_overlap(correct: np.ndarray, similarities: np.ndarray, threshold: float) -> Overlap:
    """Splits a test set into Overlap and Clean, and compares the accuracies (Radford et al., 2021, section 5).

    The threshold depends on the dataset: inspect the most similar pairs and choose one that excludes false positives.

    Args:
        correct: bool (N,). Whether each image was classified correctly.
        similarities: float (N,). Similarity of each image to the nearest training image.
        threshold: float. Minimum similarity of overlapping images.

    Returns:
        An `Overlap`.

    Raises:
        ValueError: arrays that do not have one entry per image, empty arrays, or NaN.
    """
    correct, similarities = np.asarray(correct), np.asarray(similarities, np.float64)
    valid = correct.ndim == 1 and correct.shape == similarities.shape and len(correct) and correct.dtype == bool
    if not valid or np.isnan(similarities).any() or math.isnan(threshold):
        raise ValueError(
            "Expected correct, bool (N,), and similarities (N,) without NaN, N > 0, and a threshold. Received: "
            f"{correct.dtype} {correct.shape}, {similarities.shape} with {np.isnan(similarities).sum()} NaN, "
            f"threshold={threshold}."
        )
    is_overlap = similarities >= threshold
    hits, total = int(correct[is_overlap].sum()), int(is_overlap.sum())
    clean = float(correct[~is_overlap].mean()) if total < len(correct) else math.nan
    low, high = clopper_pearson_interval(hits, total, CONFIDENCE) if total else (math.nan, math.nan)
    return Overlap(
        threshold=float(threshold),
        n=len(correct),
        n_overlap=total,
        accuracy=float(correct.mean()),
        accuracy_clean=clean,
        accuracy_overlap=hits / total if total else math.nan,
        low=low,
        high=high,
        p_value=binomial_test(hits, total, clean) if 0 < total < len(correct) else math.nan,
    )


def overlap_table(overlaps: Mapping[str, Overlap]) -> list[dict[str, Any]]:
    """Returns a row per dataset for a report, with p-values corrected for the number of tested datasets.

    Args:
        overlaps: {name of the dataset: `Overlap` that `analyse_overlap` returned}.

    Returns:
        A dict for each dataset: the fields of `Overlap`, "dataset", "share", "inflation", and "p_bonferroni", the
        p-value corrected for the number of datasets that have both subsets. NaN becomes None, for JSON.
    """
    tested = [name for name, overlap in overlaps.items() if not math.isnan(overlap.p_value)]
    corrected = dict(zip(tested, bonferroni([overlaps[name].p_value for name in tested]).tolist(), strict=True))
    rows = []
    for name, overlap in overlaps.items():
        row = {"dataset": name, **dataclasses.asdict(overlap), "share": overlap.share, "inflation": overlap.inflation}
        row["p_bonferroni"] = corrected.get(name)
        rows.append({key: None if value != value else value for key, value in row.items()})
    return rows
