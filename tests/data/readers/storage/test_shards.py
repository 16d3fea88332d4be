"""The index of shards: packed without loss, made once, stored, shared, and made again when a shard changes."""

import functools
import glob
import hashlib
import json
import os
import pickle
import re
import stat
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
from numbered_pairs import numbered, read_all, tar_members, write_shards, write_tar

from keras_clip.data.readers import find_files
from keras_clip.data.readers.storage import indexing
from keras_clip.data.readers.storage.byte_strings import ByteStrings
from keras_clip.data.readers.storage.index_file import IndexFile, write_index
from keras_clip.data.readers.storage.indexing import index_in_memory, open_index
from keras_clip.data.readers.storage.shard_index import ShardIndex, pack
from keras_clip.data.readers.tar import TarReader, index_tar
from keras_clip.engines import Processes

pytestmark = pytest.mark.backend_free
ALL = np.arange(20)


class Counted:
    """`index_tar`, with the names of the shards that it was called for."""

    def __init__(self):
        self.names = []

    def __call__(self, path):
        self.names.append(os.path.basename(path))
        return index_tar(path)


@pytest.fixture
def make():
    return Counted()


def write_old(tar, version=3):
    """Writes the index file of one shard as the version before did."""
    index, status = index_tar(tar), os.stat(tar)
    blob = np.frombuffer(b"".join(index.keys), np.uint8)
    np.savez(
        f"{tar}.index.npz",
        stamp=np.array([version, status.st_size, status.st_mtime_ns], np.int64),
        offsets=index.offsets,
        sizes=index.sizes.astype(np.uint32),
        blob=blob,
        ends=np.cumsum([len(key) for key in index.keys], dtype=np.int64),
        passed_over=np.frombuffer(json.dumps({"counts": {"hidden file": 2}, "examples": ["x"]}).encode(), np.uint8),
    )


def hidden_indexes(folder):
    return sorted(path for path in Path(folder).glob(".keras_clip-*.index"))


