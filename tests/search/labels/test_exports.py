"""Exports of labelled pictures, read by what evaluates and trains: sources of evaluation and `image_text_pairs`."""

import io
import json
import os
import shutil
import tarfile
import zipfile
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
from picture_folders import draw

from keras_clip.data.readers import open_reader
from keras_clip.evaluation import sources
from keras_clip.search.labels import LabelledPicture, SavedClass, export, exports
from keras_clip.search.labels.exports import Row, parts, portable

pytestmark = pytest.mark.backend_free
CAT = SavedClass(1, "cat", ("a photo of a cat",), 0.2)
DOG = SavedClass(2, "dog", ("a photo of a dog",), 0.2)
ODD = SavedClass(3, "=AC/DC: ../x", ("odd",), 0.2)


def picture(path, number, caption="", format="PNG"):
    return SimpleNamespace(
        id=number,
        path=path,
        name=path.name,
        folder=path.parent.name,
        width=40,
        height=30,
        taken=datetime(2024, 5, 6, 7, 8, 9),
        sha256=f"{number:064x}",
        caption=caption,
        format=format,
    )


@pytest.fixture
def rows(tmp_path):
    """Two cats, of which one has a caption and the name of the other, and two dogs, one of which is also a cat."""
    places = ["a/1.png", "b/1.png", "b/2.png", "b/3.png"]
    paths = [draw(tmp_path / "photos" / place, number) for number, place in enumerate(places)]
    classes = [(CAT,), (CAT,), (DOG, CAT), (DOG,)]
    captions = ["", "a cat on a mat", "=cmd()", ""]
    return [
        Row(picture(path, number, caption), [LabelledPicture(each, 0.5, each is CAT) for each in of_picture])
        for number, (path, of_picture, caption) in enumerate(zip(paths, classes, captions, strict=True))
    ]


def opened(picture):
    return open(picture.path, "rb")


def labels(images):
    return [images.class_names[label] for label in np.asarray(images.labels)]


SOURCES = {"csv": "out.csv", "json": "out.jsonl", "tar": "out.tar"}


@pytest.mark.parametrize("format, name", SOURCES.items(), ids=SOURCES)
def test_sources_of_evaluation_read_the_labels(rows, tmp_path, format, name):
    assert export(format, iter(rows), opened, tmp_path / name).pictures == []
    images = sources.from_files(str(tmp_path / name))
    assert labels(images) == ["cat", "cat", "dog", "dog"]
    assert len(list(images)) == 4


@pytest.mark.parametrize("format, name", SOURCES.items(), ids=SOURCES)
def test_readers_of_training_read_pictures_and_captions(rows, tmp_path, format, name):
    export(format, iter(rows), opened, tmp_path / name)
    reader = open_reader(str(tmp_path / name))
    images, captions = reader.read(np.arange(4))
    assert images == [row.picture.path.read_bytes() for row in rows]
    # Without a caption of its own, a picture is described by its class.
    formula = "'=cmd()" if format == "csv" else "=cmd()"
    assert [text[0] if isinstance(text[0], str) else text[0].decode() for text in captions] == [
        *("a photo of a cat", "a cat on a mat", formula, "a photo of a dog"),
    ]


def test_a_class_folder_is_read(rows, tmp_path):
    export("folder", iter(rows), opened, tmp_path / "classes")
    assert labels(sources.folder_per_class(tmp_path / "classes")) == ["cat", "cat", "dog", "dog"]
    export("folder", iter(rows), opened, tmp_path / "classes.zip")
    shutil.unpack_archive(tmp_path / "classes.zip", tmp_path / "unpacked")
    found = {path.relative_to(tmp_path / "unpacked").as_posix() for path in (tmp_path / "unpacked").glob("*/*")}
    pictures = {"cat/1.png", "cat/1_2.png", "dog/2.png", "dog/3.png"}
    assert found == pictures | {name.replace(".png", ".txt") for name in pictures}
    # The captions are for training.
    reader = open_reader(str(tmp_path / "classes"))
    assert reader.captions(np.arange(4)) == [
        *([b"a photo of a cat"], [b"a cat on a mat"], [b"=cmd()"], [b"a photo of a dog"])
    ]
    for name in found:
        assert (tmp_path / "classes" / name).read_bytes() == (tmp_path / "unpacked" / name).read_bytes()
    with pytest.raises(ValueError, match="new or empty"):
        export("folder", iter(rows), opened, tmp_path / "classes")


