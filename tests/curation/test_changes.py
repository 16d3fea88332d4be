"""A change of the source is noticed, whatever its form, and makes exactly what depends on it stale."""

import os

import numpy as np
import pytest
from curation_passes import Lengths
from numbered_pairs import image_file, numbered, write_shards, write_table

from keras_clip import curation

pytestmark = pytest.mark.backend_free


def of_folder(folder, samples):
    for key, image, caption in samples:
        (folder / f"{key}.png").write_bytes(image)
        (folder / f"{key}.txt").write_bytes(caption)
    return folder, {}


def of_table(folder, samples):
    return write_table(folder / "pairs.csv", samples), {}


def of_lines(folder, samples):
    import json

    for key, image, _ in samples:
        (folder / f"{key}.png").write_bytes(image)
    rows = [json.dumps({"path": f"{key}.png", "caption": caption.decode()}) for key, _, caption in samples]
    (folder / "pairs.jsonl").write_text("\n".join(rows))
    return folder / "pairs.jsonl", {}


def rows_of(samples):
    return [{"image": image, "text": caption.decode(), "key": key} for key, image, caption in samples]


def of_list(folder, samples):
    return rows_of(samples), {"mapping": ("image", "text")}


def of_paths(folder, samples):
    for key, image, _ in samples:
        (folder / f"{key}.png").write_bytes(image)
    rows = [{"image": str(folder / f"{key}.png"), "text": caption.decode()} for key, _, caption in samples]
    return rows, {"mapping": ("image", "text")}


def of_frame(folder, samples):
    import pandas

    return pandas.DataFrame(rows_of(samples)), {"mapping": ("image", "text")}


def of_hugging_face(folder, samples):
    import datasets

    return datasets.Dataset.from_list(rows_of(samples)), {"mapping": ("image", "text")}


class OwnReader:
    """A reader that has no more than training needs."""

    def __init__(self, samples):
        self._samples = samples

    def __len__(self):
        return len(self._samples)

    def name(self, index):
        return self._samples[index][0]

    def read(self, ids):
        return [self._samples[n][1] for n in ids], [[self._samples[n][2]] for n in ids]


def of_reader(folder, samples):
    return OwnReader(samples), {}


FORMS = {
    "folder": of_folder,
    "table": of_table,
    "lines of JSON": of_lines,
    "list": of_list,
    "paths in a list": of_paths,
    "data frame": of_frame,
    "Hugging Face": of_hugging_face,
    "reader": of_reader,
}
CHANGES = {
    "an image": lambda sample: (sample[0], image_file(99), sample[2]),
    "a caption": lambda sample: (sample[0], sample[1], b"8" * 2),
}


def done(tmp_path, source, options):
    """Returns the shards that a pass is run on."""
    log = tmp_path / "log"
    log.write_text("")
    pool = curation.Pool.open(source, tmp_path / "work", shard_size=2, **options)
    curation.run_pass(pool, Lengths(log=log), "serial", progress=False)
    return sorted(int(name[-5:]) for name in log.read_text().split())


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_changed_sample_is_noticed(tmp_path, form, change):
    (tmp_path / "pairs").mkdir()
    samples = numbered(6)
    assert done(tmp_path, *form(tmp_path / "pairs", samples)) == [0, 1, 2]
    for path in (tmp_path / "pairs").iterdir():
        os.utime(path, ns=(1, 1))
    assert done(tmp_path, *form_again(form, tmp_path / "pairs", samples)) in ([], [0, 1, 2])
    assert done(tmp_path, *form_again(form, tmp_path / "pairs", samples)) == []
    samples[3] = change(samples[3])
    assert done(tmp_path, *form_again(form, tmp_path / "pairs", samples)) == [1]


def form_again(form, folder, samples):
    """Returns the source anew; files that have the same content stay as they are."""
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    made = form(folder, samples)
    for path, (content, time) in before.items():
        if path.read_bytes() == content:
            os.utime(path, ns=(time, time))
    return made


def test_a_changed_function_is_noticed(tmp_path):
    rows = rows_of(numbered(4))

    def run(mapping):
        return done(tmp_path, rows, {"mapping": mapping})

    def mapping(row):
        return row["image"], row["text"] + suffix

    suffix = ""
    assert run(mapping) == [0, 1]
    assert run(mapping) == []
    suffix = " more"
    assert run(mapping) == [0, 1]


