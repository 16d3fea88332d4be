"""Relevance: a score between 0 and 1 that a person can judge, and the score at which pictures stop being relevant.

A cosine has no meaning by itself: 0.25 is much for a text and little for a picture. It is compared with the cosine that
a picture would have if it resembled each term no more than it resembles a neutral one. For a text, that is the mean
cosine of the pictures of the index with prompts such as "a photo."; for a picture, it is a high cosine of two pictures
that are drawn from the index.
"""

from dataclasses import dataclass

import numpy as np

from keras_clip.search.queries.query import Query

# Pictures whose cosines with each other are computed.
_SAMPLE = 512
# Standard deviations above the mean cosine of two pictures: more than about 97.5 % of the pairs have.
_DEVIATIONS = 2
# The largest exponent: the sigmoid is 0 or 1 in float32 beyond.
_LARGEST = 80


@dataclass(frozen=True)
class Levels:
    """Neutral cosines of the pictures of an index.

    Args:
        text: float. Mean cosine of the pictures with neutral prompts.
        picture: float. Cosine that few pairs of pictures exceed.
    """

    text: float
    picture: float

    @classmethod
    def measure(cls, embeddings: np.ndarray, rows: np.ndarray, neutral: np.ndarray) -> "Levels":
        """Measures the levels of an index.

        Args:
            embeddings: float32 (N, E).
            rows: int64 (M,), those of the pictures of the index.
            neutral: float (P, E), embeddings of neutral prompts.

        Returns:
            `Levels`; zeros for an index without pictures.
        """
        if not len(rows):
            return cls(0.0, 0.0)
        sample = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), 2**14)).astype(np.int64))]
        mean = np.asarray(embeddings[sample], np.float64).mean(axis=0)
        direction = neutral.mean(axis=0, dtype=np.float64)
        direction /= max(np.linalg.norm(direction), 1e-12)
        few = np.asarray(embeddings[sample[:: max(1, len(sample) // _SAMPLE)]], np.float64)
        cosines = (few @ few.T)[~np.eye(len(few), dtype=bool)]
        picture = cosines.mean() + _DEVIATIONS * cosines.std() if len(cosines) else 0.0
        return cls(float(mean @ direction), float(min(picture, 1.0)))

    def of(self, query: Query, length: float) -> float:
        """Returns the cosine with a query that a picture has which resembles no term more than a neutral one.

        Args:
            query: `Query`.
            length: float. Length of the weighted sum of its terms.

        Returns:
            float.
        """
        return sum(term.weight * (self.text if term.is_text else self.picture) for term in query.terms) / length


@dataclass(frozen=True)
class Scale:
    """Converts cosines to relevance.

    Args:
        temperature: float. Factor of the cosines, exp(logit scale) of the model.
        offset: float. Added after the factor: the bias of the sigmoid loss, or minus the neutral cosine times the
            factor.
        is_probability: bool. Whether the relevance is the probability that text and picture are a pair.
    """

    temperature: float
    offset: float
    is_probability: bool

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Returns the relevance of cosines (R,), float64 in [0, 1], which ascends with them."""
        logits = np.asarray(scores, np.float64) * self.temperature + self.offset
        return 1 / (1 + np.exp(-np.clip(logits, -_LARGEST, _LARGEST)))
