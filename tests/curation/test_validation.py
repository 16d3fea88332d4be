"""Validation without TFDV: features by hand, planted faults, drift and skew, the report, and what is refused."""

import json
import shutil
import subprocess
import sys

import made_profiles
import numpy as np
import planted_faults
import pyarrow as pa
import pyarrow.parquet
import pytest
import scripts
from subprocesses import REPOSITORY

from keras_clip import curation
from keras_clip.curation.validation import checker, features, report, schema, statistics, tfdv

pytestmark = pytest.mark.backend_free


def reasons(outcome):
    return {(anomaly.feature, anomaly.kind, anomaly.slice) for anomaly in outcome.anomalies}


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = planted_faults.pool(tmp_path_factory.mktemp("clean"), lambda shards: None)
    curation.validate(folder, checks="checker")
    return folder


@pytest.mark.parametrize("fault", planted_faults.FAULTS)
def test_fault_is_found(fault, tmp_path):
    plant, expected = planted_faults.FAULTS[fault]
    outcome = curation.validate(planted_faults.pool(tmp_path, plant), checks="checker")
    assert reasons(outcome) == expected
    assert outcome.valid == (not expected)


@pytest.mark.parametrize("fault", planted_faults.DRIFTS)
def test_drift_is_found(fault, clean, tmp_path):
    plant, expected = planted_faults.DRIFTS[fault]
    outcome = curation.validate(planted_faults.pool(tmp_path, plant), checks="checker", previous=clean / "validate")
    assert reasons(outcome) == expected


def test_a_pool_compared_with_itself_does_not_drift(clean, tmp_path):
    shutil.copytree(clean / "validate", tmp_path / "before")
    for _ in range(2):  # The second time into the folder that it is compared with.
        outcome = curation.validate(clean, tmp_path / "before", checks="checker", previous=tmp_path / "before")
        assert outcome.valid
    measured = json.loads((tmp_path / "before" / "validation.json").read_text())["drift"]
    assert len(measured) == 14 and all(row["value"] == 0 for row in measured)


def one_feature(tmp_path, name, keys=None, sample_rows=10**6, **changes):
    """The values of a feature of the pairs of one shard whose columns are changed."""
    count = len(next(iter(changes.values())))
    columns = made_profiles.rows(count)
    for column, values in changes.items():
        columns[column] = np.array(values, object)
    profiles, scores = made_profiles.write(tmp_path / "pool", {"00000": columns})
    derived = features.derive(sorted(profiles.iterdir()), sorted(scores.iterdir()), tmp_path / "features", sample_rows)
    return pyarrow.parquet.read_table(derived.paths[0])[name].to_pylist()


