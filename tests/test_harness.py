"""The test harness: skips that fail, the tests of each lane, lanes shared by processes, and counts of outcomes."""

import sys
from pathlib import Path

import pytest
from subprocesses import REPOSITORY, run_distributed, run_python

pytestmark = pytest.mark.backend_free

SUITE = """
import pytest

def test_passes(): pass
def test_fails(): assert False
def test_no_data(): pytest.skip("shared data absent: no folder x")
@pytest.mark.skipif(True, reason="no accelerator")
def test_no_accelerator(): pass
def test_backend_unable(): pytest.importorskip("no_such_module", reason="backend unable: not there")
def test_lazy(): pytest.skip("too slow")
@pytest.mark.skip
def test_silent(): pass
@pytest.mark.xfail(reason="known bug")
def test_known_bug(): assert False
@pytest.fixture
def late(): pytest.skip("the backend unable: not at its beginning")
def test_lazy_fixture(late): pass
@pytest.fixture
def unclean():
    yield
    raise ValueError
def test_fails_twice(unclean): assert False
@pytest.mark.backend_free
def test_backend_free(): pass
"""
LAZY_MODULE = 'import pytest\npytest.importorskip("no_such_module")'
# {module: (source, its backend-free tests, its other tests)}, with every way to set the mark.
MODULES = {
    "test_all": ("import pytest\npytestmark = pytest.mark.backend_free\ndef test_a(): pass", ["a"], []),
    "test_list": (
        "import pytest\npytestmark = [pytest.mark.slow,\n    pytest.mark.backend_free]\ndef test_b(): pass",
        ["b"],
        [],
    ),
    "test_some": ("import pytest\n@pytest.mark.backend_free\ndef test_c(): pass\ndef test_d(): pass", ["c"], ["d"]),
    "test_alias": (
        "import pytest\nfree = pytest.mark.backend_free\n@free\nclass TestE:\n    def test_e(self): pass\n"
        "def test_f(): pass",
        ["e"],
        ["f"],
    ),
    "test_other_mark": ("import pytest\npytestmark = pytest.mark.slow\ndef test_g(): pass", [], ["g"]),
    "test_none": ("def test_h(): pass", [], ["h"]),
}
RUN = f"""
import sys
import pytest
sys.path.insert(0, {str(REPOSITORY / "tools")!r})
import run_tests

folder, *arguments = sys.argv[1:]
report = run_tests.Path(folder, "report.xml")
files = ["-p", "conftest", "-c", {str(REPOSITORY / "pyproject.toml")!r}, "--rootdir", folder, folder]
status = pytest.main(["-q", "-p", "no:cacheprovider", f"--junitxml={{report}}", *files, *arguments])
print("counted:", int(status), *run_tests.count_outcomes(report).values())
"""
LANES = f"""
import sys
sys.path.insert(0, {str(REPOSITORY / "tools")!r})
import run_tests

folder, *arguments = sys.argv[1:]
files = ["-p", "conftest", "-p", "no:cacheprovider", "-c", {str(REPOSITORY / "pyproject.toml")!r}, "--rootdir", folder]
print("status:", run_tests.main(["--reports", folder + "/reports", *arguments, *files, folder]))
"""
NOTED = """
import os, pathlib, pytest, time
pytestmark = pytest.mark.backend_free

@pytest.mark.parametrize("number", range(3))
def test_noted(number):
    with open(pathlib.Path(__file__).with_suffix(".txt"), "a") as file:
        print(os.getpid(), number, file=file)
    time.sleep(0.2)
"""


def run_suite(folder, *arguments, backend="tensorflow"):
    """Returns the failed tests, and [exit status, passed, failed, skipped] as `tools/run_tests.py` counts them."""
    lines = run_python(RUN, str(folder), *arguments, backend=backend).splitlines()
    failed = {Path(line.split()[1].split("::")[-1]).name for line in lines if line.startswith(("FAILED ", "ERROR "))}
    return failed, [int(number) for number in lines[-1].removeprefix("counted: ").split()]


def test_only_allowed_causes_excuse_a_skip(tmp_path):
    (tmp_path / "test_suite.py").write_text(SUITE)
    failed, counts = run_suite(tmp_path, "--strict-skips")
    lazy = {"test_lazy", "test_silent", "test_known_bug", "test_lazy_fixture"}
    assert failed == {"test_fails", "test_fails_twice"} | lazy
    assert counts == [1, 2, 6, 3]


def test_without_strict_skips_a_skip_passes_and_other_backends_deselect_backend_free_tests(tmp_path):
    (tmp_path / "test_suite.py").write_text(SUITE)
    failed, counts = run_suite(tmp_path, backend="jax")
    assert failed == {"test_fails", "test_fails_twice"}
    assert counts == [1, 1, 2, 7]


def test_a_lazy_module_fails(tmp_path):
    (tmp_path / "test_module.py").write_text(LAZY_MODULE)
    failed, counts = run_suite(tmp_path, "--strict-skips")
    assert failed == {"test_module.py"}
    assert counts[0] != 0 and counts[2] == 1


def test_a_process_that_fails_shows_its_output():
    with pytest.raises(AssertionError, match="(?s)status 3.*seen.*shown"):
        run_python("import sys\nprint('seen')\nprint('shown', file=sys.stderr)\nsys.exit(3)")


