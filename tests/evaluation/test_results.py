"""Scores and results: refusals, and files that restore the same results."""

import base64
import csv
import io
import json
import math

import numpy as np
import pytest

from keras_clip.evaluation import Examples, Failure, Results, Score
from keras_clip.evaluation.results import COLUMNS

pytestmark = pytest.mark.backend_free

NAN = math.nan


def score(dataset="digits", method="linear_probe", value=0.5, n=4, **more):
    return Score(dataset, method, "accuracy", value, 0.25, 0.75, n, "test, 8 px", **more)


def test_json_restores_everything():
    results = Results(info={"model": "tiny", "parameters": np.int64(3)})
    labels, groups = np.array([0, 1, 1, 2]), np.array([[0, 1], [1, 255]] * 2, np.uint8)
    examples = Examples("ids", "images", labels, groups)
    correct = np.array([True, False, False, True])
    results.add(score(published=0.6, details={"C": np.float32(0.5), "seeds": (0, 1)}, examples=examples), correct)
    results.add(score("mnist", outcomes=np.array([0.5, 0.25, 1e-9, 1]), examples=examples))
    results.failures.append(Failure.of("digits", "errors", ValueError("two\n lines")))
    results.add(score(method="few_shot/4", value=NAN))
    results.tables["errors"] = [{"id": "a<b>", "probability": np.float64(0.25), "vector": np.arange(2)}]
    text = results.to_json()
    read = Results.from_json(text)
    assert read.scores[0] == score(published=0.6, details={"C": 0.5, "seeds": [0, 1]})
    assert math.isnan(read.scores[2].value) and read.scores[2].low == 0.25
    assert read.failures == [Failure("digits", "errors", "ValueError: two lines")]
    assert read.tables == {"errors": [{"id": "a<b>", "probability": 0.25, "vector": [0, 1]}]}
    assert read.info == {"model": "tiny", "parameters": 3}
    np.testing.assert_array_equal(read.scores[0].correct, correct)
    assert read.scores[0].correct.dtype == bool and read.scores[1].correct is None
    assert read.scores[1].outcomes.tolist() == [0.5, 0.25, 1e-9, 1]
    assert read.scores[0].examples is read.scores[1].examples and read.scores[2].examples is None
    found = read.scores[0].examples
    assert (found.ids, found.images) == ("ids", "images")
    for array, expected in ((found.labels, labels), (found.groups, groups)):
        assert array.dtype == expected.dtype and array.tolist() == expected.tolist()
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


@pytest.mark.parametrize(
    "values", [np.ones(4), np.ones((4, 1), bool), np.ones(3, bool)], ids=["numbers", "matrix", "n"]
)
def test_correctness_is_a_vector_of_booleans(values):
    with pytest.raises(ValueError, match="n booleans.*'digits/linear_probe' with n=4"):
        Results().add(score(), values)


def test_every_score_keeps_its_own_correctness():
    """Three seeds of one method, and a shift of one name that two datasets have."""
    vectors = [np.arange(4) == i for i in range(5)]
    details = [{"seed": 0}, {"seed": 1}, {"seed": 2}, {"reference": "a"}, {"reference": "b"}]
    results = Results()
    for vector, about in zip(vectors, details, strict=True):
        results.add(score(details=about, correct=vector))
    read = Results.from_json(results.to_json())
    assert [s.correct.tolist() for s in read.scores] == [vector.tolist() for vector in vectors]
    assert len({s.key for s in read.scores}) == 5


def test_correctness_by_name_is_refused_with_its_cure():
    with pytest.raises(AttributeError, match=r"belongs to a score. Received.*Use `Score.correct`"):
        Results().correct  # noqa: B018


def former(scores, correct):
    """A file of the format of before, with correctness by dataset and method."""
    rows = [{name: getattr(s, name) for name in COLUMNS} for s in scores]
    packed = {
        name: {"n": len(bits), "bits": base64.b64encode(np.packbits(bits).tobytes()).decode()}
        for name, bits in correct.items()
    }
    content = {"format": "keras_clip.evaluation/1", "info": {"model": "old"}, "scores": rows, "tables": {}}
    return json.dumps({**content, "correct": packed})


def test_a_file_of_an_earlier_version_loads():
    scores = [score(method="few_shot/1", details={"seed": seed}) for seed in (0, 1)] + [score(method="knn", n=3)]
    scores += [Score("digits", "few_shot/1", "expected_calibration_error", 0.1, 0.0, 0.2, 4, "")]
    bits = np.array([True, True, False, True])
    # The vector of another number of examples than its score has belongs to nobody.
    read = Results.from_json(former(scores, {"digits/few_shot/1": bits, "digits/knn": bits}))
    # The last score of that name has written it.
    assert [s.correct is None for s in read.scores] == [True, False, True, True]
    assert read.scores[1].correct.tolist() == bits.tolist() and read.info == {"model": "old"} and read.failures == []
    tables = json.loads(former(scores, {}))
    tables["tables"] = {"errors/digits": [{"class": "one", "named": "two"}], "robustness": [{"class": "kept"}]}
    assert Results.from_json(json.dumps(tables)).tables == {
        "errors/digits": [{"true": "one", "predicted": "two"}],
        "robustness": [{"class": "kept"}],
    }
    without_units = json.loads(former(scores, {}))
    for row in without_units["scores"]:
        del row["unit"]
    assert Results.from_json(json.dumps(without_units)).scores == scores


def test_an_array_of_objects_is_refused():
    results = json.loads(Results([score(outcomes=np.ones(4))]).to_json())
    results["scores"][0]["outcomes"]["dtype"] = "object"
    with pytest.raises(ValueError, match="dtypes.*Received: dtype='object'"):
        Results.from_json(json.dumps(results))


def test_save_writes_numbers(tmp_path):
    results = Results([score()])
    results.save(tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["results.csv", "results.json"]
    assert Results.from_json((tmp_path / "new" / "folder" / "results.json").read_text()).scores == results.scores


@pytest.mark.parametrize("text", ["[1]", '{"format": "other"}'])
def test_other_json_is_refused(text):
    with pytest.raises(ValueError, match="Received: '?(list|other)"):
        Results.from_json(text)


def test_results_of_another_dataset_are_added():
    def one(dataset, seed):
        score = Score(dataset, "knn", "accuracy", 0.5, 0.4, 0.6, 9, "")
        info = {"model": "tiny", "images": {dataset: seed}, "tables": {dataset: {"heading": dataset}}}
        return Results(
            [score], {"rows": [{"dataset": dataset}], dataset: [{}]}, info, [Failure(dataset, "errors", "no")]
        )

    made = one("a", 1)
    made.extend(one("b", 2))
    assert made.datasets == ["a", "b"] and [failure.dataset for failure in made.failures] == ["a", "b"]
    assert made.tables == {"rows": [{"dataset": "a"}, {"dataset": "b"}], "a": [{}], "b": [{}]}
    assert made.info["images"] == {"a": 1, "b": 2} and set(made.info["tables"]) == {"a", "b"}
    assert made.info["model"] == "tiny"
