"""The harness itself: which skips fail, what runs under which backend, and how outcomes are counted."""

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


def run_suite(folder, *arguments, backend="tensorflow"):
    """The names of the failed, and [exit status, passed, failed, skipped] as `tools/run_tests.py` counts them."""
    lines = run_python(RUN, str(folder), *arguments, backend=backend).splitlines()
    failed = {Path(line.split()[1].split("::")[-1]).name for line in lines if line.startswith(("FAILED ", "ERROR "))}
    return failed, [int(number) for number in lines[-1].removeprefix("counted: ").split()]


def test_only_named_causes_excuse_a_skip(tmp_path):
    (tmp_path / "test_suite.py").write_text(SUITE)
    failed, counts = run_suite(tmp_path, "--strict-skips")
    lazy = {"test_lazy", "test_silent", "test_known_bug", "test_lazy_fixture"}
    assert failed == {"test_fails", "test_fails_twice"} | lazy
    assert counts == [1, 2, 6, 3]


def test_without_strictness_skips_are_skips_and_other_backends_leave_out_what_is_free_of_them(tmp_path):
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


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_logical_devices(backend):
    count = {"tensorflow": "len(tf.config.list_logical_devices('CPU'))", "jax": "__import__('jax').device_count('cpu')"}
    assert run_distributed(f"print({count[backend]})", devices=3, backend=backend).split()[-1] == "3"
