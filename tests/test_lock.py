"""`Lock`: one holder at a time, who waits for whom, and whose lock is taken over."""

import json
import logging
import os
import subprocess
import sys
import threading
import time

import pytest

from keras_clip import lock
from keras_clip.lock import Lock

pytestmark = pytest.mark.backend_free
PATIENCE = 20


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(lock, "_POLL", 0.01)
    monkeypatch.setattr(lock, "_BEAT", 0.02)
    monkeypatch.setattr(lock, "_SILENCE", 0.4)


@pytest.fixture(autouse=True)
def no_endless_wait(monkeypatch):
    """A lock that is not taken within `PATIENCE` seconds fails the test, which would otherwise wait forever."""
    deadline = time.monotonic() + PATIENCE

    def in_time(method):
        def call(self):
            assert time.monotonic() < deadline, f"The lock was not taken within {PATIENCE} s."
            return method(self)

        return call

    for name in ("_create", "_read"):
        monkeypatch.setattr(Lock, name, in_time(getattr(Lock, name)))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.lock"


def holder(**changes):
    return {"token": "other", "beat": 0, **lock._this_process(), **changes}


def write(path, **changes):
    path.write_text(json.dumps(holder(**changes)))


def is_taken_within(path, seconds):
    """Whether another lock is entered within that time; after it, the lock file is removed."""
    taken = threading.Event()

    def take():
        with Lock(path, "a store"):
            taken.set()

    thread = threading.Thread(target=take)
    thread.start()
    taken.wait(seconds)
    found = taken.is_set()
    path.unlink(missing_ok=True)
    thread.join(10)
    assert not thread.is_alive()
    return found


@pytest.fixture(scope="module")
def ended():
    """The number of a process that has ended, and when it started."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = lock._start_of(process.pid)
    return process.pid, started


def test_one_at_a_time(path):
    inside, most, order = 0, 0, []

    def enter(number):
        nonlocal inside, most
        with Lock(path, "a store"):
            inside += 1
            most = max(most, inside)
            order.append(number)
            time.sleep(0.03)
            inside -= 1

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert most == 1 and sorted(order) == list(range(6))
    assert list(path.parent.iterdir()) == []


def test_without_links_too(path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(lock.os, "link", refuse)
    with Lock(path, "a store") as held:
        held.require_held()
    test_one_at_a_time(path)


def test_a_failure_gives_the_lock_back(path):
    with pytest.raises(KeyboardInterrupt), Lock(path, "a store"):
        raise KeyboardInterrupt
    assert not path.exists()


def test_a_process_that_ended_has_no_lock(path, ended, caplog):
    process, started = ended
    write(path, process=process, started=started)
    with caplog.at_level(logging.WARNING, "keras_clip"):
        assert is_taken_within(path, 5)
    assert f"Process {process} on" in caplog.text and "died while it built a store" in caplog.text


def test_a_process_of_the_same_number_is_another(path):
    write(path, started="1")
    assert is_taken_within(path, 5)


def test_a_suspended_process_of_this_machine_keeps_its_lock(path):
    # It gives no sign of life for longer than `_SILENCE`, but runs.
    write(path)
    assert not is_taken_within(path, 1)


def test_without_a_list_of_processes_their_number_decides(path, ended, monkeypatch):
    monkeypatch.setattr(lock, "_start_of", lambda process: None)
    monkeypatch.setattr(lock, "_SILENCE", 60)
    write(path, process=ended[0])
    assert is_taken_within(path, 5)
    write(path)
    assert not is_taken_within(path, 0.3)


def test_a_silent_machine_is_dead(path, caplog):
    write(path, machine="another", host="node-7")
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "keras_clip"):
        assert is_taken_within(path, 5)
    assert time.monotonic() - began >= 0.4
    assert "Waiting for process" in caplog.text and "node-7" in caplog.text


def test_a_machine_that_gives_signs_of_life_is_not(path, monkeypatch):
    monkeypatch.setattr(lock, "_machine", lambda: "another")
    held = Lock(path, "a store").__enter__()
    monkeypatch.setattr(lock, "_machine", lambda: "this one")
    assert not is_taken_within(path, 1.2)
    # Its file was removed.
    with pytest.raises(RuntimeError, match="Only one process may build a store"):
        held.require_held()
    held.__exit__()


@pytest.mark.parametrize("content", ["", "{", "[1]", "7", '{"process": 3}'], ids=repr)
def test_half_a_lock_file_is_nobodys(path, content):
    path.write_text(content)
    assert is_taken_within(path, 5)


def test_who_comes_late_gives_the_lock_back(path):
    """Two find the same lock dead; the second renames the lock that the first has made meanwhile."""
    dead = holder(machine="another")
    path.write_text(json.dumps(dead))
    late = Lock(path, "a store")
    path.unlink()
    with Lock(path, "a store") as first:
        late._take_away(dead)
        first.require_held()
    assert not path.exists()


def test_no_file_is_left(path):
    with Lock(path, "a store"):
        time.sleep(0.1)
        content = json.loads(path.read_text())
        assert content["process"] == os.getpid() and content["beat"] > 0
    assert list(path.parent.iterdir()) == []
