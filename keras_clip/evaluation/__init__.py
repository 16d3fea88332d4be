"""How good a model is, and how sure that is."""

from keras_clip.evaluation.records import Results, Score
from keras_clip.evaluation.statistics import wilson_interval
