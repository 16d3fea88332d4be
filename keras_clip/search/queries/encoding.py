"""The vector of a query: the weighted sum of the embeddings of its terms."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_clip.model import CLIPModel
from keras_clip.search.queries.query import Query, Term
from keras_clip.zero_shot import unit_length

# Texts that mean no more than "a picture".
NEUTRAL_TEXTS = ("a photo.", "an image.", "a picture of something.", "a photo of a thing.", "")
# Texts that are embedded at a time where there are several.
_BATCH = 32
# Embeddings that are kept, 2 KB each at 512 dimensions.
_KEPT = 4096
# The shortest sum of the terms, relative to their weights, that still has a direction.
_SHORTEST = 1e-4


class QueryEncoder:
    """Embeds the terms of queries by a model, one at a time, and keeps the embeddings of recent texts.

    Several threads may use one encoder.

    Args:
        clip: `CLIPModel`.
    """

    def __init__(self, clip: CLIPModel):
        self.clip = clip
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts; what exceeds the context of the text encoder is cut off.

        Args:
            texts: P texts.

        Returns:
            float32 (P, E), unit vectors.
        """
        with self._lock:
            missing = [text for text in dict.fromkeys(texts) if text not in self._kept]
            # Two shapes for all texts, so that the encoder compiles at most twice.
            size = 1 if len(missing) == 1 else _BATCH
            for start in range(0, len(missing), size):
                batch = missing[start : start + size]
                token_ids = self.clip.tokenizer(batch, truncate=True)
                padded = token_ids[np.resize(np.arange(len(batch)), size)]
                embeddings = np.array(self.clip.text_embedder.predict_on_batch(padded), np.float32)
                self._kept.update(zip(batch, unit_length(embeddings), strict=False))
            for text in texts:
                self._kept.move_to_end(text)
            embeddings = np.stack([self._kept[text] for text in texts])
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return embeddings

    def image(self, image: Any) -> np.ndarray:
        """Embeds a picture.

        Args:
            image: bytes of an image file, PIL image or uint8 array.

        Returns:
            float32 (E,), a unit vector.

        Raises:
            ValueError: an image that is broken or too large.
        """
        pixels = self.clip.image_preprocessor.to_uint8([image])
        with self._lock:
            return unit_length(np.array(self.clip.image_embedder.predict_on_batch(pixels)[0], np.float32))

    def vector(self, query: Query, picture: Callable[[int], np.ndarray]) -> tuple[np.ndarray, float]:
        """Computes the direction of a query.

        Args:
            query: `Query` with at least one term.
            picture: the id of a picture of the index -> its embedding (E,).

        Returns:
            The unit vector, float32 (E,), and the length of the sum that was divided by.

        Raises:
            ValueError: terms that cancel each other out, or a picture that is not in the index.
        """
        total = sum(term.weight * self._term(term, picture).astype(np.float64) for term in query.terms)
        length = float(np.linalg.norm(total))
        if length < _SHORTEST * sum(abs(term.weight) for term in query.terms):
            raise ValueError(
                f"The terms of a query must not cancel each other out. Received: {len(query.terms)} terms whose "
                "weighted sum is zero. Change a weight, or leave one out."
            )
        return (total / length).astype(np.float32), length

    def _term(self, term: Term, picture):
        if term.is_text:
            return self.texts([term.text])[0]
        return picture(term.picture) if term.picture is not None else self.image(term.upload)
