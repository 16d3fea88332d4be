"""`tools/simulate_coverage.py`: its settings run, its table, and that it measures coverage."""

import pytest
from scripts import load_script

pytestmark = pytest.mark.backend_free


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/simulate_coverage.py")


def test_every_setting_encloses_its_own_estimate(tool):
    for (name, setting), simulate in tool.SETTINGS.items():
        if "R@" in name or "median" in name:
            continue  # Their true values are themselves simulated, which takes a minute.
        if "map_11pt" in name:
            continue
        _, excluded = tool.measure(simulate, 100, 2)
        assert not excluded, (name, setting)


def test_coverage_is_the_share_of_intervals_that_hold_the_truth(tool):
    outcomes = iter([(0.5, 0.5, 0.4, 0.6), (0.7, 0.5, 0.4, 0.6), (0.5, 0.5, 0.5, 0.5), (0.5, 0.9, 0.4, 0.6)])
    assert tool.measure(lambda generator, size: next(outcomes), 10, 4) == (0.75, 1)


def test_the_table(tool, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tool, "SIZES", (100, 300, 1000))
    tool.main(["--only", "accuracy", "--repetitions", "20", "--out", str(tmp_path / "table.md")])
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines == capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| accuracy, rates of groups (`blaker_interval`) | truth 0.0 | 100.0 % |")
    assert len(lines) == 2 + 10
