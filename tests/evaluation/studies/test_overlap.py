"""The effect of an overlap: by hand, at its limits, and refusals."""

import json
import math

import numpy as np
import pytest

from keras_clip import similarity
from keras_clip.evaluation.studies import overlap

pytestmark = pytest.mark.backend_free


RECALLS = {
    # In descending similarity, the matches are right, right, wrong, right.
    "no wrong match": ([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1], 4, 0.99, (0.5, 0.8)),
    "one wrong match in four": ([0.6, 0.9, 0.7, 0.8], [1, 1, 0, 1], 4, 0.75, (0.75, 0.6)),
    "the most similar match is wrong": ([0.9, 0.8], [0, 1], 2, 0.99, (0.0, math.inf)),
    "equal similarities count together": ([0.9, 0.8, 0.8], [1, 1, 0], 2, 0.99, (0.5, 0.9)),
    "all": ([0.9, 0.8], [1, 1], 2, 0.99, (1.0, 0.8)),
    "none right": ([0.9, 0.8], [0, 0], 2, 0.5, (0.0, math.inf)),
}


@pytest.mark.parametrize("similarities, is_right, duplicates, precision, expected", RECALLS.values(), ids=RECALLS)
def test_recall_at_precision(similarities, is_right, duplicates, precision, expected):
    found = overlap.recall_at_precision(np.array(similarities), np.array(is_right, bool), duplicates, precision)
    assert found == expected


def test_overlap_by_hand():
    correct = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 0], bool)
    similarities = np.array([0.9, 0.8, 0.95, 0.8, 0.1, 0.2, 0.79, 0.3, 0.1, 0.0])
    result = overlap.analyse_overlap(correct, similarities, 0.8)
    assert (result.n, result.n_overlap, result.share) == (10, 4, 0.4)
    assert (result.accuracy, result.accuracy_clean, result.accuracy_overlap) == (0.7, 0.5, 1.0)
    assert result.inflation == pytest.approx(0.2)
    # At an accuracy of 1/2, four of four has the probability 1/16. The lower bound has four of four once in 400 times.
    assert result.p_value == pytest.approx(0.5**4)
    assert (result.low, result.high) == pytest.approx((0.0025**0.25, 1.0))


def test_overlap_that_does_not_help():
    correct = np.array([0, 1, 1, 1, 1, 0], bool)
    result = overlap.analyse_overlap(correct, np.array([1, 1, 0, 0, 0, 0.0]), 0.5)
    assert (result.accuracy_overlap, result.accuracy_clean) == (0.5, 0.75)
    # At an accuracy of 3/4, one or two of two are correct with the probability 1 - 1/16.
    assert result.p_value == pytest.approx(15 / 16)
    assert result.inflation == pytest.approx(4 / 6 - 0.75)


def test_one_part_alone():
    correct = np.array([True, False])
    clean = overlap.analyse_overlap(correct, np.zeros(2), 0.5)
    assert (clean.n_overlap, clean.accuracy_clean, clean.inflation) == (0, 0.5, 0.0)
    assert all(math.isnan(x) for x in (clean.accuracy_overlap, clean.low, clean.high, clean.p_value))
    dirty = overlap.analyse_overlap(correct, np.ones(2), 0.5)
    assert (dirty.n_overlap, dirty.accuracy_overlap) == (2, 0.5)
    assert math.isnan(dirty.accuracy_clean) and math.isnan(dirty.p_value) and 0 < dirty.low < 0.5 < dirty.high < 1


def test_table_corrects_for_the_number_of_tested_datasets():
    correct = np.array([1, 1, 1, 1, 1, 0], bool)
    similar = np.array([1, 1, 1, 1, 0, 0.0])
    overlaps = {
        "one": overlap.analyse_overlap(correct, similar, 0.5),
        "other": overlap.analyse_overlap(correct, similar[::-1], 0.5),
        "untouched": overlap.analyse_overlap(correct, similar, 2.0),
    }
    rows = {row["dataset"]: row for row in overlap.overlap_table(overlaps)}
    assert rows["one"]["p_value"] == pytest.approx(1 / 16)
    assert rows["one"]["p_bonferroni"] == pytest.approx(2 / 16)
    assert rows["other"]["p_bonferroni"] == 1.0
    assert rows["untouched"]["p_bonferroni"] is None and rows["untouched"]["accuracy_overlap"] is None
    assert json.loads(json.dumps(list(rows.values()), allow_nan=False))[0]["n_overlap"] == 4


REFUSED = {
    "more correct matches than duplicates": lambda: overlap.recall_at_precision(np.zeros(3), np.ones(3, bool), 2),
    "labels, not booleans": lambda: overlap.analyse_overlap(np.array([1, 0]), np.zeros(2), 0.5),
    "other lengths": lambda: overlap.analyse_overlap(np.array([True]), np.zeros(2), 0.5),
    "no image": lambda: overlap.analyse_overlap(np.zeros(0, bool), np.zeros(0), 0.5),
    "NaN": lambda: overlap.analyse_overlap(np.array([True]), np.array([math.nan]), 0.5),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_refusals(call):
    with pytest.raises(ValueError, match="Received: "):
        call()


@pytest.mark.parametrize("name", ["hash_vectors", "nearest_vectors", "perceptual_hash", "pixel_digest"])
def test_former_places_of_names(name):
    assert getattr(overlap, name) is getattr(similarity, name)
