"""Scores and results: refusals, and files that restore the same results."""

import csv
import io
import json
import math

import numpy as np
import pytest

from keras_clip.evaluation import Results, Score

pytestmark = pytest.mark.backend_free

NAN = math.nan


def score(dataset="digits", method="linear_probe", value=0.5, n=4, **more):
    return Score(dataset, method, "accuracy", value, 0.25, 0.75, n, "test, 8 px", **more)


def test_json_restores_everything():
    results = Results(info={"model": "tiny", "parameters": np.int64(3)})
    results.add(score(published=0.6, details={"C": np.float32(0.5), "seeds": (0, 1)}), np.array([True, False] * 5))
    results.add(score(method="few_shot/4", value=NAN))
    results.tables["errors"] = [{"id": "a<b>", "probability": np.float64(0.25), "vector": np.arange(2)}]
    text = results.to_json()
    read = Results.from_json(text)
    assert read.scores[0] == score(published=0.6, details={"C": 0.5, "seeds": [0, 1]})
    assert math.isnan(read.scores[1].value) and read.scores[1].low == 0.25
    assert read.tables == {"errors": [{"id": "a<b>", "probability": 0.25, "vector": [0, 1]}]}
    assert read.info == {"model": "tiny", "parameters": 3}
    np.testing.assert_array_equal(read.correct["digits/linear_probe"], [True, False] * 5)
    assert read.to_json() == text


def test_json_is_strict():
    json.loads(Results([score(value=NAN)]).to_json(), parse_constant=pytest.fail)


def test_csv_has_a_line_for_each_score():
    text = Results([score(value=0.1, details={"C": 2}), score(method="a,b", value=NAN, published=0.3)]).to_csv()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["value"] for row in rows] == ["0.1", ""] and [row["published"] for row in rows] == ["", "0.3"]
    assert rows[1]["method"] == "a,b" and json.loads(rows[0]["details"]) == {"C": 2}


def test_select_takes_whole_steps_of_a_path():
    results = Results([score(method="few_shot/1"), score(method="few_shot/16"), score("mnist", "few_shot_other/1")])
    assert [s.method for s in results.select(method="few_shot")] == ["few_shot/1", "few_shot/16"]
    assert [s.method for s in results.select(method="few_shot/1")] == ["few_shot/1"]
    assert results.select("mnist", metric="map_11pt") == []
    assert results.datasets == ["digits", "mnist"]


@pytest.mark.parametrize("bad", [{"n": 0}, {"dataset": ""}, {"method": ""}], ids=str)
def test_a_score_without_examples_or_names_is_refused(bad):
    with pytest.raises(ValueError, match="at least one example.*Received"):
        score(**bad)


@pytest.mark.parametrize("values", [np.ones(3), np.ones((2, 2), bool)], ids=["numbers", "matrix"])
def test_correctness_is_a_vector_of_booleans(values):
    with pytest.raises(ValueError, match="booleans.*'digits/linear_probe'"):
        Results().add(score(), values)


@pytest.mark.parametrize("text", ["[1]", '{"format": "other"}'])
def test_other_json_is_refused(text):
    with pytest.raises(ValueError, match="Received: '?(list|other)"):
        Results.from_json(text)
