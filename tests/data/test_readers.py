"""What sources are told apart by, how shards are indexed, and what readers make of odd files."""

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from numbered_pairs import image_file, numbered, tar_members, write_records, write_shards, write_table, write_tar
from PIL import Image

from keras_clip.data import shard_index
from keras_clip.data.readers import ImageFiles, IndexedDataset, RecordShards, TarShards, read_folder
from keras_clip.data.shard_index import ByteStrings, load_index, walk_tar, walk_tfrecord
from keras_clip.data.sources import find_files, open_source

pytestmark = pytest.mark.backend_free


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tar(tmp_path):
    return write_tar(tmp_path / "a.tar", tar_members(numbered(20)))


@pytest.fixture
def records(tmp_path):
    rows = [{"key": key.encode(), "jpg": image, "txt": caption} for key, image, caption in numbered(20)]
    return write_records(tmp_path / "a.tfrecord", rows)


def read_all(reader):
    images, captions = reader.read(np.arange(len(reader)))
    return list(zip(images, captions, strict=True))


def keys(index):
    return [index.keys[k] for k in range(len(index.keys))]


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
        reader = TarShards([write_tar(tmp_path / "a.tar", members)])
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
        reader = TarShards([str(tmp_path / "a.tar")])
        assert read_all(reader) == [(("é.jpg".encode() * 200)[:700], [("é.txt".encode() * 200)[:700]])]

    def test_blocks_across_shards_come_in_the_order_asked_for(self, tmp_path):
        paths = find_files(write_shards(tmp_path, numbered(20)))
        reader = TarShards(paths)
        ids = np.random.default_rng(0).permutation(20)
        images, captions = reader.read(ids)
        order = [*range(0, 20, 3), *range(1, 20, 3), *range(2, 20, 3)]
        assert captions == [[str(order[k]).encode()] for k in ids]
        assert images == [image_file(order[k]) for k in ids]

    def test_more_shards_than_open_files(self, tmp_path, monkeypatch):
        monkeypatch.setattr("keras_clip.data.readers._OPEN_FILES", 2)
        reader = TarShards(find_files(write_shards(tmp_path, numbered(20), 7)))
        for _ in range(2):
            assert sorted(int(texts[0]) for _, texts in read_all(reader)) == list(range(20))
            assert len(reader._files) == 2


class TestDamagedShards:
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
            walk_tar(tar)

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
            walk_tar(tar)

    def test_the_same_member_twice(self, tmp_path):
        with pytest.raises(ValueError, match="'a.jpg' twice"):
            walk_tar(write_tar(tmp_path / "a.tar", [("a.jpg", b"A"), ("a.txt", b"x"), ("a.jpg", b"B")]))

    @pytest.mark.parametrize("cut", [5, 11, 12, 13, 500, -1, -4, -17])
    def test_records_cut_short(self, cut, records):
        content = Path(records).read_bytes()
        Path(records).write_bytes(content[:cut])
        with pytest.raises(ValueError, match=f"Received: {records}.*after {0 if cut > 0 and cut < 100 else ''}"):
            walk_tfrecord(records)

    def test_records_with_a_damaged_length(self, records):
        spans = walk_tfrecord(records).spans[:, 0]
        content = bytearray(Path(records).read_bytes())
        content[spans[7, 0] - 12] ^= 1
        Path(records).write_bytes(content)
        with pytest.raises(ValueError, match=f"{records}: no record at byte {spans[7, 0] - 12}, after 7 good ones"):
            walk_tfrecord(records)

    def test_compressed_records(self, records):
        Path(records).write_bytes(gzip.compress(Path(records).read_bytes()))
        with pytest.raises(ValueError, match="a gzip file"):
            walk_tfrecord(records)

    def test_a_damaged_record_costs_itself_alone(self, records):
        offset, size = walk_tfrecord(records).spans[7, 0]
        content = bytearray(Path(records).read_bytes())
        content[offset : offset + size] = b"\xff" * size
        Path(records).write_bytes(content)
        found = read_all(RecordShards([records]))
        assert found[7] == (b"", [])
        assert [texts for _, texts in found] == [[str(k).encode()] if k != 7 else [] for k in range(20)]