# Feature: columns of the profile, and the values by hand.
BY_HAND = {
    "shorter_side": (
        {"width": [15, 16, 31, 5000, None], "height": [900, 900, 32, 2048, None]},
        ["<16", "[16, 32)", "[16, 32)", ">=2048", None],
    ),
    "aspect": (
        {"width": [100, 100, 125, 0, None], "height": [100, 510, 100, 7, None]},
        ["<1.25", ">=5", "[1.25, 1.5)", ">=5", None],
    ),
    "caption_tokens": ({"tokens": [2, 3, 77, 78]}, ["<3", "[3, 8)", "[64, 78)", ">=78"]),
    "caption_words": ({"words": [0, 1, 2, 50]}, ["<1", "[1, 2)", "[2, 3)", ">=50"]),
    "score": (
        {"clip_score": [0.3, -0.2, float("nan"), None, 0.29999]},
        ["[0.3, 0.35)", "<0", None, None, "[0.25, 0.3)"],
    ),
    "image_status": (
        {"decode_ok": [True, False, False], "reason": [None, "no image", None]},
        ["ok", "no image", "unreadable image"],
    ),
    "image_repeated": (
        {"sample": [0, 0, 1, 2, 3], "sha256": ["a" * 64, "a" * 64, "b" * 64, "b" * 64, None]},
        ["no", "no", "yes", "yes", None],
    ),
    "caption_repeated": (
        {
            "sample": [0, 1, 2, 3],
            "text_hash": ["ab" * 16, "ab" * 16, "cd" * 16, "cd" * 16],
            "blank": [False, False, True, False],
        },
        ["yes", "yes", None, "yes"],
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_feature_by_hand(name, tmp_path):
    changes, expected = BY_HAND[name]
    assert one_feature(tmp_path, name, **changes) == expected


def test_the_shipped_schema_names_the_intervals_and_features(clean):
    domains = {feature.name: set(feature.string_domain.value) for feature in schema.load().feature}
    for name in features.BINS:
        assert domains[name] <= set(features.intervals(name))
    assert list(domains) == pyarrow.parquet.read_schema(next((clean / "validate" / "features").iterdir())).names


def test_a_repeated_image_is_seen_across_shards_and_outside_the_sample(tmp_path):
    shards = {name: made_profiles.rows(300, name) for name in ("00000", "00001", "00002")}
    for columns in shards.values():
        columns["sha256"][:] = shards["00000"]["sha256"]
    profiles, _ = made_profiles.write(tmp_path / "pool", shards)
    derived = features.derive(sorted(profiles.iterdir()), None, tmp_path / "features", 90)
    flags = pa.concat_tables(map(pyarrow.parquet.read_table, derived.paths))["image_repeated"].to_pylist()
    assert len(flags) == derived.rows and 50 < derived.rows < 140 and derived.total == 900
    assert set(flags) == {"yes"}


def test_the_sample_depends_on_keys_alone(tmp_path):
    shards = {"00000": made_profiles.rows(400), "00001": made_profiles.rows(400, "00001")}
    backwards = {name: {key: values[::-1] for key, values in columns.items()} for name, columns in shards.items()}
    kept = []
    for number, each in enumerate((shards, backwards)):
        profiles, _ = made_profiles.write(tmp_path / f"pool{number}", each)
        derived = features.derive(sorted(profiles.iterdir()), None, tmp_path / f"features{number}", 200)
        kept.append(
            sorted(value for path in derived.paths for value in pyarrow.parquet.read_table(path)["bytes"].to_pylist())
        )
    assert kept[0] == kept[1] and 140 < len(kept[0]) < 260


def test_slices_are_groups_of_consecutive_shards():
    assert list(features._groups([100, 100, 100, 100, 50])) == [[0, 1], [2, 3, 4]]
    assert list(features._groups([1000, 1, 1000])) == [[0], [1, 2]]
    groups = list(features._groups([300] * 1000))
    assert len(groups) <= features.MAX_SLICES and sum(groups, []) == list(range(1000))


def test_distances_by_hand():
    value, worst = checker.infinity_norm({"a": 3, "b": 1}, {"a": 1, "c": 1})
    assert (value, worst) == (0.5, "c")
    # Half of the mass is the same: 1 bit of the other half.
    assert checker.jensen_shannon_divergence({"a": 1, "b": 1}, {"a": 1, "c": 1})[0] == pytest.approx(0.5)
    assert checker.jensen_shannon_divergence({"a": 2}, {"a": 5})[0] == 0


@pytest.mark.parametrize(
    "line, part",
    [
        ('sparse_feature { name: "x" }', "sparse_feature"),
        ('feature { name: "x" type: BYTES natural_language_domain {} }', "natural_language_domain"),
        ('feature { name: "x" type: INT drift_comparator { jensen_shannon_divergence { threshold: 1 } } }', "numbers"),
        (
            'feature { name: "x" type: BYTES skew_comparator { normalized_abs_difference { threshold: 1 } } }',
            "normalized",
        ),
    ],
)
def test_the_checker_refuses_what_it_does_not_know(line, part, clean, tmp_path):
    (tmp_path / "mine.pbtxt").write_text(
        f'annotation {{ comment: "keras_clip validation features, version 1" }}\n{line}'
    )
    with pytest.raises(ValueError, match=f"(?s){part}.*make validation"):
        curation.validate(clean, tmp_path / "out", schema=tmp_path / "mine.pbtxt", checks="checker")


def edit_profile(change):
    """A fault of the files: the Parquet file of the profile is changed."""

    def apply(folder):
        path = folder / "profile" / "00000.parquet"
        pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(path)), path)
        return {}

    return apply


def set_schema(text):
    def apply(folder):
        (folder / "mine.pbtxt").write_text(text)
        return {"schema": folder / "mine.pbtxt"}

    return apply


