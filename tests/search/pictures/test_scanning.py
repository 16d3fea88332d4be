"""Which files of which folders an index has: roots, links, hidden and unreadable folders, hostile names."""

import errno
import os

import pytest
from picture_folders import build_embedder, draw, names

from keras_clip.search import PictureIndex, update_index
from keras_clip.search.pictures import scanning

pytestmark = pytest.mark.backend_free


@pytest.fixture(scope="module")
def embedder():
    return build_embedder()


@pytest.fixture
def update(tmp_path, embedder):
    def update(*roots, folder=tmp_path / "index"):
        changes = update_index(folder, roots or None, embedder, progress=False)
        return changes, PictureIndex.open(folder)

    return update


def paths(index):
    return sorted(str(index.picture(id).path) for id in index.ids)


def test_two_roots(update, tmp_path):
    draw(tmp_path / "a" / "1.png", 1)
    draw(tmp_path / "b" / "1.png", 2)
    changes, index = update(tmp_path / "a")
    changes, index = update(tmp_path / "b")
    assert changes.added == 1
    assert sorted(index.roots.values()) == [tmp_path / "a", tmp_path / "b"]
    assert paths(index) == [str(tmp_path / "a" / "1.png"), str(tmp_path / "b" / "1.png")]
    # Without roots all are scanned, with some only these.
    for root in "ab":
        (tmp_path / root / "1.png").unlink()
    assert update(tmp_path / "b")[0].removed == 1
    assert update()[0].removed == 1


@pytest.mark.parametrize("order", ["outer first", "inner first", "both at once"])
def test_a_root_inside_another_is_a_part_of_it(update, tmp_path, order):
    outer, inner = tmp_path / "outer", tmp_path / "outer" / "x" / "inner"
    draw(outer / "1.png", 1)
    draw(inner / "deep" / "2.png", 2)
    calls = {"outer first": [[outer], [inner]], "inner first": [[inner], [outer]], "both at once": [[inner, outer]]}
    changes = [update(*roots)[0] for roots in calls[order]]
    index = update()[1]
    assert list(index.roots.values()) == [outer]
    assert paths(index) == [str(outer / "1.png"), str(inner / "deep" / "2.png")]
    assert sum(each.encoded for each in changes) == 2
    assert update()[0].unchanged == 2


def test_a_root_in_a_hidden_folder_of_another_stays_one_of_its_own(update, tmp_path):
    draw(tmp_path / "outer" / "1.png", 1)
    draw(tmp_path / "outer" / ".hidden" / "2.png", 2)
    index = update(tmp_path / "outer", tmp_path / "outer" / ".hidden")[1]
    assert len(index.roots) == 2
    assert len(index) == 2


def test_hidden_files_and_other_files_are_passed_over(update, tmp_path):
    root = tmp_path / "root"
    draw(root / "1.png", 1)
    draw(root / ".2.png", 2)
    draw(root / ".cache" / "3.png", 3)
    (root / "film.mov").touch()
    (root / "raw.HEIC").touch()
    (root / "README").touch()
    (root / "folder.jpg").mkdir()
    os.mkfifo(root / "pipe.jpg")
    changes, index = update(root)
    assert names(index) == ["1.png"]
    assert changes.passed_over == {"mov": 1, "heic": 1, "": 1, "jpg": 1}


def test_links_inside_a_root_stand_for_their_targets(update, tmp_path):
    root = tmp_path / "root"
    draw(root / "a" / "1.png", 1)
    draw(root / ".kept" / "2.png", 2)
    (root / "a" / "loop").symlink_to(root, target_is_directory=True)
    (root / "again.png").symlink_to(root / "a" / "1.png")
    (root / "twice").symlink_to("a")
    (root / "shown").symlink_to(".kept")
    (root / "nowhere.png").symlink_to("missing.png")
    (root / "round.png").symlink_to("round.png")
    assert names(update(root)[1]) == [".kept/2.png", "a/1.png"]


def test_links_out_of_a_root_are_not_followed(update, tmp_path):
    secret = draw(tmp_path / "secret" / "1.png", 1)
    draw(tmp_path / "root2" / "2.png", 2)
    root = tmp_path / "root"
    draw(root / "3.png", 3)
    (root / "file.png").symlink_to(secret)
    (root / "folder").symlink_to(secret.parent)
    (root / "up").symlink_to("..")
    # A name that begins like the root's.
    (root / "beside").symlink_to(tmp_path / "root2")
    changes, index = update(root)
    assert names(index) == ["3.png"]
    assert changes.passed_over == {"link out of the folder": 3}


def test_a_root_may_be_a_link(update, tmp_path):
    draw(tmp_path / "real" / "1.png", 1)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert paths(update(tmp_path / "link")[1]) == [str(tmp_path / "link" / "1.png")]
    # Both names are of one folder.
    changes, index = update(tmp_path / "real")
    assert len(index) == len(index.roots) == 1


