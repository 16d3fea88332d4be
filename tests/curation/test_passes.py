"""A pass goes on where it stopped, gives the same bytes in any order, and loses nothing when a shard fails."""

import hashlib
import json
import random

import pyarrow as pa
import pytest
from curation_passes import CountLetters, Lengths
from numbered_pairs import numbered, write_shards, write_tar

from keras_clip import curation
from keras_clip.engines import Processes

pytestmark = pytest.mark.backend_free


@pytest.fixture
def pool(tmp_path):
    write_shards(tmp_path, numbered(12), 4)
    return curation.Pool.open(str(tmp_path / "*.tar"), tmp_path / "work")


def content(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run(pool, shard_pass, engine="serial"):
    return curation.run_pass(pool, shard_pass, engine, progress=False)


def test_counts_are_sums_over_shards(pool):
    assert run(pool, Lengths()) == {"pairs": 12, "characters": 10 + 2 * 2}
    assert [table.num_rows for table in pool.tables("lengths")] == [3, 3, 3, 3]


def test_what_is_done_is_not_done_again(pool, tmp_path):
    first = run(pool, Lengths(log=tmp_path / "log"))
    assert run(pool, Lengths(log=tmp_path / "log")) == first
    assert len((tmp_path / "log").read_text().splitlines()) == 4


def test_after_an_interruption_only_the_rest_is_done(pool, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(pool, Lengths(log=tmp_path / "log", interrupted_at="00002"))
    run(pool, Lengths(log=tmp_path / "log"))
    assert (tmp_path / "log").read_text().split() == ["00000", "00001", "00002", "00002", "00003"]


def test_a_changed_configuration_or_input_is_computed_again(pool, tmp_path):
    run(pool, Lengths())
    letters = CountLetters(log=tmp_path / "log")
    run(pool, letters)
    run(pool, letters)
    assert len((tmp_path / "log").read_text().splitlines()) == 4
    run(pool, Lengths(factor=2))
    run(pool, letters)
    assert len((tmp_path / "log").read_text().splitlines()) == 8


def test_a_changed_or_new_shard_is_computed_again(pool, tmp_path):
    run(pool, Lengths(log=tmp_path / "log"))
    write_tar(tmp_path / "00001.tar", [("x.txt", b"longer"), ("x.png", b"")])
    write_tar(tmp_path / "00009.tar", [("y.txt", b"new"), ("y.png", b"")])
    again = curation.Pool.open(None, tmp_path / "work")
    assert len(again.shards) == 5
    run(again, Lengths(log=tmp_path / "log"))
    assert (tmp_path / "log").read_text().split()[4:] == ["00001", "00009"]


def test_a_result_without_its_marker_is_computed_again(pool, tmp_path):
    run(pool, Lengths())
    before = content(tmp_path / "work")
    marker = pool.marker_path("lengths", pool.shards[1])
    for damage in ("", "{", "[]"):
        marker.write_text(damage)
        run(pool, Lengths())
        assert content(tmp_path / "work") == before
    pool.path("lengths", pool.shards[2]).unlink()
    run(pool, Lengths())
    assert content(tmp_path / "work") == before


def test_engines_and_orders_give_the_same_bytes(pool, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    run(pool, Lengths())
    run(pool, CountLetters())
    other = curation.Pool.open(str(tmp_path / "*.tar"), tmp_path / "other")
    random.Random(1).shuffle(other.shards)
    assert run(other, Lengths(), Processes(2)) == run(pool, Lengths())
    run(other, CountLetters())
    assert content(tmp_path / "other") == content(tmp_path / "work")


def test_results_of_an_earlier_input_are_not_read(pool):
    run(pool, Lengths())
    run(pool, CountLetters())
    pool.require("letters")
    run(pool, Lengths(factor=2))
    with pytest.raises(ValueError, match="'lengths' of '00000' has changed since. Run 'letters' again"):
        list(pool.tables("letters"))
    run(pool, CountLetters())
    assert [table.num_rows for table in pool.tables("letters")] == [3, 3, 3, 3]


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".a", "a b"])
def test_names_that_are_no_folder_are_refused(pool, name):
    shard_pass = Lengths()
    shard_pass.name = name
    with pytest.raises(ValueError, match="The name of a pass must have letters"):
        run(pool, shard_pass)


def test_a_name_of_another_pass_is_refused(pool):
    run(pool, Lengths())
    other = CountLetters()
    other.name, other.inputs = "lengths", ()
    with pytest.raises(ValueError, match="name='lengths' for CountLetters, which Lengths has"):
        run(pool, other)


def test_a_shard_that_fails_takes_no_other_with_it(pool, tmp_path):
    (tmp_path / "00002.tar").write_bytes(b"damaged" * 100)
    with pytest.raises(ValueError, match=r"1 of 4 shards that 'lengths' failed on: 00002: .*00002\.tar"):
        run(pool, Lengths())
    assert [pool.marker("lengths", shard) is not None for shard in pool.shards] == [True, True, False, True]
    with pytest.raises(ValueError, match="no result for 1 of 4 shards, among them '00002'"):
        run(pool, CountLetters())


def test_a_table_with_other_rows_is_refused(pool):
    run(pool, Lengths())
    with pytest.raises(ValueError, match="must have a row for each pair. Received: 2 rows of 'letters' for '00000'"):
        run(pool, CountLetters(rows=2))


def test_equal_tables_give_equal_files(tmp_path):
    table = pa.table({"a": [1, 2], "b": ["x", None]})
    assert curation.write_table(tmp_path / "1.parquet", table) == curation.write_table(tmp_path / "2.parquet", table)
    assert curation.read_table(tmp_path / "1.parquet", ["b"]).to_pydict() == {"b": ["x", None]}


def test_the_marker_names_what_it_is_of(pool):
    run(pool, Lengths())
    marker = json.loads(pool.marker_path("lengths", pool.shards[0]).read_text())
    assert marker["rows"] == 3
    assert marker["output"] == hashlib.sha256(pool.path("lengths", pool.shards[0]).read_bytes()).hexdigest()