def write_file(name, content):
    def apply(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        return {}

    return apply


# What is wrong, and the parts of the message.
REFUSED = {
    "no profile": (lambda folder: shutil.rmtree(folder / "profile") or {}, r"Received: .*curate\.py profile"),
    "a foreign table": (
        edit_profile(lambda table: table.select(["key", "width"])),
        r"no column 'sample'.*curate\.py profile",
    ),
    "a column of another type": (
        edit_profile(lambda table: table.set_column(9, "width", table["width"].cast(pa.string()))),
        "'width' must be integer. Received: string",
    ),
    "a cut file": (write_file("profile/00000.parquet", b"PAR1"), "not a complete Parquet file"),
    "digests that are none": (
        edit_profile(lambda table: table.set_column(13, "sha256", table["key"])),
        "must be hexadecimal. Received",
    ),
    "no pairs": (edit_profile(lambda table: table.slice(0, 0)), "another number|at least one pair"),
    "scores of another profile": (edit_profile(lambda table: table.slice(1)), "another number of rows.*pass `score`"),
    "an unfinished profile": (
        write_file("pool.json", b'{"shards": ["00000", "00001"]}'),
        r"without 00001.parquet \(1 of 2 are missing\)",
    ),
    "unfinished scores": (lambda folder: {"scores": folder}, "without 00000.parquet"),
    "no schema": (lambda folder: {"schema": folder / "none.pbtxt"}, "No such schema"),
    "a schema that is something else": (set_schema("{"), "must be in text form"),
    "an old schema": (
        set_schema('annotation { comment: "keras_clip validation features, version 0" }'),
        "names version 0. Compare it with .*schema.pbtxt",
    ),
    "a foreign schema": (set_schema('feature { name: "x" }'), "no version"),
    "no environment": (
        set_schema('annotation { comment: "keras_clip validation features, version 1" } default_environment: "x"'),
        'default_environment: "scored"',
    ),
    "no earlier validation": (lambda folder: {"previous": folder / "none"}, "which does not exist"),
    "a foreign earlier validation": (lambda folder: {"previous": folder / "profile/00000.parquet"}, "statistics.pb"),
    "Beam's options without TFDV": (lambda folder: {"beam_options": ["--runner=FlinkRunner"]}, "make validation"),
    "a runner that loses rows": (
        lambda folder: {"checks": "tfdv", "beam_options": ["--direct_running_mode", "multi_processing"]},
        "loses rows.*Received: multi_processing",
    ),
    "unknown checks": (lambda folder: {"checks": "spark"}, "auto, tfdv, checker. Received: checks='spark'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, tmp_path):
    change, message = REFUSED[name]
    folder = planted_faults.pool(tmp_path, lambda shards: None)
    options = {"checks": "checker"} | change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){message}") as error:
        curation.validate(folder, **options)
    assert "Received" in str(error.value) or "Parquet" in str(error.value) or "text form" in str(error.value)


def test_without_tfdv(clean, tmp_path, monkeypatch):
    monkeypatch.setattr(tfdv, "find_python", lambda: None)
    assert curation.validate(clean, tmp_path).engine == "checker"
    with pytest.raises(ImportError, match="make validation"):
        curation.validate(clean, tmp_path, checks="tfdv")
    monkeypatch.undo()
    monkeypatch.setenv(tfdv.PYTHON_VARIABLE, "/no/python")
    with pytest.raises(FileNotFoundError, match="/no/python"):
        curation.validate(clean, tmp_path)
    # An interpreter that lacks it.
    monkeypatch.setenv(tfdv.PYTHON_VARIABLE, sys.executable)
    with pytest.raises(RuntimeError, match="(?s)ModuleNotFoundError.*tfdv.log"):
        curation.validate(clean, tmp_path, checks="tfdv")


def test_the_report_is_whole_and_escapes(clean, tmp_path):
    hostile = "<script>alert('x')</script>\u202e"

    def plant(shards):
        planted_faults.broken(shards)
        shards["00000"]["reason"][0] = hostile

    folder = planted_faults.pool(tmp_path / "hostile", plant)
    outcome = curation.validate(folder, checks="checker", previous=clean / "validate")
    page = outcome.report.read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "\u202e" not in page
    assert "http://" not in page and "https://" not in page
    for expected in ("image_status", "✗ 3 anomalies", "Drift", "94.5%", "COMPARATOR_L_INFTY_HIGH", "undecodable image"):
        assert expected in page
    data = json.loads((folder / "validate" / "validation.json").read_text())
    assert data["valid"] is False and len(data["anomalies"]) == 3 and data["pairs"] == 220
    assert "✓ Valid" in (clean / "validate" / "report.html").read_text()


def test_percent():
    assert [report.percent(share) for share in (0, 1, 0.9999999, 1e-9, 0.5)] == [
        "0%",
        "100%",
        "99.999%",
        "0.001%",
        "50.0%",
    ]


def test_statistics_are_the_same_in_every_run(clean):
    paths = sorted((clean / "validate" / "features").iterdir())
    one, two = (statistics.compute(paths).SerializeToString(deterministic=True) for _ in range(2))
    assert one == two == (clean / "validate" / "statistics.pb").read_bytes()


@pytest.mark.slow
def test_command(clean, tmp_path, capsys):
    curate = scripts.load_script("examples/curate.py")
    arguments = ["validate", "--work", str(clean), "--out", str(tmp_path / "out"), "--checks", "checker"]
    curate.main(arguments)
    assert capsys.readouterr().out == f"valid: {tmp_path / 'out' / 'report.html'}\n"
    planted_faults.pool(tmp_path / "pool", planted_faults.blank)
    with pytest.raises(SystemExit) as ended:
        curate.main(["validate", "--work", str(tmp_path / "pool"), "--checks", "checker"])
    assert ended.value.code == 1
    assert capsys.readouterr().out.startswith("caption_blank: ENUM_TYPE_UNEXPECTED_STRING_VALUES: 94.55% have")
    command = [sys.executable, REPOSITORY / "examples" / "curate.py", "validate", "--work", tmp_path / "none"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (
        done.returncode == 2 and done.stderr.count("\n") == 1 and "A folder with a profile is expected" in done.stderr
    )