class TestRecords:
    def test_records_are_those_that_tensorflow_reads(self, records):
        import tensorflow as tf

        content = Path(records).read_bytes()
        found = [content[offset : offset + size] for offset, size in walk_tfrecord(records).spans[:, 0]]
        assert found == list(tf.data.TFRecordDataset(records).as_numpy_iterator())

    def test_names_are_keys(self, records):
        assert RecordShards([records]).name(3) == f"{records}: 003"

    def test_the_first_feature_that_holds_something(self, tmp_path):
        rows = [{"jpg": b"A", "txt": b"x", "caption": b"y"}, {"png": b"B", "txt": b"", "caption": [b"y", b"z"]}]
        reader = RecordShards([write_records(tmp_path / "a.tfrecord", rows)])
        assert read_all(reader) == [(b"A", [b"x"]), (b"B", [b"y", b"z"])]

    def test_named_features(self, tmp_path):
        path = write_records(tmp_path / "a.tfrecord", [{"left": b"A", "alt": b"x", "jpg": b"B", "txt": b"y"}])
        assert read_all(open_source(path, ("left", "alt"))) == [(b"A", [b"x"])]
        with pytest.raises(ValueError, match=r"feature named 'right'.*\['alt', 'jpg', 'left', 'txt'\]"):
            open_source(path, ("right", "alt"))


