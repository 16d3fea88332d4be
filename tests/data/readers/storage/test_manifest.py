"""Shards that are missing, cut short or replaced are noticed by the manifest beside them."""

import hashlib
import json

import pytest
from numbered_pairs import numbered, write_shards, write_tar

from keras_clip.data import check_manifests
from keras_clip.data.readers import open_reader
from keras_clip.data.readers.storage.manifest import KIND, read_manifest

pytestmark = pytest.mark.backend_free


@pytest.fixture
def shards(tmp_path):
    write_shards(tmp_path, numbered(6), 3)
    entries = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(tmp_path.glob("*.tar"))
    }
    manifest = {"kind": KIND, "complete": True, "shards": entries}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_whole_shards_pass(shards):
    assert len(open_reader(str(shards / "*.tar"))) == 6
    assert len(open_reader(str(shards / "00001.tar"))) == 2
    assert check_manifests(map(str, shards.glob("*.tar")), digests=True) == 3


def cut(shards):
    path = shards / "00001.tar"
    path.write_bytes(path.read_bytes()[:-512])


def replace(shards):
    write_tar(shards / "00002.tar", [("9.txt", bytes(20_000))])


FAULTS = {
    "missing": (
        lambda shards: (shards / "00000.tar").unlink(),
        "must be in its folder. Received: .* 00000.tar is missi",
    ),
    "cut": (
        cut,
        "must have the size of its manifest.json. Received: .*00001.tar with .* instead of .*: it is cut short",
    ),
    "replaced": (replace, "must have the size of its manifest.json. Received: .*00002.tar"),
    "of another source": (
        lambda shards: write_tar(shards / "00003.tar", [("9.txt", b"9")]),
        "must be named in it. Received: .*00003.tar",
    ),
}


@pytest.mark.parametrize("damage, message", FAULTS.values(), ids=FAULTS)
def test_faults_are_found_when_shards_are_opened(shards, damage, message):
    damage(shards)
    with pytest.raises(ValueError, match=message):
        open_reader(str(shards / "*.tar"))


def test_changed_content_of_the_same_size_is_found_by_digests(shards):
    path = shards / "00001.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    assert check_manifests([str(path)]) == 1
    with pytest.raises(ValueError, match="must have the SHA-256 of its manifest.json. Received: .*00001.tar"):
        check_manifests([str(path)], digests=True)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"shards": 3}', '{"kind": "other", "shards": {}}', "\x00"])
def test_manifests_of_other_programs_are_ignored(shards, text):
    (shards / "manifest.json").write_text(text)
    (shards / "00000.tar").unlink()
    assert len(open_reader(str(shards / "*.tar"))) == 4
    assert check_manifests([str(shards / "00001.tar")]) == 0


def test_a_manifest_that_changes_is_read_again(shards):
    open_reader(str(shards / "*.tar"))
    manifest = json.loads((shards / "manifest.json").read_text())
    (shards / "manifest.json").write_text(json.dumps(manifest | {"complete": False}))
    with pytest.raises(ValueError, match="Shards must be complete"):
        open_reader(str(shards / "*.tar"))


@pytest.mark.parametrize("name", ["../victim", "/victim", "a/b.tar", "..", "", "a\\b.tar", "manifest.json"])
def test_names_that_leave_the_folder_are_refused(shards, name):
    """`write` removes the shards of an earlier call by the names in the manifest."""
    manifest = {"kind": KIND, "complete": True, "shards": {name: {"bytes": 1}}}
    (shards / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="must have the names and sizes of files in its folder"):
        open_reader(str(shards / "*.tar"))


def test_sizes_that_are_no_numbers_are_refused(shards):
    (shards / "manifest.json").write_text(json.dumps({"kind": KIND, "shards": {"0.tar": {"bytes": "9"}}}))
    with pytest.raises(ValueError, match="names and sizes of files"):
        check_manifests([str(shards / "00000.tar")])


@pytest.mark.parametrize("form", [2, 0, "1", None])
def test_another_format_is_refused(shards, form):
    (shards / "manifest.json").write_text(json.dumps({"kind": KIND, "format": form, "complete": True, "shards": {}}))
    with pytest.raises(ValueError, match=r"must have the format 1\. Received: .*manifest.json with the format"):
        read_manifest(shards)
