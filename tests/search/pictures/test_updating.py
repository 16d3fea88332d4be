"""An index follows its folders: new, changed, touched, renamed, copied, removed and broken files."""

import os
import shutil

import numpy as np
import pytest
from picture_folders import age, build_embedder, draw, names
from PIL import Image

from keras_clip.search import PictureIndex, update_index

pytestmark = pytest.mark.backend_free


@pytest.fixture(scope="module")
def embedder():
    return build_embedder()


@pytest.fixture
def pictures(tmp_path):
    for number in range(4):
        draw(tmp_path / "pictures" / f"{number}.png", number)
    draw(tmp_path / "pictures" / "below" / "further" / "4.jpg", 4)
    return tmp_path / "pictures"


@pytest.fixture
def update(tmp_path, pictures, embedder):
    """Updates the index, and returns what changed and the snapshot after it."""

    def update(roots=None, **options):
        known = (tmp_path / "index" / "index.sqlite").exists()
        roots = roots if roots is not None or known else pictures
        changes = update_index(tmp_path / "index", roots, embedder, progress=False, **options)
        return changes, PictureIndex.open(tmp_path / "index")

    return update


def counts(changes):
    kinds = ("added", "changed", "renamed", "removed", "captions", "unchanged", "broken", "encoded")
    return {kind: getattr(changes, kind) for kind in kinds if getattr(changes, kind)}


def test_a_new_index_has_the_facts_and_embeddings_of_each_picture(update, pictures, embedder):
    changes, index = update()
    assert counts(changes) == {"added": 5, "encoded": 5}
    assert names(index) == ["0.png", "1.png", "2.png", "3.png", "below/further/4.jpg"]
    assert index.roots == {0: pictures}
    for id in index.ids:
        picture = index.picture(id)
        expected = np.asarray(embedder.predict_on_batch(embedder.image_preprocessor.to_uint8([picture.path])))[0]
        np.testing.assert_allclose(index.embeddings[index.rows_of([id])[0]], expected, atol=1e-5)
        assert (picture.width, picture.height) == (40, 30)
        assert picture.size == picture.path.stat().st_size
        with Image.open(index.folder / "thumbnails" / picture.sha256[:2] / f"{picture.sha256}.webp") as thumbnail:
            assert thumbnail.size == (40, 30)
            assert thumbnail.format == "WEBP"
    assert index.features.shape == (5, 13)
    assert index.embeddings.shape == (5, 6)


def test_an_update_without_a_change_encodes_nothing(update):
    update()
    changes, index = update()
    assert counts(changes) == {"unchanged": 5}
    assert changes.is_empty
    assert index.version == update()[1].version


def test_a_touched_file_is_unchanged(update, pictures):
    _, before = update()
    age(pictures / "0.png", 50)
    changes, index = update()
    assert counts(changes) == {"unchanged": 5}
    assert index.version == before.version


@pytest.mark.parametrize("path", ["0.png", "below/further/4.jpg"])
def test_a_changed_file_gets_another_id(update, pictures, path):
    _, before = update()
    draw(pictures / path, 77)
    changes, index = update()
    assert counts(changes) == {"changed": 1, "unchanged": 4, "encoded": 1}
    assert names(index) == names(before)
    gone, come = set(before.ids) - set(index.ids), set(index.ids) - set(before.ids)
    assert len(gone) == len(come) == 1
    with pytest.raises(KeyError, match="removed"):
        index.picture(gone.pop())


