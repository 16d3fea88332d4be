"""Results as a page: HTML, figures, JSON and CSV. Reads results; never runs a model."""

from keras_clip.evaluation.report.html import render, write