HOSTILE = [
    b"new\nline.png",
    b"\x1b[31mred\x07.png",
    b"\xff\xfe not utf-8.png",
    b"<img src=x onerror=alert(1)>.png",
    b"'; DROP TABLE pictures; --.png",
    "\u202egnp.exe.png".encode(),
    b"%00 ?#&.png",
    b" .png",
    "e\u0301 日本語 🐈.PNG".encode(),
    b"-rf.png",
    b"a" * 251 + b".png",
]


def test_hostile_names(update, tmp_path):
    root = os.fsencode(tmp_path / "root")
    for number, name in enumerate(HOSTILE):
        folder = os.path.join(root, name[:100] + b".d")
        draw(tmp_path / "x.png", number)
        os.makedirs(folder)
        os.replace(tmp_path / "x.png", os.path.join(folder, name))
    changes, index = update(tmp_path / "root")
    assert changes.added == len(HOSTILE)
    found = {os.fsencode(index.picture(id).path) for id in index.ids}
    assert found == {os.path.join(root, name[:100] + b".d", name) for name in HOSTILE}
    for column in index.columns(["name", "folder"]).values():
        assert all("\n" not in text and "\x1b" not in text and text.encode() for text in column)
    assert update()[0].unchanged == len(HOSTILE)


def test_very_deep_folders(update, tmp_path):
    root = tmp_path / "root"
    draw(root / "1.png", 1)
    here = os.getcwd()
    os.chdir(root)
    try:
        # Longer than the longest path that the system takes.
        for _ in range(25):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
    finally:
        os.chdir(here)
    changes, index = update(root)
    assert names(index) == ["1.png"]
    assert changes.broken == 1
    assert index.broken()[0].reason == "unreadable folder"


def test_what_is_below_an_unreadable_folder_stays(update, tmp_path, monkeypatch):
    root = tmp_path / "root"
    draw(root / "a" / "1.png", 1)
    draw(root / "a" / "b" / "2.png", 2)
    draw(root / "ab" / "3.png", 3)
    update(root)
    (root / "ab" / "3.png").unlink()
    scandir = os.scandir

    def refusing(path):
        if path == os.fsencode(root / "a"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(scanning.os, "scandir", refusing)
    changes, index = update()
    assert names(index) == ["a/1.png", "a/b/2.png"]
    assert (changes.removed, changes.unchanged, changes.broken) == (1, 2, 1)
    assert index.broken()[0][1:] == ("a", "unreadable folder", "Permission denied")
    monkeypatch.undo()
    changes, index = update()
    assert (changes.unchanged, changes.broken) == (2, 0)


def test_a_root_that_is_not_connected_keeps_its_pictures(update, tmp_path):
    root = tmp_path / "root"
    draw(root / "1.png", 1)
    draw(tmp_path / "other" / "2.png", 2)
    update(root, tmp_path / "other")
    root.rename(tmp_path / "away")
    changes, index = update()
    assert len(index) == 2
    assert changes.broken == 1
    (tmp_path / "away").rename(root)
    changes, index = update()
    assert (changes.unchanged, changes.broken) == (2, 0)


def test_an_index_inside_its_root_has_no_thumbnails_as_pictures(update, tmp_path):
    root = tmp_path / "root"
    draw(root / "1.png", 1)
    update(root, folder=root / "picture_index")
    draw(root / "2.png", 2)
    assert names(update(root, folder=root / "picture_index")[1]) == ["1.png", "2.png"]
    assert names(update(root, folder=tmp_path / "second index")[1]) == ["1.png", "2.png"]


@pytest.mark.parametrize("root", ["index", "index/below"])
def test_a_root_is_not_in_the_folder_of_the_index(update, tmp_path, root):
    draw(tmp_path / root / "1.png", 1)
    with pytest.raises(ValueError, match="folder of its own.*another one for the index"):
        update(tmp_path / root)


def test_a_root_that_does_not_exist(update, tmp_path):
    with pytest.raises(FileNotFoundError, match="must exist"):
        update(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="must be a folder"):
        update(draw(tmp_path / "1.png", 1))
    # Nothing was begun.
    assert not (tmp_path / "index").exists()
    draw(tmp_path / "root" / "1.png", 1)
    update(tmp_path / "root")
    with pytest.raises(FileNotFoundError, match="must exist"):
        update(tmp_path / "nowhere")
    assert len(update()[1].roots) == 1


def test_an_empty_folder(update, tmp_path):
    (tmp_path / "root").mkdir()
    changes, index = update(tmp_path / "root")
    assert len(index) == 0
    assert index.embeddings.shape == (0, 6)
    assert index.columns(["name"])["name"].tolist() == []
    draw(tmp_path / "root" / "1.png", 1)
    assert update()[0].added == 1
    assert index.refresh()
    assert index.embeddings.shape == (1, 6)
