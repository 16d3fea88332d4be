"""Validation of a pool by TensorFlow Data Validation, or by a checker of the same schema."""

from keras_clip.curation.validation.run import Anomaly as Anomaly
from keras_clip.curation.validation.run import Validation as Validation
from keras_clip.curation.validation.run import validate as validate
