"""WebDataset tars: their members, damage, and what they hold beside images and captions."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from numbered_pairs import image_file, numbered, read_all, write_shards, write_tar

from keras_clip.data.readers import find_files
from keras_clip.data.readers.tar import TarReader, index_tar

pytestmark = pytest.mark.backend_free


class TestTarMembers:
    # Members in order -> {key: (image, captions)}.
    LAYOUTS = {
        "usual": ([("a.jpg", b"A"), ("a.txt", b"x")], {"a": (b"A", [b"x"])}),
        "any order": (
            [("a.txt", b"x"), ("b.png", b"B"), ("b.txt", b"y"), ("a.jpg", b"A")],
            {"a": (b"A", [b"x"]), "b": (b"B", [b"y"])},
        ),
        "folders": (
            [("p/a.jpg", b"A"), ("q/a.jpg", b"B"), ("q/a.txt", b"y"), ("p/a.txt", b"x")],
            {"p/a": (b"A", [b"x"]), "q/a": (b"B", [b"y"])},
        ),
        "a dot in a folder": ([("v1.0/a.jpg", b"A"), ("v1.0/a.txt", b"x")], {"v1.0/a": (b"A", [b"x"])}),
        "key ends at the first dot": ([("a.jpg", b"A"), ("a.seg.png", b"S"), ("a.txt", b"x")], {"a": (b"A", [b"x"])}),
        "capitals": ([("a.JPG", b"A"), ("a.TXT", b"x")], {"a": (b"A", [b"x"])}),
        "others passed over": (
            [("a.cls", b"1"), ("a.webp", b"A"), ("a.txt", b"x"), ("README", b"")],
            {"a": (b"A", [b"x"])},
        ),
        "hidden": ([("._a.jpg", b"?"), ("a.gif", b"A"), ("a.txt", b"x")], {"a": (b"A", [b"x"])}),
        "no image": ([("a.txt", b"x")], {"a": (b"", [b"x"])}),
        "no caption": ([("a.bmp", b"A")], {"a": (b"A", [b""])}),
        "json": ([("a.jpeg", b"A"), ("a.json", b'{"caption": "x"}')], {"a": (b"A", [b"x"])}),
        "json list": ([("a.jpg", b"A"), ("a.json", b'{"caption": ["x", "y"]}')], {"a": (b"A", [b"x", b"y"])}),
        "text before json": (
            [("a.json", b'{"caption": "y"}'), ("a.txt", b"x"), ("a.jpg", b"A")],
            {"a": (b"A", [b"x"])},
        ),
        "json without": ([("a.jpg", b"A"), ("a.json", b'{"url": "y"}')], {"a": (b"A", [])}),
        "json of nothing": ([("a.jpg", b"A"), ("a.json", b'{"caption": null}')], {"a": (b"A", [])}),
        "json no object": ([("a.jpg", b"A"), ("a.json", b'["x"]')], {"a": (b"A", [])}),
        "json damaged": ([("a.jpg", b"A"), ("a.json", b'{"capt')], {"a": (b"A", [])}),
        "json escapes": ([("a.jpg", b"A"), ("a.json", rb'{"caption": "\u00e9"}')], {"a": (b"A", ["é".encode()])}),
        "long names": ([("k" * 300 + ".jpg", b"A"), ("k" * 300 + ".txt", b"x")], {"k" * 300: (b"A", [b"x"])}),
    }

    @pytest.mark.parametrize("members, expected", LAYOUTS.values(), ids=LAYOUTS)
    def test_samples(self, members, expected, tmp_path):
        reader = TarReader([write_tar(tmp_path / "a.tar", members)])
        names = [f"{tmp_path}/a.tar: {key}" for key in expected]
        assert [reader.name(k) for k in range(len(reader))] == names
        assert read_all(reader) == list(expected.values())

    @pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_every_tar_format(self, form, tmp_path):
        with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
            for name in ("é.jpg", "é.txt"):
                member = tarfile.TarInfo(name)
                member.size = 700
                tar.addfile(member, io.BytesIO(name.encode() * 200))
        reader = TarReader([str(tmp_path / "a.tar")])
        assert read_all(reader) == [(("é.jpg".encode() * 200)[:700], [("é.txt".encode() * 200)[:700]])]

    def test_blocks_across_shards_come_in_the_order_asked_for(self, tmp_path):
        paths = find_files(write_shards(tmp_path, numbered(20)))
        reader = TarReader(paths)
        ids = np.random.default_rng(0).permutation(20)
        images, captions = reader.read(ids)
        order = [*range(0, 20, 3), *range(1, 20, 3), *range(2, 20, 3)]
        assert captions == [[str(order[k]).encode()] for k in ids]
        assert images == [image_file(order[k]) for k in ids]

    def test_more_shards_than_open_files(self, tmp_path, monkeypatch):
        monkeypatch.setattr("keras_clip.data.readers.shards._OPEN_FILES", 2)
        reader = TarReader(find_files(write_shards(tmp_path, numbered(20), 7)))
        for _ in range(2):
            assert sorted(int(texts[0]) for _, texts in read_all(reader)) == list(range(20))
            assert len(reader._files) == 2


class TestDamagedFiles:
    @pytest.mark.parametrize("kept", [0, 1, 511, 512, 700, "image", "header", "half", "last member", "end marker"])
    def test_a_tar_cut_short_is_noticed_wherever(self, kept, tar):
        members = tarfile.open(tar).getmembers()
        last = members[-1].offset_data + 512
        places = {
            "image": members[8].offset_data + members[8].size,
            "header": members[8].offset + 100,
            "half": members[10].offset,
            "last member": last - 512 + 1,
            "end marker": last,
        }
        with open(tar, "r+b") as file:
            file.truncate(places.get(kept, kept))
        with pytest.raises(ValueError, match=rf"whole.* Received: {tar}"):
            index_tar(tar)

    @pytest.mark.parametrize("walk, change", [("tar", "gzip"), ("tar", "text"), ("tar", "joined"), ("tar", "header")])
    def test_other_damage_to_a_tar(self, walk, change, tar):
        content = Path(tar).read_bytes()
        header = tarfile.open(tar).getmembers()[5].offset
        changed, message = {
            "gzip": (gzip.compress(content), "a gzip file. Decompress it"),
            "text": (b"<html>404</html>" * 100, "Received"),
            "joined": (content + content, "joined"),
            "header": (content[:header] + b"\xff" * 8 + content[header + 8 :], f"byte {header}"),
        }[change]
        Path(tar).write_bytes(changed)
        with pytest.raises(ValueError, match=message):
            index_tar(tar)

    def test_the_same_member_twice(self, tmp_path):
        with pytest.raises(ValueError, match="'a.jpg' twice"):
            index_tar(write_tar(tmp_path / "a.tar", [("a.jpg", b"A"), ("a.txt", b"x"), ("a.jpg", b"B")]))


def test_json_captions_may_be_non_ascii(tmp_path):
    record = json.dumps({"caption": ["日本", "x"]}, ensure_ascii=False).encode()
    reader = TarReader([write_tar(tmp_path / "a.tar", [("a.jpg", b"A"), ("a.json", record)])])
    assert read_all(reader) == [(b"A", ["日本".encode(), b"x"])]


class TestBesideImages:
    MEMBERS = [
        ("x/a.png", b"A"),
        ("x/a.json", b'{"name": "owl", "caption": "y"}'),
        ("x/a.txt", b"x"),
        ("b.json", b'{"name": "hen"}'),
        ("c.png", b"C"),
        ("d.png", b""),
        ("d.json", b"[1]"),
        ("e.txt", b"z"),
    ]

    def test_keys_and_metadata(self, tmp_path):
        reader = TarReader([write_tar(tmp_path / "a.tar", self.MEMBERS)])
        ids = np.array([4, 0, 1, 2, 3])
        assert reader.keys(ids) == ["e", "x/a", "b", "c", "d"]
        assert reader.metadata(ids) == [{}, {"name": "owl", "caption": "y"}, {"name": "hen"}, {}, {}]
        assert reader.captions(ids) == [[b"z"], [b"x"], [], [b""], []]

    def test_images_alone(self, tmp_path):
        reader = TarReader([write_tar(tmp_path / f"{k}.tar", self.MEMBERS) for k in range(2)], captions=False)
        assert reader.keys(np.arange(len(reader))) == ["0/x/a", "0/c", "0/d", "1/x/a", "1/c", "1/d"]
        assert [image for image, _ in read_all(reader)] == [b"A", b"C", b""] * 2
        assert reader.name(4) == f"{tmp_path}/1.tar: c"

    def test_a_shard_without_samples(self, tmp_path):
        paths = [write_tar(tmp_path / f"{k}.tar", self.MEMBERS if k == 1 else [("README", b"")]) for k in range(3)]
        reader = TarReader(paths)
        assert [reader.name(k) for k in (0, 4)] == [f"{tmp_path}/1.tar: x/a", f"{tmp_path}/1.tar: e"]
        assert read_all(reader)[0] == (b"A", [b"x"])
