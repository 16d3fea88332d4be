"""Remote shards: the samples of local ones, whatever the server does, within the bounds of the cache."""

import hashlib
import os
import pickle
import random
import time
from pathlib import Path

import numpy as np
import pytest
from numbered_pairs import NumberTokenizer, numbered, read_all, tar_members, write_records, write_shards, write_tar
from range_server import RangeServer

import keras_clip
from keras_clip.data.readers import open_reader
from keras_clip.data.readers.storage import block_cache, remote
from keras_clip.data.readers.storage.block_cache import BlockCache
from keras_clip.data.readers.storage.remote import RemoteFile, check_redirect, open_binary, read_range, stamp

pytestmark = pytest.mark.backend_free
NAMES = "{00000..00002}.tar"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shards").mkdir()
    write_shards(tmp_path / "shards", numbered(60))
    return tmp_path / "shards"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_DELAY", 0.001)


def cache_bytes(user_cache):
    return sum(path.stat().st_size for path in (user_cache / "keras_clip" / "blocks").glob("*"))


def in_ranges(reader):
    """Makes a reader read as if its files were larger than the cache."""
    reader._remote.uses_blocks = False
    return reader


@pytest.mark.parametrize("mode", ["blocks", "ranges"])
def test_samples_of_a_tar_are_those_of_the_local_one(mode, folder):
    local = open_reader(str(folder / "*.tar"))
    with RangeServer(folder) as server:
        reader = open_reader(f"{server.url}/{NAMES}")
        reader = in_ranges(reader) if mode == "ranges" else reader
        assert read_all(reader) == read_all(local)
        assert reader.captions(np.array([5, 2])) == local.captions(np.array([5, 2]))
        assert reader.metadata(np.arange(3)) == [{}] * 3
        assert reader.keys(np.arange(60)) == local.keys(np.arange(60))
        assert read_all(pickle.loads(pickle.dumps(reader))) == read_all(local)
        assert reader.name(0) == f"{server.url}/00000.tar: 000"


def test_an_index_is_made_once_and_again_for_another_version(folder):
    with RangeServer(folder) as server:
        open_reader(f"{server.url}/{NAMES}")
        server.requests.clear()
        open_reader(f"{server.url}/{NAMES}")
        # Only the size and the version of each file are requested.
        assert [span for _, span in server.requests] == ["bytes=0-0"] * 3
        write_tar(folder / "00001.tar", tar_members(numbered(7)))
        assert len(open_reader(f"{server.url}/{NAMES}")) == 47


@pytest.mark.parametrize("form", ["tfrecord", "tar.gz", "parquet"])
def test_other_forms(form, tmp_path, folder):
    if form == "tar.gz":
        import gzip

        (folder / "a.tar.gz").write_bytes(gzip.compress((folder / "00000.tar").read_bytes()))
    if form == "tfrecord":
        rows = [{"jpg": image, "txt": caption} for _, image, caption in numbered(9)]
        write_records(folder / "a.tfrecord", rows)
    if form == "parquet":
        import pyarrow
        from pyarrow import parquet

        rows = numbered(9)
        table = pyarrow.table({"jpg": [image for _, image, _ in rows], "txt": [text.decode() for *_, text in rows]})
        parquet.write_table(table, folder / "a.parquet")
    with RangeServer(folder, fault=lambda number, path: 503 if number % 3 == 1 else None) as server:
        found = open_reader(f"{server.url}/a.{form}?signature=a%2Fb").read(np.arange(9))
    assert found == open_reader(str(folder / f"a.{form}")).read(np.arange(9))


def test_a_file_url_is_a_local_file(folder):
    assert read_all(open_reader(f"file://{folder}/{NAMES}")) == read_all(open_reader(str(folder / "*.tar")))
    assert len(open_reader(f"file://localhost{folder}/*.tar")) == 60


FAULTS = {
    "one of two fails": lambda number, path: 503 if number % 2 else None,
    "too many requests": lambda number, path: 429 if number % 3 else None,
    "answers are cut": lambda number, path: "cut" if number % 2 else None,
    "connections are lost": lambda number, path: "reset" if number % 3 == 1 else None,
    "anything": lambda number, path: random.Random(number).choice([500, "cut", "reset", None, None]),
}


