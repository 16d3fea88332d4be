"""Killed, concurrent and failing updates; readers meanwhile; compaction; a folder that is watched."""

import errno
import os
import threading
import time

import numpy as np
import pytest
from picture_folders import build_embedder, draw, names
from subprocesses import REPOSITORY, run_python

from keras_clip.lock import Lock
from keras_clip.search import PictureIndex, update_index, watch
from keras_clip.search.pictures import compaction, facts, rows, thumbnails, updating

pytestmark = pytest.mark.backend_free


@pytest.fixture(scope="module")
def embedder():
    return build_embedder()


@pytest.fixture
def pictures(tmp_path):
    for number in range(6):
        draw(tmp_path / "pictures" / f"{number}.png", number)
    return tmp_path / "pictures"


@pytest.fixture
def update(tmp_path, pictures, embedder):
    def update(**options):
        options = {"roots": pictures, "clip": embedder, "progress": False, **options}
        return update_index(tmp_path / "index", **options)

    return update


@pytest.mark.slow
def test_killed_updates(tmp_path):
    output = run_python(REPOSITORY / "tests" / "killed_updates.py", str(tmp_path / "work"), "4", backend="torch")
    assert " of 4 updates killed" in output


def test_a_snapshot_stays_while_the_index_grows(update, tmp_path, pictures):
    update()
    index = PictureIndex.open(tmp_path / "index")
    before = names(index), index.version, np.array(index.embeddings)
    (pictures / "0.png").unlink()
    draw(pictures / "new.png", 10)
    update()
    assert (names(index), index.version) == before[:2]
    np.testing.assert_array_equal(index.embeddings, before[2])
    assert index.refresh()
    assert names(index) == ["1.png", "2.png", "3.png", "4.png", "5.png", "new.png"]
    assert not index.refresh()


def test_blocks_are_committed_one_by_one(update, tmp_path, monkeypatch):
    monkeypatch.setattr(updating, "_PICTURES", 2)
    seen = []
    append = rows.append

    def spy(path, start, values):
        if path.name.startswith("features") and (tmp_path / "index" / "index.sqlite").exists():
            with PictureIndex.open(tmp_path / "index") as index:
                seen.append((len(index), start))
        append(path, start, values)

    monkeypatch.setattr(updating.rows, "append", spy)
    update(batch_size=2)
    assert seen == [(0, 0), (2, 2), (4, 4)]


def test_an_interrupted_update_goes_on(update, tmp_path, monkeypatch):
    monkeypatch.setattr(updating, "_PICTURES", 2)
    read, done = facts.read, []

    def failing(*arguments):
        done.append(1)
        if len(done) > 4:
            raise KeyboardInterrupt
        return read(*arguments)

    monkeypatch.setattr(facts, "read", failing)
    with pytest.raises(KeyboardInterrupt):
        update(batch_size=1)
    monkeypatch.undo()
    with PictureIndex.open(tmp_path / "index") as index:
        kept = len(index)
    assert 0 < kept < 6
    changes = update()
    assert (changes.unchanged, changes.added) == (kept, 6 - kept)


def test_a_full_disk_is_named_and_keeps_what_is_committed(update, tmp_path, pictures, monkeypatch):
    update()
    draw(pictures / "new.png", 10)

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for module, function in ((thumbnails, "write"), (rows, "append")):
        monkeypatch.setattr(module, function, full)
        with pytest.raises(OSError, match="must have room for the index.*free some space and start") as caught:
            update()
        assert caught.value.errno == errno.ENOSPC
        monkeypatch.undo()
        with PictureIndex.open(tmp_path / "index") as index:
            assert len(index) == 6
    assert update().added == 1


def test_a_database_on_a_full_disk(update, pictures, monkeypatch):
    update()
    draw(pictures / "new.png", 10)
    open_to_write = updating.database.open_to_write

    def small(*arguments):
        connection = open_to_write(*arguments)
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    monkeypatch.setattr(updating.database, "open_to_write", small)
    for number in range(200):
        draw(pictures / "many" / f"{'x' * 200} {number}.png", number)
    with pytest.raises(OSError, match="must have room for the index") as caught:
        update()
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert update().broken == 0


