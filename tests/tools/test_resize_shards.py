"""Shards with smaller images: what is stored, and a call that was interrupted."""

import io
import os

import numpy as np
import pytest
from numbered_pairs import write_tar
from PIL import Image
from scripts import load_script

from keras_clip.data.readers import open_reader
from keras_clip.data.readers.storage.manifest import read_manifest

pytestmark = pytest.mark.backend_free


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/resize_shards.py")


def picture(width, height, kind="JPEG", **options):
    """Two colours, side by side."""
    image = Image.new("RGB", (width, height), (200, 30, 30))
    image.paste((30, 30, 200), (width // 2, 0, width, height))
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(width, height):
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(width, height, exif=exif)


SMALL, BROKEN = picture(40, 30, "PNG"), picture(90, 60)[:300]


@pytest.fixture
def source(tmp_path):
    members = [
        *(("a.jpg", picture(300, 200)), ("a.txt", b"wide"), ("a.json", b'{"url": "x", "nsfw": 0.5}')),
        *(("b.png", SMALL), ("b.txt", b"small")),
        *(("c.jpg", BROKEN), ("c.txt", b"broken")),
        *(("d.jpg", turned(200, 120)), ("d.txt", b"turned")),
        ("e.txt", b"no image"),
    ]
    write_tar(tmp_path / "one.tar", members)
    write_tar(tmp_path / "two.tar", [("a.webp", picture(100, 400, "WEBP")), ("a.txt", "café".encode())])
    return tmp_path


def copy(tool, source, *options):
    tool.main([str(source / "*.tar"), "--out", str(source / "new"), "--side", "50", "--engine", "serial", *options])
    return open_reader(str(source / "new" / "one.tar")), open_reader(str(source / "new" / "two.tar"))


def test_images_are_resized_and_the_rest_stays(tool, source, capsys):
    one, two = copy(tool, source)
    images, captions = one.read(np.arange(len(one)))
    assert captions == [[b"wide"], [b"small"], [b"broken"], [b"turned"], [b"no image"]]
    assert one.keys(np.arange(4)) == ["a", "b", "c", "d"]
    assert one.metadata(np.array([0]))[0] | {"url": "x", "nsfw": 0.5} == one.metadata(np.array([0]))[0]
    assert [Image.open(io.BytesIO(images[row])).size for row in (0, 1, 3)] == [(75, 50), (40, 30), (50, 83)]
    assert images[1] == SMALL and images[2] == BROKEN and images[4] == b""
    # Turned by a quarter, so that the colours are above each other.
    upright = np.asarray(Image.open(io.BytesIO(images[3])).convert("RGB"), int)
    assert abs(upright[10] - (200, 30, 30)).max() < 12 and abs(upright[-10] - (30, 30, 200)).max() < 12
    (image,), (caption,) = two.read(np.arange(1))
    assert Image.open(io.BytesIO(image)).size == (50, 200) and caption == ["café".encode()]
    manifest = read_manifest(source / "new")
    assert manifest["complete"] and manifest["samples"] == 6
    assert "6 samples in 2 shards" in capsys.readouterr().out


def test_a_call_goes_on_and_notices_changes(tool, source, monkeypatch):
    copy(tool, source)
    done, run = [], tool.Resize.run
    monkeypatch.setattr(
        tool.Resize, "run", lambda self, state, item: (done.append(item.target.name), run(self, state, item))
    )
    copy(tool, source)
    assert done == []
    (source / "new" / "two.tar").unlink()
    copy(tool, source)
    assert done == ["two.tar"]
    os.utime(source / "one.tar", (0, 0))
    copy(tool, source)
    assert done == ["two.tar", "one.tar"]
    copy(tool, source, "--side", "60")
    assert sorted(done[2:]) == ["one.tar", "two.tar"]


def test_files_of_one_name_are_refused(tool, source):
    (source / "more").mkdir()
    write_tar(source / "more" / "one.tar", [("a.txt", b"other")])
    with pytest.raises(ValueError, match="different names.*more"):
        tool.main([str(source / "*.tar"), str(source / "more" / "*.tar"), "--out", str(source / "new")])


@pytest.mark.parametrize("options", [["--side", "0"], ["--quality", "101"]])
def test_wrong_arguments(tool, options, capsys):
    with pytest.raises(SystemExit):
        tool.main(["a.tar", "--out", "b", *options])
    assert "Received: --side" in capsys.readouterr().err