def test_a_version_takes_the_place_of_reading(tmp_path):
    class Counted(OwnReader):
        reads = 0

        def read(self, ids):
            Counted.reads += 1
            return super().read(ids)

    source = Counted(numbered(4))
    options = {"shard_size": 2, "version": "first"}
    stamps = [shard.stamp for shard in curation.Pool.open(source, tmp_path / "work", **options).shards]
    assert Counted.reads == 0 and len(set(stamps)) == 2
    again = curation.Pool.open(Counted(numbered(4)), tmp_path / "work", **options)
    assert [shard.stamp for shard in again.shards] == stamps
    other = curation.Pool.open(source, tmp_path / "work", **options | {"version": "second"})
    assert not set(stamps) & {shard.stamp for shard in other.shards}
    for refused, version in ((source, 2), (str(tmp_path), "2")):
        with pytest.raises(ValueError, match="`version` must be a text that names the state of an object"):
            curation.Pool.open(refused, tmp_path / "work", version=version)


@pytest.mark.parametrize("record", [False, True])
def test_the_images_that_a_parquet_file_names_count(tmp_path, record):
    import pyarrow as pa
    from pyarrow import parquet

    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(image_file(number))
    names = ["0.png", "1.png"]
    column = [{"bytes": None, "path": name} for name in names] if record else names
    parquet.write_table(pa.table({"image": column, "text": ["a", "b"]}), tmp_path / "0.parquet")

    def stamp():
        (shard,) = curation.Pool.open(str(tmp_path / "0.parquet"), tmp_path / "work").shards
        return shard.stamp

    first = stamp()
    assert stamp() == first
    (tmp_path / "1.png").write_bytes(image_file(7, (30, 30)))
    assert stamp() != first


def test_images_inside_a_parquet_file_are_not_looked_for(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    from keras_clip.data.readers.parquet import image_paths

    inside = pa.table({"image": [{"bytes": image_file(1), "path": "x.png"}], "text": ["a"]})
    parquet.write_table(inside, tmp_path / "records.parquet")
    parquet.write_table(pa.table({"jpg": [image_file(1)], "path": ["y"]}), tmp_path / "bytes.parquet")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    for name in ("records", "bytes", "damaged"):
        assert image_paths(str(tmp_path / f"{name}.parquet")) == []


@pytest.fixture
def pool(tmp_path):
    # Two equal pairs in the first shards, and one alone.
    samples = numbered(3)
    samples[1] = ("001", samples[0][1], samples[1][2])
    write_shards(tmp_path, samples, 3)
    pool = curation.Pool.open(str(tmp_path / "*.tar"), tmp_path / "work")
    curation.profile(pool, "serial", progress=False)
    return pool


def run_global(pool):
    """Runs the passes that compare all shards."""
    exact = curation.DuplicateSettings(methods=("exact",), after=())
    curation.find_duplicates(pool, "serial", settings=exact, progress=False)
    rules = [curation.Rule("top(bytes, 0.5)")]
    curation.filter_pairs(pool, rules, "serial", name="largest", progress=False)
    queries = curation.given_queries(["0", "1", "2"])
    curation.match(pool, queries, "serial", progress=False)
    curation.balance(pool, engine="serial", after=[], progress=False)


@pytest.mark.parametrize("change", ["removed", "added", "changed"])
def test_a_change_of_the_shards_makes_global_passes_stale(pool, tmp_path, change):
    run_global(pool)
    pool.require("duplicates", "largest", "balance")
    reasons = [table["reason"].to_pylist() for table in pool.tables("duplicates")]
    assert sorted(map(str, np.ravel(reasons))) == ["None", "None", "exact duplicate"]
    removed = reasons.index(["exact duplicate"])
    if change == "removed":
        (tmp_path / f"0000{1 - removed}.tar").unlink()
    else:
        folder = tmp_path / "more"
        folder.mkdir()
        write_shards(folder, numbered(9)[8:], 1)
        os.replace(folder / "00000.tar", tmp_path / ("00009.tar" if change == "added" else f"0000{1 - removed}.tar"))
    again = curation.Pool.open(None, tmp_path / "work")
    curation.profile(again, "serial", progress=False)
    for name in ("duplicates", "largest", "balance"):
        with pytest.raises(ValueError, match="must be (made from the present|complete)"):
            again.require(name)
    run_global(again)
    again.require("duplicates", "largest", "balance")
    # What was a copy is the only one of its kind now, unless its original is still there.
    lost = [table["reason"].null_count < 1 for table in again.tables("duplicates")]
    assert any(lost) == (change == "added")


def test_verdicts_that_were_made_from_a_pass_do_not_come_before_it(pool):
    exact = curation.DuplicateSettings(methods=("exact",))
    first = curation.find_duplicates(pool, "serial", settings=exact, progress=False)
    curation.filter_pairs(
        pool, [curation.Rule("top(bytes, 0.5)")], "serial", after=["duplicates"], name="largest", progress=False
    )
    assert curation.verdicts_of(pool) == ["profile", "largest", "duplicates"]
    assert curation.verdicts_of(pool, before="duplicates") == ["profile"]
    assert curation.find_duplicates(pool, "serial", settings=exact, progress=False) == first
    pool.require("largest")
