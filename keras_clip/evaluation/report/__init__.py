"""The report of an evaluation as HTML, figures, JSON and CSV. It reads `Results` and never runs a model."""

from keras_clip.evaluation.report.html import render, write
