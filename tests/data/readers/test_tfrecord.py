"""TFRecords: their features, damaged files, and the keys and metadata beside images and captions."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from numbered_pairs import read_all, write_records

from keras_clip.data.readers import open_reader
from keras_clip.data.readers.tfrecord import TFRecordReader, index_tfrecord

pytestmark = pytest.mark.backend_free


def spans(path):
    """Returns (offset, size) of each record."""
    index = index_tfrecord(path)
    return list(zip(index.offsets[:, 0].tolist(), index.sizes[:, 0].tolist(), strict=True))


class TestDamagedFiles:
    @pytest.mark.parametrize("cut", [5, 11, 12, 13, 500, -1, -4, -17])
    def test_truncated_records(self, cut, records):
        content = Path(records).read_bytes()
        Path(records).write_bytes(content[:cut])
        with pytest.raises(ValueError, match=f"Received: {records}.*after {0 if cut > 0 and cut < 100 else ''}"):
            index_tfrecord(records)

    def test_records_with_a_damaged_length(self, records):
        places = spans(records)
        content = bytearray(Path(records).read_bytes())
        content[places[7][0] - 12] ^= 1
        Path(records).write_bytes(content)
        with pytest.raises(ValueError, match=f"{records}: no record at byte {places[7][0] - 12}, after 7 good ones"):
            index_tfrecord(records)

    def test_compressed_records(self, records):
        Path(records).write_bytes(gzip.compress(Path(records).read_bytes()))
        with pytest.raises(ValueError, match="a gzip file"):
            index_tfrecord(records)

    def test_only_the_damaged_record_is_lost(self, records):
        offset, size = spans(records)[7]
        content = bytearray(Path(records).read_bytes())
        content[offset : offset + size] = b"\xff" * size
        Path(records).write_bytes(content)
        found = read_all(TFRecordReader([records]))
        assert found[7] == (b"", [])
        assert [texts for _, texts in found] == [[str(k).encode()] if k != 7 else [] for k in range(20)]


class TestRecords:
    def test_records_are_those_that_tensorflow_reads(self, records):
        import tensorflow as tf

        content = Path(records).read_bytes()
        found = [content[offset : offset + size] for offset, size in spans(records)]
        assert found == list(tf.data.TFRecordDataset(records).as_numpy_iterator())

    def test_names_are_keys(self, records):
        assert TFRecordReader([records]).name(3) == f"{records}: 003"

    def test_the_first_feature_with_a_value(self, tmp_path):
        rows = [{"jpg": b"A", "txt": b"x", "caption": b"y"}, {"png": b"B", "txt": b"", "caption": [b"y", b"z"]}]
        reader = TFRecordReader([write_records(tmp_path / "a.tfrecord", rows)])
        assert read_all(reader) == [(b"A", [b"x"]), (b"B", [b"y", b"z"])]

    def test_named_features(self, tmp_path):
        path = write_records(tmp_path / "a.tfrecord", [{"left": b"A", "alt": b"x", "jpg": b"B", "txt": b"y"}])
        assert read_all(open_reader(path, ("left", "alt"))) == [(b"A", [b"x"])]
        with pytest.raises(ValueError, match=r"feature named 'right'.*\['alt', 'jpg', 'left', 'txt'\]"):
            open_reader(path, ("right", "alt"))

    def test_keys_and_metadata(self, tmp_path):
        import tensorflow as tf

        train = tf.train
        values = {
            "jpg": train.Feature(bytes_list=train.BytesList(value=[b"A"])),
            "key": train.Feature(bytes_list=train.BytesList(value=["é".encode()])),
            "raw": train.Feature(bytes_list=train.BytesList(value=[b"caf\xe9"])),
            "width": train.Feature(int64_list=train.Int64List(value=[7])),
            "box": train.Feature(float_list=train.FloatList(value=[0.5, 2])),
            "none": train.Feature(),
        }
        with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
            for names in (values, ("jpg", "width")):
                feature = {name: values[name] for name in names}
                writer.write(train.Example(features=train.Features(feature=feature)).SerializeToString())
        reader = TFRecordReader([str(tmp_path / "a.tfrecord")] * 2, captions=False)
        assert reader.keys_in_shard(np.array([1, 0, 3])) == ["1", "é", "1"]
        first = {"key": "é", "raw": b"caf\xe9", "width": 7, "box": [0.5, 2.0], "none": []}
        assert reader.metadata(np.arange(2)) == [first, {"width": 7}]
        assert read_all(reader) == [(b"A", [])] * 4

    def test_images_alone(self, tmp_path):
        path = write_records(tmp_path / "a.tfrecord", [{"png": b"A", "label": b"x"}])
        assert read_all(open_reader(path, captions=False)) == [(b"A", [])]
        assert read_all(open_reader(path, ("png", None), captions=False)) == [(b"A", [])]
        with pytest.raises(ValueError, match="a feature named 'txt'"):
            open_reader(path)
        with pytest.raises(ValueError, match="a feature named 'photo'"):
            open_reader(path, ("photo", None), captions=False)