@pytest.mark.parametrize("mode", ["blocks", "ranges"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_lost_connection_costs_no_sample(fault, mode, folder, monkeypatch):
    expected = read_all(open_reader(str(folder / "*.tar")))
    monkeypatch.setattr(remote, "_ATTEMPTS_TO_OPEN", 12)
    with RangeServer(folder, fault=fault) as server:
        reader = open_reader(f"{server.url}/{NAMES}")
        reader = in_ranges(reader) if mode == "ranges" else reader
        assert read_all(reader) == expected
        assert len(server.requests) > 6


def test_training_reads_every_sample_once_from_a_bad_server(folder, monkeypatch):
    """Ahead of the steps, with the order of local shards."""
    monkeypatch.setattr(remote, "_ATTEMPTS_TO_OPEN", 12)
    options = {
        "tokenizer": NumberTokenizer(),
        "image_preprocessor": keras_clip.data.ImagePreprocessor(16),
        "batch_size": 4,
        "seed": 2,
    }

    def numbers(source):
        dataset = keras_clip.data.image_text_pairs(source, None, **options)
        epochs = [[int(k) for batch in dataset for k in np.asarray(batch["token_ids"])[:, 1]] for _ in range(2)]
        assert dataset.skipped.total == 0
        return epochs

    with RangeServer(folder, delay=0.005, fault=FAULTS["anything"]) as server:
        found = numbers(f"{server.url}/{NAMES}")
    assert found == numbers(str(folder / "*.tar"))
    assert [sorted(epoch) for epoch in found] == [list(range(60))] * 2


def test_many_requests_are_under_way(folder):
    """64 samples of as many places take a few times the delay of the server, not 64 times."""
    samples = [(f"{k:04d}", bytes(100_000), b"x") for k in range(64)]
    write_tar(folder / "large.tar", tar_members(samples))
    with RangeServer(folder) as server:
        reader = in_ranges(open_reader(f"{server.url}/large.tar"))
        server.delay = 0.1
        server.requests.clear()
        start = time.perf_counter()
        reader.read(np.arange(0, 64, 2))
        assert time.perf_counter() - start < 1.5
        # The caption of a sample comes with its image.
        assert len(server.requests) == 32
        reader.read(np.arange(64))
        assert len(server.requests) == 33, "neighbours are one request"


REFUSED = {
    "no such file": (404, FileNotFoundError, "00000.tar"),
    "not allowed": (403, Exception, "403"),
    "no ranges": ("whole", ValueError, "must give ranges"),
    "another range": ("elsewhere", ValueError, "must give ranges"),
    "more than was requested": ("more", ValueError, "no more than was requested"),
    "always fails": (500, OSError, r"4 times without success, at last ClientResponseError: 500"),
    "always lost": ("reset", OSError, "4 times without success"),
}


@pytest.mark.parametrize("fault, error, message", REFUSED.values(), ids=REFUSED)
def test_refusals(fault, error, message, folder):
    with RangeServer(folder, fault=lambda number, path: fault) as server, pytest.raises(error, match=message):
        open_reader(f"{server.url}/{NAMES}")


def test_the_error_when_a_server_stays_away_names_the_file_and_the_cure(folder, monkeypatch):
    monkeypatch.setattr(remote, "_LONGEST_DELAY", 0.001)
    message = r"must answer. Received: http://127.0.0.1.*00000.tar, 12 times .* last checkpoint"
    with RangeServer(folder) as server:
        reader = in_ranges(open_reader(f"{server.url}/{NAMES}"))
        server.fault = lambda number, path: 503
        with pytest.raises(OSError, match=message):
            reader.read(np.arange(2))


def test_a_shard_that_is_cut_short_is_refused(folder):
    content = (folder / "00001.tar").read_bytes()
    (folder / "00001.tar").write_bytes(content[: len(content) // 2 // 512 * 512])
    with RangeServer(folder) as server, pytest.raises(ValueError, match="whole"):
        open_reader(f"{server.url}/{NAMES}")


class TestRedirects:
    def test_one_is_followed(self, folder):
        with RangeServer(folder) as target:
            with RangeServer(folder, fault=lambda number, path: f"to {target.url}{path}") as server:
                assert len(open_reader(f"{server.url}/{NAMES}")) == 60

    @pytest.mark.parametrize(
        "url, location, is_allowed",
        [
            ("https://a/x", "http://a/x", False),
            ("https://a/x", "HTTP://b/x", False),
            ("https://a/x", "file:///etc/passwd", False),
            ("https://a/x", "ftp://b/x", False),
            ("https://a/x", "//b/x", True),
            ("https://a/x", "/y", True),
            ("https://a/x", "https://b/x", True),
            ("http://a/x", "http://b/x", True),
        ],
    )
    def test_https_is_not_left(self, url, location, is_allowed):
        if is_allowed:
            check_redirect(url, location)
        else:
            with pytest.raises(ValueError, match="https must not be left"):
                check_redirect(url, location)

    def test_a_refused_one_is_not_followed(self, folder, monkeypatch):
        monkeypatch.setattr(remote, "check_redirect", lambda url, target: check_redirect("https://a", target))
        with RangeServer(folder) as target:
            with RangeServer(folder, fault=lambda number, path: f"to {target.url}{path}") as server:
                with pytest.raises(ValueError, match="https must not be left"):
                    open_reader(f"{server.url}/00000.tar")
            assert not target.requests


class TestCache:
    @pytest.fixture(autouse=True)
    def small_blocks(self, monkeypatch):
        for module in (remote, block_cache):
            monkeypatch.setattr(module, "BLOCK_BYTES", 4096)

    def test_what_was_read_is_not_requested_again(self, folder):
        with RangeServer(folder) as server:
            reader = open_reader(f"{server.url}/{NAMES}")
            expected = read_all(reader)
            server.requests.clear()
            assert read_all(reader) == expected and not server.requests

    def test_its_size_is_bounded(self, folder, user_cache, monkeypatch):
        expected = read_all(open_reader(str(folder / "*.tar")))
        monkeypatch.setenv(block_cache.VARIABLE, "20000")
        with RangeServer(folder) as server:
            reader = open_reader(f"{server.url}/{NAMES}")
            assert not reader._remote.uses_blocks, "the files are larger"
            reader.expect_neighbours()
            assert not reader._remote.uses_blocks, "blocks of a window would push one another out"
            reader._remote.uses_blocks = True
            for _ in range(2):
                assert read_all(reader) == expected
                assert 0 < cache_bytes(user_cache) <= 20_000

    def test_the_oldest_blocks_make_room(self, tmp_path):
        cache = BlockCache(tmp_path, 10 * 1032)
        for number in range(30):
            cache.write(f"{number:02d}", bytes(1000))
            os.utime(tmp_path / f"{number:02d}", (number, number))
        assert cache.read("00", 0, 9) is None and cache.read("29", 3, 9) == bytes(6)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10 * 1032

    @pytest.mark.parametrize(
        "damage", [lambda c: c[:-40], lambda c: b"y" + c[1:], lambda c: b""], ids="cut bit empty".split()
    )
    def test_a_damaged_block_is_fetched_again(self, damage, folder, user_cache):
        expected = read_all(open_reader(str(folder / "*.tar")))
        with RangeServer(folder) as server:
            open_reader(f"{server.url}/{NAMES}")
            for path in (user_cache / "keras_clip" / "blocks").iterdir():
                path.write_bytes(damage(path.read_bytes()))
            block_cache._cache_of.cache_clear()
            assert read_all(open_reader(f"{server.url}/{NAMES}")) == expected

    def test_names_of_remote_files_are_no_paths(self, folder, user_cache, tmp_path):
        before = {path for path in tmp_path.rglob("*")}
        with RangeServer(folder) as server:
            open_reader(f"{server.url}/00000.tar?../../../../{'x' * 300}/../../evil.tar")
        new = {path for path in tmp_path.rglob("*")} - before
        assert new and all(path.is_relative_to(user_cache / "keras_clip") or path == user_cache for path in new)
        assert not [path for path in new if "evil" in path.name]

    def test_a_bound_that_is_no_number(self, monkeypatch):
        monkeypatch.setenv(block_cache.VARIABLE, "10 GB")
        with pytest.raises(ValueError, match="KERAS_CLIP_CACHE_BYTES must be a number of bytes. Received: '10 GB'"):
            BlockCache.default()


def test_a_file_is_read_at_any_place(folder):
    content = os.urandom(3 * (1 << 20) + 77)
    (folder / "x").write_bytes(content)
    with RangeServer(folder) as server:
        url = f"{server.url}/x"
        assert stamp(url)[0] == len(content)
        assert read_range(url, 5, 9) == content[5:9] and read_range(url, 3, 3) == b""
        with open_binary(url) as file:
            assert hashlib.file_digest(file, "sha256").digest() == hashlib.sha256(content).digest()
            assert (file.seek(-7, os.SEEK_END), file.read()) == (len(content) - 7, content[-7:])
            assert (file.seek(1 << 20), file.read(3)) == (1 << 20, content[1 << 20 :][:3])
        assert isinstance(file.raw if hasattr(file, "raw") else file, RemoteFile)
        assert Path(folder / "x").exists()
