"""Shards in an object store: moto's S3 server on this machine, read by s3fs."""

import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from numbered_pairs import numbered, read_all, write_shards

from keras_clip.data.readers import open_reader

pytestmark = pytest.mark.backend_free


@pytest.fixture(scope="module")
def server():
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{server._server.server_port}"
    server.stop()


@pytest.fixture
def bucket(server, tmp_path, monkeypatch):
    """The URL of a folder with three shards, and the local folder of the same."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "shards").mkdir()
    write_shards(tmp_path / "shards", numbered(30))
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    files.mkdirs("pairs", exist_ok=True)
    files.put(str(tmp_path / "shards"), "pairs/train", recursive=True)
    files.invalidate_cache()
    return "s3://pairs/train", tmp_path / "shards"


@pytest.mark.parametrize("mode", ["blocks", "ranges"])
def test_samples_are_those_of_the_local_files(mode, bucket):
    url, folder = bucket
    reader = open_reader(f"{url}/*.tar")
    assert reader.paths == [f"{url}/{number:05d}.tar" for number in range(3)]
    reader._remote.uses_blocks = mode == "blocks"
    assert read_all(reader) == read_all(open_reader(str(folder / "*.tar")))
    assert reader.captions(np.array([29, 0])) == open_reader(str(folder / "*.tar")).captions(np.array([29, 0]))


def test_a_list_of_names(bucket):
    url, _ = bucket
    assert len(open_reader([f"{url}/00001.tar", f"{url}/00000.tar"])) == 20


def test_what_does_not_exist(bucket):
    url, _ = bucket
    with pytest.raises(FileNotFoundError):
        open_reader(f"{url}/{{00000..00003}}.tar")
    with pytest.raises(FileNotFoundError, match="No file matches"):
        open_reader(f"{url}/*.tfrecord")


def test_credentials_that_are_missing(bucket, monkeypatch):
    import s3fs

    url, _ = bucket
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(Exception, match="[Cc]redentials"):
        open_reader(f"{url}/00000.tar")