class TestStored:
    def test_a_shard_is_indexed_once(self, tar, make):
        first, second = (open_index([tar], make) for _ in range(2))
        assert make.names == ["a.tar"] and os.path.exists(f"{tar}.index")
        assert all(np.array_equal(*pair) for pair in zip(first.spans(ALL), second.spans(ALL), strict=True))
        assert first.keys(ALL) == second.keys(ALL) == [f"{k:03d}".encode() for k in range(20)]

    def test_a_changed_shard_is_indexed_again(self, tar, make):
        open_index([tar], make)
        write_tar(tar, tar_members(numbered(3)))
        assert len(open_index([tar], make)) == 3
        # The size stays the same; only the modification time changes.
        os.utime(tar, ns=(0, 12345))
        for _ in range(2):
            open_index([tar], make)
        assert len(make.names) == 3

    def test_several_shards_have_one_index_which_serves_each_of_them(self, tmp_path, make):
        paths = find_files(write_shards(tmp_path, numbered(20)))
        whole = open_index(paths, make)
        assert len(hidden_indexes(tmp_path)) == 1 and not glob.glob(str(tmp_path / "*.index"))
        assert find_files(str(tmp_path / "*")) == paths
        for part in (paths[1:2], paths[::-1], paths[:2]):
            index = open_index(part, make)
            keys = [key for path in part for key in index_tar(path).keys]
            assert index.keys(np.arange(len(index))) == keys
        assert len(make.names) == 3 == len(whole.sections)

    def test_a_new_shard_alone_is_indexed(self, tmp_path, make):
        paths = find_files(write_shards(tmp_path, numbered(20)))
        open_index(paths[:2], make)
        open_index(paths[2:], make)
        make.names.clear()
        grown = write_tar(tmp_path / "00003.tar", tar_members([("x", b"image", b"caption")]))
        index = open_index([*paths, grown], make)
        assert make.names == ["00003.tar"] and index.keys(np.array([0, 20])) == [b"000", b"x"]

    @pytest.mark.parametrize("version", [1, 2, 3])
    def test_indexes_of_earlier_versions_are_read_or_made_again(self, version, tar, make):
        write_old(tar, version)
        before = Path(f"{tar}.index.npz").read_bytes()
        index = open_index([tar], make)
        expected = index_tar(tar)
        offsets, sizes = index.spans(ALL)
        assert np.array_equal(offsets, expected.offsets) and np.array_equal(sizes, expected.sizes)
        assert make.names == ([] if version == 3 else ["a.tar"])
        assert (0 in index.passed_over) == (version == 3)
        assert Path(f"{tar}.index.npz").read_bytes() == before

    DAMAGED = {
        "empty": lambda content: b"",
        "cut": lambda content: content[:-7],
        "another file": lambda content: b"no index" * 100,
        "one bit of the directory": lambda content: content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
        "a later version": lambda content: content.replace(b"index 4", b"index 5"),
    }

    @pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
    def test_a_damaged_index_is_made_again(self, damage, tar, make):
        open_index([tar], make)
        whole = Path(f"{tar}.index").read_bytes()
        Path(f"{tar}.index").write_bytes(damage(whole))
        assert open_index([tar], make).keys(ALL)[-1] == b"019"
        assert len(make.names) == 2 and Path(f"{tar}.index").read_bytes() == whole

    def test_another_mapping_has_another_index(self, tar, make):
        open_index([tar], make)
        open_index([tar], make, "jpg")
        assert len(make.names) == 2
        assert open_index([tar], make, "jpg").keys(ALL) and len(make.names) == 2

    def test_where_the_folder_cannot_be_written(self, tar, user_cache, monkeypatch, make):
        original = indexing._write

        def write(place, *rest):
            if place.folder == Path(tar).parent:
                raise PermissionError(place.folder)
            original(place, *rest)

        monkeypatch.setattr(indexing, "_write", write)
        for _ in range(2):
            open_index([tar], make)
        assert make.names == ["a.tar"] and len(list(user_cache.rglob("*.index"))) == 1
        assert not os.path.exists(f"{tar}.index")

    def test_where_nothing_can_be_written(self, tar, monkeypatch, make):
        monkeypatch.setattr(indexing, "Lock", lambda *args: (_ for _ in ()).throw(OSError("read-only")))
        assert open_index([tar], make).keys(ALL[:1]) == [b"000"]
        assert not list(Path(tar).parent.rglob("*.index"))

    def test_nothing_is_left_half_written(self, tar, monkeypatch, make):
        monkeypatch.setattr(indexing, "write_index", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            open_index([tar], make)
        assert os.listdir(os.path.dirname(tar)) == ["a.tar"]

    def test_colleagues_can_read_it(self, tar, make):
        before = os.umask(0o027)
        try:
            open_index([tar], make)
        finally:
            os.umask(before)
        assert stat.S_IMODE(os.stat(f"{tar}.index").st_mode) == 0o640

    @pytest.mark.parametrize("count, shown", [(3, False), (8, True)])
    def test_a_progress_bar_for_many(self, count, shown, tmp_path, capsys):
        paths = find_files(write_shards(tmp_path, numbered(10), count))
        TarReader(paths)
        assert ("indexing shards" in capsys.readouterr().err) == shown
        TarReader(paths)
        assert "indexing shards" not in capsys.readouterr().err

    def test_one_process_builds_while_others_wait(self, tmp_path):
        paths, calls, begun = find_files(write_shards(tmp_path, numbered(12))), [], threading.Event()

        def slow(path):
            calls.append(path)
            begun.set()
            threading.Event().wait(0.2)
            return index_tar(path)

        def open_one(results):
            results.append(open_index(paths, slow).keys(np.arange(12)))

        results = []
        threads = [threading.Thread(target=open_one, args=(results,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(calls) == paths and len(results) == 3 and results[0] == results[1] == results[2]


def test_in_other_processes_of_a_script_without_a_guard(tmp_path, monkeypatch):
    paths = find_files(write_shards(tmp_path, numbered(12), 6))
    expected = read_all(TarReader(paths))
    (index,) = hidden_indexes(tmp_path)
    content = index.read_bytes()
    index.unlink()
    # The new process would run this script again.
    (tmp_path / "script.py").write_text("raise SystemExit('the script was run again')")
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    sys.modules["__main__"].__file__ = str(tmp_path / "script.py")
    monkeypatch.setattr(indexing, "_SECONDS_ALONE", 0.0)
    monkeypatch.setattr(indexing, "Processes", functools.partial(Processes, 1))
    monkeypatch.setattr(indexing, "num_cores", lambda: 2)
    # Only the first shard is indexed in this process.
    monkeypatch.setattr(indexing._Indexing, "run", _once(indexing._Indexing.run))
    assert read_all(TarReader(paths)) == expected
    assert hidden_indexes(tmp_path) == [index] and index.read_bytes() == content


def _once(function):
    calls = []

    def run(*arguments):
        calls.append(arguments)
        assert len(calls) == 1
        return function(*arguments)

    return run


def random_spans(kind, rng, count=500):
    """Spans (samples, 4, 2) of tars and other files, regular and not."""
    sizes = np.stack([rng.integers(1, 60_000, count), rng.integers(0, 300, count), rng.integers(1, 900, count)], 1)
    sizes = np.pad(sizes, ((0, 0), (0, 1)))
    unit = 1 if kind == "bytes" else 512
    order = (
        rng.permuted(np.tile([0, 1, 2], (count, 1)), axis=1) if kind == "any order" else np.tile([1, 0, 2], (count, 1))
    )
    offsets, place = np.zeros_like(sizes), 3 * 2**33 if kind == "beyond 4 GiB" else 0
    for row in range(count):
        for part in order[row].tolist():
            offsets[row, part] = place = place + unit
            place += -(-sizes[row, part] // unit) * unit
    if kind == "parts are absent":
        absent = rng.random((count, 4)) < 0.3
        offsets[absent] = sizes[absent] = 0
    if kind == "links" and count:
        offsets[::3, 1], sizes[::3, 1] = offsets[count // 2, 1], sizes[count // 2, 1]
    if kind == "a few are large":
        sizes[::100, 2] += 10**9
        offsets[::100, 2] = 2**45
    return np.stack([offsets, sizes], axis=-1)


class TestPacked:
    KINDS = ("tar", "bytes", "any order", "beyond 4 GiB", "parts are absent", "links", "a few are large")

    @pytest.mark.parametrize("kind", KINDS)
    def test_nothing_is_lost(self, kind, monkeypatch):
        monkeypatch.setattr(indexing, "stamp", lambda path: (2**47, 0))
        rng = np.random.default_rng(3)
        shards = [random_spans(kind, rng, count) for count in (500, 1, 0, 129)]
        keys = [[f"{'k' * (row % 7)}{row}".encode() for row in range(len(spans))] for spans in shards]
        indexes = [ShardIndex.of_spans("x", spans, 4, each) for spans, each in zip(shards, keys, strict=True)]
        index = index_in_memory(indexes, range(len(shards)))
        ids = rng.permutation(len(index))
        offsets, sizes = index.spans(ids)
        expected = np.concatenate(shards)[ids]
        assert np.array_equal(offsets, expected[..., 0]) and np.array_equal(sizes, expected[..., 1])
        assert index.keys(ids) == [sum(keys, [])[k] for k in ids.tolist()]
        assert list(index.keys_by_shard()) == keys
        assert np.array_equal(index.sections["present"].sum(axis=0), (np.concatenate(shards)[..., 0] > 0).sum(axis=0))

    @pytest.mark.parametrize("kind, most", [("tar", 9), ("beyond 4 GiB", 9), ("a few are large", 12), ("bytes", 11)])
    def test_at_most_twelve_bytes_a_sample(self, kind, most, tmp_path):
        index = ShardIndex.of_spans("x", random_spans(kind, np.random.default_rng(0), 10_000), 4)
        (tmp_path / "x").touch()
        packed = index_in_memory([index], [tmp_path / "x"]).packed(0)
        assert len(packed.data) <= most * 10_000

    def test_a_stored_index_has_at_most_twelve_bytes_a_sample(self, tmp_path):
        paths = find_files(write_shards(tmp_path, [(f"{k:05d}", b"x" * (k % 999), b"y") for k in range(2000)]))
        TarReader(paths)
        (index,) = hidden_indexes(tmp_path)
        # A key and the byte that ends it are 6 bytes. The directory has some hundred bytes a shard.
        assert index.stat().st_size <= 2000 * (12 + 6) and index.stat().st_size <= 2000 * (7 + 6) + 3 * 400

    def test_a_part_of_four_gigabytes_is_refused(self):
        with pytest.raises(ValueError, match="smaller than 4 GiB. Received: a.tar"):
            ShardIndex.of_spans("a.tar", [[(512, 2**32), (0, 0)]], 2, [b"a"])

    def test_places_outside_the_shard_are_an_error(self, tar):
        index = TarReader([tar])._index
        index.sections = index.sections.copy()
        index.sections["lows"][:, 0] += 2**40
        with pytest.raises(OSError, match=re.escape(f"{tar}.index, which is damaged")):
            index.spans(ALL)

    def test_a_file_that_lies_about_its_sections(self, tar):
        TarReader([tar])
        file = IndexFile(f"{tar}.index")
        content = Path(f"{tar}.index").read_bytes()
        lying = file.sections.copy()
        lying["samples"] = 10**9
        start, count, length = np.frombuffer(content[-56:-32], "<i8").tolist()
        directory = lying.tobytes() + content[-56 - length : -56]
        end = np.array([start, count, length], "<i8").tobytes() + hashlib.sha256(directory).digest()
        Path(f"{tar}.index").write_bytes(content[:start] + directory + end)
        with pytest.raises(ValueError, match="must be whole"):
            IndexFile(f"{tar}.index")
        assert len(TarReader([tar])) == 20

    def test_sent_to_another_process_it_is_mapped_there(self, tar):
        reader = TarReader([tar])
        reader._index.spans(ALL)
        sent = pickle.dumps(reader)
        assert len(sent) < 6000 and read_all(pickle.loads(sent)) == read_all(reader)
        write_tar(tar, tar_members(numbered(3)))
        TarReader([tar])
        with pytest.raises(OSError, match="Start again"):
            pickle.loads(sent)

    def test_the_mapped_pages_are_given_back(self, tmp_path):
        """A reader of a large index does not hold what it has looked at."""
        index = ShardIndex.of_spans("x", random_spans("any order", np.random.default_rng(0), 10_000), 4)
        packed = pack(index, 2**40, 0)
        with open(tmp_path / "large.index", "wb") as file:
            write_index(file, [str(number) for number in range(1000)], [packed] * 1000)
        large = IndexFile(str(tmp_path / "large.index")).select(range(1000))
        assert len(packed.data) * 1000 > 80e6
        before, most = mapped_bytes(), 0
        for ids in np.arange(len(large)).reshape(-1, 64)[::53]:
            large.spans(ids)
            most = max(most, mapped_bytes() - before)
        assert most < 30e6


def mapped_bytes():
    """The bytes of files that this process has mapped and that are in memory."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
    return 1024 * int(line.split()[1])


class TestByteStrings:
    def test_packed_and_joined(self):
        first, second = [b"", b"abc", b"\0\xff"], [b"x", b""]
        packed = ByteStrings.concatenate([ByteStrings.pack(first), ByteStrings.pack([]), ByteStrings.pack(second)])
        assert [packed[k] for k in range(len(packed))] == first + second
