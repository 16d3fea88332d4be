"""Test images that training has seen: finding them, and what they are worth (Radford et al., 2021, section 5).

An image's mark is the digest of its pixels, which equals that of a copy of them, or a vector: a perceptual hash, or the
embedding of `duplicate_detector`, near to that of an altered copy. `nearest_vectors` compares vectors;
`analyse_overlap` splits a test set by how near its images came to a training image.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_clip.data.images import MAX_PIXELS, open_image
from keras_clip.evaluation.metrics.intervals import binomial_test, bonferroni, clopper_pearson_interval

# The paper's.
CONFIDENCE = 0.995
_SIDE, _FREQUENCIES = 32, 8
_BLOCK = 2**22


def pixel_digest(image: Any, max_pixels: int = MAX_PIXELS) -> str:
    """The exact mark of an image: equal for equal pixels, however they were compressed without loss.

    Args:
        image: path, bytes, PIL image or uint8 array, as `ImagePreprocessor` takes them.
        max_pixels: int. A larger image is refused.

    Returns:
        SHA-256 of height, width and the decoded RGB pixels, as 64 hexadecimal digits.

    Raises:
        ValueError: a broken or too large image.
        FileNotFoundError: no file at a path.
    """
    pixels = np.asarray(open_image(image, "image", max_pixels))
    return hashlib.sha256(np.array(pixels.shape[:2], "<i8").tobytes() + pixels.tobytes()).hexdigest()


def perceptual_hash(image: Any, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A mark of 64 bits that recompression, scaling and small changes of colour leave nearly as it is.

    The image in grey, squeezed to 32 x 32; of its discrete cosine transform the 8 x 8 lowest frequencies, each a bit:
    whether it lies above their median (the constant one always does). Crops, rotations and reflections change about as
    many bits as another image would: for those see `duplicate_detector`.

    Args:
        image: path, bytes, PIL image or uint8 array, as `ImagePreprocessor` takes them.
        max_pixels: int. A larger image is refused.

    Returns:
        uint8 array (8,): 64 bits, row by row. `hash_vectors` makes vectors of many.

    Raises:
        ValueError: a broken or too large image.
        FileNotFoundError: no file at a path.
    """
    from PIL import Image

    grey = open_image(image, "image", max_pixels).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    cosines = np.cos(np.pi / _SIDE * np.outer(np.arange(_FREQUENCIES), np.arange(_SIDE) + 0.5))
    # Rounded, so that what is 0 but for rounding gives the same bit everywhere.
    lowest = np.round(cosines @ np.asarray(grey, np.float64) @ cosines.T, 3)
    return np.packbits(lowest > np.median(lowest))


def hash_vectors(hashes: Sequence[np.ndarray]) -> np.ndarray:
    """Hashes as vectors of unit length whose cosine is 1 - (number of different bits) / 32.

    Args:
        hashes: N hashes of 64 bits, uint8 (8,) each.

    Returns:
        float32 array (N, 64), 256 bytes a hash.

    Raises:
        ValueError: another shape or dtype.
    """
    hashes = np.asarray(hashes)
    if hashes.ndim != 2 or hashes.shape[1] != 8 or hashes.dtype != np.uint8:
        raise ValueError(
            f"Hashes must be uint8 (N, 8). Received: {hashes.dtype} of shape {hashes.shape}. `perceptual_hash` makes "
            "them."
        )
    return (np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1) / np.float32(8)