def test_a_process_that_hangs_is_ended():
    with pytest.raises(AssertionError, match="(?s)within 2 seconds.*before"):
        run_python("import time\nprint('before', flush=True)\ntime.sleep(60)", timeout=2)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_logical_devices(backend):
    count = {"tensorflow": "len(tf.config.list_logical_devices('CPU'))", "jax": "__import__('jax').device_count('cpu')"}
    assert run_distributed(f"print({count[backend]})", devices=3, backend=backend).split()[-1] == "3"


@pytest.mark.parametrize(
    "backend, options, expected",
    [
        ("tensorflow", [], "abcdefgh"),
        ("tensorflow", ["--lane=free"], "abce"),
        ("tensorflow", ["--lane=backend"], "dfgh"),
        ("jax", [], "dfgh"),
    ],
    ids=["both", "free", "backend", "another backend"],
)
def test_every_test_is_in_one_lane(backend, options, expected, tmp_path):
    for name, (source, free, others) in MODULES.items():
        assert len(free + others) == source.count("def test_")
        (tmp_path / f"{name}.py").write_text(source)
    names, collected = collect(tmp_path, *options, backend=backend)
    assert names == sorted(expected)
    if expected == "abce":
        assert collected == 6, "test_other_mark and test_none must not be imported"
    if expected == "dfgh":
        assert collected == 6, "test_all and test_list must not be imported"


def collect(folder, *options, backend):
    """Returns the last letters of the selected tests, and the number of tests collected before the deselection."""
    script = "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    files = ["-p", "conftest", "-c", str(REPOSITORY / "pyproject.toml"), "--rootdir", str(folder), str(folder)]
    lines = run_python(script, "-q", "--collect-only", *files, *options, backend=backend).splitlines()
    return sorted(line[-1] for line in lines if "::" in line), int(lines[-1].split()[0].split("/")[-1])


def test_no_module_is_left_out_of_both_lanes():
    import conftest

    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        source = path.read_text(encoding="utf-8")
        assert "backend_free" in source or not conftest._is_backend_free(source), path


@pytest.mark.slow
def test_processes_share_a_lane(tmp_path):
    for name in "abcdef":
        (tmp_path / f"test_{name}.py").write_text(NOTED)
    lines = run_python(LANES, str(tmp_path), "--lanes", "free", "--jobs", "2").splitlines()
    assert lines[-1] == "status: 0"
    assert lines[-2].startswith("18 passed, 0 failed, 0 skipped in ")
    noted = {path.stem: [line.split() for line in path.read_text().splitlines()] for path in tmp_path.glob("*.txt")}
    assert [[number for _, number in rows] for rows in noted.values()] == [["0", "1", "2"]] * 6
    assert [len({process for process, _ in rows}) for rows in noted.values()] == [1] * 6
    assert len({process for rows in noted.values() for process, _ in rows}) == 2


@pytest.mark.slow
def test_a_lane_that_breaks_or_runs_nothing_fails(tmp_path):
    (tmp_path / "test_a.py").write_text("import os, pytest\n@pytest.mark.backend_free\ndef test_a(): os._exit(3)")
    lines = run_python(LANES, str(tmp_path), "--lanes", "free", "torch").splitlines()
    assert "broken: free-1 (pytest ended with status 3)" in lines
    assert lines[-2].startswith("0 passed, 0 failed, 0 skipped in ") and lines[-1] == "status: 1"
    lines = run_python(LANES, str(tmp_path), "--lanes", "torch").splitlines()
    assert not any(line.startswith("broken") for line in lines) and lines[-1] == "status: 1"


def test_processes_start_lanes_in_order_and_then_share_them(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
    import run_tests

    schedule = run_tests.Schedule(["free", "torch", "demo"])
    assert [schedule.next() for _ in range(3)] == [("demo", 1), ("torch", 1), ("free", 1)]
    assert [schedule.next() for _ in range(3)] == [("torch", 2), ("free", 2), ("torch", 3)]
    schedule.end("torch")
    assert schedule.next() == ("free", 3)
    schedule.end("free")
    assert schedule.next() is None
    sys.modules.pop("run_tests")


def test_the_slowest_tests_and_modules_are_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
    import run_tests

    cases = [f'<testcase classname="tests.data.test_a.TestB" name="test_{i}" time="{i}"/>' for i in range(12)]
    (tmp_path / "free-1.xml").write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    assert run_tests.summarize([run_tests.Process("free", tmp_path / "free-1.xml", 0, 71.8)], 34.4) == 0
    lines = capsys.readouterr().out.splitlines()
    slowest = lines[lines.index("slowest tests") + 1 :][:10]
    assert [line.split()[0] for line in slowest] == [f"{11 - i}.0" for i in range(10)]
    assert slowest[0].split()[2:] == ["free", "tests.data.test_a.TestB::test_11"]
    assert lines[lines.index("modules above 60 s") + 1].split() == ["66.0", "s", "free", "tests.data.test_a"]
    assert lines[-2].split() == "free 12 passed, 0 failed, 0 skipped in 72 CPU seconds".split()
    assert lines[-1] == "12 passed, 0 failed, 0 skipped in 34 s"
    sys.modules.pop("run_tests")
