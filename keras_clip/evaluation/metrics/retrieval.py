"""Image and text retrieval: recall at 1, 5 and 10 and the median rank, both ways, with several captions per image.

As in the paper's table 13. An image finds a text if any of its captions ranks high enough; a text finds the one image
that it describes. Wrong items that are as similar as the right one rank before it, so that a model that gives all the
same embedding finds nothing. "a photo of" put before the captions gains 1 to 2 points.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from keras_clip.evaluation.metrics.intervals import bootstrap_interval, wilson_interval
from keras_clip.evaluation.results import Score

DIRECTIONS = ("image_to_text", "text_to_image")


@dataclass(frozen=True)
class RetrievalRanks:
    """Where the right item came for each query; 1 is the best.

    Args:
        image_to_text: int64 (M,). For each image, the rank of the best of its captions.
        text_to_image: int64 (N,). For each text, the rank of its image.
        image_of_text: int64 (N,). The image of each text.
        ties: int. Queries of both ways whose right item a wrong one equals.
    """

    image_to_text: np.ndarray
    text_to_image: np.ndarray
    image_of_text: np.ndarray
    ties: int

    def recall(self, direction: str, k: int) -> float:
        """The share of queries whose right item is among the first k.

        Args:
            direction: "image_to_text" or "text_to_image".
            k: int >= 1.

        Returns:
            Share in [0, 1].
        """
        return float((self._ranks(direction) <= k).mean())

    def median_rank(self, direction: str) -> float:
        """The median over queries of the right item's rank.

        Args:
            direction: "image_to_text" or "text_to_image".

        Returns:
            Rank >= 1.
        """
        return float(np.median(self._ranks(direction)))

    def recall_interval(
        self, direction: str, k: int, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
    ) -> tuple[float, float]:
        """How sure a recall is: a bootstrap over images, since the captions of one image are not independent.

        Args:
            direction: "image_to_text" or "text_to_image".
            k: int >= 1.
            confidence: float in (0, 1).
            resamples: int.
            seed: int.

        Returns:
            Lower and upper bound in [0, 1].
        """
        hits = self._ranks(direction) <= k
        if hits.all() or not hits.any():
            # No resample would differ: the number of images says how sure that is.
            images = len(self.image_to_text)
            return wilson_interval(images if hits.all() else 0, images, confidence)
        statistic = lambda drawn: (drawn @ hits) / drawn.sum()  # noqa: E731
        return self._bootstrap(direction, statistic, confidence, resamples, seed)

    def median_rank_interval(
        self, direction: str, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
    ) -> tuple[float, float]:
        """How sure the median rank is, as `recall_interval`.

        Args:
            direction: "image_to_text" or "text_to_image".
            confidence: float in (0, 1).
            resamples: int.
            seed: int.

        Returns:
            Lower and upper bound.
        """
        ranks = self._ranks(direction)
        order = np.argsort(ranks, kind="stable")

        def median(drawn):
            passed = np.cumsum(drawn[order])
            middle = np.searchsorted(passed, [(passed[-1] - 1) // 2, passed[-1] // 2], side="right")
            return ranks[order[middle]].mean()

        return self._bootstrap(direction, median, confidence, resamples, seed)

    def scores(self, dataset: str, protocol: str, seed: int = 0) -> list[Score]:
        """Recalls at 1, 5 and 10 and the median rank, both ways, as records for a report.

        Args:
            dataset: str. Name of the data set.
            protocol: str. Which split and which captions.
            seed: int. Of the bootstrap.

        Returns:
            List of eight `Score`, methods "retrieval/image_to_text" and "retrieval/text_to_image".
        """
        found = []
        for direction in DIRECTIONS:
            values = {
                f"recall_at_{k}": (self.recall(direction, k), self.recall_interval(direction, k, seed=seed))
                for k in (1, 5, 10)
            }
            values["median_rank"] = self.median_rank(direction), self.median_rank_interval(direction, seed=seed)
            details = {"images": len(self.image_to_text), "texts": len(self.text_to_image), "ties": self.ties}
            n = len(self._ranks(direction))
            found += [
                Score(
                    dataset,
                    f"retrieval/{direction}",
                    metric,
                    value,
                    low,
                    high,
                    n,
                    protocol,
                    details=details,
                    unit="rank" if metric == "median_rank" else "fraction",
                )
                for metric, (value, (low, high)) in values.items()
            ]
        return found

    def _ranks(self, direction):
        if direction not in DIRECTIONS:
            raise ValueError(f"Expected a direction of {DIRECTIONS}. Received: direction={direction!r}.")
        return getattr(self, direction)

    def _bootstrap(self, direction, statistic, confidence, resamples, seed):
        size = len(self._ranks(direction))
        groups = self.image_of_text if direction == "text_to_image" else None
        return bootstrap_interval(statistic, size, groups, None, confidence, resamples, seed)


def retrieval_ranks(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    image_of_text: Sequence[int] | None = None,
    tile: int = 2**24,
    verbose: bool = False,
) -> RetrievalRanks:
    """Ranks all texts for each image and all images for each text, by cosine.

    Args:
        image_embeddings: floats (M, E), unit length.
        text_embeddings: floats (N, E), unit length.
        image_of_text: ints (N,). The image that each text describes; None: text i describes image i.
        tile: int. Similarities held at once, at most: memory stays at some ten bytes for each, whatever M and N.
        verbose: bool. Shows progress.

    Returns:
        `RetrievalRanks`.

    Raises:
        ValueError: shapes that do not match, NaN, a text of no image, or an image without a text.
    """
    images, texts = np.asarray(image_embeddings, "float32"), np.asarray(text_embeddings, "float32")
    image_of_text = np.arange(len(texts)) if image_of_text is None else np.asarray(image_of_text)
    _check(images, texts, image_of_text)
    with tqdm(total=len(images) + len(texts), desc="ranking", unit=" queries", disable=not verbose) as progress:
        to_text = _ranks(images, texts, np.arange(len(images)), image_of_text, tile, progress)
        to_image = _ranks(texts, images, image_of_text, np.arange(len(images)), tile, progress)
    return RetrievalRanks(to_text[0], to_image[0], image_of_text.astype("int64"), to_text[1] + to_image[1])


def _ranks(queries, items, image_of_query, image_of_item, tile, progress):
    """The rank of the best item that shows a query's image, and how many queries have a wrong item that equals it."""
    ranks, ties = np.empty(len(queries), "int64"), 0
    rows = max(1, tile // len(items))
    for start in range(0, len(queries), rows):
        block = slice(start, start + rows)
        similarities = queries[block] @ items.T
        own = image_of_query[block, None] == image_of_item
        best = np.where(own, similarities, -np.inf).max(1, keepdims=True)
        similarities[own] = -np.inf
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
            f"Expected image_of_text, an image index for each of {len(texts)} texts. "
            f"Received: {image_of_text.dtype} of shape {image_of_text.shape}."
        )
    outside = (image_of_text < 0) | (image_of_text >= len(images))
    missing = np.setdiff1d(np.arange(len(images)), image_of_text)
    if outside.any() or len(missing):
        raise ValueError(
            f"Expected an image in [0, {len(images)}) for each text, and a text for each image. Received: "
            f"{int(outside.sum())} texts of no image, {len(missing)} images without a text, {missing[:5].tolist()}."
        )
