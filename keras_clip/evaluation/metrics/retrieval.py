"""Image-to-text and text-to-image retrieval: recall at 1, 5 and 10 and median rank, with several captions per image.

The protocol is that of the paper's table 13. An image query is a hit if any of its captions ranks high enough; a text
query is a hit if the one image that it describes does. Ties are resolved against the model: wrong items with the same
similarity as the correct item rank before it, so that a model with constant embeddings has recall 0. The prefix
"a photo of" before the captions improves recall by 1 to 2 points.
"""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from keras_clip.evaluation.metrics.intervals import clustered_interval, clustered_quantile_interval
from keras_clip.evaluation.metrics.metric import MEAN, MEDIAN, Metric
from keras_clip.evaluation.results import Examples, Score

DIRECTIONS = ("image_to_text", "text_to_image")


def recall_at(k: int) -> Metric:
    """Returns the metric recall at k: the fraction of queries whose correct item is among the first k.

    Args:
        k: int >= 1.

    Returns:
        `Metric` of ranks (N,) from 1, and of the image (N,) that each query belongs to.
    """
    return Metric(
        f"recall_at_{k}",
        lambda ranks, images: (ranks <= k).mean(),
        lambda ranks, images, confidence, resamples, seed: clustered_interval(ranks <= k, images, confidence),
        correct=lambda ranks, images: ranks <= k,
        statistic=MEAN,
    )


def _median_interval(ranks, images, confidence, resamples, seed):
    return clustered_quantile_interval(ranks, images, 0.5, confidence)


# The metrics of ranks (N,), and of the image (N,) that each query belongs to.
METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        recall_at(1),
        recall_at(5),
        recall_at(10),
        Metric(
            "median_rank",
            lambda ranks, images: np.median(ranks),
            _median_interval,
            unit="rank",
            correct=None,
            outcomes=lambda ranks, images: ranks,
            statistic=MEDIAN,
        ),
    )
}


