"""Folders of image files with captions beside them."""

import os

import numpy as np
import pytest
from numbered_pairs import read_all

from keras_clip.data.readers import open_reader
from keras_clip.data.readers.folder import FolderReader

pytestmark = pytest.mark.backend_free


class TestFolders:
    def test_folder(self, tmp_path):
        for name in ("b.jpg", "b.txt", "a.PNG", "a.txt", "no caption.png", "no image.txt", ".hidden.png", "x.npy"):
            (tmp_path / name).write_bytes(name.encode())
        reader = FolderReader([str(tmp_path)])
        assert read_all(reader) == [
            (b"a.PNG", [b"a.txt"]),
            (b"b.jpg", [b"b.txt"]),
            (b"no caption.png", [b""]),
            (b"", [b"no image.txt"]),
        ]
        assert reader.name(3) == str(tmp_path / "no image.txt")
        assert reader.name(1) == str(tmp_path / "b.jpg")

    def test_a_folder_of_shards(self, tar):
        with pytest.raises(ValueError, match=r"0 images.*'tar': 1.*\*.tar"):
            open_reader(os.path.dirname(tar))

    def test_keys_and_metadata(self, tmp_path):
        for name in ("b/2.png", "b/2.txt", "a/x/1.jpg", "0.gif", "lonely.txt"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(name.encode())
        reader = FolderReader([f"{tmp_path}/"])
        ids = np.array([3, 2, 1, 0])
        assert reader.keys(ids) == ["lonely.txt", "b/2.png", "a/x/1.jpg", "0.gif"]
        assert reader.metadata(ids) == [{"class": name} for name in ("", "b", "a", "")]
        assert reader.captions(ids) == [[b"lonely.txt"], [b"b/2.txt"], [b""], [b""]]

    def test_images_alone(self, tmp_path):
        for name in ("a.png", "b.ppm", "c.txt", "d.tif"):
            (tmp_path / name).write_bytes(name.encode())
        reader = FolderReader([str(tmp_path)], captions=False)
        assert read_all(reader) == [(name, [b""]) for name in (b"a.png", b"b.ppm", b"d.tif")]
        assert reader.skipped.counts == {"not an image": 1}
        assert reader.skipped.examples == [f"{tmp_path}/c.txt: not an image"]

    def test_links_are_followed_once(self, tmp_path):
        for name in ("here/x/a.png", "elsewhere/b.png"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(name.encode())
        (tmp_path / "here" / "y").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "here" / "x" / "up").symlink_to(tmp_path / "here")
        (tmp_path / "elsewhere" / "to_x").symlink_to(tmp_path / "here" / "x")
        reader = FolderReader([str(tmp_path / "here")], captions=False)
        assert reader.keys(np.arange(len(reader))) == ["x/a.png", "y/b.png"]
        assert sorted(reader.skipped.examples) == [
            f"{tmp_path}/here/{name}: link to a folder that is read already" for name in ("x/up", "y/to_x")
        ]
