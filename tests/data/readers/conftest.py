"""A tar and a TFRecord file of 20 numbered pairs, and a cache folder for indexes that only this test uses."""

import pytest
from numbered_pairs import numbered, tar_members, write_records, write_tar


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tar(tmp_path):
    return write_tar(tmp_path / "a.tar", tar_members(numbered(20)))


@pytest.fixture
def records(tmp_path):
    rows = [{"key": key.encode(), "jpg": image, "txt": caption} for key, image, caption in numbered(20)]
    return write_records(tmp_path / "a.tfrecord", rows)