class TestCache:
    def counted(self, calls):
        def walk(path):
            calls.append(path)
            return walk_tar(path)

        return walk

    def test_a_shard_is_walked_once(self, tar):
        calls = []
        first, second = (load_index(tar, self.counted(calls)) for _ in range(2))
        assert calls == [tar] and os.path.exists(f"{tar}.index.npz")
        assert np.array_equal(first.spans, second.spans) and np.array_equal(first.is_json, second.is_json)
        assert keys(first) == keys(second) == [f"{k:03d}".encode() for k in range(20)]

    def test_a_changed_shard_is_walked_again(self, tar):
        calls = []
        load_index(tar, self.counted(calls))
        write_tar(tar, tar_members(numbered(3)))
        assert len(load_index(tar, self.counted(calls)).spans) == 3
        # The same size, another time.
        os.utime(tar, ns=(0, 12345))
        load_index(tar, self.counted(calls))
        load_index(tar, self.counted(calls))
        assert len(calls) == 3

    def test_an_index_of_another_version_is_made_again(self, tar, monkeypatch):
        calls = []
        load_index(tar, self.counted(calls))
        monkeypatch.setattr(shard_index, "_VERSION", shard_index._VERSION + 1)
        load_index(tar, self.counted(calls))
        assert len(calls) == 2

    @pytest.mark.parametrize("content", [b"", b"PK\3\4 damaged", b"no zip"])
    def test_a_damaged_index_is_made_again(self, content, tar):
        load_index(tar, walk_tar)
        Path(f"{tar}.index.npz").write_bytes(content)
        assert len(load_index(tar, walk_tar).spans) == 20
        assert len(np.load(f"{tar}.index.npz")["spans"]) == 20

    def test_pickles_are_not_read(self, tar):
        load_index(tar, walk_tar)
        stored = dict(np.load(f"{tar}.index.npz"))
        np.savez(f"{tar}.index.npz", **{**stored, "spans": np.array([Path("x")], object)})
        assert load_index(tar, walk_tar).spans.dtype == np.int64

    def test_where_the_folder_cannot_be_written(self, tar, user_cache, monkeypatch):
        original, calls = shard_index._write, []

        def write(place, *rest):
            if place.parent == Path(tar).parent:
                raise PermissionError(place)
            original(place, *rest)

        monkeypatch.setattr(shard_index, "_write", write)
        for _ in range(2):
            load_index(tar, self.counted(calls))
        assert calls == [tar] and len(list(user_cache.rglob("*.npz"))) == 1
        assert not os.path.exists(f"{tar}.index.npz")

    def test_nothing_is_left_half_written(self, tar, monkeypatch):
        monkeypatch.setattr(np, "savez", lambda *args, **arrays: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            load_index(tar, walk_tar)
        assert os.listdir(os.path.dirname(tar)) == ["a.tar"]

    @pytest.mark.parametrize("count, shown", [(3, False), (8, True)])
    def test_a_progress_bar_for_many(self, count, shown, tmp_path, capsys):
        paths = find_files(write_shards(tmp_path, numbered(10), count))
        TarShards(paths)
        assert ("indexing shards" in capsys.readouterr().err) == shown
        TarShards(paths)
        assert "indexing shards" not in capsys.readouterr().err


class TestByteStrings:
    def test_packed_and_joined(self):
        first, second = [b"", b"abc", b"\0\xff"], [b"x", b""]
        packed = ByteStrings.concatenate([ByteStrings.pack(first), ByteStrings.pack([]), ByteStrings.pack(second)])
        assert [packed[k] for k in range(len(packed))] == first + second


class TestTablesAndFolders:
    def test_odd_rows(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"A")
        lines = [b"id,Image_Path,TEXT", b'1,a.png,"x, ""y"""', b"2,a.png", b"3,,z", b"4,gone.png,z", b"5,a.png,caf\xe9"]
        (tmp_path / "pairs.csv").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
        found = read_all(open_source(tmp_path / "pairs.csv"))
        expected = [(b"A", b'x, "y"'), (b"A", b""), (b"", b"z"), (b"", b"z"), (b"A", b"caf\xe9")]
        assert found == [(image, [caption]) for image, caption in expected]

    def test_absolute_paths_and_several_tables(self, tmp_path):
        (tmp_path / "below").mkdir()
        for folder in (tmp_path, tmp_path / "below"):
            (folder / "a.png").write_bytes(bytes(folder))
            (folder / "pairs.csv").write_text("path,caption\na.png,x\n")
        (tmp_path / "third.csv").write_text(f"path,caption\n{tmp_path / 'below' / 'a.png'},x\n")
        reader = open_source([tmp_path / "pairs.csv", tmp_path / "below" / "pairs.csv", tmp_path / "third.csv"])
        below = bytes(tmp_path / "below")
        assert [image for image, _ in read_all(reader)] == [bytes(tmp_path), below, below]

    @pytest.mark.parametrize(
        "name, text, line",
        [
            ("a.tsv", 'path\tcaption\na.png\t"hello there\nb.png\ta "dog"\nc.png\tx\n', 3),
            ("a.csv", "path,caption\na.png,x\nb.png,a dog, running\n", 3),
        ],
        ids=["a lonely quote", "a comma outside of quotes"],
    )
    def test_quotes_that_would_change_the_data(self, name, text, line, tmp_path):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"must stand in quotes.*Received: .*{name}, line {line}"):
            open_source(tmp_path / name)

    @pytest.mark.parametrize("header", [("url", "caption"), ("path", "label")])
    def test_missing_columns(self, header, tmp_path):
        table = write_table(tmp_path / "pairs.csv", numbered(2), header)
        with pytest.raises(ValueError, match=rf"{table} with the columns \['{header[0]}', '{header[1]}'\]"):
            open_source(table)
        with pytest.raises(ValueError, match="'photo'"):
            open_source(table, ("photo", "caption"))

    def test_folder(self, tmp_path):
        for name in ("b.jpg", "b.txt", "a.PNG", "a.txt", "no caption.png", "no image.txt", ".hidden.png", "x.npy"):
            (tmp_path / name).write_bytes(name.encode())
        reader = read_folder(str(tmp_path))
        assert read_all(reader) == [
            (b"a.PNG", [b"a.txt"]),
            (b"b.jpg", [b"b.txt"]),
            (b"no caption.png", [b""]),
            (b"", [str(tmp_path / "no image.txt").encode()]),
        ]
        assert reader.name(1) == str(tmp_path / "b.jpg")

    def test_a_folder_of_shards(self, tar):
        with pytest.raises(ValueError, match=r"0 images.*'tar': 1.*\*.tar"):
            open_source(os.path.dirname(tar))


