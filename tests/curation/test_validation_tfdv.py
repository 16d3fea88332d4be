"""The checker against TFDV, which runs in .venv-validation (make validation): statistics and verdicts."""

import base64
import json
import random
import subprocess
from collections import Counter

import numpy as np
import planted_faults
import pytest
from google.protobuf import json_format
from tensorflow_metadata.proto.v0 import schema_pb2, statistics_pb2

from keras_clip import curation
from keras_clip.curation.validation import checker, features, run, schema, statistics, tfdv

pytestmark = [
    pytest.mark.backend_free,
    # `make test` installs it, and allows no skip of this cause.
    pytest.mark.skipif(tfdv.find_python() is None, reason="TFDV is not installed: make validation"),
]
# One of each kind; the others differ in the feature only, and each pool takes TFDV two seconds.
SIMILAR = {"file names as captions", "repeated captions", "an unexpected mode", "tiny images", "elongated images"}
CASES = {("fault", name): fault for name, fault in planted_faults.FAULTS.items() if name not in SIMILAR}
CASES |= {("drift", name): fault for name, fault in planted_faults.DRIFTS.items()}


@pytest.fixture(scope="module")
def by_tfdv(tmp_path_factory):
    """For each case: the derived features, the earlier statistics, TFDV's statistics and its anomalies."""
    folder = tmp_path_factory.mktemp("tfdv")
    cases, jobs = {}, []
    for number, (case, (plant, _)) in enumerate(CASES.items()):
        pool = planted_faults.pool(folder / str(number), plant)
        profiles, scores = (sorted((pool / name).iterdir()) for name in ("profile", "score"))
        derived = features.derive(profiles, scores, pool / "features")
        before = folder / "before.pb" if case[0] == "drift" else None
        if case == ("fault", "none"):
            (folder / "before.pb").write_bytes(statistics.compute(derived.paths).SerializeToString())
        cases[case] = derived, before
        jobs.append(run.job_of(derived, schema.SHIPPED, before, "scored"))
    verdicts = tfdv.run(jobs, folder)
    result = {}
    for number, (case, (derived, before)) in enumerate(cases.items()):
        computed = run.read_statistics(folder / f"statistics{f'_{number}' if number else ''}.pb")
        earlier = run.read_statistics(before) if before else None
        result[case] = derived, earlier, computed, run.anomalies_of(verdicts[number])
    return result


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_verdicts_are_those_of_tfdv(case, by_tfdv):
    derived, earlier, computed, theirs = by_tfdv[case]
    ours = run.check_all(statistics.compute(derived.paths), schema.load(), "scored", earlier)
    assert verdicts(theirs) == verdicts(ours) == CASES[case][1]
    # Those of our checker on their statistics, too.
    assert verdicts(run.check_all(computed, schema.load(), "scored", earlier)) == CASES[case][1]
    for name in theirs:
        assert distances(theirs[name]) == pytest.approx(distances(ours[name]), abs=1e-6)


def verdicts(found):
    return {(feature, kind, part) for feature, kind, _, part in run.reasons_of(found)}


def distances(anomalies):
    return {
        (info.path.step[0], kind, each.type): each.value
        for info in anomalies.drift_skew_info
        for kind in ("drift_measurements", "skew_measurements")
        for each in getattr(info, kind)
    }


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_statistics_are_those_of_tfdv(case, by_tfdv):
    derived, _, theirs, _ = by_tfdv[case]
    ours = statistics.compute(derived.paths)
    assert {data.name for data in theirs.datasets} == {data.name for data in ours.datasets}
    by_name = {data.name: data for data in theirs.datasets}
    for data in ours.datasets:
        their_features = {feature.path.step[0]: feature for feature in by_name[data.name].features}
        assert by_name[data.name].num_examples == data.num_examples
        assert their_features.keys() == {feature.path.step[0] for feature in data.features}
        for feature in data.features:
            compare(feature, their_features[feature.path.step[0]])


