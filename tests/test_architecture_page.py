"""`docs/architecture.md` shows the import levels that the import test enforces, and names files that exist."""

import re

import pytest
from subprocesses import REPOSITORY
from test_import_layers import INSIDE, LEVELS, PARTS

pytestmark = pytest.mark.backend_free

PAGE = (REPOSITORY / "docs" / "architecture.md").read_text()


def levels_of(section):
    """Returns the names of each level, from level 1 on, in the first table of a section."""
    levels = {}
    for line in section.splitlines():
        if match := re.match(r"\| (\d+) \| ([^|]+) \|", line):
            levels.setdefault(int(match[1]), set()).update(re.findall(r"`(\w+)`", match[2]))
    assert sorted(levels) == list(range(1, len(levels) + 1))
    return [levels[number] for number in sorted(levels)]


def test_levels_of_the_package():
    section = PAGE.partition("## Packages and import levels")[2].partition("Inside `")[0]
    expected = [{*names, *(part for part, whole in PARTS.items() if whole in names)} for names in LEVELS]
    assert levels_of(section) == expected


@pytest.mark.parametrize("package", INSIDE)
def test_levels_inside_a_package(package):
    section = PAGE.partition(f"Inside `{package}`")[2].partition("Inside `")[0].partition("## ")[0]
    folder = REPOSITORY.joinpath("keras_clip", *package.split("."))
    placed = {name for names in INSIDE[package] for name in names}
    others = {path.stem for path in folder.iterdir() if path.stem not in {"__init__", "__pycache__", *placed}}
    assert levels_of(section) == [others if "*" in names else set(names) for names in INSIDE[package]]


def test_every_file_that_is_named_exists():
    names = set(re.findall(r"`((?:\w+/)+[\w.]+\.\w+|\w+\.py)`", PAGE))
    assert len(names) > 12
    missing = [
        name for name in names if not any((root / name).exists() for root in (REPOSITORY, REPOSITORY / "keras_clip"))
    ]
    assert missing == []
