"""Metrics of classification, retrieval and calibration, confidence intervals, and paired tests."""

from keras_clip.evaluation.metrics.classification import (
    METRICS,
    accuracy,
    interval,
    map_11pt,
    mean_over_folds,
    mean_per_class,
    mean_top1_top5,
    roc_auc,
    top5_accuracy,
)
from keras_clip.evaluation.metrics.correctness import IGNORED, correct
