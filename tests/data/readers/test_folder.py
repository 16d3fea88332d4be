"""Folders of image files with captions beside them."""

import os
from pathlib import Path

import numpy as np
import pytest
from numbered_pairs import read_all
from PIL import Image

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

    NOT_READ = ("a.heic", "b.svg", "c.psd", "d.dng")

    def test_images_of_every_format(self, tmp_path):
        formats = {
            "a.tif": "TIFF",
            "b.jfif": "JPEG",
            "c.avif": "AVIF",
            "d.pgm": "PPM",
            "e.bmp": "BMP",
            "f.webp": "WEBP",
        }
        # By content, where the extension says nothing.
        formats |= {"g": "PNG", "h.image": "JPEG", "i.TIFF": "TIFF", "j.0": "GIF"}
        for name, form in formats.items():
            Image.new("RGB", (9, 7)).save(tmp_path / name, form)
        for name in (*self.NOT_READ, "notes.md", "labels.csv"):
            Image.new("RGB", (9, 7)).save(tmp_path / name, "TIFF")
        (tmp_path / "notes.md").write_text("BMW is a name")
        (tmp_path / "labels.csv").write_text("a,b")
        reader = FolderReader([str(tmp_path)], captions=False)
        assert reader.keys(np.arange(len(reader))) == sorted(formats)
        assert reader.skipped.counts == {"image format not read": len(self.NOT_READ), "not an image": 2}
        assert [Path(example).name for example in reader.skipped.examples] == [
            *(f"{name}: image format not read" for name in self.NOT_READ),
            "labels.csv: not an image",
            "notes.md: not an image",
        ]

    def test_hidden_files_and_folders(self, tmp_path):
        for name in ("a.png", "a.txt", "._a.png", ".ipynb_checkpoints/a.png", ".git/b.png", "gone.png"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"A")
        (tmp_path / "gone.png").unlink()
        (tmp_path / "gone.png").symlink_to("nowhere.png")
        reader = FolderReader([str(tmp_path)])
        assert read_all(reader) == [(b"A", [b"A"])]
        assert reader.skipped.counts == {"hidden file": 1, "hidden folder": 2, "link without target": 1}

    def test_captions_of_another_extension(self, tmp_path):
        for name in ("a.png", "a.caption", "a.jpg", "a.txt"):
            (tmp_path / name).write_bytes(name.encode())
        assert read_all(FolderReader([str(tmp_path)], ("png", "caption"))) == [(b"a.png", [b"a.caption"])]
        assert read_all(FolderReader([str(tmp_path)], (".jpg", ".txt"))) == [(b"a.jpg", [b"a.txt"])]
        with pytest.raises(ValueError, match="0 images, 1 texts"):
            FolderReader([str(tmp_path)], ("webp", "txt"))

    def test_links_to_one_folder(self, tmp_path):
        """A folder is read in its own place, however the links to it are called; chains of them do not multiply."""
        for k in range(12):
            (tmp_path / f"{k:02d}").mkdir()
            (tmp_path / f"{k:02d}" / "a.png").write_bytes(b"A")
            for name in "xy":
                (tmp_path / f"{k:02d}" / name).symlink_to(tmp_path / f"{(k + 1) % 12:02d}")
        (tmp_path / "!first").symlink_to(tmp_path / "05")
        (tmp_path / "file.png").symlink_to(tmp_path / "05" / "a.png")
        reader = FolderReader([str(tmp_path)], captions=False)
        assert reader.keys(np.arange(len(reader))) == [*(f"{k:02d}/a.png" for k in range(12)), "file.png"]
        assert reader.skipped.counts == {"link to a folder that is read already": 25}

    def test_a_folder_that_is_a_link(self, tmp_path):
        (tmp_path / "store").mkdir()
        (tmp_path / "store" / "a.png").write_bytes(b"A")
        (tmp_path / "train").mkdir()
        (tmp_path / "train" / "cat").symlink_to(tmp_path / "store")
        (tmp_path / "data").symlink_to(tmp_path / "train")
        reader = FolderReader([str(tmp_path / "data")], captions=False)
        assert reader.keys(np.arange(len(reader))) == ["cat/a.png"]

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