def test_a_file_that_changes_without_another_size_or_time_soon_after_it_was_written_is_seen(update, pictures):
    path = pictures / "0.png"
    # Both have the same size, as bitmaps.
    draw(pictures / "new.bmp", 8)
    os.utime(pictures / "new.bmp")
    update()
    facts = os.stat(pictures / "new.bmp")
    draw(pictures / "new.bmp", 9)
    os.utime(pictures / "new.bmp", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert os.stat(pictures / "new.bmp").st_size == facts.st_size
    assert counts(update()[0]) == {"changed": 1, "unchanged": 5, "encoded": 1}
    assert path.exists()


def test_renamed_files_keep_their_ids(update, pictures):
    _, before = update()
    (pictures / "0.png").rename(pictures / "below" / "zero.png")
    (pictures / "below" / "further").rename(pictures / "moved")
    changes, index = update()
    assert counts(changes) == {"renamed": 2, "unchanged": 3}
    assert names(index) == ["1.png", "2.png", "3.png", "below/zero.png", "moved/4.jpg"]
    assert index.ids.tolist() == before.ids.tolist()


def test_two_files_that_swap_their_names(update, pictures):
    _, before = update()
    ids = {index_name(before, id): id for id in before.ids.tolist()}
    (pictures / "0.png").rename(pictures / "x")
    (pictures / "1.png").rename(pictures / "0.png")
    (pictures / "x").rename(pictures / "1.png")
    # Sizes and times of change may be equal.
    age(pictures / "0.png", 5)
    changes, index = update()
    assert counts(changes) == {"renamed": 2, "unchanged": 3}
    assert {index_name(index, id): id for id in index.ids.tolist()} == {
        **ids,
        "0.png": ids["1.png"],
        "1.png": ids["0.png"],
    }


def index_name(index, id):
    return index.picture(id).name


def test_a_file_that_takes_the_place_of_another(update, pictures):
    update()
    (pictures / "0.png").replace(pictures / "1.png")
    changes, index = update()
    assert counts(changes) == {"renamed": 1, "removed": 1, "unchanged": 3}
    assert names(index) == ["1.png", "2.png", "3.png", "below/further/4.jpg"]


def test_a_copy_is_a_picture_of_its_own_that_is_not_encoded(update, pictures):
    update()
    shutil.copy2(pictures / "0.png", pictures / "copy.png")
    changes, index = update()
    assert counts(changes) == {"added": 1, "unchanged": 5}
    rows = index.rows_of([id for id in index.ids if index_name(index, id) in ("0.png", "copy.png")])
    assert len(rows) == 2
    np.testing.assert_array_equal(*index.embeddings[rows])
    # One of them may go.
    (pictures / "0.png").unlink()
    assert counts(update()[0]) == {"removed": 1, "unchanged": 5}


def test_copies_of_one_content_in_a_new_index(update, pictures):
    shutil.copy2(pictures / "0.png", pictures / "below" / "copy.png")
    changes, index = update()
    assert changes.added == 6
    sha256 = index.columns(["sha256"])["sha256"].tolist()
    assert len(set(sha256)) == 5


def test_a_removed_file_that_returns_keeps_its_id(update, pictures):
    _, before = update()
    data = (pictures / "2.png").read_bytes()
    (pictures / "2.png").unlink()
    changes, index = update()
    assert counts(changes) == {"removed": 1, "unchanged": 4}
    assert len(index) == 4
    (pictures / "again.png").write_bytes(data)
    changes, index = update()
    assert counts(changes) == {"added": 1, "unchanged": 4}
    assert index.ids.tolist() == before.ids.tolist()


BROKEN = {
    "text": (b"not an image", "undecodable image"),
    "empty": (b"", "empty file"),
    "cut": (None, "undecodable image"),
    "too many pixels": (b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0" + b"\xff\xff\0\0" * 2 + bytes(28), None),
}


@pytest.mark.parametrize("data, reason", BROKEN.values(), ids=BROKEN)
def test_broken_files_are_counted_and_named_until_they_change(update, pictures, data, reason):
    whole = (pictures / "3.png").read_bytes()
    path = pictures / "below" / "broken.png"
    path.write_bytes(whole[: len(whole) // 2] if data is None else data)
    age(path)
    changes, index = update()
    assert counts(changes) == {"added": 5, "encoded": 5, "broken": 1}
    (broken,) = index.broken()
    assert broken.path == "below/broken.png"
    assert reason in (broken.reason, None)
    assert sum(index.broken_counts().values()) == 1
    assert counts(update()[0]) == {"unchanged": 5, "broken": 1}
    draw(path, 50)
    changes, index = update()
    assert counts(changes) == {"added": 1, "unchanged": 5, "encoded": 1}
    assert index.broken() == []
    # A picture that breaks is no longer found.
    path.write_bytes(b"broken again")
    age(path)
    assert counts(update()[0]) == {"removed": 1, "unchanged": 5, "broken": 1}
    path.unlink()
    assert counts(update()[0]) == {"unchanged": 5}


def test_captions_are_the_texts_beside_pictures_or_in_their_metadata(update, pictures):
    (pictures / "0.txt").write_text("a red car\n", encoding="utf-8")
    (pictures / "1.txt").write_text("ein Gruß", encoding="utf-16")
    (pictures / "2.txt").write_bytes(b"\xff broken \0 text")
    exif = Image.Exif()
    exif[0x010E] = "of the camera"
    draw(pictures / "5.jpg", 5, exif=exif)
    _, index = update()
    captions = {index_name(index, id): index.picture(id).caption for id in index.ids}
    assert captions == {
        "0.png": "a red car",
        "1.png": "ein Gruß",
        "2.png": "\ufffd broken  text",
        "3.png": "",
        "4.jpg": "",
        "5.jpg": "of the camera",
    }
    (pictures / "0.txt").unlink()
    (pictures / "3.txt").write_text("new")
    (pictures / "5.txt").write_text("by hand")
    age(pictures / "5.txt")
    changes, index = update()
    assert counts(changes) == {"captions": 3, "unchanged": 6}
    columns = index.columns(["name", "caption"])
    captions = dict(zip(columns["name"], columns["caption"], strict=True))
    assert (captions["0.png"], captions["3.png"], captions["5.jpg"]) == ("", "new", "by hand")
    # A renamed picture has the text of its new name.
    (pictures / "3.png").rename(pictures / "0.png")
    _, index = update()
    assert dict(zip(*index.columns(["name", "caption"]).values(), strict=True))["0.png"] == ""


def test_captions_of_files_without_a_time_of_change(update, pictures):
    """Reproducible archives set all times to the beginning of 1970."""
    text = pictures / "0.txt"
    text.write_text("a red car", encoding="utf-8")

    def caption():
        for path in (text, pictures / "0.png"):
            os.utime(path, (0, 0))
        index = update()[1]
        return index.picture(next(id for id in index.ids if index_name(index, id) == "0.png")).caption

    assert caption() == "a red car"
    assert caption() == "a red car"
    text.write_text("a bus", encoding="utf-8")
    assert caption() == "a bus"


def test_dates_and_orientation_are_those_of_the_camera(update, pictures):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9003] = "2003:02:01 10:20:30"
    draw(pictures / "upright.jpg", 20, exif=exif)
    exif = Image.Exif()
    exif[0x0132] = "0000:00:00 00:00:00"
    draw(pictures / "no clock.jpg", 21, exif=exif)
    _, index = update()
    columns = index.columns(["name", "taken", "width", "height", "format"])
    rows = {name: row for row, name in enumerate(columns["name"])}
    assert str(columns["taken"][rows["upright.jpg"]]) == "2003-02-01T10:20:30"
    assert (columns["width"][rows["upright.jpg"]], columns["height"][rows["upright.jpg"]]) == (30, 40)
    assert columns["taken"][rows["no clock.jpg"]] > np.datetime64("2020-01-01")
    assert index.picture(index.ids[rows["upright.jpg"]]).taken.isoformat() == "2003-02-01T10:20:30"
    assert columns["format"][rows["upright.jpg"]] == "JPEG"
