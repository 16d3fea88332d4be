"""Every engine runs a task on every item exactly once per result, whatever dies on the way."""

import os
import subprocess
import sys

import pytest
from engine_tasks import Square, Variable
from numbered_pairs import numbered, write_shards
from subprocesses import REPOSITORY, run_python

from keras_clip.engines import Processes, Ray, Serial, engine_named

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


def test_processes_go_on_when_workers_are_killed(tmp_path):
    (tmp_path / "1").touch()
    results = dict(Processes(2).map(Square(tmp_path, deadly=3), range(20)))
    assert {number: square for number, (square, _) in results.items()} == {number: number**2 for number in range(20)}
    assert os.getpid() not in {process for _, process in results.values()}
    assert not list(tmp_path.iterdir())


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


def test_the_choice_of_an_engine(monkeypatch):
    monkeypatch.setattr("keras_clip.engines.choice.num_cores", lambda: 2)
    assert isinstance(engine_named("auto", 7), Serial)
    assert isinstance(engine_named("auto", 8), Processes)
    assert isinstance(engine_named("serial", 100), Serial)
    assert isinstance(engine_named("processes", 1), Processes)
    own = Serial()
    assert engine_named(own, 100) is own
    monkeypatch.setattr("keras_clip.engines.choice.num_cores", lambda: 1)
    assert isinstance(engine_named("auto", 100), Serial)
    with pytest.raises(ValueError, match="Received: engine='spark'"):
        engine_named("spark", 1)


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2"])
def test_workers_are_a_positive_number(workers):
    with pytest.raises(ValueError, match="`workers` must be a positive integer"):
        Processes(workers)


def test_a_cluster_loses_workers_nodes_and_the_driver_without_changing_the_results(tmp_path):
    write_shards(tmp_path, numbered(12), 6)
    printed = run_python(REPOSITORY / "tests" / "ray_cluster.py", str(tmp_path), "3")
    assert [line.split(",")[0] for line in printed.splitlines() if line.startswith("round")] == [
        "round 0: nothing lost",
        "round 1: node lost",
        "round 2: driver lost",
        "round 3: worker lost",
    ]


def test_a_cluster_that_does_not_answer_is_refused_at_once():
    pytest.importorskip("ray")
    with pytest.raises(ConnectionError, match=r"Received: address='127.0.0.1:1': .*ray start --head"):
        list(Ray("127.0.0.1:1").map(Square(), [1]))


def test_a_cluster_without_ray_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"keras_clip\[cluster\]"):
        engine_named("ray", 1)
