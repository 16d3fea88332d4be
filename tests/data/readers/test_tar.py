"""WebDataset tars: their members, damaged files, and the keys and metadata beside images and captions."""

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from numbered_pairs import image_file, numbered, read_all, write_shards, write_tar

from keras_clip.data.readers import find_files, open_reader
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
        "other members are ignored": (
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
        "json without a caption": ([("a.jpg", b"A"), ("a.json", b'{"url": "y"}')], {"a": (b"A", [])}),
        "json caption is null": ([("a.jpg", b"A"), ("a.json", b'{"caption": null}')], {"a": (b"A", [])}),
        "json is a list": ([("a.jpg", b"A"), ("a.json", b'["x"]')], {"a": (b"A", [])}),
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

    def test_blocks_across_shards_keep_the_requested_order(self, tmp_path):
        paths = find_files(write_shards(tmp_path, numbered(20)))
        reader = TarReader(paths)
        ids = np.random.default_rng(0).permutation(20)
        images, captions = reader.read(ids)
        order = [*range(0, 20, 3), *range(1, 20, 3), *range(2, 20, 3)]
        assert captions == [[str(order[k]).encode()] for k in ids]
        assert images == [image_file(order[k]) for k in ids]

    def test_more_shards_than_open_files(self, tmp_path, monkeypatch):
        monkeypatch.setattr("keras_clip.data.readers.storage.shards._OPEN_FILES", 2)
        reader = TarReader(find_files(write_shards(tmp_path, numbered(20), 7)))
        for _ in range(2):
            assert sorted(int(texts[0]) for _, texts in read_all(reader)) == list(range(20))
            assert len(reader._files) == 2


class TestPassedOver:
    """What is no part of a sample is counted by reason, and named."""

    # Members -> keys of the samples, and the reasons.
    CASES = {
        "keys with a dot": (
            ["1.5mm.jpg", "1.5mm.txt", "2.jpg", "2.txt"],
            ["2"],
            {"a second dot in the name, where keys end at the first": 2},
        ),
        "a member of another sort": (["a.jpg", "a.txt", "a.npy"], ["a"], {"no part of a pair": 1}),
        "an image format that is not read": (["a.heic", "b.jpg"], ["b"], {"image format not read": 1}),
        "two images of a key": (["a.jpg", "a.png", "a.txt"], ["a"], {"another image of the same key": 1}),
        "hidden files": (["._a.jpg", "x/.DS_Store", "a.jpg"], ["a"], {"hidden file": 2}),
        "no extension": (["LICENSE", "a.jpg"], ["a"], {"no part of a pair": 1}),
        "nothing": (["a.jpg", "a.txt", "a.json", "a.cls"], ["a"], {}),
    }

    @pytest.mark.parametrize("names, keys, reasons", CASES.values(), ids=CASES)
    def test_counted_and_named(self, names, keys, reasons, tmp_path):
        path = write_tar(tmp_path / "a.tar", [(name, b"content of this") for name in names])
        # The second time from the stored index.
        for _ in range(2):
            reader = TarReader([path])
            assert reader.keys(np.arange(len(reader))) == keys
            assert reader.skipped.counts == reasons
            assert len(reader.skipped.examples) == sum(reasons.values())
            assert all(example.startswith(f"{path}: ") for example in reader.skipped.examples)

    def test_of_several_shards(self, tmp_path):
        paths = [write_tar(tmp_path / f"{k}.tar", [(f"{k}.jpg", b"A"), ("notes.md", b"n")]) for k in range(3)]
        reader = TarReader(paths, captions=False)
        assert reader.skipped.counts == {"no part of a pair": 3}
        assert reader.skipped.examples[2] == f"{paths[2]}: notes.md: no part of a pair"

    def test_an_image_by_its_content(self, tmp_path):
        image = image_file(1)
        members = [("a.img", image), ("a.txt", b"x"), ("b.mask", image), ("b.jpg", b"B"), ("c.heic", image)]
        reader = TarReader([write_tar(tmp_path / "a.tar", members)])
        assert read_all(reader) == [(image, [b"x"]), (b"B", [b""])]
        assert reader.skipped.counts == {"another image of the same key": 1, "image format not read": 1}


class TestLinks:
    """Links are the members that they lead to; `tar` makes hard links of files that it meets twice."""

    @staticmethod
    def write(path, links):
        with tarfile.open(path, "w") as tar:
            for name, target, kind in [("x/a.jpg", b"A", None), *links, ("x/a.txt", b"x", None)]:
                member = tarfile.TarInfo(name)
                if kind is None:
                    member.size = len(target)
                    tar.addfile(member, io.BytesIO(target))
                else:
                    member.type, member.linkname = kind, target
                    tar.addfile(member)
        return str(path)

    def test_they_are_followed(self, tmp_path):
        links = [("x/b.jpg", "x/a.jpg", tarfile.LNKTYPE), ("x/b.txt", "a.txt", tarfile.SYMTYPE)]
        links += [("y/c.png", "../x/b.jpg", tarfile.SYMTYPE)]
        path = self.write(tmp_path / "a.tar", links)
        reader = TarReader([path])
        expected = {"x/a": (b"A", [b"x"]), "x/b": (b"A", [b"x"]), "y/c": (b"A", [b""])}
        assert dict(zip(reader.keys(np.arange(3)), read_all(reader), strict=True)) == expected
        assert TarReader([path], captions=False).keys(np.arange(3)) == list(expected)

    FORMS = {
        "hard link, ./ before the member": ("./b.jpg", "x/a.jpg", tarfile.LNKTYPE),
        "hard link, ./ before the target": ("b.jpg", "./x/a.jpg", tarfile.LNKTYPE),
        "hard link, / before the target": ("b.jpg", "/x/a.jpg", tarfile.LNKTYPE),
        "symbolic link, ./ before the member": ("./b.jpg", "x/a.jpg", tarfile.SYMTYPE),
        "symbolic link through a folder": ("./y/b.jpg", ".././x//a.jpg", tarfile.SYMTYPE),
        "a link to its own place": ("./x/a.jpg", "x/a.jpg", tarfile.LNKTYPE),
    }

    @pytest.mark.parametrize("prefix", ["", "./", "/"])
    @pytest.mark.parametrize("link", FORMS.values(), ids=FORMS)
    def test_every_form_of_a_place(self, link, prefix, tmp_path):
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w") as tar:
            member = tarfile.TarInfo(f"{prefix}x/a.jpg")
            member.size = 1
            tar.addfile(member, io.BytesIO(b"A"))
            member = tarfile.TarInfo(link[0])
            member.linkname, member.type = link[1:]
            if member.name != f"{prefix}x/a.jpg":
                tar.addfile(member)
        reader = TarReader([str(path)])
        assert {image for image, _ in read_all(reader)} == {b"A"} and not reader.skipped.counts

    @pytest.mark.parametrize("target", ["x/gone.jpg", "/etc/passwd", "b.jpg", "../x/b.jpg"])
    def test_a_link_without_target_is_passed_over(self, target, tmp_path):
        reader = TarReader([self.write(tmp_path / "a.tar", [("x/b.jpg", target, tarfile.SYMTYPE)])])
        assert read_all(reader) == [(b"A", [b"x"])]
        assert reader.skipped.counts == {"link without target": 1}


class TestSparse:
    """A member that is stored sparsely lies in pieces: its bytes in the file are not the image."""

    @pytest.mark.parametrize("form", ["gnu", "pax"])
    def test_it_is_refused(self, form, tmp_path):
        with open(tmp_path / "a.jpg", "wb") as file:
            file.write(b"A" * 4096)
            file.seek(1 << 20)
            file.write(b"B" * 4096)
        command = ["tar", "--sparse", f"--format={form}", "--hole-detection=raw"]
        subprocess.run([*command, "-cf", "a.tar", "a.jpg"], cwd=tmp_path, check=True)
        for captions in (True, False):
            with pytest.raises(ValueError, match=r"'a.jpg' in .*a.tar, stored sparsely.*without --sparse"):
                TarReader([str(tmp_path / "a.tar")], captions=captions)


class TestKeysThatRestart:
    def shards(self, folder, names=("0.tar", "1.tar")):
        paths = []
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            paths.append(write_tar(folder / name, [("000.jpg", name.encode()), ("000.txt", b"x")]))
        return paths

    @pytest.mark.parametrize(
        "names, prefixes",
        [(("0.tar", "1.tar"), ("0", "1")), (("a/0.tar", "b/0.tar"), ("a/0", "b/0")), (("0.tar", "0"), ("0.tar", "0"))],
        ids=str,
    )
    def test_the_shard_is_a_part_of_the_key(self, names, prefixes, tmp_path):
        paths = self.shards(tmp_path, names)
        for captions in (True, False):
            reader = TarReader(paths, captions=captions)
            assert reader.keys(np.arange(2)) == [f"{prefix}/000" for prefix in prefixes]
        # Messages have the path anyway.
        assert reader.name(1) == f"{paths[1]}: 000"

    def test_a_text_without_image_counts_too(self, tmp_path):
        """Training sees this key, evaluation does not; the names of the others must be equal all the same."""
        first = write_tar(tmp_path / "0.tar", [("a.jpg", b"A"), ("b.txt", b"x")])
        second = write_tar(tmp_path / "1.tar", [("b.jpg", b"B"), ("b.txt", b"y")])
        keys = TarReader([first, second]).keys(np.arange(3))
        assert keys == ["0/a", "0/b", "1/b"]
        assert TarReader([first, second], captions=False).keys(np.arange(2)) == ["0/a", "1/b"]


class TestNamedMembers:
    MEMBERS = [
        ("a.in.jpg", b"A"),
        ("a.out.jpg", b"B"),
        ("a.alt", b"x"),
        ("a.txt", b"y"),
        ("a.json", b'{"caption": "z", "short": ["u", "v"]}'),
    ]

    @pytest.mark.parametrize(
        "mapping, expected",
        [
            (("in.jpg", "alt"), (b"A", [b"x"])),
            (("out.jpg", ".TXT"), (b"B", [b"y"])),
            (("in.jpg", "short"), (b"A", [b"u", b"v"])),
            (["out.jpg", "json"], (b"B", [b"z"])),
            (("in.jpg", "gone"), (b"A", [])),
        ],
        ids=str,
    )
    def test_by_extension_or_by_the_json(self, mapping, expected, tmp_path):
        path = write_tar(tmp_path / "a.tar", self.MEMBERS)
        # Of each mapping there is an index of its own.
        for _ in range(2):
            assert read_all(open_reader(path, mapping)) == [expected]
        assert len(TarReader([path])) == 1

    def test_images_alone(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", self.MEMBERS)
        reader = open_reader(path, ("out.jpg", None), captions=False)
        assert reader.read(np.array([0]))[0] == [b"B"]
        assert reader.metadata(np.array([0])) == [{"caption": "z", "short": ["u", "v"]}]


class TestClasses:
    def test_the_cls_is_metadata(self, tmp_path):
        members = [("a.jpg", b"A"), ("a.cls", b"7\n"), ("b.jpg", b"B"), ("b.json", b'{"cls": "cat"}'), ("b.cls", b"3")]
        reader = TarReader([write_tar(tmp_path / "a.tar", members)], captions=False)
        assert reader.metadata(np.arange(2)) == [{"cls": "7"}, {"cls": "cat"}]
        assert read_all(reader) == [(b"A", [b""]), (b"B", [])]


class TestCompressed:
    PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}

    @pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar", "a.tar.bz2", "a.tar.xz"])
    def test_it_is_read_by_way_of_a_copy(self, name, tar, tmp_path, user_cache):
        plain = read_all(TarReader([tar]))
        packed = tmp_path / "packed" / name
        packed.parent.mkdir()
        packed.write_bytes(self.PACK.get(name.rpartition(".")[2], gzip.compress)(Path(tar).read_bytes()))
        for _ in range(2):
            reader = open_reader(packed)
            assert read_all(reader) == plain and reader.name(3) == f"{packed}: 003"
        assert len(list(user_cache.rglob("*.decompressed"))) == 1 and os.listdir(packed.parent) == [name]
        # Another content of the same name replaces the copy.
        write_tar(tar, [("a.jpg", b"A"), ("a.txt", b"x")])
        packed.write_bytes(gzip.compress(Path(tar).read_bytes()))
        assert read_all(open_reader(packed)) == [(b"A", [b"x"])]
        assert len(list(user_cache.rglob("*.decompressed"))) == 1

    @pytest.mark.parametrize("damage", ["cut short", "a flipped byte", "a cut tar inside", "zstd"])
    def test_damage(self, damage, tar):
        content = Path(tar).read_bytes()
        packed = bytearray(gzip.compress(content))
        if damage == "cut short":
            packed = packed[:-20]
        elif damage == "a flipped byte":
            packed[len(packed) // 2] ^= 255
        elif damage == "zstd":
            packed = b"\x28\xb5\x2f\xfd" + packed
        else:
            packed = gzip.compress(content[:6000])
        path = Path(tar).with_name("b.tar.gz")
        path.write_bytes(packed)
        for captions in (True, False):
            with pytest.raises(ValueError, match=r"Received: .*b.tar.gz"):
                open_reader(path, captions=captions)

    def test_one_that_expands_without_measure(self, tmp_path, monkeypatch, user_cache):
        monkeypatch.setattr("keras_clip.data.readers.storage.copies._FREE_BYTES", 1 << 20)
        path = tmp_path / "a.tar.gz"
        path.write_bytes(gzip.compress(bytes(1 << 24)))
        with pytest.raises(ValueError, match=r"a.tar.gz: it expands to more than"):
            open_reader(path)
        assert not any(path.is_file() for path in user_cache.rglob("*"))


class TestDamagedFiles:
    @pytest.mark.parametrize("kept", [0, 1, 511, 512, 700, "image", "header", "half", "last member", "end marker"])
    def test_a_truncated_tar_is_refused(self, kept, tar):
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

    @pytest.mark.parametrize("change", ["gzip", "text", "joined", "header"])
    def test_other_damage_to_a_tar(self, change, tar):
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
