"""Several replicas train as one device does, to float32 rounding: losses as logged, statistics and every weight.

Each test is of real processes, over the loopback device where there are several. The trainings are in `replicas.py`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from subprocesses import free_ports

BACKEND = keras.backend.backend()
TESTS = Path(__file__).resolve().parents[1]
SCRIPT = TESTS / "replicas.py"
XLA_PATIENCE = "xla_cpu_collective_call_terminate_timeout_seconds"
# Moments of few rows make the gradients of BatchNorm large and their rounding larger.
TOLERANCES = {"BatchNorm": 1e-4}


def environment(**more):
    paths = [TESTS.parent, TESTS, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1", **more}


def start(arguments, env):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(processes, timeout=400):
    """What each process printed; an AssertionError with all output if one fails or hangs."""
    outputs = []
    try:
        for process in processes:
            outputs.append(process.communicate(timeout=timeout)[0])
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)
    return outputs


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What one device makes of the cases, computed once for each set of them."""
    folder, made = tmp_path_factory.mktemp("reference"), {}

    def of(cases):
        missing = [case for case in cases if case not in made]
        if missing:
            file = folder / f"{len(made)}.npz"
            finish([start(["single", file, *missing], environment())])
            made.update(dict.fromkeys(missing, file))
        return made

    return of


def compare(reference, kind, cases, devices=1, processes=1):
    """Trains the cases on several replicas; every process must have come as near as rounding lets it."""
    files = reference(cases)
    for file in sorted({files[case] for case in cases}):
        chosen = [case for case in cases if files[case] == file]
        port = free_ports(processes)
        # XLA aborts where a device is 40 s late, as on a busy machine.
        flags = f"--xla_force_host_platform_device_count={devices}", f"--{XLA_PATIENCE}=400"
        env = {"DEVICES": str(devices), "XLA_FLAGS": " ".join(flags)}
        env |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        running = [start([kind, file, *chosen], environment(**env, RANK=str(rank))) for rank in range(processes)]
        for output in finish(running):
            lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"')]
            distances = {case: value for line in lines for case, value in line.items()}
            assert set(distances) == set(chosen), output
            for case, value in distances.items():
                assert value < TOLERANCES.get(case, 1e-5), (case, distances)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="backend unable: tf.distribute")
class TestTensorFlow:
    def test_two_replicas(self, reference):
        cases = ["plain", "several tiles", "clipped together", "uneven micro-batches", "uneven last batch", "BatchNorm"]
        compare(reference, "mirrored", cases, devices=2)

    @pytest.mark.slow
    def test_two_replicas_other_cases(self, reference):
        cases = ["sigmoid", "clipped one by one", "averaged weights", "compiled", "compiled micro-batches"]
        compare(reference, "mirrored", [*cases, "frozen BatchNorm"], devices=2)

    @pytest.mark.slow
    def test_four_replicas(self, reference):
        compare(reference, "mirrored", ["plain", "uneven micro-batches", "clipped together", "BatchNorm"], devices=4)

    def test_two_workers(self, reference):
        cases = ["plain", "clipped together", "uneven last batch", "BatchNorm"]
        compare(reference, "multi_worker", cases, processes=2)

    @pytest.mark.slow
    def test_two_workers_other_cases(self, reference):
        compare(reference, "multi_worker", ["sigmoid", "micro-batches", "averaged weights"], processes=2)


@pytest.mark.skipif(BACKEND != "jax", reason="backend unable: keras.distribution")
class TestJax:
    def test_two_devices(self, reference):
        compare(reference, "data_parallel", ["plain", "several tiles", "uneven micro-batches", "BatchNorm"], devices=2)

    @pytest.mark.slow
    def test_two_devices_other_cases(self, reference):
        compare(reference, "data_parallel", ["sigmoid", "clipped together", "averaged weights"], devices=2)

    @pytest.mark.slow
    def test_four_devices(self, reference):
        compare(reference, "data_parallel", ["plain", "uneven micro-batches"], devices=4)

    @pytest.mark.slow
    def test_weights_over_two_devices(self, reference):
        compare(reference, "model_parallel", ["several tiles", "micro-batches", "BatchNorm"], devices=2)

    @pytest.mark.slow
    def test_weights_and_rows_over_four_devices(self, reference):
        compare(reference, "model_parallel", ["plain", "micro-batches"], devices=4)

    def test_two_processes_of_two_devices(self, reference):
        compare(reference, "data_parallel", ["plain", "micro-batches"], devices=2, processes=2)


@pytest.mark.skipif(BACKEND != "torch", reason="backend unable: torch.distributed")
class TestTorch:
    def test_two_processes(self, reference):
        cases = ["plain", "several tiles", "clipped together", "uneven micro-batches", "BatchNorm"]
        compare(reference, "processes", cases, processes=2)

    @pytest.mark.slow
    def test_two_processes_other_cases(self, reference):
        cases = ["sigmoid", "clipped one by one", "averaged weights", "micro-batches", "frozen BatchNorm"]
        compare(reference, "processes", cases, processes=2)

    @pytest.mark.slow
    def test_four_processes(self, reference):
        compare(reference, "processes", ["plain", "micro-batches"], processes=4)