class TestDatasets:
    FORMS = {
        "bytes": (image_file(3), image_file(3)),
        "nothing": (None, b""),
        "record": ({"bytes": b"A", "path": None}, b"A"),
        "record of a path": ({"bytes": None, "path": "gone.png"}, b""),
    }

    @pytest.mark.parametrize("given, expected", FORMS.values(), ids=FORMS)
    def test_images(self, given, expected):
        assert read_all(IndexedDataset([(given, "x")], lambda row: row)) == [(expected, [b"x"])]

    @pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1", "I;16"])
    def test_pictures_come_back_as_they_were(self, mode):
        picture = (
            Image.fromarray(np.arange(0, 60, dtype=np.uint8).reshape(4, 5, 3))
            .convert("L")
            .convert(mode if mode != "I;16" else "I")
        )
        picture = picture.convert("I;16") if mode == "I;16" else picture
        ((file, _),) = read_all(IndexedDataset([(picture, "x")], lambda row: row))
        stored = Image.open(io.BytesIO(file))
        assert np.array_equal(np.asarray(stored.convert("RGB")), np.asarray(picture.convert("RGB")))
        assert ("A" in stored.mode) == ("A" in mode)

    def test_an_array_of_one_channel(self):
        pixels = np.arange(20, dtype=np.uint8).reshape(4, 5, 1)
        ((file, _),) = read_all(IndexedDataset([(pixels, "x")], lambda row: row))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), pixels[:, :, 0])

    def test_arrays_that_are_no_pixels(self):
        reader = IndexedDataset([(np.full((4, 4), 0.7, np.float32), "x")], lambda row: row)
        with pytest.raises(ValueError, match="uint8 array.*Received.*float32"):
            reader.read(np.array([0]))

    def test_pictures_are_turned_upright(self):
        file = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (40, 20)).save(file, "JPEG", exif=exif)
        ((stored, _),) = read_all(IndexedDataset([(Image.open(file), "x")], lambda row: row))
        assert Image.open(io.BytesIO(stored)).size == (20, 40)

    @pytest.mark.parametrize(
        "given, expected",
        [("é", ["é".encode()]), (b"x", [b"x"]), (["x", b"y"], [b"x", b"y"]), (("x", None), [b"x"]), (None, []), (3, [])]
        + [(np.array(["x", "y"]), [b"x", b"y"]), ([], [])],
    )
    def test_captions(self, given, expected):
        assert read_all(IndexedDataset([(b"A", given)], lambda row: row)) == [(b"A", expected)]

    def test_hugging_face_images_stay_encoded(self):
        import datasets

        features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
        rows = {"image": [{"bytes": image_file(3), "path": None}], "text": ["x"]}
        reader = open_source(datasets.Dataset.from_dict(rows, features=features), ("image", "text"))
        assert read_all(reader) == [(image_file(3), [b"x"])]


