"""What every test shares: the backend of the process, the skip policy, and a few fixtures.

One process tests one backend, that of `KERAS_BACKEND`. A test may be skipped for one of four causes, and the reason it
gives must begin with one of `ALLOWED_SKIPS`; under `--strict-skips`, as `make test` runs it, any other skip fails.
"""

import gc
import importlib.util
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Several frameworks share the accelerator, if there is one: none may take all of its memory.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

if importlib.util.find_spec("torch"):
    import torch  # noqa: F401  (the process can crash when TensorFlow comes first)

import numpy as np
import pytest
from subprocesses import run_distributed

REPOSITORY = Path(__file__).resolve().parents[1]
ALLOWED_SKIPS = ("shared data absent", "no accelerator", "no browser", "backend unable:")


def pytest_addoption(parser):
    parser.addoption(
        "--strict-skips", action="store_true", help=f"fail a skip whose reason begins with none of {ALLOWED_SKIPS}"
    )


def pytest_report_header(config):
    return f"keras backend: {os.environ['KERAS_BACKEND']}"


def pytest_collection_finish():
    # What is imported stays: looking through it for garbage, again and again, takes a good part of the tests' time.
    gc.freeze()


def pytest_collection_modifyitems(config, items):
    if os.environ["KERAS_BACKEND"] == "tensorflow":
        return
    chosen = [item for item in items if not item.get_closest_marker("backend_free")]
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("backend_free")])
    items[:] = chosen


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return _refuse_other_skips((yield), item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return _refuse_other_skips((yield), collector.config)


def _refuse_other_skips(report, config):
    """Makes a failure of a skip (or an expected failure) outside the policy."""
    if not report.skipped or not config.getoption("--strict-skips"):
        return report
    reason = getattr(report, "wasxfail", None)
    if reason is None:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ").removeprefix("reason: ")
    if not reason.startswith(ALLOWED_SKIPS):
        report.outcome = "failed"
        report.longrepr = (
            f"{report.nodeid} was skipped, and its reason begins with none of {ALLOWED_SKIPS}. Received: {reason!r}. "
            "Make the test run, or name the cause."
        )
        report.__dict__.pop("wasxfail", None)
    return report


@pytest.fixture(scope="session")
def shared_data():
    """The folder of the shared photographs and drawings; the test is skipped where there is none."""
    folder = Path(os.environ.get("KERAS_CLIP_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"shared data absent: no folder {folder}; set KERAS_CLIP_SHARED_DATA")
    return folder


@pytest.fixture
def rng():
    """A fresh generator, the same in every test."""
    return np.random.default_rng(0)


@pytest.fixture
def distributed():
    """`subprocesses.run_distributed`: runs source text in a process of its own that has several logical devices."""
    return run_distributed