def compare(ours, theirs):
    """All that both compute is equal; the median and histograms of numbers are estimates of TFDV's sketches."""
    assert ours.type == theirs.type
    kind = ours.WhichOneof("stats")
    ours, theirs = getattr(ours, kind), getattr(theirs, kind)
    theirs.common_stats.ClearField("num_values_histogram")
    assert ours.common_stats == theirs.common_stats
    if kind == "string_stats":
        assert ours == theirs
        return
    # With infinite values, TFDV's mean depends on how it has merged its batches.
    is_finite = np.isfinite(theirs.min) and np.isfinite(theirs.max)
    for name in ("num_zeros", "min", "max", *(("mean", "std_dev") if is_finite else ())):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-9), name
    assert sum(each.num_nan for each in ours.histograms) == sum(each.num_nan for each in theirs.histograms)
    if is_finite and theirs.histograms:
        assert abs(ours.median - theirs.median) <= 0.02 * (theirs.max - theirs.min)
        ours, theirs = ([bucket.sample_count for bucket in each.histograms[0].buckets] for each in (ours, theirs))
        # TFDV interpolates between quantiles, so single bars of small whole numbers differ.
        np.testing.assert_allclose(np.cumsum(ours), np.cumsum(theirs), atol=0.1 * sum(ours))


COMPARE = """
import base64, json, sys
import tensorflow_data_validation as tfdv
from google.protobuf import json_format
from tensorflow_metadata.proto.v0 import schema_pb2, statistics_pb2

def data(text):
    one = statistics_pb2.DatasetFeatureStatistics.FromString(base64.b64decode(text))
    return statistics_pb2.DatasetFeatureStatisticsList(datasets=[one])

found = []
for case in json.load(open(sys.argv[1])):
    schema = schema_pb2.Schema.FromString(base64.b64decode(case["schema"]))
    environment, one, two, three = case["environment"] or None, *map(data, case["data"])
    anomalies = tfdv.validate_statistics(one, schema, environment, previous_statistics=two, serving_statistics=three)
    anomalies.ClearField("baseline")
    found.append(json_format.MessageToDict(anomalies))
json.dump(found, open(sys.argv[2], "w"))
"""
TYPES = {"s": "BYTES", "i": "INT", "f": "FLOAT"}


