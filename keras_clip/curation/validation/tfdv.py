"""Runs TFDV in an environment of its own, whose pinned versions differ from ours; files go between the two."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_clip import files

# An interpreter that has TFDV, where it is not found by itself.
PYTHON_VARIABLE = "KERAS_CLIP_VALIDATION_PYTHON"
_PROCESS = Path(__file__).with_name("tfdv_process.py")
_ENVIRONMENT = Path(".venv-validation", "bin", "python")
_REPOSITORY = Path(__file__).parents[3]


def find_python() -> Path | None:
    """Returns a Python interpreter that has TFDV, or None.

    That is the one which the environment variable `KERAS_CLIP_VALIDATION_PYTHON` names, the one that runs, or that of
    `.venv-validation` in the current folder or the repository.

    Raises:
        FileNotFoundError: the environment variable names no file.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        if not os.path.isfile(named):
            raise FileNotFoundError(
                f"{PYTHON_VARIABLE} must be a Python interpreter. Received: {named}. Correct or unset it."
            )
        return Path(named)
    if importlib.util.find_spec("tensorflow_data_validation"):
        return Path(sys.executable)
    places = (Path.cwd() / _ENVIRONMENT, _REPOSITORY / _ENVIRONMENT)
    return next((place for place in places if place.is_file()), None)


def run(jobs: Sequence[Mapping[str, Any]], folder: Path, beam_options: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Computes and checks statistics by TFDV.

    Args:
        jobs: what `tfdv_process.py` reads, without the paths of its outputs.
        folder: for the outputs; "statistics.pb", or "statistics_1.pb" and so on from the second job.
        beam_options: command-line options of Apache Beam, such as "--runner=DataflowRunner".

    Returns:
        What `tfdv_process.py` writes for each job: "anomalies", "slices", "tfdv", "beam".

    Raises:
        ValueError: options with which Beam loses rows.
        ImportError: no interpreter has TFDV.
        RuntimeError: TFDV failed.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--direct_running_mode", default="in_memory")
    mode = parser.parse_known_args(list(beam_options))[0].direct_running_mode
    if mode != "in_memory":
        raise ValueError(
            "Beam's local runner loses rows in any --direct_running_mode but in_memory. "
            f"Received: {mode}. Leave the option out, or name a --runner."
        )
    python = find_python()
    if python is None:
        raise ImportError(
            "TFDV (tensorflow-data-validation) is not installed. Received: checks='tfdv'. Install it by "
            f"`make validation`, name an interpreter that has it in {PYTHON_VARIABLE}, or use checks='checker'."
        )
    jobs = [
        {
            **job,
            "statistics": str(folder / f"statistics{suffix}.pb"),
            "verdicts": str(folder / f"verdicts{suffix}.json"),
        }
        for job, suffix in zip(jobs, ["", *(f"_{number}" for number in range(1, len(jobs)))], strict=True)
    ]
    for job in jobs:
        Path(job["verdicts"]).unlink(missing_ok=True)
    files.write_json(folder / "jobs.json", jobs)
    log = folder / "tfdv.log"
    with open(log, "w", encoding="utf-8") as output:
        # Isolated: neither our packages nor the folder of the script may replace a module of that environment.
        command = [python, "-I", _PROCESS, folder / "jobs.json", *beam_options]
        environment = {"TF_CPP_MIN_LOG_LEVEL": "2", "GRPC_VERBOSITY": "ERROR", **os.environ}
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise RuntimeError(
            f"TFDV failed with status {done.returncode}: {lines[-1] if lines else 'no output'}. Its output is in {log}."
        )
    return [json.loads(Path(job["verdicts"]).read_text(encoding="utf-8")) for job in jobs]
