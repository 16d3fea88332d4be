"""Fingerprints of images, and the search for similar ones."""

from keras_clip.similarity.fingerprints import (
    HASH_SHORTEST,
    hash_of_decoded,
    hash_vectors,
    perceptual_hash,
    pixel_digest,
)
from keras_clip.similarity.nearest import nearest_vectors
