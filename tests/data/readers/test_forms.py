"""The table of storage forms: the reader that each source gets, and the sources that are refused."""

import os
from pathlib import Path

import pytest
from numbered_pairs import numbered, read_all, write_table, write_tar

from keras_clip.data.readers import open_reader
from keras_clip.data.readers.table import TableReader
from keras_clip.data.readers.tar import TarReader
from keras_clip.data.readers.tfrecord import TFRecordReader

pytestmark = pytest.mark.backend_free


class TestForms:
    def test_the_index_beside_a_shard_is_no_shard(self, tar):
        everything = os.path.join(os.path.dirname(tar), "*")
        first = read_all(open_reader(everything))
        assert len(os.listdir(os.path.dirname(tar))) == 2
        assert read_all(open_reader(everything)) == first

    @pytest.mark.parametrize(
        "name, reader",
        [("a.tar", TarReader), ("a.tfrecord", TFRecordReader), ("a.tfrecord-00000-of-00001", TFRecordReader)],
    )
    def test_reader_by_file_name(self, name, reader, tar, records, tmp_path):
        path = Path(tar if reader is TarReader else records).rename(tmp_path / name)
        assert type(open_reader(path)) is reader and len(open_reader(str(path))) == 20

    def test_a_link_to_a_shard_is_the_same_shard(self, tar, tmp_path):
        os.symlink(tar, tmp_path / "link.tar")
        assert len(open_reader([tar, tmp_path / "link.tar"])) == len(open_reader([tmp_path / "link.tar", tar])) == 20

    def test_tables_and_folders_are_files_of_images(self, tmp_path):
        assert type(open_reader(write_table(tmp_path / "a.tsv", numbered(2), delimiter="\t"))) is TableReader

    # (source, mapping, error, a part of its message).
    REFUSED = {
        "a glob without a match": ("nothing/*.tar", None, FileNotFoundError, r"nothing/\*.tar"),
        "an empty list": ([], None, FileNotFoundError, "an empty list"),
        "another protocol": ("sftp://host/a.tar", None, ValueError, "local files, or files of s3://"),
        "a list of web addresses": ("https://host/*.tar", None, ValueError, "by braces"),
        "a remote table": ("https://host/a.csv", None, ValueError, "a table. Download it"),
        "a file of another host": ("file://host/a.tar", None, ValueError, "local files"),
        "a pipe": ("pipe:curl", None, ValueError, "local files"),
        "a list of two forms": (["b.tfrecord", "c.zip"], None, ValueError, "'c.zip', which is none of these"),
        "an unknown form": ("c.zip", None, ValueError, "'c.zip', which is none of these"),
        "a function for a tar": ("a.tar", len, ValueError, "two names"),
        "numbers for a tar": ("a.tar", (0, 1), ValueError, "two names"),
        "an empty name for a tar": ("a.tar", ("jpg", ""), ValueError, "two columns"),
        "one name for a tar": ("a.tar", "jpg", ValueError, "two columns"),
        "a function for a TFRecord": ("b.tfrecord", len, ValueError, "two names"),
        "three names for a TFRecord": ("b.tfrecord", ("a", "b", "c"), ValueError, "image and caption"),
        "a number": (7, None, TypeError, "int"),
        "a dict of splits": ({"train": [1]}, None, TypeError, "pick one"),
        "an iterator": (iter([1]), None, TypeError, "tf.data.Dataset"),
        "a list without a mapping": ([{"image": b""}], None, ValueError, "mapping=None"),
        "an empty tuple": ((), len, FileNotFoundError, "empty"),
    }

    @pytest.mark.parametrize("source, mapping, error, message", REFUSED.values(), ids=REFUSED)
    def test_refusals(self, source, mapping, error, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in ("a.tar", "b.tfrecord", "c.zip"):
            Path(name).touch()
        with pytest.raises(error, match=message):
            open_reader(source, mapping)

    def test_an_empty_tar(self, tmp_path):
        with pytest.raises(ValueError, match="must hold samples"):
            open_reader(write_tar(tmp_path / "a.tar", []))
