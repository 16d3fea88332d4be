"""Bytes to pixels and tokens."""

from keras_clip.data.pairs import image_text_pairs
