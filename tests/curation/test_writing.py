"""New shards hold what is kept, in the same bytes on every engine, and go on where writing stopped."""

import hashlib
import io
import json
import random
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from numbered_pairs import (
    NumberTokenizer,
    decode_one_colour,
    image_file,
    numbered,
    numbers,
    write_records,
    write_shards,
    write_tar,
)
from PIL import Image

from keras_clip import curation
from keras_clip.curation.writing import merge
from keras_clip.curation.writing.merge import ranges_of
from keras_clip.data import ImagePreprocessor, image_text_pairs
from keras_clip.data.readers import open_reader
from keras_clip.engines import Processes

pytestmark = pytest.mark.backend_free
REJECTED = "an odd number"


def members(samples):
    for key, image, caption in samples:
        yield from [(f"{key}.png", image), (f"{key}.txt", caption)]
        yield f"{key}.json", json.dumps({"url": f"https://example.org/{key}", "nothing": None}).encode()


def reject(pool, name="odd", rejects=lambda row: int(row["caption"]) % 2):
    """Writes the verdict of a pass by hand."""
    (pool.folder / name).mkdir(exist_ok=True)
    for shard in pool.shards:
        rows = pool.table("profile", shard).to_pylist()
        reasons = pa.array([REJECTED if rejects(row) else None for row in rows], pa.string())
        output = curation.write_table(pool.path(name, shard), pa.table({"reason": reasons}))
        pool.marker_path(name, shard).write_text(json.dumps({"key": "", "output": output, "rows": 0, "counts": {}}))


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A pool of 40 pairs in four tars, of which the even ones are kept, in a folder with its profile."""
    folder = tmp_path_factory.mktemp("raw")
    samples = numbered(40)
    for shard in range(4):
        write_tar(folder / f"{shard:05d}.tar", members(samples[shard::4]))
    return folder


def open_pool(raw, work, shuffled=False):
    pool = curation.Pool.open(str(raw / "*.tar"), work)
    if shuffled:
        random.Random(1).shuffle(pool.shards)
    curation.profile(pool, "serial", progress=False)
    reject(pool)
    return pool


def write(pool, folder, engine="serial", verdicts=None, **settings):
    settings = curation.WriteSettings(**{"max_samples": 8} | settings)
    return curation.write(pool, folder, verdicts, settings=settings, engine=engine, progress=False)


def content(folder):
    paths = sorted(path for path in folder.iterdir() if not path.name.endswith((".index", ".npz")))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def written(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    pool = open_pool(raw, folder / "work")
    return pool, folder / "new", write(pool, folder / "new")


def test_what_is_kept_is_written_with_its_bytes(written):
    _, folder, counts = written
    reader = open_reader(str(folder / "*.tar"))
    images, captions = reader.read(np.arange(len(reader)))
    found = {int(texts[0]): image for image, texts in zip(images, captions, strict=True)}
    assert found == {number: image_file(number) for number in range(0, 40, 2)}
    assert counts["samples"] == counts["pairs"] == 20
    assert [int(texts[0]) for texts in captions] != sorted(found), "the order is random"


def test_sizes_are_bounded_and_the_manifest_has_them(written):
    _, folder, counts = written
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["complete"] and manifest["verdicts"] == ["profile", "odd"]
    assert sorted(manifest["shards"]) == [f"{number:05d}.tar" for number in range(counts["shards"])]
    assert all(entry["samples"] <= 8 for entry in manifest["shards"].values())
    assert counts["shards"] == 3
    for name, entry in manifest["shards"].items():
        data = (folder / name).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert counts["bytes"] == sum(entry["bytes"] for entry in manifest["shards"].values())


def test_metadata_and_scores_are_stored(written):
    _, folder, _ = written
    reader = open_reader(str(folder / "*.tar"))
    ids = np.arange(len(reader))
    for key, captions, record in zip(reader.keys(ids), reader.captions(ids), reader.metadata(ids), strict=True):
        former = f"{int(captions[0]):03d}"
        assert record["url"] == f"https://example.org/{former}" and record["key"] == key
        assert record["caption"] == captions[0].decode() and record["nothing"] is None
        digest = hashlib.sha256(image_file(int(captions[0]))).hexdigest()
        expected = {"key": former, "shard": f"{int(former) % 4:05d}", "width": 20, "height": 24, "sha256": digest}
        assert {name: record["curation"][name] for name in expected} == expected
    assert len(set(reader.keys(ids))) == 20


def test_tars_hold_neither_times_nor_users(written):
    _, folder, _ = written
    with tarfile.open(folder / "00000.tar") as tar:
        infos = tar.getmembers()
    assert {(info.mtime, info.uid, info.gid, info.uname, info.gname) for info in infos} == {(0, 0, 0, "", "")}
    assert [info.name.partition(".")[2] for info in infos[:3]] == ["png", "txt", "json"]


def test_training_reads_all_of_it(written, monkeypatch):
    _, folder, _ = written
    decode_one_colour(monkeypatch)
    pairs = image_text_pairs(
        str(folder / "*.tar"), batch_size=5, tokenizer=NumberTokenizer(), image_preprocessor=ImagePreprocessor(16)
    )
    assert sorted(numbers(pairs)) == list(range(0, 40, 2))
    assert pairs.skipped.total == 0


@pytest.mark.slow
def test_engines_orders_and_interruptions_give_the_same_bytes(written, raw, tmp_path, monkeypatch):
    _, folder, counts = written
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    other = open_pool(raw, tmp_path / "work", shuffled=True)
    # The merge is interrupted at its second shard.
    calls, run = [], merge._Merge.run

    def interrupted(task, state, item):
        calls.append(item.range.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(task, state, item)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(merge._Merge, "run", interrupted)
        write(other, tmp_path / "new")
    assert sorted(content(tmp_path / "new")) == ["00000.tar", "manifest.json"]
    with pytest.raises(ValueError, match="Shards must be complete. Received: .*new, where writing was interrupted"):
        open_reader(str(tmp_path / "new" / "*.tar"))
    first = (tmp_path / "new" / "00000.tar").stat()
    # What a writer that is killed leaves.
    (tmp_path / "new" / ".00001.1234abcd.part.tar").write_bytes(b"unfinished")
    assert write(other, tmp_path / "new", Processes(2)) == counts
    assert (tmp_path / "new" / "00000.tar").stat().st_mtime_ns == first.st_mtime_ns, "it was not written again"
    assert content(tmp_path / "new") == content(folder)


def test_what_is_written_is_not_written_again(written):
    pool, folder, counts = written
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert write(pool, folder) == counts
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert not list((pool.folder / "write").glob("*.samples")), "the stored samples are removed"


def test_a_damaged_shard_is_written_again(raw, tmp_path):
    pool = open_pool(raw, tmp_path / "work")
    write(pool, tmp_path / "new")
    before = content(tmp_path / "new")
    (tmp_path / "new" / "00001.tar").write_bytes(b"")
    (tmp_path / "new" / "00002.tar").unlink()
    write(pool, tmp_path / "new")
    assert content(tmp_path / "new") == before


def test_other_settings_replace_the_shards(raw, tmp_path):
    pool = open_pool(raw, tmp_path / "work")
    write(pool, tmp_path / "new", max_samples=3)
    (tmp_path / "new" / "card.html").write_text("")
    before = content(tmp_path / "new")
    counts = write(pool, tmp_path / "new", max_samples=30, seed=1)
    assert counts["shards"] == 1 and counts["samples"] == 20
    assert sorted(content(tmp_path / "new")) == ["00000.tar", "card.html", "manifest.json"]
    write(pool, tmp_path / "new", max_samples=3)
    assert content(tmp_path / "new") == before


def test_seeds_give_other_orders(raw, tmp_path):
    pool = open_pool(raw, tmp_path / "work")
    orders = []
    for seed in (0, 1, 2**64 - 1):
        write(pool, tmp_path / "new", seed=seed, max_samples=100)
        reader = open_reader(str(tmp_path / "new" / "*.tar"))
        orders.append([int(texts[0]) for texts in reader.captions(np.arange(20))])
    assert len(set(map(tuple, orders))) == 3 and len(set(map(frozenset, orders))) == 1


@pytest.mark.parametrize("form", ["tar", "tfrecord"])
def test_several_captions_stay_one_sample(tmp_path, form):
    rows = [
        {"key": b"a", "jpg": image_file(1), "txt": [b"1", b"2", b"33"]},
        {"key": b"a", "jpg": image_file(2), "txt": [b"4", b"5"], "url": b"https://example.org"},
        {"key": b"b", "jpg": image_file(3), "txt": [b"7"]},
    ]
    write_records(tmp_path / "raw.tfrecord", rows)
    pool = curation.Pool.open(str(tmp_path / "raw.tfrecord"), tmp_path / "work")
    curation.profile(pool, "serial", progress=False)
    reject(pool, rejects=lambda row: row["caption"] in ("2", "5", "7"))
    columns = ["profile.characters", "profile.height"]
    assert write(pool, tmp_path / "new", format=form, columns=columns)["pairs"] == 3
    reader = open_reader(str(tmp_path / "new" / f"*.{form}"))
    ids = np.arange(len(reader))
    images, captions = reader.read(ids)
    found = {image: texts for image, texts in zip(images, captions, strict=True)}
    assert found == {image_file(1): [b"1", b"33"], image_file(2): [b"4"]}
    records = {image: record for image, record in zip(images, reader.metadata(ids), strict=True)}
    if form == "tar":
        assert records[image_file(1)]["curation"] == {"key": "a", "shard": "raw", "characters": [1, 2], "height": 24}
        assert records[image_file(2)]["curation"]["characters"] == 1
    else:
        assert records[image_file(1)]["curation/characters"] == "[1, 2]"
        assert records[image_file(1)]["curation/height"] == 24
    assert records[image_file(2)]["url"] == "https://example.org"


def test_broken_pairs_are_never_kept(tmp_path):
    members = [
        *(("a.png", image_file(1)), ("a.txt", b"1")),
        *(("b.png", image_file(2)[:60]), ("b.txt", b"2")),
        *(("c.png", image_file(3)), ("c.txt", b" \n")),
        *(("d.png", image_file(4)), ("d.txt", b"\xff\xfe")),
        ("e.txt", b"5"),
    ]
    write_tar(tmp_path / "00000.tar", members)
    pool = curation.Pool.open(str(tmp_path / "00000.tar"), tmp_path / "work")
    curation.profile(pool, "serial", progress=False)
    assert curation.keep(pool, engine="serial", progress=False) == {
        "pairs": 5,
        "samples": 5,
        "kept pairs": 1,
        "kept samples": 1,
        "profile: undecodable image": 1,
        "profile: no image": 1,
        "profile: no caption": 1,
        "profile: caption not UTF-8": 1,
    }


def test_the_first_pass_that_rejects_is_named(raw, tmp_path):
    pool = open_pool(raw, tmp_path / "work")
    reject(pool, "balance", lambda row: int(row["caption"]) < 10)
    reject(pool, "basic", lambda row: row["caption"] == "1")
    assert curation.verdicts_of(pool) == ["profile", "basic", "odd", "balance"]
    counts = curation.keep(pool, engine="serial", progress=False)
    assert {name: count for name, count in counts.items() if ": " in name} == {
        f"basic: {REJECTED}": 1,
        f"odd: {REJECTED}": 19,
        f"balance: {REJECTED}": 5,
    }
    assert curation.keep(pool, ["balance"], "serial", progress=False)["kept pairs"] == 30


def test_a_pass_that_is_not_complete_is_an_error(raw, tmp_path):
    pool = open_pool(raw, tmp_path / "work")
    reject(pool, "basic", lambda row: row["caption"] == "1")
    pool.marker_path("basic", pool.shards[0]).unlink()
    message = f"'basic' has a result for {len(pool.shards) - 1} of {len(pool.shards)} shards"
    with pytest.raises(ValueError, match=message):
        curation.write(pool, tmp_path / "out", progress=False)
    assert curation.keep(pool, ["odd"], "serial", progress=False)["kept pairs"] == 20


def test_bytes_bound_shards_too(raw, tmp_path):
    pool = open_pool(raw, tmp_path / "work")
    counts = write(pool, tmp_path / "new", max_samples=1000)
    stored = [size for table in pool.tables("write") for size in table["stored"].drop_null().to_pylist()]
    assert (counts["shards"], len(stored)) == (1, 20)
    counts = write(pool, tmp_path / "new", max_bytes=3 * max(stored), max_samples=1000)
    assert 7 <= counts["shards"] <= 10 and counts["samples"] == 20
    assert write(pool, tmp_path / "new", max_bytes=1, max_samples=1000)["shards"] == 20


RANGES = {
    "by samples": ([2, 2, 2, 2], [1, 1, 1, 1], 4, 100, ([(0, 2), (2, 4)], True)),
    "by bytes": ([1, 1, 1], [60, 30, 20], 10, 100, ([(0, 2), (2, 3)], True)),
    "a large sample": ([1, 1, 1], [10, 500, 10], 10, 100, ([(0, 1), (1, 2), (2, 3)], True)),
    "too many in a range": ([1, 7, 1], [1, 1, 1], 4, 100, ([(0, 1), (1, 2), (2, 3)], False)),
    "empty ranges": ([0, 3, 0, 0], [0, 3, 0, 0], 3, 100, ([(0, 4)], True)),
    "empty ranges last": ([3, 3, 0], [3, 3, 0], 3, 3, ([(0, 1), (1, 3)], True)),
}


@pytest.mark.parametrize("counts, sizes, max_samples, max_bytes, expected", RANGES.values(), ids=RANGES)
def test_ranges(counts, sizes, max_samples, max_bytes, expected):
    assert ranges_of(np.array(counts), np.array(sizes), max_samples, max_bytes) == expected


@pytest.mark.parametrize("max_samples", [1, 2, 7])
def test_small_shards_keep_their_limit(raw, tmp_path, max_samples):
    pool = open_pool(raw, tmp_path / "work")
    write(pool, tmp_path / "new", max_samples=max_samples)
    entries = json.loads((tmp_path / "new" / "manifest.json").read_text())["shards"].values()
    assert max(entry["samples"] for entry in entries) <= max_samples
    assert sum(entry["samples"] for entry in entries) == 20


def test_a_source_that_has_changed_is_refused(raw, tmp_path):
    samples = numbered(4)
    write_shards(tmp_path, samples, 1)
    pool = curation.Pool.open(str(tmp_path / "*.tar"), tmp_path / "work")
    curation.profile(pool, "serial", progress=False)
    write_shards(tmp_path, [(key, image_file(9), caption) for key, _, caption in samples], 1)
    pool = curation.Pool.open(None, tmp_path / "work")
    with pytest.raises(ValueError, match="Samples must be as they were profiled. Received: '00.' of '00000'"):
        write(pool, tmp_path / "new")


def test_refusals(raw, tmp_path):
    pool = open_pool(raw, tmp_path / "work")
    with pytest.raises(ValueError, match="must lie in a folder of their own. Received: .*, which has the pool itself"):
        (raw / "manifest.json").write_text(json.dumps({"kind": "keras_clip shards", "shards": {}}))
        names = dict.fromkeys(path.name for path in raw.glob("*.tar"))
        (raw / "manifest.json").write_text(json.dumps({"kind": "keras_clip shards", "shards": names}))
        try:
            write(pool, raw)
        finally:
            (raw / "manifest.json").unlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("")
    with pytest.raises(ValueError, match="must be empty, or of an earlier call. Received: .*other with 'thesis.txt'"):
        write(pool, tmp_path / "other")
    reject(pool, "all", lambda row: True)
    with pytest.raises(ValueError, match="At least one pair must be kept. Received: 40 pairs, rejected by"):
        write(pool, tmp_path / "new")
    with pytest.raises(ValueError, match="The pass 'nothing' must be complete"):
        write(pool, tmp_path / "new", verdicts=["nothing"])
    with pytest.raises(ValueError, match="`format` must be one of tar, tfrecord. Received: format='zip'"):
        curation.WriteSettings(format="zip")
    with pytest.raises(ValueError, match="`max_samples` must be a positive integer. Received: max_samples=0"):
        curation.WriteSettings(max_samples=0)
    with pytest.raises(ValueError, match="A stored column must be one of its pass. Received: 'profile.depth'"):
        write(pool, tmp_path / "new", verdicts=["odd"], columns=["profile.depth"])


def test_a_stream_becomes_a_pool(tmp_path):
    import tensorflow as tf

    images = [np.asarray(Image.open(io.BytesIO(image_file(number)))) for number in range(5)]
    stream = tf.data.Dataset.from_tensor_slices({"picture": images, "text": [str(number) for number in range(5)]})
    with pytest.raises(TypeError, match=r"a stream. Store it as tars first: `curation.write_stream\(source, folder"):
        curation.Pool.open(stream, tmp_path / "work", mapping=("picture", "text"))
    counts = curation.write_stream(stream, tmp_path / "raw", mapping=("picture", "text"), max_samples=2, progress=False)
    assert (counts["shards"], counts["samples"], counts["pairs"]) == (3, 5, 5)
    reader = open_reader(str(tmp_path / "raw" / "*.tar"))
    files, captions = reader.read(np.arange(5))
    assert captions == [[str(number).encode()] for number in range(5)]
    assert all(
        np.array_equal(np.asarray(Image.open(io.BytesIO(file))), image)
        for file, image in zip(files, images, strict=True)
    )
    assert len(curation.Pool.open(str(tmp_path / "raw" / "*.tar"), tmp_path / "work").shards) == 3


class Generator:
    """Can be iterated over again and again, like a streamed dataset of Hugging Face."""

    def __iter__(self):
        yield {"image": image_file(1), "texts": ["1", "2"]}
        yield {"image": image_file(2, form="JPEG"), "texts": "3"}
        yield {"image": b"", "texts": "4"}


def test_a_stream_of_files_keeps_their_bytes(tmp_path):
    mapping = ("image", "texts")
    for _ in range(2):
        curation.write_stream(Generator(), tmp_path / "raw", mapping=mapping, progress=False)
    reader = open_reader(str(tmp_path / "raw" / "*.tar"))
    images, captions = reader.read(np.arange(3))
    assert images == [image_file(1), image_file(2, form="JPEG"), b""]
    assert captions == [[b"1", b"2"], [b"3"], [b"4"]]
    with tarfile.open(tmp_path / "raw" / "00000.tar") as tar:
        assert [name.partition(".")[2] for name in tar.getnames()] == [
            "png",
            "json",
            "jpg",
            "txt",
            "json",
            "txt",
            "json",
        ]
    with pytest.raises(TypeError, match="Expected a stream"):
        curation.write_stream([1], tmp_path / "raw", mapping=mapping)
