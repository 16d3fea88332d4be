"""The index of a shard: it is made once, stored, and made again when the shard or the format version changes."""

import os
from pathlib import Path

import numpy as np
import pytest
from numbered_pairs import numbered, tar_members, write_shards, write_tar

from keras_clip.data.readers import find_files
from keras_clip.data.readers.storage import shards
from keras_clip.data.readers.storage.byte_strings import ByteStrings
from keras_clip.data.readers.storage.shards import ShardIndex, load_index
from keras_clip.data.readers.tar import TarReader, index_tar

pytestmark = pytest.mark.backend_free


def keys(index):
    return [index.keys[k] for k in range(len(index.keys))]


class TestCache:
    def counted(self, calls):
        def index(path):
            calls.append(path)
            return index_tar(path)

        return index

    def test_a_shard_is_indexed_once(self, tar):
        calls = []
        first, second = (load_index(tar, self.counted(calls)) for _ in range(2))
        assert calls == [tar] and os.path.exists(f"{tar}.index.npz")
        assert np.array_equal(first.offsets, second.offsets) and np.array_equal(first.sizes, second.sizes)
        assert keys(first) == keys(second) == [f"{k:03d}".encode() for k in range(20)]

    def test_a_changed_shard_is_indexed_again(self, tar):
        calls = []
        load_index(tar, self.counted(calls))
        write_tar(tar, tar_members(numbered(3)))
        assert len(load_index(tar, self.counted(calls)).offsets) == 3
        # The size stays the same; only the modification time changes.
        os.utime(tar, ns=(0, 12345))
        load_index(tar, self.counted(calls))
        load_index(tar, self.counted(calls))
        assert len(calls) == 3

    def test_an_index_of_another_version_is_made_again(self, tar, monkeypatch):
        calls = []
        load_index(tar, self.counted(calls))
        monkeypatch.setattr(shards, "_VERSION", shards._VERSION + 1)
        load_index(tar, self.counted(calls))
        assert len(calls) == 2

    @pytest.mark.parametrize("content", [b"", b"PK\3\4 damaged", b"no zip"], ids=["empty", "damaged zip", "no zip"])
    def test_a_damaged_index_is_made_again(self, content, tar):
        load_index(tar, index_tar)
        Path(f"{tar}.index.npz").write_bytes(content)
        assert len(load_index(tar, index_tar).offsets) == 20
        assert len(np.load(f"{tar}.index.npz")["offsets"]) == 20

    def test_pickles_are_not_read(self, tar):
        load_index(tar, index_tar)
        stored = dict(np.load(f"{tar}.index.npz"))
        np.savez(f"{tar}.index.npz", **{**stored, "offsets": np.array([Path("x")], object)})
        assert load_index(tar, index_tar).offsets.dtype == np.int64

    def test_where_the_folder_cannot_be_written(self, tar, user_cache, monkeypatch):
        original, calls = shards._write, []

        def write(place, *rest):
            if place.parent == Path(tar).parent:
                raise PermissionError(place)
            original(place, *rest)

        monkeypatch.setattr(shards, "_write", write)
        for _ in range(2):
            load_index(tar, self.counted(calls))
        assert calls == [tar] and len(list(user_cache.rglob("*.npz"))) == 1
        assert not os.path.exists(f"{tar}.index.npz")

    def test_nothing_is_left_half_written(self, tar, monkeypatch):
        monkeypatch.setattr(np, "savez", lambda *args, **arrays: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            load_index(tar, index_tar)
        assert os.listdir(os.path.dirname(tar)) == ["a.tar"]

    @pytest.mark.parametrize("count, shown", [(3, False), (8, True)])
    def test_a_progress_bar_for_many(self, count, shown, tmp_path, capsys):
        paths = find_files(write_shards(tmp_path, numbered(10), count))
        TarReader(paths)
        assert ("indexing shards" in capsys.readouterr().err) == shown
        TarReader(paths)
        assert "indexing shards" not in capsys.readouterr().err


class TestIndex:
    def test_twelve_bytes_for_each_part_that_occurs(self, tmp_path):
        reader = TarReader(find_files(write_shards(tmp_path, numbered(20))))
        assert reader.offsets.nbytes + reader.sizes.nbytes == 20 * 2 * 12

    def test_places_beyond_four_gigabytes(self):
        far = 2**40
        index = ShardIndex.of_spans("a.tar", [[(far, 7), (0, 0)]], 2, [b"a"])
        assert (index.offsets.tolist(), index.sizes.tolist()) == ([[far, 0]], [[7, 0]])
        with pytest.raises(ValueError, match="smaller than 4 GiB. Received: a.tar"):
            ShardIndex.of_spans("a.tar", [[(512, 2**32), (0, 0)]], 2, [b"a"])

    def test_an_index_of_the_first_version_is_made_again(self, tar):
        stat = os.stat(tar)
        stamp, spans = np.array([1, stat.st_size, stat.st_mtime_ns], np.int64), np.zeros((1, 2, 2), np.int64)
        blob, ends = np.frombuffer(b"a", np.uint8), np.array([1])
        np.savez(f"{tar}.index.npz", stamp=stamp, spans=spans, is_json=np.zeros(1, bool), blob=blob, ends=ends)
        assert len(TarReader([tar])) == 20
        assert np.load(f"{tar}.index.npz")["offsets"].shape == (20, 4)


class TestByteStrings:
    def test_packed_and_joined(self):
        first, second = [b"", b"abc", b"\0\xff"], [b"x", b""]
        packed = ByteStrings.concatenate([ByteStrings.pack(first), ByteStrings.pack([]), ByteStrings.pack(second)])
        assert [packed[k] for k in range(len(packed))] == first + second
