"""`tools/simulate_coverage.py`: its settings run, its table, and that it measures coverage."""

import pytest
from scripts import load_script

pytestmark = pytest.mark.backend_free


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/simulate_coverage.py")


def test_every_setting_encloses_its_own_estimate(tool):
    for (name, setting), simulate in tool.SETTINGS.items():
        if "retrieval" in name or "map_11pt" in name:
            continue  # Their true values are themselves simulated, which takes a minute.
        _, excluded = tool.measure(simulate, 100, 2)
        assert not excluded, (name, setting)


def test_coverage_is_the_share_of_intervals_that_hold_the_truth(tool):
    outcomes = iter([(0.5, 0.5, 0.4, 0.6), (0.7, 0.5, 0.4, 0.6), (0.5, 0.5, 0.5, 0.5), (0.5, 0.9, 0.4, 0.6)])
    assert tool.measure(lambda generator, size: next(outcomes), 10, 4) == (0.75, 1)


def accuracy_rows(tool, path, capsys):
    tool.main(["--only", "accuracy", "--repetitions", "20", "--out", str(path)])
    return capsys.readouterr().out.splitlines()


def test_the_table(tool, tmp_path, capsys):
    table = accuracy_rows(tool, tmp_path / "runs" / "coverage.jsonl", capsys)
    assert table[2].startswith("| accuracy, rates of groups (`blaker_interval`) | truth 0.0 | 100.0 % |")
    assert table[:2] == tool.HEADER and len(table) == 2 + 10


def test_what_was_measured_is_not_measured_again(tool, tmp_path, capsys, monkeypatch):
    path = tmp_path / "coverage.jsonl"
    whole = accuracy_rows(tool, path, capsys)
    measured = path.read_text().splitlines()
    assert len(measured) == 30
    path.write_text("\n".join(measured[:-1]) + "\n")
    sizes, measure = [], tool.measure
    monkeypatch.setattr(tool, "measure", lambda simulate, size, *a: sizes.append(size) or measure(simulate, size, *a))
    assert accuracy_rows(tool, path, capsys) == whole and sizes == [1000]
    assert path.read_text().splitlines() == measured


def test_write_replaces_the_table_only(tool, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("\n".join(["Before", "", *tool.HEADER, "| old | row |", "", "| another | table |"]) + "\n")
    tool.write_table(page, [*tool.HEADER, "| new | row |"])
    assert page.read_text().splitlines() == ["Before", "", *tool.HEADER, "| new | row |", "", "| another | table |"]
    page.write_text("no table")
    with pytest.raises(SystemExit, match="Expected the header of the table"):
        tool.write_table(page, tool.HEADER)


def test_write_takes_all_intervals(tool, tmp_path):
    with pytest.raises(SystemExit, match="Run again without --only"):
        tool.main(["--only", "accuracy", "--write", str(tmp_path / "page.md")])
