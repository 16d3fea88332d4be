"""Every engine runs a task on every item exactly once per result, whatever dies on the way."""

import os
import socket
import subprocess
import sys
import threading

import pytest
from engine_tasks import Square, Variable
from numbered_pairs import numbered, write_shards
from subprocesses import REPOSITORY, run_python

from keras_clip.engines import Auto, Processes, Ray, Serial, auto, engine_named

pytestmark = pytest.mark.backend_free


@pytest.fixture(autouse=True)
def light_workers(monkeypatch):
    """Workers import Keras with its lightest backend."""
    monkeypatch.setenv("KERAS_BACKEND", "numpy")


def test_serial():
    results = dict(Serial().map(Square(), range(5)))
    assert results == {number: (number**2, os.getpid()) for number in range(5)}


def test_nothing_to_do_starts_nothing():
    assert list(Serial().map(Square(error="start"), [])) == []
    assert list(Processes(2).map(Square(error="start"), [])) == []


@pytest.mark.slow
def test_processes_go_on_when_workers_are_killed(tmp_path):
    (tmp_path / "1").touch()
    results = dict(Processes(2).map(Square(tmp_path, deadly=3), range(20)))
    assert {number: square for number, (square, _) in results.items()} == {number: number**2 for number in range(20)}
    assert os.getpid() not in {process for _, process in results.values()}
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed():
    script = "from engine_tasks import Slow; from keras_clip.engines import Processes; "
    script += "list(Processes(2).map(Slow(), [600, 600]))"
    paths = os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tests")))
    environment = {**os.environ, "PYTHONPATH": paths}
    parent = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
    assert all(int(parent.stdout.readline()) != parent.pid for _ in range(2))
    parent.kill()
    # The pipe is closed when the last process that writes to it has ended.
    assert parent.communicate(timeout=60) == ("", None)


@pytest.mark.slow
def test_an_item_at_which_workers_always_die_ends_with_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_clip.engines.processes._ATTEMPTS", 2)
    for life in range(2):
        (tmp_path / str(life)).touch()
    with pytest.raises(RuntimeError, match=r"Received: 2 deaths while item 0, 7"):
        list(Processes(1).map(Square(tmp_path, deadly=7), [7]))


@pytest.mark.parametrize("error, message", [("start", "the state cannot be made"), (1, "item 1 is wrong")])
def test_an_exception_of_the_task_reaches_the_caller(error, message):
    with pytest.raises(ValueError, match=message):
        list(Processes(1).map(Square(error=error), [1, 2]))


def test_the_libraries_of_all_workers_use_as_many_threads_as_there_are_cores(monkeypatch):
    monkeypatch.setattr("keras_clip.engines.processes.num_cores", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"]
    assert dict(Processes(2).map(Variable(), names)) == dict.fromkeys(range(4), "3")
    assert os.environ["OMP_NUM_THREADS"] == "8"


def test_a_task_that_cannot_be_sent_is_refused():
    task = Square()
    task.function = lambda: 0
    with pytest.raises(TypeError, match='cannot be pickled.*engine="serial"'):
        list(Processes(1).map(task, [1]))


def test_an_item_that_was_only_beside_a_deadly_one_is_not_blamed(tmp_path):
    for life in range(3):
        (tmp_path / str(life)).touch()
    # The slow item is there each time that the other one dies.
    with pytest.raises(
        RuntimeError, match=r"Received: 3 deaths while item 1, 7, was worked on, the last time by itself"
    ):
        list(Processes(2).map(Square(tmp_path, deadly=7, slow=5), [5, 7]))


def test_the_choice_of_an_engine():
    assert isinstance(engine_named("auto"), Auto)
    assert isinstance(engine_named("serial"), Serial)
    assert isinstance(engine_named("processes"), Processes)
    own = Serial()
    assert engine_named(own) is own
    with pytest.raises(ValueError, match="Received: engine='spark'"):
        engine_named("spark")


# Seconds of an item, items left, seconds of the start of a worker, cores.
WORTH = {
    "many fast items": ((0.001, 1000, 0, 8), False),
    "many items that take a while": ((0.1, 1000, 0, 8), True),
    "few items, but slow ones": ((60, 2, 0, 2), True),
    "one item": ((600, 1, 0, 8), False),
    "one core": ((600, 100, 0, 1), False),
    "a model that takes long to load": ((1, 100, 60, 8), False),
}


@pytest.mark.parametrize("given, expected", WORTH.values(), ids=WORTH)
def test_processes_are_used_where_they_save_time(given, expected):
    assert auto.is_worth_it(*given) is expected


def test_auto_goes_on_in_processes(monkeypatch):
    monkeypatch.setattr(auto, "num_cores", lambda: 2)
    monkeypatch.setattr(auto, "is_worth_it", lambda seconds, left, startup, cores: left == 3)
    results = dict(Auto().map(Square(), range(5)))
    assert {number: square for number, (square, _) in results.items()} == {number: number**2 for number in range(5)}
    assert [process == os.getpid() for _, (_, process) in sorted(results.items())] == [True] * 2 + [False] * 3


def test_auto_stays_in_this_process(monkeypatch):
    monkeypatch.setattr(auto, "num_cores", lambda: 2)
    monkeypatch.setattr(auto, "is_worth_it", lambda *given: True)
    model, closure = Square(), Square()
    model.uses_accelerator, closure.function = True, lambda: 0
    for task in (model, closure):
        assert {process for _, (_, process) in Auto().map(task, range(3))} == {os.getpid()}
    assert list(Auto().map(Square(error="start"), [])) == []


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2"])
def test_workers_are_a_positive_number(workers):
    with pytest.raises(ValueError, match="`workers` must be a positive integer"):
        Processes(workers)


@pytest.mark.slow
def test_a_cluster_loses_workers_nodes_and_the_driver_without_changing_the_results(tmp_path):
    write_shards(tmp_path, numbered(12), 12)
    printed = run_python(REPOSITORY / "tests" / "ray_cluster.py", str(tmp_path))
    assert [line.split(",")[0] for line in printed.splitlines() if ", results equal" in line] == [
        "worker and node lost",
        "driver lost",
    ]


def test_a_cluster_that_does_not_answer_is_refused_at_once():
    pytest.importorskip("ray")
    with pytest.raises(ConnectionError, match=r"Received: address='127.0.0.1:1': .*ray start --head"):
        list(Ray("127.0.0.1:1").map(Square(), [1]))


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 400 Bad Request", b""], ids=["silent", "of the web", "closed"])
def test_what_is_no_cluster_is_refused(monkeypatch, answer):
    pytest.importorskip("ray")
    monkeypatch.setattr("keras_clip.engines.cluster._ANSWER", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def serve():
            with server.accept()[0] as connection:
                connection.recv(100)
                if answer is None:
                    connection.recv(100)
                else:
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(ConnectionError, match=f"A Ray cluster must answer. Received: address='{address}'"):
            list(Ray(address).map(Square(), [1]))


def test_a_cluster_without_ray_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"keras_clip\[cluster\]"):
        engine_named("ray")
