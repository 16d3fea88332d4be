"""Validation of a pool by TensorFlow Data Validation, or by a checker of the same schema."""

from keras_clip.curation.validation.run import Anomaly, Validation, validate