def nearest_vectors(
    queries: np.ndarray, index: np.ndarray, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The most similar vector of an index for each query, every pair being compared, a block of them at a time.

    Args:
        queries: float (N, E) of unit length, of the test images.
        index: float (M, E) of unit length, of the training images; may be mapped from a file.
        own: int (N,) or None. A row of the index that each query leaves out.

    Returns:
        float32 cosines (N,), and rows of the index, int64 (N,).

    Raises:
        ValueError: no vectors, or of different lengths.
    """
    shapes = np.shape(queries), np.shape(index)
    if any(len(shape) != 2 or not shape[0] for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            f"`queries` must be (N, E) and `index` (M, E), none empty. Received: {shapes[0]} and {shapes[1]}."
        )
    best = np.full(len(queries), -np.inf, np.float32)
    places = np.zeros(len(queries), np.int64)
    columns = min(len(index), 2**16)
    rows = max(1, _BLOCK // columns)
    for column in range(0, len(index), columns):
        part = np.asarray(index[column : column + columns], np.float32)
        for row in range(0, len(queries), rows):
            here = slice(row, row + rows)
            cosines = np.asarray(queries[here], np.float32) @ part.T
            if own is not None:
                inside = np.flatnonzero((own[here] >= column) & (own[here] < column + len(part)))
                cosines[inside, own[here][inside] - column] = -np.inf
            place = cosines.argmax(axis=1)
            value = np.take_along_axis(cosines, place[:, None], axis=1)[:, 0]
            places[here] = np.where(value > best[here], place + column, places[here])
            best[here] = np.maximum(best[here], value)
    return best, places


def recall_at_precision(
    similarities: np.ndarray, is_right: np.ndarray, duplicates: int, precision: float = 0.99
) -> tuple[float, float]:
    """How many duplicates a detector finds where so few of its finds are wrong.

    Args:
        similarities: float (N,), of each query to its nearest vector.
        is_right: bool (N,). Whether that find is true: the query is a duplicate, and of that very image.
        duplicates: int >= 1. How many there are to be found.
        precision: float in (0, 1]. The least share of finds that are right.

    Returns:
        The recall, and the lowest threshold that gives it: finds are the similarities at or above it. 0 and infinity
        where no threshold is precise enough.

    Raises:
        ValueError: arrays that do not fit, or more right finds than duplicates.
    """
    similarities, is_right = np.asarray(similarities), np.asarray(is_right, bool)
    if similarities.ndim != 1 or similarities.shape != is_right.shape or not is_right.sum() <= duplicates > 0:
        raise ValueError(
            "Expected similarities (N,), is_right (N,), and at least as many duplicates as are right. Received: shapes "
            f"{similarities.shape} and {is_right.shape}, {is_right.sum()} right, duplicates={duplicates}."
        )
    order = np.argsort(-similarities, kind="stable")
    ordered, right = similarities[order], is_right[order].cumsum()
    # Equal similarities are found together.
    is_last = np.append(ordered[1:] != ordered[:-1], True)
    usable = is_last & (right >= precision * np.arange(1, len(order) + 1)) & (right > 0)
    if not usable.any():
        return 0.0, math.inf
    best = np.flatnonzero(usable)[-1]
    return float(right[best] / duplicates), float(ordered[best])


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What the overlap of a test set with training data did to its accuracy.

    Args:
        threshold: float. Images at least so similar to a training image are Overlap, the others Clean.
        n: int. All images.
        n_overlap: int.
        accuracy: float. Of all.
        accuracy_clean: float; NaN where every image overlaps.
        accuracy_overlap: float; NaN where none does, as are its interval and the p-value.
        low: float, lower end of the 99.5 % interval (Clopper and Pearson, 1934) of `accuracy_overlap`.
        high: float, upper end.
        p_value: float. One-sided: how likely so many of Overlap are right, if they are as hard as Clean.
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
        """Of the images that overlap: the degree of contamination."""
        return self.n_overlap / self.n

    @property
    def inflation(self) -> float:
        """All - Clean: what the accuracy owes to the overlap, the paper's main measure."""
        return self.accuracy - self.accuracy_clean


def analyse_overlap(correct: np.ndarray, similarities: np.ndarray, threshold: float) -> Overlap:
    """Splits a test set into Overlap and Clean, and compares (Radford et al., 2021, section 5).

    The threshold belongs to the data set: look at the most similar pairs and choose one that keeps false finds out.

    Args:
        correct: bool (N,). Whether each image was classified rightly.
        similarities: float (N,). Of each image to the training image nearest to it.
        threshold: float.

    Returns:
        `Overlap`.

    Raises:
        ValueError: arrays that are not one entry per image, empty ones, or NaN.
    """
    correct, similarities = np.asarray(correct), np.asarray(similarities, np.float64)
    fits = correct.ndim == 1 and correct.shape == similarities.shape and len(correct) and correct.dtype == bool
    if not fits or np.isnan(similarities).any() or math.isnan(threshold):
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
    """Rows for a report, by data set, with p-values corrected for the number of data sets tested.

    Args:
        overlaps: {name of the data set: what `analyse_overlap` gave}.

    Returns:
        A dict for each data set: all of `Overlap`, "dataset", "share", "inflation", and "p_bonferroni", which counts
        the data sets that have both parts. NaN becomes None, for JSON.
    """
    tested = [name for name, overlap in overlaps.items() if not math.isnan(overlap.p_value)]
    corrected = dict(zip(tested, bonferroni([overlaps[name].p_value for name in tested]).tolist(), strict=True))
    rows = []
    for name, overlap in overlaps.items():
        row = {"dataset": name, **dataclasses.asdict(overlap), "share": overlap.share, "inflation": overlap.inflation}
        row["p_bonferroni"] = corrected.get(name)
        rows.append({key: None if value != value else value for key, value in row.items()})
    return rows