@pytest.mark.parametrize("format, name", [("csv", "out.csv"), ("json", "out.jsonl")])
def test_a_path_that_is_not_utf8_does_not_make_a_table_unreadable(rows, tmp_path, format, name):
    path = draw(tmp_path / os.fsdecode(b"na\xefve \n.png"), 7)
    odd = Row(picture(path, 9), rows[0].labels)
    left = export(format, iter([rows[0], odd, rows[3]]), opened, tmp_path / name)
    assert [number for number, _ in left.pictures] == [9]
    images = sources.from_files(str(tmp_path / name))
    assert labels(images) == ["cat", "dog"]
    # Formats that copy the pictures have all of them.
    assert not export("tar", iter([odd]), opened, tmp_path / "out.tar").pictures


def test_the_folder_of_an_export_is_made(rows, tmp_path):
    export("csv", iter(rows), opened, tmp_path / "new" / "out.csv")
    assert (tmp_path / "new" / "out.csv").exists()


def test_paths(rows, tmp_path):
    export("paths", iter(rows), opened, tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text().splitlines() == [str(row.picture.path) for row in rows]


def test_facts_of_a_line(rows, tmp_path):
    export("json", iter(rows), opened, tmp_path / "out.jsonl")
    line = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[2])
    assert line == {
        "path": str(rows[2].picture.path),
        "label": "dog",
        "labels": ["dog", "cat"],
        "caption": "=cmd()",
        "by_hand": False,
        "name": "2.png",
        "folder": "b",
        "width": 40,
        "height": 30,
        "taken": "2024-05-06T07:08:09",
        "sha256": f"{2:064x}",
        "id": 2,
    }


def test_odd_classes_and_no_class(rows, tmp_path):
    odd = [Row(rows[0].picture, [LabelledPicture(ODD, 0.5, True)]), Row(rows[3].picture, [])]
    data = b"".join(parts("folder", iter(odd), opened))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.namelist() == ["=AC_DC_ .._x/1.png", "=AC_DC_ .._x/1.txt", "unlabelled/3.png"]
        assert archive.testzip() is None
    table = b"".join(parts("csv", iter(odd), opened)).decode()
    assert "'=AC/DC: ../x" in table
    with tarfile.open(fileobj=io.BytesIO(b"".join(parts("tar", iter(odd), opened)))) as tar:
        assert [member.name for member in tar] == [
            *("000000000.png", "000000000.json", "000000000.txt", "000000000.cls"),
            *("000000003.png", "000000003.json"),
        ]


def test_an_export_of_nothing(tmp_path):
    for format in exports.FORMATS:
        b"".join(parts(format, iter([]), opened))
    with zipfile.ZipFile(io.BytesIO(b"".join(parts("folder", iter([]), opened)))) as archive:
        assert archive.namelist() == []


@pytest.mark.parametrize("format", ["tar", "folder"])
def test_pictures_that_are_gone_are_left_out_and_named(rows, tmp_path, format):
    rows[1].picture.path.unlink()
    left = export(format, iter(rows), opened, tmp_path / "out.zip")
    assert [number for number, _ in left.pictures] == [1]
    assert (tmp_path / "out.zip").stat().st_size > 500


def test_parts_are_made_one_by_one(rows):
    taken = []

    def slowly():
        for row in rows:
            taken.append(row)
            yield row

    for format in ("tar", "folder", "json", "csv"):
        taken.clear()
        iterator = parts(format, slowly(), opened)
        next(iterator)
        assert len(taken) == 1
        iterator.close()


def test_an_unknown_format(rows, tmp_path):
    with pytest.raises(ValueError, match="must be one of"):
        export("exe", iter(rows), opened, tmp_path / "x")
    assert not (tmp_path / "x").exists()


NAMES = {"cat": "cat", "a/b": "a_b", "..": "_", "": "_", ".hidden": "hidden", "con": "_con", "COM1.x": "_COM1.x"}
NAMES |= {
    "a. ": "a",
    "a\nb": "a_nb",
    "日本": "日本",
    'a"<>|?*:b': "a_______b",
    "x" * 300: "x" * 200,
    "é" * 150: "é" * 100,
}


@pytest.mark.parametrize("name", NAMES)
def test_portable_names(name):
    assert portable(name) == NAMES[name]
