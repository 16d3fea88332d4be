"""A store is opened again without reading an image, unless a file may have changed."""

import io
import os
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from keras_clip.data.readers.folder import FolderReader
from keras_clip.evaluation.datasets import sources
from keras_clip.evaluation.datasets.labelled_images import LabelledImages
from keras_clip.evaluation.datasets.sources import reader as source_reader
from keras_clip.evaluation.features import store as store_module

pytestmark = pytest.mark.backend_free


def picture(number):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file, "bmp")
    return file.getvalue()


def write_folder(root):
    for number in range(6):
        path = root / "images" / "ab"[number % 2] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return lambda: sources.folder_per_class(root / "images"), root / "images" / "a" / "2.bmp"


def write_table(root):
    write_folder(root)
    rows = [f"images/{'ab'[number % 2]}/{number}.bmp,{'ab'[number % 2]}" for number in range(6)]
    (root / "table.csv").write_text("\n".join(["path,label", *rows]))
    return lambda: sources.csv(root / "table.csv"), root / "images" / "a" / "2.bmp"


def write_tar(root):
    with tarfile.open(root / "shard.tar", "w") as tar:
        for number in range(6):
            for name, data in ((f"{number}.bmp", picture(number)), (f"{number}.cls", b"ab"[number % 2 :][:1])):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return lambda: sources.tars(root / "shard.tar"), root / "shard.tar"


FORMS = {"folder": write_folder, "table": write_table, "tar": write_tar}


@pytest.fixture
def settled(monkeypatch):
    """Files count as settled at once."""
    monkeypatch.setattr(source_reader, "_NANOSECONDS_SETTLED", 0)
    time.sleep(0.02)


@pytest.fixture(params=FORMS)
def source(request, tmp_path):
    return FORMS[request.param](tmp_path)


def noted(images):
    images.digest()
    return images.note()


def reads(images, note):
    """Returns the digest with a note, and whether the images were read."""
    images.trust(note)
    trusted = images._is_trusted
    return images.digest(), not trusted


def test_unchanged_files_are_not_read(source, settled):
    make, _ = source
    time.sleep(0.02)
    first = make()
    note = noted(first)
    again = make()
    again.read = None
    again.trust(note)
    assert again.digest() == first.digest() and again.note() == note
    again.read = first.read
    again.distrust()
    assert again.digest() == first.digest() and not again._is_trusted


CHANGES = ["content", "content of the same size and time", "another file moved there", "time"]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_files_are_read(source, change, settled):
    make, path = source
    time.sleep(0.02)
    first = make()
    note, stat = noted(first), os.stat(path)
    data = path.read_bytes()
    other = data.replace(picture(2), picture(99))
    assert other != data and len(other) == len(data)
    if change == "content":
        path.write_bytes(other)
    elif change == "time":
        path.touch()
    else:
        place = path if change.startswith("content") else path.with_name("new")
        place.write_bytes(other)
        os.utime(place, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        place.replace(path)
    time.sleep(0.02)
    digest, was_read = reads(make(), note)
    assert was_read and (digest == first.digest()) == (change == "time")


def test_files_of_the_last_seconds_have_no_note(source):
    assert noted(source[0]()) is None


def test_files_that_change_while_they_are_read_have_no_note(tmp_path, settled):
    make, path = write_folder(tmp_path)
    time.sleep(0.02)
    images = make()
    read = images.read

    def changing(start):
        yield from read(start)
        path.write_bytes(picture(77))

    images.read = changing
    assert noted(images) is None


def test_a_missing_file_is_looked_for_again(tmp_path, settled):
    make, path = write_table(tmp_path)
    path.unlink()
    time.sleep(0.02)
    assert noted(make()) is None


def test_other_members_of_the_same_tar_have_another_stamp(tmp_path, settled):
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(4):
            for name, data in ((f"{number}.bmp", picture(number)), (f"{number}.seg.bmp", picture(number + 9))):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            member = tarfile.TarInfo(f"{number}.cls")
            member.size = 1
            tar.addfile(member, io.BytesIO(b"ab"[number % 2 :][:1]))
    time.sleep(0.02)
    first, second = sources.tars(path, image="bmp"), sources.tars(path, image="seg.bmp")
    note = noted(first)
    digest, was_read = reads(second, note)
    assert was_read and digest != first.digest()


def test_sources_without_stamps_are_read(tmp_path, settled):
    class Derived(FolderReader):
        def read(self, ids):
            return [b"x" for _ in ids], [[] for _ in ids]

    write_folder(tmp_path)
    time.sleep(0.02)
    derived = sources.from_reader(Derived([str(tmp_path / "images")], captions=False), label="class")
    own = LabelledImages(lambda start: iter([b"1", b"2"][start:]), ["a", "b"], "12", ["a", "b"])
    for images in (derived, own):
        assert noted(images) is None
        images.trust({"stamp": None, "content": "wrong"})
        assert not images._is_trusted


@pytest.mark.parametrize("note", [{}, {"stamp": "x"}, {"content": "x"}, {"stamp": "x", "content": "y"}])
def test_other_notes_are_ignored(tmp_path, note, settled):
    make, _ = write_folder(tmp_path)
    time.sleep(0.02)
    assert reads(make(), note)[1]


@pytest.mark.parametrize("text", ["", "[1]", "{", "null"])
def test_a_damaged_note_is_none(tmp_path, text):
    (tmp_path / "store.json").write_text("{}")
    (tmp_path / "files.json").write_text(text)
    assert store_module._note_of(tmp_path) == {}
