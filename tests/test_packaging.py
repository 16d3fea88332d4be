"""Packaging: pinned versions, a wheel with the vocabulary and the licences, and code that ruff accepts."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from subprocesses import REPOSITORY

pytestmark = pytest.mark.backend_free

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
PIN_LINES = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
PINS = {canonicalize_name(name): version for name, version in (line.split("==") for line in PIN_LINES)}
# `make validation` installs this one in an environment of its own, since it needs other versions of what we use.
RESERVED = {"validation"}
VALIDATION_PINS = {version: REPOSITORY / f"constraints-validation-{version}.txt" for version in ("1.16", "1.21")}


def test_pins_are_versions_and_nothing_else():
    # A pin has no index address, no local version as in 2.13.0+cpu, and no marker.
    assert [line for line in PIN_LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line)] == []
    assert len(PINS) == len(PIN_LINES)


def test_every_dependency_is_pinned_within_its_bounds():
    extras = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + [line for name in extras.keys() - RESERVED for line in extras[name]]
    for requirement in map(Requirement, wanted):
        version = PINS.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} does not allow the pinned {version}"


@pytest.mark.parametrize("version", VALIDATION_PINS)
def test_pins_of_validation_name_every_package_once(version):
    lines = [line for line in VALIDATION_PINS[version].read_text().splitlines() if not line.startswith("#")]
    # pip installs them without resolving; packages that some Python versions need have a marker.
    pattern = r'[A-Za-z0-9._-]+==[0-9][0-9a-z.]*(; python_version (<|>=|==) "3\.1[1-4]")?'
    assert [line for line in lines if not re.fullmatch(pattern, line)] == []
    for python in ("3.11",) if version == "1.16" else ("3.11", "3.12", "3.13"):
        wanted = [Requirement(line) for line in lines]
        wanted = [each for each in wanted if each.marker is None or each.marker.evaluate({"python_version": python})]
        pins = {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in wanted}
        assert len(pins) == len(wanted)
        assert pins["tensorflow-data-validation"].startswith(f"{version}.")
        assert {"apache-beam", "dill", "pyarrow", "tensorflow", "tensorflow-metadata", "tfx-bsl"} <= pins.keys()
    script = (REPOSITORY / "tools" / "setup_validation.sh").read_text()
    assert f"version={version} " in script


@pytest.mark.parametrize(
    "target, absent",
    [
        ("demo", {"torch", "jax", "reference", "dev", "search"}),
        ("search", {"torch", "jax", "reference", "dev"}),
        ("test", RESERVED),
    ],
)
def test_extras_of_the_targets(target, absent):
    script = (REPOSITORY / "tools" / "setup.sh").read_text()
    chosen = set(re.search(rf"^{target}\) extras=(\S+) ;;$", script, re.MULTILINE)[1].split(","))
    extras = set(PROJECT["optional-dependencies"])
    assert chosen <= extras - absent
    assert target != "test" or chosen == extras - absent


def test_wheel(tmp_path):
    # The wheel is built from a copy, because the build writes into its source folder.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "LICENSE", "NOTICE", "README.md"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, source)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("keras_clip", "tests"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignore)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(source)) for path in (source / "keras_clip").rglob("*.py")}
    merges = list((source / "keras_clip" / "data").glob("*.gz"))
    kinds = (".css", ".html", ".j2", ".js", ".json", ".pbtxt", ".svg", ".txt")
    others = [path for kind in kinds for path in (source / "keras_clip").rglob(f"*{kind}")]
    assert merges and {path.suffix for path in others} == {*kinds}
    tables = {str(path.relative_to(source)) for path in merges + others}
    others = names - modules - tables
    assert modules | tables <= names
    assert all(name.startswith("keras_clip-0.1.0.dist-info/") for name in others), others
    assert {f"keras_clip-0.1.0.dist-info/licenses/{name}" for name in ("LICENSE", "NOTICE")} <= others


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=lambda command: command[0])
def test_ruff(command):
    done = subprocess.run([sys.executable, "-m", "ruff", *command], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
