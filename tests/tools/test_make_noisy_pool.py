"""The noisy pool, curated by `examples/curate.py all`: what is planted is found, and the report counts it."""

import json

import pyarrow.parquet
import pytest
from scripts import load_script

from keras_clip import curation
from keras_clip.data.readers import open_reader

pytestmark = pytest.mark.backend_free
SURE = {
    *("truncated image", "no image file", "exact duplicate", "file name as caption", "blank caption"),
    *("tiny image", "narrow image"),
}


@pytest.fixture(scope="module")
def scripts():
    return load_script("tools/make_noisy_pool.py"), load_script("examples/curate.py")


@pytest.fixture(scope="module")
def curated(scripts, tmp_path_factory):
    tool, curate = scripts
    folder = tmp_path_factory.mktemp("noisy")
    arguments = ["--scenes", "120", "--each", "4", "--head", "12", "--image-size", "96", "--shards", "2"]
    args = tool.parse_args(["make", str(folder), *arguments])
    args.shared = None
    tool.make(args)
    return folder, lambda: curate.main(
        ["all", str(folder / "raw" / "*.tar"), "--work", str(folder / "work"), "--out", str(folder / "new")]
        + ["--engine", "serial", "--queries", str(folder / "queries.parquet"), "--same", "pair", "--t", "20"]
        + ["--test-set", f"drawn={folder / 'test' / '*.tar'}", "--test-distance", "0", "--licence", "CC0-1.0"]
    )


@pytest.mark.slow
def test_the_planted_faults_are_found(scripts, curated, capsys):
    tool, curate = scripts
    folder, curate_all = curated
    truth = pyarrow.parquet.read_table(folder / "truth.parquet").to_pylist()
    assert len(truth) == 120 - 7 * 4 + 11 * 4 + 12 == len(open_reader(str(folder / "raw" / "*.tar")))
    curate_all()
    table = capsys.readouterr().out.split("pass        ")[1]
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()[1:]}
    assert list(rows)[:5] == ["profile", "filter", "test_images", "duplicates", "balance"]
    assert rows["profile"][:2] == ["12", "136"] and rows["filter"][:2] == ["12", "124"]
    kept = int(rows["balance"][1])
    manifest = json.loads((folder / "new" / "manifest.json").read_text())
    assert manifest["pairs"] == kept and "CC0-1.0" in (folder / "new" / "card.html").read_text()
    # The report agrees.
    tool.main(["report", str(folder), "--work", str(folder / "work")])
    report = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    recalls = {row[0][2:]: row[3] for row in report if len(row) == 5}
    assert set(tool.FAULTS) <= set(recalls) and {recalls[kind] for kind in SURE} == {"100.0%"}
    # The same command goes on where the other stopped, and here nothing is left to be done.
    before = {path: path.stat().st_mtime_ns for path in (folder / "work").rglob("*.parquet")}
    shards = {path: path.stat().st_mtime_ns for path in (folder / "new").glob("*.tar")}
    curate_all()
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    passes = ("profile", "filter", "match", "write", "keep")
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path.parent.name in passes)


def test_the_new_shards_can_be_checked(scripts, curated, capsys):
    _, curate = scripts
    folder, curate_all = curated
    if not (folder / "new").exists():
        curate_all()
    curate.main(["check", str(folder / "new" / "*.tar")])
    assert "shards have the sizes and digests" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="need a manifest.json beside them. Received: 2 without"):
        curate.main(["check", str(folder / "raw" / "*.tar")])
    path = folder / "new" / "00000.tar"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="must have the SHA-256"):
        curate.main(["check", str(path)])


def test_commands_are_recorded_for_the_card(scripts, curated):
    folder, curate_all = curated
    if not (folder / "new").exists():
        curate_all()
    lines = (folder / "work" / "commands.txt").read_text().splitlines()
    commands = [line.split()[2] for line in lines]
    assert commands[-2:] == ["write", "card"] and "all" not in commands
    assert {"profile", "filter", "duplicates", "match", "balance"} <= set(commands)
    page = (folder / "new" / "card.html").read_text()
    assert all(f"curate.py {name}" in page for name in ("profile", "balance", "card"))


def test_options_of_all_that_need_others(scripts, tmp_path):
    _, curate = scripts
    arguments = ["all", "raw/*.tar", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "new")]
    with pytest.raises(SystemExit, match="--min-score needs --model. Received: --min-score 0.3 without it"):
        curate.main([*arguments, "--min-score", "0.3"])
    with pytest.raises(SystemExit, match="--t needs --queries"):
        curate.main([*arguments, "--t", "3"])
    assert curation.verdicts_of(curation.Pool([], tmp_path)) == []
