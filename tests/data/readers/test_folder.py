"""Folders of image files with captions beside them."""

import os

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