class TestSources:
    PATTERNS = {
        "glob": ("s/*.tar", ["s/00.tar", "s/01.tar", "s/02.tar"]),
        "one": ("s/01.tar", ["s/01.tar"]),
        "range": ("s/{00..02}.tar", ["s/00.tar", "s/01.tar", "s/02.tar"]),
        "backwards": ("s/{02..01}.tar", ["s/02.tar", "s/01.tar"]),
        "choice": ("s/0{2,0}.tar", ["s/02.tar", "s/00.tar"]),
        "two braces": ("{s,t}/0{0..1}.tar", ["s/00.tar", "s/01.tar", "t/00.tar", "t/01.tar"]),
        "no padding": ("s/0{0..2}.tar", ["s/00.tar", "s/01.tar", "s/02.tar"]),
        "list": (["t/*.tar", "s/01.tar"], ["t/00.tar", "t/01.tar", "s/01.tar"]),
        "each once": (["s/*.tar", "s/01.tar"], ["s/00.tar", "s/01.tar", "s/02.tar"]),
        "braces in a name": ("u{1,2}.tar", ["u1.tar", "u2.tar"]),
        "brackets in a name": ("u[1].tar", ["u[1].tar"]),
    }

    @pytest.mark.parametrize("pattern, expected", PATTERNS.values(), ids=PATTERNS)
    def test_patterns(self, pattern, expected, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in ("s/00.tar", "s/01.tar", "s/02.tar", "t/00.tar", "t/01.tar", "u1.tar", "u2.tar", "u[1].tar"):
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).touch()
        assert find_files(pattern) == expected

    def test_the_index_beside_a_shard_is_no_shard(self, tar):
        everything = os.path.join(os.path.dirname(tar), "*")
        first = read_all(open_source(everything))
        assert len(os.listdir(os.path.dirname(tar))) == 2
        assert read_all(open_source(everything)) == first

    def test_a_gap_in_a_range_is_named(self, tmp_path):
        for number in (0, 2):
            (tmp_path / f"{number:05d}.tar").touch()
        with pytest.raises(FileNotFoundError, match="00001.tar"):
            find_files(str(tmp_path / "{00000..00002}.tar"))

    @pytest.mark.parametrize(
        "name, kind", [("a.tar", TarShards), ("a.tfrecord", RecordShards), ("a.tfrecord-00000-of-00001", RecordShards)]
    )
    def test_kinds(self, name, kind, tar, records, tmp_path):
        path = Path(tar if kind is TarShards else records).rename(tmp_path / name)
        assert type(open_source(path)) is kind and len(open_source(str(path))) == 20

    def test_tables_and_folders_are_files_of_images(self, tmp_path):
        assert type(open_source(write_table(tmp_path / "a.tsv", numbered(2), delimiter="\t"))) is ImageFiles

    @pytest.mark.parametrize(
        "source, mapping, error, message",
        [
            ("nothing/*.tar", None, FileNotFoundError, r"nothing/\*.tar"),
            ([], None, FileNotFoundError, "an empty list"),
            ("s3://bucket/a.tar", None, ValueError, "local files"),
            ("https://host/a.tar", None, ValueError, "Download"),
            ("pipe:curl", None, ValueError, "local files"),
            (["a.tar", "b.tfrecord"], None, ValueError, "one kind.*'tar': 'a.tar', 'TFRecord': 'b.tfrecord'"),
            ("c.zip", None, ValueError, "'other': 'c.zip'"),
            ("a.tar", ("jpg", "txt"), ValueError, "takes no mapping"),
            ("b.tfrecord", len, ValueError, "two names"),
            ("b.tfrecord", ("a", "b", "c"), ValueError, "image and caption"),
            (7, None, TypeError, "int"),
            ({"train": [1]}, None, TypeError, "pick one"),
            (iter([1]), None, TypeError, "tf.data.Dataset"),
            ([{"image": b""}], None, ValueError, "mapping=None"),
            ((), len, FileNotFoundError, "empty"),
        ],
        ids=str,
    )
    def test_refusals(self, source, mapping, error, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in ("a.tar", "b.tfrecord", "c.zip"):
            Path(name).touch()
        with pytest.raises(error, match=message):
            open_source(source, mapping)

    def test_an_empty_tar(self, tmp_path):
        with pytest.raises(ValueError, match="must hold samples"):
            open_source(write_tar(tmp_path / "a.tar", []))


def test_json_captions_may_be_non_ascii(tmp_path):
    record = json.dumps({"caption": ["日本", "x"]}, ensure_ascii=False).encode()
    reader = TarShards([write_tar(tmp_path / "a.tar", [("a.jpg", b"A"), ("a.json", record)])])
    assert read_all(reader) == [(b"A", ["日本".encode(), b"x"])]
