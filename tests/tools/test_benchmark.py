"""The benchmark's tables, and one small run of it."""

import importlib.util
import json
import sys

import pytest
from subprocesses import REPOSITORY, run_python

pytestmark = pytest.mark.backend_free
SCRIPT = REPOSITORY / "tools" / "benchmark.py"


def load():
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result(contender, rates):
    return {"contender": contender, "rates": rates, "median": sorted(rates)[1], "compile_seconds": 1.5}


def run(time, *tasks):
    return {"time": time, "commit": "abc", "threads": 2, "tasks": list(tasks)}


def tokenizer_record(ours):
    results = [result("keras_clip", ours), result("open_clip", [90.0, 100.0, 110.0])]
    return {"task": "tokenizer", "unit": "captions/s", "target": 5.0, "results": results}


def test_tables_show_the_newest_of_each_task(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("head\n<!-- tables: start -->\nold\n<!-- tables: end -->\ntail\n")
    files = []
    for name, ours in (("2026-01-02", [640.0, 650.0, 660.0]), ("2026-01-01", [100.0, 200.0, 300.0])):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(run(name, tokenizer_record(ours))))
    load().render(page, files)
    text = page.read_text()
    assert text.startswith("head\n") and text.endswith("tail\n") and "old" not in text
    assert "| keras_clip | 650.0 | 640.0 to 660.0 | 6.50 x | 1.5 |" in text
    assert "Target 5 x: reached (6.50 x)." in text and "2026-01-02" in text and "2026-01-01" not in text


def test_a_missed_target_is_called_missed():
    assert "Target 5 x: missed (2.00 x)." in load().table(tokenizer_record([200.0, 200.0, 200.0]), run("now"))


def test_unknown_tasks_are_refused(capsys):
    with pytest.raises(SystemExit):
        load().main(["pipelines"])
    assert "no such task: pipelines; there are tokenizer, pipeline" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_written_with_all_that_tells_what_it_was(tmp_path):
    run_python(SCRIPT, "tokenizer", "--peers", "--repeats", "2", "--out", str(tmp_path), timeout=600)
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    assert record["python"].split(".")[0] == str(sys.version_info.major) and record["threads"] >= 1
    assert record["commit"] and {"keras", "tensorflow", "open-clip-torch"} <= set(record["versions"])
    ours, peer = record["tasks"][0]["results"]
    assert (ours["contender"], peer["contender"]) == ("keras_clip", "open_clip")
    assert len(ours["rates"]) == len(peer["rates"]) == 2 and min(ours["rates"] + peer["rates"]) > 0
