"""`tools/benchmark.py`: its tables, its refusals, and one small run."""

import json
import sys

import pytest
from scripts import load_script
from subprocesses import REPOSITORY, run_python

pytestmark = pytest.mark.backend_free
SCRIPT = REPOSITORY / "tools" / "benchmark.py"


def load():
    return load_script("tools/benchmark.py")


def result(contender, rates, **more):
    return {"contender": contender, "rates": rates, "median": sorted(rates)[1], "compile_seconds": 1.5, **more}


def run(time, *tasks):
    return {"time": time, "commit": "abc", "threads": 2, "tasks": list(tasks)}


def tokenizer_record(ours):
    results = [result("keras_clip", ours, reference="open_clip"), result("open_clip", [90.0, 100.0, 110.0])]
    return {"task": "tokenizer", "unit": "captions/s", "target": 5.0, "results": results}


def test_tables_show_the_newest_of_each_task(tmp_path):
    page = tmp_path / "page.md"
    old = "### tokenizer\n\nold\n\n### pipeline\n\nkept\n\n### no_more\n\nold"
    page.write_text(f"head\n<!-- tables: start -->\n\n{old}\n\n<!-- tables: end -->\ntail\n")
    files = []
    for name, ours in (("2026-01-02", [640.0, 650.0, 660.0]), ("2026-01-01", [100.0, 200.0, 300.0])):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(run(name, tokenizer_record(ours))))
    load().render(page, files)
    text = page.read_text()
    assert text.startswith("head\n") and text.endswith("tail\n") and "old" not in text
    assert "| keras_clip | 650.0 | 640.0 to 660.0 | 6.50 x open_clip | 1.5 |" in text
    assert text.count("### ") == 2 and "### pipeline\n\nkept\n" in text
    assert (
        "The target of 5 x the peer's throughput is met (6.50 x)." in text
        and "2026-01-02" in text
        and "2026-01-01" not in text
    )


def test_a_missed_target_is_called_missed():
    table = load().table(tokenizer_record([200.0, 200.0, 200.0]), run("now"))
    assert "The target of 5 x the peer's throughput is missed (2.00 x)." in table


def test_each_contender_may_have_its_targets():
    results = [
        result("direct", [9.0, 10.0, 11.0], memory_mib=100.0),
        result("few", [7.0, 7.0, 7.0], reference="direct", rate=0.7, memory_mib=40.0),
        result(
            "many", [6.9, 6.9, 6.9], reference="direct", rate=0.7, memory_mib=47.0, memory_reference="few", memory=1.15
        ),
        result("peer", [1.0, 1.0, 1.0], mfu=0.25, memory_by_pairs={"10": 1.0, "20": 2.0}),
    ]
    lines = list(load().verdicts({"task": "remat", "target": None, "results": results}))
    assert lines == [
        "- `few` reaches 0.70 x the throughput of `direct`; the target of at least 0.70 x is met.",
        "- `many` reaches 0.69 x the throughput of `direct`; the target of at least 0.70 x is missed.",
        "- `many` needs 1.18 x the memory of `few`; the target of at most 1.15 x is missed.",
        "- Memory per step of `peer` by number of pairs, in MiB: 10: 1, 20: 2.",
    ]
    text = load().table({"task": "remat", "unit": "pairs/s", "target": None, "results": results}, run("now"))
    assert "| warm-up, s | memory per step, MiB | MFU |\n|---|---|---|---|---|---|---|\n" in text
    assert "| peer | 1.0 | 1.0 to 1.0 |  | 1.5 |  | 25.0% |" in text


def test_toy_sizes_do_not_get_into_the_tables(tmp_path):
    file, page = tmp_path / "run.json", tmp_path / "page.md"
    file.write_text(json.dumps({**run("now", tokenizer_record([1.0, 1.0, 1.0])), "is_tiny": True}))
    page.write_text("untouched")
    with pytest.raises(SystemExit, match="does not measure speed"):
        load().render(page, [file])
    assert page.read_text() == "untouched"


def test_tasks_that_need_an_accelerator_are_reported_as_skipped(tmp_path, capsys, monkeypatch):
    benchmark = load()
    monkeypatch.setattr(benchmark.benchmark_scale, "has_accelerator", lambda: False)
    benchmark.main(["bf16_vit_b32", "bf16_vit_b32_32768_pairs", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "bf16_vit_b32: skipped, no accelerator is available" in printed
    assert "bf16_vit_b32_32768_pairs: skipped, no accelerator is available" in printed
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["tasks"] == []


def test_every_task_has_contenders_with_references_that_race():
    benchmark = load()
    arguments = benchmark.parse_args(["--peers", "--tiny"])
    for task in benchmark.TASKS:
        entries = benchmark.contenders(task, arguments)
        labels = [entry.label for entry in entries]
        # No other library has an index of shards.
        assert len(set(labels)) == len(labels) >= (1 if task == "index" else 2)
        assert {entry.reference for entry in entries} | {entry.memory_reference for entry in entries} <= {*labels, None}


def test_unknown_tasks_are_refused(capsys):
    with pytest.raises(SystemExit):
        load().main(["pipelines"])
    assert "unknown tasks: pipelines; the tasks are tokenizer, pipeline" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_and_rate_of_micro_batches_are_measured(tmp_path):
    run_python(
        SCRIPT, "microbatches", "--backends", "torch", "--tiny", "--repeats", "1", "--out", str(tmp_path), timeout=600
    )
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    assert record["is_tiny"]
    for row in record["tasks"][0]["results"]:
        assert row["median"] > 0 and row["memory_mib"] >= 0


@pytest.mark.slow
def test_a_run_is_written_with_its_versions_and_commit(tmp_path):
    run_python(SCRIPT, "tokenizer", "--peers", "--repeats", "2", "--out", str(tmp_path), timeout=600)
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    assert record["python"].split(".")[0] == str(sys.version_info.major) and record["threads"] >= 1
    assert record["commit"] and {"keras", "tensorflow", "open-clip-torch"} <= set(record["versions"])
    ours, peer = record["tasks"][0]["results"]
    assert (ours["contender"], peer["contender"]) == ("keras_clip", "open_clip")
    assert len(ours["rates"]) == len(peer["rates"]) == 2 and min(ours["rates"] + peer["rates"]) > 0