def test_a_file_that_is_being_written_is_left_for_the_next_update(update, tmp_path, pictures, monkeypatch):
    read, size = facts.os.fstat, []

    def growing(descriptor):
        result = read(descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.endswith("3.png") and not size:
            size.append(1)
            with open(path, "ab") as file:
                file.write(b"more")
        return result

    monkeypatch.setattr(facts.os, "fstat", growing)
    assert update().added == 5
    with PictureIndex.open(tmp_path / "index") as index:
        assert [(each.path, each.reason) for each in index.broken()] == [("3.png", "being written")]
    monkeypatch.undo()
    changes = update()
    assert (changes.added, changes.broken) == (1, 0)


def test_a_picture_that_cannot_be_read_now_stays_and_is_tried_again(update, tmp_path, pictures, monkeypatch):
    update()
    draw(pictures / "3.png", 44)
    draw(pictures / "new.png", 45)
    opened = os.open

    def refusing(path, *arguments, **options):
        if os.fspath(path) in (os.fsencode(pictures / "3.png"), os.fsencode(pictures / "new.png")):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(facts.os, "open", refusing)
    for _ in range(2):
        changes = update()
        assert (changes.added, changes.removed, changes.broken) == (0, 0, 2)
    with PictureIndex.open(tmp_path / "index") as index:
        assert len(index) == 6
        assert index.broken_counts() == {"unreadable file": 2}
    monkeypatch.undo()
    # Only the permission to read the files changed.
    changes = update()
    assert (changes.added, changes.changed, changes.broken) == (1, 1, 0)


def test_a_file_that_is_removed_or_replaced_during_an_update(update, tmp_path, pictures, monkeypatch):
    read = facts.read

    def changing(path, *arguments):
        if path.endswith(b"1.png"):
            os.unlink(path)
        if path.endswith(b"2.png"):
            draw(pictures / "2.png", 33)
        return read(path, *arguments)

    monkeypatch.setattr(facts, "read", changing)
    changes = update()
    assert (changes.added, changes.broken) == (5, 0)
    monkeypatch.undo()
    # The index has the facts of what was read, not of what was found before.
    changes = update()
    assert (changes.unchanged, changes.added, changes.changed) == (5, 0, 0)


def test_a_picture_that_becomes_a_link_is_not_read(update, tmp_path, pictures, monkeypatch):
    secret = draw(tmp_path / "secret.png", 50)
    read = facts.read

    def changing(path, *arguments):
        if path.endswith(b"1.png"):
            os.unlink(path)
            os.symlink(secret, path)
        return read(path, *arguments)

    monkeypatch.setattr(facts, "read", changing)
    update()
    with PictureIndex.open(tmp_path / "index") as index:
        assert "1.png" not in names(index)


def test_a_second_writer_waits_and_is_told_who_writes(update, tmp_path, caplog):
    (tmp_path / "index").mkdir()
    with Lock(tmp_path / "index" / "writer.lock", "the index"):
        thread = threading.Thread(target=update)
        thread.start()
        time.sleep(0.3)
        assert not (tmp_path / "index" / "index.sqlite").exists()
    thread.join()
    assert f"Waiting for process {os.getpid()}" in caplog.text
    assert len(PictureIndex.open(tmp_path / "index")) == 6


def test_compaction_keeps_ids_and_embeddings(update, tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(compaction, "_FEWEST", 1)
    monkeypatch.setattr(compaction, "_ROWS", 2)
    update()
    old = PictureIndex.open(tmp_path / "index")
    kept = {id: np.array(old.embeddings[row]) for id, row in zip(old.ids, old.rows, strict=True)}
    thumbnail = old.thumbnail(0)
    for number in (0, 1, 3, 4):
        (pictures / f"{number}.png").unlink()
    update()
    new = PictureIndex.open(tmp_path / "index")
    assert (new.generation, len(new.embeddings), new.ids.tolist()) == (1, 2, [2, 5])
    assert new.rows.tolist() == [0, 1]
    for id, row in zip(new.ids, new.rows, strict=True):
        np.testing.assert_array_equal(new.embeddings[row], kept[id])
    # The old snapshot still has its embeddings.
    np.testing.assert_array_equal(old.embeddings[old.rows[0]], kept[0])
    with pytest.raises(RuntimeError, match="refresh"):
        old.columns(["name"])
    assert len(thumbnail) > 0
    assert len(list((tmp_path / "index").glob("thumbnails/*/*.webp"))) == 2
    assert sorted(path.name for path in (tmp_path / "index").glob("*.f32")) == ["embeddings-1.f32", "features-1.f32"]
    # Ids are not given again.
    draw(pictures / "6.png", 6)
    update()
    assert old.refresh()
    assert old.ids.tolist() == [2, 5, 6]


def test_what_a_killed_process_left_behind_the_committed_rows_is_overwritten(update, tmp_path, pictures):
    update()
    with open(tmp_path / "index" / "embeddings-0.f32", "ab") as file:
        file.write(b"\xff" * 1000)
    (tmp_path / "index" / "embeddings-7.f32").touch()
    draw(pictures / "new.png", 10)
    update()
    index = PictureIndex.open(tmp_path / "index")
    assert np.isfinite(index.embeddings).all()
    assert len(index.embeddings) == 7
    assert not (tmp_path / "index" / "embeddings-7.f32").exists()


def test_a_watched_folder(tmp_path, pictures, embedder):
    stop, seen = threading.Event(), []

    def on_change(changes):
        seen.append(changes)
        if len(seen) == 1:
            draw(pictures / "new.png", 20)
        else:
            stop.set()

    watch(tmp_path / "index", pictures, embedder, interval=0.05, on_change=on_change, stop=stop)
    assert [changes.added for changes in seen] == [6, 1]
    with pytest.raises(ValueError, match="interval"):
        watch(tmp_path / "index", pictures, embedder, interval=0)