@dataclass(frozen=True)
class RetrievalRanks:
    """The rank of the correct item for each query, from 1 (the best).

    Args:
        image_to_text: int64 (M,). For each image, the rank of its best-ranked caption.
        text_to_image: int64 (N,). For each text, the rank of its image.
        image_of_text: int64 (N,). The index of the image that each text describes.
        ties: int. Number of queries, in both directions, for which a wrong item has the similarity of the correct one.
    """

    image_to_text: np.ndarray
    text_to_image: np.ndarray
    image_of_text: np.ndarray
    ties: int

    def recall(self, direction: str, k: int) -> float:
        """Returns recall at k: the fraction of queries whose correct item is among the first k.

        Args:
            direction: "image_to_text" or "text_to_image".
            k: int >= 1.

        Returns:
            Fraction in [0, 1].
        """
        return recall_at(k)(self._ranks(direction), self._images(direction))

    def median_rank(self, direction: str) -> float:
        """Returns the median over queries of the rank of the correct item.

        Args:
            direction: "image_to_text" or "text_to_image".

        Returns:
            Rank >= 1.
        """
        return METRICS["median_rank"](self._ranks(direction), self._images(direction))

    def recall_interval(
        self, direction: str, k: int, confidence: float = 0.95, resamples: int | None = None, seed: int | None = None
    ) -> tuple[float, float]:
        """Returns the interval of `recall`, with images as the sampled units (`clustered_interval`).

        The captions of one image are not independent. The images that the queries are ranked against are taken as they
        are: the interval is that of further queries of the same kind.

        Args:
            direction: "image_to_text" or "text_to_image".
            k: int >= 1.
            confidence: float in (0, 1).
            resamples: no longer an option: the interval needs no bootstrap. A number has no effect, with a warning.
            seed: likewise.

        Returns:
            Lower and upper bound in [0, 1].
        """
        _warn_of_bootstrap(resamples, seed)
        return recall_at(k).interval(self._ranks(direction), self._images(direction), confidence, resamples, seed)

    def median_rank_interval(
        self, direction: str, confidence: float = 0.95, resamples: int | None = None, seed: int | None = None
    ) -> tuple[float, float]:
        """Returns the interval of `median_rank`, over images as in `recall_interval` (`clustered_quantile_interval`).

        Args:
            direction: "image_to_text" or "text_to_image".
            confidence: float in (0, 1).
            resamples: no longer an option: the interval needs no bootstrap. A number has no effect, with a warning.
            seed: likewise.

        Returns:
            Lower and upper bound.
        """
        _warn_of_bootstrap(resamples, seed)
        ranks, images = self._ranks(direction), self._images(direction)
        return METRICS["median_rank"].interval(ranks, images, confidence, resamples, seed)

    def _images(self, direction):
        return self.image_of_text if direction == "text_to_image" else np.arange(len(self.image_to_text))

    def scores(
        self,
        dataset: str,
        protocol: str,
        seed: int | None = None,
        examples: Examples | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> list[Score]:
        """Returns recall at 1, 5 and 10 and the median rank in both directions, as records for a report.

        Args:
            dataset: str. Name of the dataset.
            protocol: str. Description of the split and the captions.
            seed: no longer an option, as of `recall_interval`.
            examples: `Examples` of the images and captions together, without labels and groups. None: unknown.
            details: further details of the scores.

        Returns:
            List of eight `Score`, methods "retrieval/image_to_text" and "retrieval/text_to_image".
        """
        _warn_of_bootstrap(None, seed)
        counts = {"images": len(self.image_to_text), "texts": len(self.text_to_image), "ties": self.ties}
        scores = []
        for direction in DIRECTIONS:
            groups = self.image_of_text if direction == "text_to_image" else None
            scores += [
                metric.measure(
                    self._ranks(direction),
                    self._images(direction),
                    dataset,
                    f"retrieval/{direction}",
                    protocol,
                    details={**counts, **(details or {})},
                    examples=examples and dataclasses.replace(examples, groups=groups),
                )
                for metric in METRICS.values()
            ]
        return scores

    def _ranks(self, direction):
        if direction not in DIRECTIONS:
            raise ValueError(f"Expected one of the directions {DIRECTIONS}. Received: direction={direction!r}.")
        return getattr(self, direction)


def _warn_of_bootstrap(resamples: int | None, seed: int | None) -> None:
    if resamples is not None or seed is not None:
        warnings.warn(
            "Intervals of retrieval need no bootstrap, so that its options have no effect. Received: "
            f"resamples={resamples}, seed={seed}. Leave them out.",
            DeprecationWarning,
            stacklevel=3,
        )


def retrieval_ranks(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    image_of_text: Sequence[int] | None = None,
    tile: int = 2**24,
    verbose: bool = False,
) -> RetrievalRanks:
    """Ranks all texts for each image and all images for each text by cosine similarity.

    Args:
        image_embeddings: floats (M, E), unit length.
        text_embeddings: floats (N, E), unit length.
        image_of_text: ints (N,). The index of the image that each text describes; None: text i describes image i.
        tile: int. Maximum number of similarities in memory at once, at about ten bytes each, for any M and N.
        verbose: bool. Whether to show a progress bar.

    Returns:
        A `RetrievalRanks`.

    Raises:
        ValueError: shapes that do not match, NaN, a text without an image, or an image without a text.
    """
    images, texts = np.asarray(image_embeddings, "float32"), np.asarray(text_embeddings, "float32")
    image_of_text = np.arange(len(texts)) if image_of_text is None else np.asarray(image_of_text)
    _check(images, texts, image_of_text)
    with tqdm(total=len(images) + len(texts), desc="ranking", unit=" queries", disable=not verbose) as progress:
        to_text = _ranks(images, texts, np.arange(len(images)), image_of_text, tile, progress)
        to_image = _ranks(texts, images, image_of_text, np.arange(len(images)), tile, progress)
    return RetrievalRanks(to_text[0], to_image[0], image_of_text.astype("int64"), to_text[1] + to_image[1])


def _ranks(queries, items, image_of_query, image_of_item, tile, progress):
    """Returns the rank of each query's best correct item, and the number of queries with a wrong item tied with it."""
    ranks, ties = np.empty(len(queries), "int64"), 0
    rows = max(1, tile // len(items))
    for start in range(0, len(queries), rows):
        block = slice(start, start + rows)
        similarities = queries[block] @ items.T
        correct = image_of_query[block, None] == image_of_item
        best = np.where(correct, similarities, -np.inf).max(1, keepdims=True)
        similarities[correct] = -np.inf
        ranks[block] = 1 + (similarities >= best).sum(1)
        ties += int((similarities == best).any(1).sum())
        progress.update(len(best))
    return ranks, ties


def _check(images, texts, image_of_text):
    if images.ndim != 2 or texts.ndim != 2 or not len(texts) or images.shape[1] != texts.shape[1]:
        raise ValueError(
            f"Expected image embeddings (M, E) and text embeddings (N, E). Received: {images.shape}, {texts.shape}."
        )
    if not (np.isfinite(images).all() and np.isfinite(texts).all()):
        raise ValueError("Expected finite embeddings. Received: NaN or infinity.")
    if image_of_text.shape != (len(texts),) or not np.issubdtype(image_of_text.dtype, np.integer):
        raise ValueError(
            f"Expected image_of_text to hold an image index for each of {len(texts)} texts. "
            f"Received: {image_of_text.dtype} of shape {image_of_text.shape}."
        )
    outside = (image_of_text < 0) | (image_of_text >= len(images))
    missing = np.setdiff1d(np.arange(len(images)), image_of_text)
    if outside.any() or len(missing):
        raise ValueError(
            f"Expected an image index in [0, {len(images)}) for each text, and a text for each image. Received: "
            f"{int(outside.sum())} texts without an image, {len(missing)} images without a text, "
            f"the first of them {missing[:5].tolist()}."
        )
