"""Indexes of vectors: queries to rows and scores. They do not know what pictures are."""

from keras_clip.search.vectors.exact import ExactIndex
from keras_clip.search.vectors.index import Index
from keras_clip.search.vectors.qdrant_index import QdrantIndex
from keras_clip.search.vectors.usearch_index import UsearchIndex
