"""Several replicas train as one device does, to float32 rounding: losses as logged, statistics and every weight.

Each test uses real processes, connected over the loopback device where there are several. `replicas.py` runs the
trainings: one start of the processes runs as many of them as possible, and this process trains the references on one
device.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest
import replicas
from subprocesses import free_ports, xla_flags

BACKEND = keras.backend.backend()
TESTS = Path(__file__).resolve().parents[1]
SCRIPT = TESTS / "replicas.py"
XLA_PATIENCE = "xla_cpu_collective_call_terminate_timeout_seconds"
# BatchNorm amplifies rounding errors where its moments are those of few rows.
TOLERANCES = {"BatchNorm": 1e-4, "ResNet": 1e-4}


def environment(**more):
    paths = [TESTS.parent, TESTS, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1", **more}


def start(arguments, env):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(processes, timeout=900):
    """Returns the output of each process; raises an AssertionError with all output if one fails or hangs."""
    outputs = []
    try:
        for process in processes:
            outputs.append(process.communicate(timeout=timeout)[0])
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)
    return outputs


def runs_of(kind, devices, cases, processes=1, slow=()):
    """Returns parameters of the test: the number of processes, the group that they run together, and the run."""
    group = f"{processes} {kind} {devices}" if BACKEND == "tensorflow" else f"{processes}"

    def parameter(case, **options):
        where = f"{processes} x {devices}" if processes > 1 else devices
        return pytest.param(processes, group, f"{kind}/{devices}/{case}", id=f"{kind} {where}, {case}", **options)

    return [*map(parameter, cases), *(parameter(case, marks=pytest.mark.slow) for case in slow)]


RUNS = {
    "tensorflow": [
        *runs_of(
            "mirrored",
            2,
            [
                "plain",
                "several tiles",
                "clipped together",
                "uneven micro-batches",
                "uneven last batch",
                "ResNet",
                "patch dropout",
                "bag of words",
            ],
            slow=[
                "sigmoid, averaged weights",
                "clipped one by one",
                "compiled",
                "compiled micro-batches",
                "frozen BatchNorm",
            ],
        ),
        *runs_of("mirrored", 4, [], slow=["plain", "uneven micro-batches", "clipped together", "BatchNorm"]),
        *runs_of(
            "multi_worker",
            1,
            ["plain", "clipped together", "uneven last batch", "BatchNorm", "bag of words"],
            processes=2,
            slow=["sigmoid, averaged weights", "micro-batches"],
        ),
    ],
    "jax": [
        *runs_of(
            "data_parallel",
            2,
            ["plain", "several tiles", "uneven micro-batches", "ResNet", "patch dropout", "bag of words"],
            slow=["sigmoid, averaged weights", "clipped together"],
        ),
        *runs_of("data_parallel", 4, [], slow=["plain", "uneven micro-batches"]),
        *runs_of("model_parallel", 2, [], slow=["several tiles", "micro-batches", "BatchNorm"]),
        *runs_of("model_parallel", 4, [], slow=["plain", "micro-batches"]),
        *runs_of("data_parallel", 2, ["plain", "micro-batches"], processes=2),
    ],
    "torch": [
        *runs_of(
            "processes",
            1,
            [
                "plain",
                "several tiles",
                "clipped together",
                "uneven micro-batches",
                "ResNet",
                "patch dropout",
                "bag of words",
            ],
            processes=2,
            slow=["sigmoid, averaged weights", "clipped one by one", "micro-batches", "frozen BatchNorm"],
        ),
        *runs_of("processes", 1, [], processes=4, slow=["plain", "micro-batches"]),
    ],
}


def train(processes, runs, file):
    """Starts the processes; returns {run: distance or traceback} of each."""
    replicas.save_references(file, sorted({run.split("/")[2] for run in runs}))
    devices = max(int(run.split("/")[1]) for run in runs)
    # By default, XLA aborts when a device is 40 s late, which happens on a busy machine.
    flags = f"--xla_force_host_platform_device_count={devices}", f"--{XLA_PATIENCE}=400"
    env = {"DEVICES": str(devices), "XLA_FLAGS": xla_flags(*flags)}
    env |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(processes))}
    running = [start([file, *runs], environment(**env, RANK=str(rank))) for rank in range(processes)]
    results = []
    for output in finish(running):
        lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"')]
        results.append({run: outcome for line in lines for run, outcome in line.items()})
        assert set(results[-1]) == set(runs), output
    return results


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory):
    """A function that returns the results of `train` for all selected tests of a group, which run together."""
    chosen, made = {}, {}
    for item in request.session.items:
        if item.path == request.path:
            chosen.setdefault(item.callspec.params["group"], []).append(item.callspec.params["run"])

    def of(processes, group):
        if group not in made:
            file = tmp_path_factory.mktemp("reference") / "reference.npz"
            try:
                made[group] = train(processes, chosen[group], file)
            except AssertionError as error:
                made[group] = error
        if isinstance(made[group], AssertionError):
            raise made[group]
        return made[group]

    return of


@pytest.mark.parametrize("processes, group, run", RUNS[BACKEND])
def test_replicas_train_as_one_device(processes, group, run, outcomes):
    for results in outcomes(processes, group):
        assert isinstance(results[run], float), results[run]
        assert results[run] < TOLERANCES.get(run.split("/")[2], 1e-5), results
