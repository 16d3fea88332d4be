"""A pool divides every source that can be read by index into shards, and refuses what it cannot read."""

import numpy as np
import pytest
from numbered_pairs import image_file, numbered, write_records, write_shards, write_tar

from keras_clip.curation import Pool

pytestmark = pytest.mark.backend_free


def folder_of_pairs(folder, count):
    folder.mkdir()
    for key, image, caption in numbered(count):
        (folder / f"{key}.png").write_bytes(image)
        (folder / f"{key}.txt").write_bytes(caption)
    return folder


def captions(pool):
    found = []
    for shard in pool.shards:
        reader, ids = shard.open()
        found.append([captions[0].decode() for _, captions in zip(ids, reader.read(ids)[1], strict=True)])
    return found


def test_each_tar_is_a_shard(tmp_path):
    pool = Pool.open(write_shards(tmp_path, numbered(5), 2), tmp_path / "work")
    assert [shard.name for shard in pool.shards] == ["00000", "00001"]
    assert captions(pool) == [["0", "2", "4"], ["1", "3"]]


def test_folders_and_tables_are_cut_into_ranges(tmp_path):
    folder = folder_of_pairs(tmp_path / "pictures", 5)
    (tmp_path / "more.csv").write_text("path,caption\n" + "".join(f"pictures/00{n}.png,{n}\n" for n in range(3)))
    pool = Pool.open([folder, tmp_path / "more.csv"], tmp_path / "work", shard_size=2)
    names = ["pictures-00000", "pictures-00001", "pictures-00002", "more-00000", "more-00001"]
    assert [shard.name for shard in pool.shards] == names
    assert captions(pool) == [["0", "1"], ["2", "3"], ["4"], ["0", "1"], ["2"]]


def test_records_and_objects(tmp_path):
    write_records(tmp_path / "a.tfrecord", [{"png": image_file(7), "txt": b"7"}])
    rows = [{"image": image_file(n), "caption": str(n)} for n in range(3)]
    pool = Pool.open([tmp_path / "a.tfrecord"], tmp_path / "records")
    assert captions(pool) == [["7"]]
    pool = Pool.open(rows, tmp_path / "objects", mapping=("image", "caption"), shard_size=2)
    assert captions(pool) == [["0", "1"], ["2"]]
    with pytest.raises(FileNotFoundError, match="made for an object. Give the source"):
        Pool.open(None, tmp_path / "objects")
    names = [shard.name for shard in pool.shards]
    assert names == ["source-00000", "source-00001"]


def test_names_of_shards_are_unique_and_safe(tmp_path):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        write_tar(tmp_path / place / "00000.tar", [("x.png", image_file(1)), ("x.txt", b"1")])
    write_tar(tmp_path / "é..tar", [("x.png", image_file(1)), ("x.txt", b"1")])
    write_tar(tmp_path / "a b;c.tar", [("x.png", image_file(1)), ("x.txt", b"1")])
    pool = Pool.open([tmp_path / "a" / "00000.tar", str(tmp_path / "b" / "*.tar"), str(tmp_path / "*.tar")],
                     tmp_path / "work")  # fmt: skip
    names = [shard.name for shard in pool.shards]
    assert all(name.startswith("00000-") for name in names[:2]) and names[2:] == ["a_b_c", "é"]
    assert len(set(names)) == 4 and not any("/" in name or name.startswith(".") for name in names)
    # No name depends on the order of the files, nor on files whose names differ.
    other = Pool.open([str(tmp_path / "b" / "*.tar"), tmp_path / "a" / "00000.tar"], tmp_path / "other")
    assert [shard.name for shard in other.shards] == [names[1], names[0]]


def test_parts_of_a_name_between_dots_count(tmp_path):
    for number in range(2):
        write_tar(tmp_path / f"part.000{number}.tar", [("x.png", image_file(1)), ("x.txt", b"1")])
    pool = Pool.open(str(tmp_path / "*.tar"), tmp_path / "work")
    assert [shard.name for shard in pool.shards] == ["part.0000", "part.0001"]


def test_a_pool_is_opened_again_from_its_folder(tmp_path, monkeypatch):
    write_shards(tmp_path, numbered(4), 2)
    monkeypatch.chdir(tmp_path)
    Pool.open("*.tar", "work")
    monkeypatch.chdir("/")
    pool = Pool.open(None, tmp_path / "work")
    assert captions(pool) == [["0", "2"], ["1", "3"]]


def test_a_folder_of_another_source_is_refused(tmp_path):
    write_shards(tmp_path, numbered(4), 2)
    Pool.open(str(tmp_path / "*.tar"), tmp_path / "work")
    for source, options, what in (
        (str(tmp_path / "00000.tar"), {}, "source"),
        (str(tmp_path / "*.tar"), {"mapping": ("png", "caption")}, "mapping"),
        (str(tmp_path / "*.tar"), {"shard_size": 7}, "shard_size"),
    ):
        with pytest.raises(ValueError, match=f"pool differs in {what}. Use another folder"):
            Pool.open(source, tmp_path / "work", **options)


@pytest.mark.parametrize(
    "content, message", [("{", "must be JSON"), ('{"format": 9}', "in format 1"), ("[]", "in format 1")]
)
def test_a_damaged_or_foreign_record_is_refused(tmp_path, content, message):
    (tmp_path / "pool.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Pool.open(None, tmp_path)


def test_what_is_no_pool_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="without pool.json"):
        Pool.open(None, tmp_path / "none")
    with pytest.raises(ValueError, match="`shard_size` must be a positive integer"):
        Pool.open(str(tmp_path), tmp_path / "work", shard_size=0)
    import tensorflow as tf

    stream = tf.data.Dataset.from_tensors(np.zeros(3))
    with pytest.raises(TypeError, match="a stream. Store it as tars first: `curation.write_stream"):
        Pool.open(stream, tmp_path / "work", mapping=lambda element: (element, element))
