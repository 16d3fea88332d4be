"""The features, labels and validation splits that classifiers refuse."""

import numpy as np
import pytest

from keras_clip.evaluation.classifiers.inputs import check_features, check_labels, check_split
from keras_clip.evaluation.metrics.classification import IGNORED

pytestmark = pytest.mark.backend_free

NAN = np.full((3, 2), np.nan)
FEATURES = {
    "NaN": (np.where(np.arange(6).reshape(3, 2) == 3, np.nan, 1.0), "row 1"),
    "infinite in float32": (np.full((2, 2), 1e39), "row 0"),
    "one dimension": (np.ones(3), r"shape \(3,\)"),
    "no row": (np.ones((0, 3)), r"shape \(0, 3\)"),
    "texts": (np.array([["a"]]), "dtype <U1"),
}
LABELS = {
    "too few": ([0, 1], None, "3 rows"),
    "floats": ([0.0, 1.0, 1.0], None, "dtype float64"),
    "negative": ([0, 1, -1], None, "from -1 to 1"),
    "out of range": ([0, 1, 2], 2, "from 0 to 2"),
    "one class only": ([1, 1, 1], None, "all of class 1"),
    "an empty class": ([0, 2, 2], None, r"none of class \[1\]"),
    "an empty class at the end": ([0, 1, 1], 4, r"none of class \[2 3\]"),
    "several, not 0 or 1": ([[0, 1], [1, 2], [0, 0]], None, "values"),
    "several, other K": ([[0, 1], [1, 0], [0, 0]], 3, r"shape \(3, 2\)"),
    "several, one that all images have": ([[0, 1], [1, 1], [0, IGNORED]], None, r"class \[1\]"),
}


@pytest.mark.parametrize("features, message", FEATURES.values(), ids=FEATURES)
def test_refused_features(features, message):
    with pytest.raises(ValueError, match=f"(?s)Received.*{message}"):
        check_features(features)


@pytest.mark.parametrize("labels, num_classes, message", LABELS.values(), ids=LABELS)
def test_refused_labels(labels, num_classes, message):
    with pytest.raises(ValueError, match=message) as error:
        check_labels(np.array(labels), 3, num_classes)
    assert "Received: " in str(error.value)


SPLITS = {
    "another width": (np.ones((2, 4)), [0, 1]),
    "fewer labels": (np.ones((2, 3)), [0]),
    "another class": (np.ones((2, 3)), [0, 2]),
    "several, other K": (np.ones((2, 3)), [[0, 1, 0], [0, 1, 1]]),
}


@pytest.mark.parametrize("features, labels", SPLITS.values(), ids=SPLITS)
def test_refused_split(features, labels):
    with pytest.raises(ValueError, match=r"\(N, 3\) and labels of the same 2 classes"):
        check_split(features, np.array(labels), 3, 2)


def test_a_split_may_lack_a_class():
    assert check_split(np.ones((2, 3)), np.array([1, 1]), 3, 2)[1].tolist() == [1, 1]
