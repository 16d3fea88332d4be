"""Validation of a pool: features, statistics, verdicts, and the report."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from keras_clip import files
from keras_clip.curation.validation import checker, features, report, statistics, tfdv
from keras_clip.curation.validation import schema as schemas

if TYPE_CHECKING:
    from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2

ENGINES = ("auto", "tfdv", "checker")


class Anomaly(NamedTuple):
    """What breaks the schema: `feature` ("" for the data set), `kind` (TFDV's name), a description, and the slice.

    `slice` is the group of shards that differs from all rows, or "".
    """

    feature: str
    kind: str
    description: str
    slice: str = ""


class Validation(NamedTuple):
    """The outcome of `validate`.

    - `anomalies`: list of `Anomaly`; empty if the pool is valid.
    - `rows`, `total`: pairs that were looked at, and pairs of the profile.
    - `engine`: what computed and checked the statistics.
    - `statistics`: path of the DatasetFeatureStatisticsList, for a later comparison.
    - `report`: path of the HTML page; the same data is beside it as JSON.
    """

    anomalies: list[Anomaly]
    rows: int
    total: int
    engine: str
    statistics: Path
    report: Path

    @property
    def valid(self) -> bool:
        """Whether there are no anomalies."""
        return not self.anomalies


def validate(
    profiles: str | os.PathLike,
    out: str | os.PathLike | None = None,
    *,
    scores: str | os.PathLike | None = None,
    previous: str | os.PathLike | None = None,
    schema: str | os.PathLike | None = None,
    checks: str = "auto",
    beam_options: Sequence[str] = (),
    sample_rows: int = 1_000_000,
) -> Validation:
    """Checks the profile of a pool against a schema: broken images, captions, sizes, duplicates, scores, drift, skew.

    TensorFlow Data Validation (TFDV) runs in an environment of its own. Where it is not installed, the checker of this
    package gives the same verdicts, for schemas made of the parts of the shipped one. Slices are groups of consecutive
    shards, at most 64, each of which is compared with all rows.

    Args:
        profiles: the work folder of a curation, or a folder with the Parquet files of the pass `profile`.
        out: output folder; by default `validate` in the work folder. Gets report.html, validation.json, statistics.pb
            and the features.
        scores: folder with the Parquet files of the pass `score`; by default `score` in the work folder, if it has one
            with a file for each profile.
        previous: the statistics.pb of an earlier validation, or its folder, for drift.
        schema: a `.pbtxt` file; by default the shipped schema, keras_clip/curation/validation/schema.pbtxt.
        checks: "tfdv", "checker", or "auto": TFDV where it is installed.
        beam_options: command-line options of Apache Beam for TFDV, such as ["--runner=FlinkRunner",
            "--flink_master=host:8081", "--temp_location=s3://bucket/folder"]. By default, one process.
        sample_rows: int. Above this number of pairs, about that many are looked at, chosen by a hash of shard and key.

    Returns:
        `Validation`.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: a profile, the scores, the schema or the earlier statistics are something else; invalid arguments.
        ImportError: TFDV is requested but not installed, or the extra `curation` is missing.
        RuntimeError: TFDV failed.
    """
    if checks not in ENGINES:
        raise ValueError(f"`checks` must be one of {', '.join(ENGINES)}. Received: checks={checks!r}.")
    if sample_rows < 1:
        raise ValueError(f"sample_rows must be positive. Received: {sample_rows}.")
    profile_files, score_files, work = _inputs(Path(profiles), scores)
    the_schema = schemas.load(schema)
    environment = schemas.environment_of(the_schema, scored=score_files is not None)
    before = _statistics_path(Path(previous)) if previous is not None else None
    if checks == "auto":
        checks = "tfdv" if tfdv.find_python() else "checker"
    if beam_options and checks == "checker":
        raise ValueError(
            f"Options of Apache Beam go with TFDV. Received: checks='checker', beam_options={list(beam_options)}. "
            "Install TFDV by `make validation`, or leave the options out."
        )
    out = Path(out) if out is not None else work / "validate"
    out.mkdir(parents=True, exist_ok=True)
    earlier = read_statistics(before) if before else None
    derived = features.derive(profile_files, score_files, out / "features", sample_rows)
    if checks == "tfdv":
        computed, found, name = _by_tfdv(derived, out, schema, before, environment, beam_options)
    else:
        computed = statistics.compute(derived.paths)
        with files.replacing(out / "statistics.pb") as temporary:
            temporary.write_bytes(computed.SerializeToString(deterministic=True))
        found, name = check_all(computed, the_schema, environment, earlier), "checker"
    anomalies = [Anomaly(*reason) for reason in reasons_of(found)]
    facts = {
        "pairs": derived.total,
        "pairs_looked_at": derived.rows,
        "slices": len(derived.paths),
        "engine": name,
        "schema": str(schema or "shipped with keras_clip"),
        "compared_with": str(before or ""),
    }
    page = report.write(out, the_schema, computed, found, anomalies, facts, earlier)
    return Validation(anomalies, derived.rows, derived.total, name, out / "statistics.pb", page)


def read_statistics(path: Path) -> "statistics_pb2.DatasetFeatureStatisticsList":
    """Reads statistics that `validate` wrote.

    Raises:
        ValueError: the file is something else.
    """
    from google.protobuf.message import DecodeError
    from tensorflow_metadata.proto.v0 import statistics_pb2

    found = statistics_pb2.DatasetFeatureStatisticsList()
    with contextlib.suppress(DecodeError):
        found.ParseFromString(path.read_bytes())
    if not found.datasets or found.datasets[0].name != statistics.ALL_ROWS:
        raise ValueError(
            f"The statistics of an earlier validation are expected. Received: {path}. Pass the statistics.pb, or the "
            "folder, that `validate` wrote."
        )
    return found


def _inputs(profiles: Path, scores: str | os.PathLike | None) -> tuple[list[Path], list[Path] | None, Path]:
    """The files of the profile and of the scores in the same order, and the work folder."""
    cure = "Make one by `python examples/curate.py profile`."
    if not profiles.is_dir():
        raise FileNotFoundError(f"A folder with a profile is expected. Received: {profiles}, which is none. {cure}")
    work, folder = (profiles, profiles / "profile") if (profiles / "profile").is_dir() else (profiles.parent, profiles)
    record = work / "pool.json"
    if record.is_file():
        # The folder keeps results of shards that have left the pool.
        paths = [folder / f"{shard}.parquet" for shard in json.loads(record.read_text(encoding="utf-8"))["shards"]]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"Each shard of the pool needs a profile. Received: {folder}, without {missing[0].name} "
                f"({len(missing)} of {len(paths)} are missing). Run the pass `profile` to its end."
            )
    else:
        paths = sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))
    if not paths:
        raise FileNotFoundError(
            f"A folder with a profile is expected. Received: {folder}, without .parquet files. {cure}"
        )
    given = Path(scores) if scores is not None else work / "score"
    expected = [given / path.name for path in paths]
    missing = [path for path in expected if not path.is_file()]
    if scores is None and missing:
        return paths, None, work
    if missing:
        raise FileNotFoundError(
            f"Each file of the profile needs one of the scores with the same name. Received: {given}, without "
            f"{missing[0].name} ({len(missing)} of {len(paths)} are missing). Run the pass `score` to its end."
        )
    return paths, expected, work


def _statistics_path(previous: Path) -> Path:
    path = previous / "statistics.pb" if previous.is_dir() else previous
    if not path.is_file():
        raise FileNotFoundError(
            f"The statistics of an earlier validation are expected. Received: {path}, which does not exist. Pass the "
            "statistics.pb, or the folder, that `validate` wrote."
        )
    # A run into the same folder replaces it; TFDV reads this one after that.
    return path


def job_of(derived: features.Derived, schema: Path, previous: Path | None, environment: str) -> dict[str, Any]:
    """Returns a job for `tfdv.run`.

    Args:
        derived: the features.
        schema: a `.pbtxt` file.
        previous: earlier statistics, or None.
        environment: one of the schema's, or "".
    """
    return {
        "features": [str(path.resolve()) for path in derived.paths],
        "schema": str(schema.resolve()),
        "previous": str(previous.resolve()) if previous else None,
        "environment": environment,
        "slice_column": statistics.SLICE_COLUMN,
    }


def anomalies_of(verdicts: Mapping[str, Any]) -> "dict[str, anomalies_pb2.Anomalies]":
    """Returns the anomalies of all rows ("") and of each slice, from what `tfdv.run` returns for a job."""
    from google.protobuf import json_format
    from tensorflow_metadata.proto.v0 import anomalies_pb2

    named = {"": verdicts["anomalies"]} | {_slice_name(name): each for name, each in verdicts["slices"].items()}
    return {
        name: json_format.ParseDict(each, anomalies_pb2.Anomalies(), ignore_unknown_fields=True)
        for name, each in named.items()
    }


def _by_tfdv(derived, out, schema, before, environment, beam_options):
    """The statistics, the anomalies of all rows and of slices, and the name of the engine."""
    if before:
        # The output may replace the file that it is compared with.
        kept = out / "previous.pb"
        with files.replacing(kept) as temporary:
            temporary.write_bytes(before.read_bytes())
        before = kept
    job = job_of(derived, Path(schema or schemas.SHIPPED), before, environment)
    (verdicts,) = tfdv.run([job], out.resolve(), beam_options)
    computed = read_statistics(out / "statistics.pb")
    if computed.datasets[0].num_examples != derived.rows:
        raise RuntimeError(
            f"All rows must be in the statistics. Received: {computed.datasets[0].num_examples} of {derived.rows}. "
            f"Beam's runner has lost some: try another one than {list(beam_options) or 'the default'}."
        )
    return computed, anomalies_of(verdicts), f"TFDV {verdicts['tfdv']}, Apache Beam {verdicts['beam']}"


def check_all(
    computed: "statistics_pb2.DatasetFeatureStatisticsList",
    the_schema: "schema_pb2.Schema",
    environment: str,
    earlier: "statistics_pb2.DatasetFeatureStatisticsList | None" = None,
) -> "dict[str, anomalies_pb2.Anomalies]":
    """Returns the checker's anomalies of all rows ("") and of each slice; arguments as of `checker.check`."""
    all_rows, *slices = computed.datasets
    before = earlier.datasets[0] if earlier else None
    found = {"": checker.check(all_rows, the_schema, environment, previous=before)}
    for each in slices:
        found[_slice_name(each.name)] = checker.check(all_rows, the_schema, environment, other=each)
    return found


def _slice_name(name: str) -> str:
    return name.removeprefix(f"{statistics.SLICE_COLUMN}_")


def reasons_of(found: "Mapping[str, anomalies_pb2.Anomalies]") -> Iterator[tuple[str, str, str, str]]:
    """Yields (feature, kind, description, slice) of each anomaly; of a slice, only what compares it with all rows.

    Args:
        found: the anomalies of all rows (""), and of each slice.
    """
    for reason in found[""].dataset_anomaly_info.reason:
        yield "", _kind(reason), reason.description, ""
    for name in sorted(found):
        for feature, info in sorted(found[name].anomaly_info.items()):
            for reason in info.reason:
                kind = _kind(reason)
                if not name or kind.startswith("COMPARATOR_"):
                    yield ".".join(info.path.step) or feature, kind, reason.description, name


def _kind(reason) -> str:
    return type(reason).DESCRIPTOR.fields_by_name["type"].enum_type.values_by_number[reason.type].name