def random_data(draw, rows):
    """Statistics of features of each type, some of them absent, empty or with special values."""
    data = statistics_pb2.DatasetFeatureStatistics(name=statistics.ALL_ROWS, num_examples=rows)
    for name in ("s1", "s2", "i1", "f1"):
        present = draw.choice([rows, rows, rows - 1, rows // 2, 0])
        if draw.random() < 0.1:
            continue
        if name[0] == "s":
            weights = [5, 3, draw.random(), draw.random() / 5]
            statistics._add_strings(data, name, Counter(draw.choices(["a", "b", "c", "é"], weights, k=present)), rows)
            continue
        values = np.array([draw.randint(0, 9) for _ in range(present)], np.int64 if name[0] == "i" else np.float32)
        for special in (np.nan, np.inf, -np.inf):
            if name[0] == "f" and present and draw.random() < 0.2:
                values[draw.randrange(present)] = special
        statistics._add_numbers(data, name, values, rows)
    return data


def random_schema(draw):
    """A schema of random parts of the kinds that the checker knows."""

    def maybe(message, field, values, chance=0.7):
        if draw.random() < chance:
            setattr(message, field, draw.choice(values))

    made = schema_pb2.Schema()
    if draw.random() < 0.5:
        made.default_environment.extend(["A", "B"])
    if draw.random() < 0.3:
        made.dataset_constraints.min_examples_count = draw.choice([1, 10, 50])
        maybe(made.dataset_constraints, "max_examples_count", [10, 50, 100])
    for name in ("s1", "s2", "i1", "f1"):
        if draw.random() < 0.05:
            continue
        feature = made.feature.add(name=name, type=TYPES[name[0]])
        maybe(feature.presence, "min_count", [0, 1, 5, 40])
        maybe(feature.presence, "min_fraction", [0, 0.5, 0.9, 1])
        maybe(feature.value_count, "min", [0, 1], 0.3)
        maybe(feature.value_count, "max", [1, 2], 0.3)
        maybe(feature, "deprecated", [True], 0.1)
        maybe(feature, "lifecycle_stage", range(8), 0.15)
        if made.default_environment and draw.random() < 0.3:
            draw.choice([feature.in_environment, feature.not_in_environment]).append(draw.choice("AB"))
        if name[0] == "s":
            if draw.random() < 0.7:
                feature.string_domain.value.extend(["a", "b", "c", "é"][: draw.randint(1, 4)])
                maybe(feature.distribution_constraints, "min_domain_mass", [0, 0.5, 0.8, 0.95, 0.99, 1])
            if draw.random() < 0.2:
                feature.unique_constraints.min, feature.unique_constraints.max = draw.randint(1, 3), draw.randint(2, 4)
            for comparator in (feature.drift_comparator, feature.skew_comparator):
                measure = draw.choice(["infinity_norm", "jensen_shannon_divergence"])
                if draw.random() < 0.5:
                    getattr(comparator, measure).threshold = draw.choice([0, 0.01, 0.05, 0.2])
        elif draw.random() < 0.6:
            domain = feature.int_domain if name[0] == "i" else feature.float_domain
            maybe(domain, "min", [0, 1, 2])
            maybe(domain, "max", [8, 9, 10])
            for field in ("disallow_nan", "disallow_inf") if name[0] == "f" else ():
                maybe(domain, field, [True], 0.5)
    return made


@pytest.mark.slow
def test_verdicts_of_random_schemas_are_those_of_tfdv(tmp_path):
    cases = []
    for seed in range(200):
        draw = random.Random(seed)
        made = random_schema(draw)
        environment = draw.choice(["A", "B", ""]) if made.default_environment else ""
        cases.append((made, environment, [random_data(draw, draw.choice([5, 20, 60, 100])) for _ in range(3)]))

    def encode(message):
        return base64.b64encode(message.SerializeToString()).decode()

    stored = [
        {"schema": encode(made), "environment": environment, "data": list(map(encode, data))}
        for made, environment, data in cases
    ]
    (tmp_path / "cases.json").write_text(json.dumps(stored))
    command = [tfdv.find_python(), "-I", "-c", COMPARE, tmp_path / "cases.json", tmp_path / "found.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    kinds = Counter()
    for number, theirs in enumerate(json.loads((tmp_path / "found.json").read_text())):
        made, environment, data = cases[number]
        ours = json_format.MessageToDict(checker.check(data[0], made, environment, *data[1:]))
        assert kinds_of(ours) == kinds_of(theirs), number
        kinds.update(kind for _, kind in kinds_of(theirs))
    # The cases are of many kinds.
    assert len(kinds) >= 16 and min(kinds.values()) >= 2, kinds


def kinds_of(anomalies):
    found = {
        (name, reason["type"]) for name, info in anomalies.get("anomalyInfo", {}).items() for reason in info["reason"]
    }
    return found | {("", reason["type"]) for reason in anomalies.get("datasetAnomalyInfo", {}).get("reason", [])}


@pytest.mark.slow
def test_validate_runs_tfdv_with_options_of_beam(tmp_path):
    folder = planted_faults.pool(tmp_path / "pool", planted_faults.one_german_shard)
    options = ["--runner=BundleBasedDirectRunner", f"--temp_location={tmp_path / 'shared'}"]
    (tmp_path / "shared").mkdir()
    outcome = curation.validate(folder, checks="tfdv", beam_options=options)
    assert {(one.feature, one.slice) for one in outcome.anomalies} == {("language", "00000"), ("language", "00001")}
    assert outcome.engine.startswith("TFDV 1.") and outcome.rows == 440
    # The files went through the folder that workers share.
    assert {path.name for path in (tmp_path / "shared").iterdir()} >= {
        "00000.parquet",
        "00001.parquet",
        "statistics.pb",
    }
