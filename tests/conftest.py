"""Settings and fixtures that all tests share: the backend of the process, the lanes and the skip policy.

One process tests one backend, that of `KERAS_BACKEND`. Tests marked `backend_free` do not depend on it. `--lane free`
selects them and `--lane backend` the others. Without the option, a TensorFlow process runs both, and a process of
another backend runs the others only. Modules without a test to run are not imported. With `--claims FOLDER`, several
processes share a lane: each claims a module in that folder before it runs the module, and leaves out the modules that
another process has claimed.

A test may be skipped for one of four causes, and its reason must begin with one of `ALLOWED_SKIPS`. With
`--strict-skips`, which `make test` sets, any other skip is a failure.
"""

import ast
import gc
import importlib.util
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Several frameworks share the accelerator, if there is one: none may take all of its memory.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# On JAX, most of the time of the tests goes to compiling programs that run once, so XLA optimizes less. Level 0 is not
# usable: with jaxlib 0.10.2, the loss of a small convolution becomes NaN.
if os.environ["KERAS_BACKEND"] == "jax":
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=1"
        " --xla_backend_extra_options=xla_cpu_disable_slp_vectorizer,xla_cpu_disable_loop_unrolling"
        " --xla_cpu_use_fusion_emitters=false",
    )

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
    parser.addoption("--lane", choices=("free", "backend"), help="the backend-free tests alone, or the others alone")
    parser.addoption("--claims", type=Path, help="folder that processes share which divide the modules of a lane")


def pytest_report_header(config):
    return f"keras backend: {os.environ['KERAS_BACKEND']}, lane: {_lane(config) or 'free and backend'}"


def pytest_collection_finish():
    # Imported modules are never freed. Scanning them in every garbage collection takes a large part of the tests' time.
    gc.freeze()


def _lane(config):
    """Returns "free", "backend", or None for both."""
    return config.getoption("--lane") or (None if os.environ["KERAS_BACKEND"] == "tensorflow" else "backend")


def pytest_ignore_collect(collection_path, config):
    """Leaves out, without importing them, modules of which no test runs in this process."""
    lane, claims = _lane(config), config.getoption("--claims")
    # pytest also visits folders above the root where the root is not the repository.
    is_inside = collection_path.is_relative_to(config.rootpath)
    if collection_path.suffix != ".py" or lane is None or not is_inside:
        return None
    source = collection_path.read_text(encoding="utf-8")
    is_left_out = "backend_free" not in source if lane == "free" else _is_backend_free(source)
    is_left_out = is_left_out or (claims and (claims / _claim_name(collection_path, config)).exists())
    return True if is_left_out else None


def _is_backend_free(source):
    """Returns whether a module marks all of its tests `backend_free`, by `pytestmark`."""
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and any(ast.unparse(name) == "pytestmark" for name in statement.targets):
            return any(isinstance(part, ast.Attribute) and part.attr == "backend_free" for part in ast.walk(statement))
    return False


def pytest_collection_modifyitems(config, items):
    lane = _lane(config)
    if lane is None:
        return
    is_free = {item: item.get_closest_marker("backend_free") is not None for item in items}
    config.hook.pytest_deselected(items=[item for item in items if is_free[item] != (lane == "free")])
    items[:] = [item for item in items if is_free[item] == (lane == "free")]


def pytest_runtestloop(session):
    """Runs the modules that no other process has claimed, with `--claims`; otherwise, pytest's own loop runs."""
    config = session.config
    stops = session.testsfailed and not config.option.continue_on_collection_errors
    if not config.getoption("--claims") or config.option.collectonly or stops:
        return None
    items = _claim(session.items, config)
    item = next(items, None)
    while item is not None:
        # The next test is chosen, and its module claimed, before this one runs: pytest tears down the fixtures that the
        # next test does not use.
        following = next(items, None)
        config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        item = following
    return True


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """Frees models and compiled programs between modules when the process has grown by `GROWTH` bytes.

    Models are cycles that the collector finds late, and JAX keeps every program that it has compiled: together up to
    9 GB, twice, on a machine that runs two lanes.
    """
    if nextitem is None or nextitem.path == item.path:
        return
    grown = item.config.stash.setdefault(_RESIDENT, GROWTH)
    if _resident_bytes() < grown + GROWTH:
        return
    gc.collect()
    if os.environ["KERAS_BACKEND"] == "jax":
        import jax

        jax.clear_caches()
    item.config.stash[_RESIDENT] = _resident_bytes()


GROWTH = 2 * 2**30
_RESIDENT = pytest.StashKey()


def _resident_bytes():
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def _claim(items, config):
    """Yields the tests of the modules that this process claims; a module is claimed when its first test is reached."""
    is_ours = {}
    for item in items:
        if item.path not in is_ours:
            try:
                (config.getoption("--claims") / _claim_name(item.path, config)).touch(exist_ok=False)
                is_ours[item.path] = True
            except FileExistsError:
                is_ours[item.path] = False
        if is_ours[item.path]:
            yield item


def _claim_name(path, config):
    return os.path.relpath(path, config.rootpath).replace(os.sep, "+")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return _refuse_other_skips((yield), item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return _refuse_other_skips((yield), collector.config)


def _refuse_other_skips(report, config):
    """Turns a skip (or an expected failure) that the policy does not allow into a failure."""
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
    """A random generator that starts from the same seed in every test."""
    return np.random.default_rng(0)


@pytest.fixture
def distributed():
    """`subprocesses.run_distributed`: runs source text in a new process with several logical devices."""
    return run_distributed
