"""Several sources as one: of one form or of several, files and objects."""

import numpy as np
import pytest
from numbered_pairs import numbered, read_all, tar_members, write_folder, write_records, write_table, write_tar

from keras_clip.data.readers import open_reader
from keras_clip.data.readers.joined import JoinedReader
from keras_clip.data.readers.tar import TarReader

pytestmark = pytest.mark.backend_free


@pytest.fixture
def sources(tmp_path):
    """Sources of six forms, of three pairs each, with the numbers 0 to 17."""
    samples = numbered(18)
    for name in ("table", "folder"):
        (tmp_path / name).mkdir()
    rows = [{"key": key.encode(), "jpg": image, "txt": caption} for key, image, caption in samples[3:6]]
    return [
        write_tar(tmp_path / "a.tar", tar_members(samples[:3])),
        write_records(tmp_path / "a.tfrecord", rows),
        write_table(tmp_path / "table" / "a.csv", samples[6:9]),
        write_folder(tmp_path / "folder", samples[9:12]),
        TarReader([write_tar(tmp_path / "b.tar", tar_members(samples[12:15]))]),
        TarReader([write_tar(tmp_path / "c.tar", tar_members(samples[15:18]))]),
    ]


def test_all_forms(sources):
    reader = open_reader(sources)
    assert len(reader) == 18
    expected = [(image, caption) for _, image, caption in numbered(18)]
    found = read_all(reader)
    assert [(image, texts[0].strip()) for image, texts in found] == expected
    ids = np.random.default_rng(0).permutation(18)
    images, captions = reader.read(ids)
    assert images == [expected[k][0] for k in ids] and captions == reader.captions(ids)
    assert [reader.name(k).rpartition("/")[2] for k in (0, 4, 7, 10, 16)] == [
        "a.tar: 000",
        "a.tfrecord: 004",
        "007.png",
        "010.png",
        "c.tar: 016",
    ]
    assert reader.keys(np.array([17, 0])) == ["017", "000"]
    assert reader.metadata(np.array([6, 3, 9])) == [
        {"path": "006.png", "caption": "6"},
        {"key": "003", "txt": "3"},
        {"class": "below"},
    ]


def test_one_form_is_one_reader(tmp_path):
    paths = [write_tar(tmp_path / f"{k}.tar", tar_members(numbered(2))) for k in range(2)]
    reader = open_reader([paths[0], f"{tmp_path}/*.tar"])
    assert type(reader) is TarReader and reader.paths == paths


def test_keys_that_restart(tmp_path):
    tar = write_tar(tmp_path / "a.tar", tar_members(numbered(2)))
    other = TarReader([write_tar(tmp_path / "b.tar", tar_members(numbered(2)))])
    reader = open_reader([tar, other])
    assert type(reader) is JoinedReader
    assert reader.keys(np.arange(4)) == ["source0/000", "source0/001", "source1/000", "source1/001"]


def test_what_was_passed_over_is_that_of_all(tmp_path, caplog):
    tar = write_tar(tmp_path / "a.tar", [*tar_members(numbered(2)), ("notes.md", b"n")])
    for name in "xy":
        (tmp_path / name).mkdir()
        write_folder(tmp_path / name, numbered(2))
        (tmp_path / name / "a.heic").write_bytes(b"?")
    reader = open_reader([tar, tmp_path / "x", tmp_path / "y"])
    assert reader.skipped.counts == {"no part of a pair": 1, "image format not read": 2}
    assert reader.skipped.examples[0] == f"{tar}: notes.md: no part of a pair"
    assert "passed over 3 files of 3 sources: image format not read 2, no part of a pair 1" in caplog.text


def test_data_sets_and_data_frames():
    pandas = pytest.importorskip("pandas")
    import datasets

    rows = {"image": [b"A", b"B"], "text": ["x", "y"]}
    whole = open_reader([datasets.Dataset.from_dict(rows), pandas.DataFrame(rows)], ("image", "text"))
    assert read_all(whole) == [(b"A", [b"x"]), (b"B", [b"y"])] * 2
    assert whole.keys(np.array([3])) == ["source1/0000001"]


def test_streams_cannot_be_joined(sources):
    import tensorflow as tf

    with pytest.raises(ValueError, match="Streams cannot be joined.*concatenate"):
        open_reader([sources[4], tf.data.Dataset.from_tensors((b"A", b"x"))], lambda *pair: pair)
