"""How many messages replicas exchange in a step, since each has a latency. `collectives.py` counts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from subprocesses import free_ports, xla_flags

BACKEND = keras.backend.backend()
TESTS = Path(__file__).resolve().parents[1]
# Of a step on torch: forward the sizes, the texts, the log-sum-exp and the largest logit of each text, and the matches
# of both directions; backward the gradients of the texts and of the log-sum-exp; then the loss and all gradients.
VIT = {"all_gather": 6, "all_reduce": 4, "tolist": 2}


def counts(processes):
    """Returns what each process has counted."""
    paths = os.pathsep.join(map(str, [TESTS.parent, TESTS, os.environ.get("PYTHONPATH", "")]))
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(processes)}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(processes))}
    env["XLA_FLAGS"] = xla_flags("--xla_force_host_platform_device_count=2")
    command = [sys.executable, str(TESTS / "collectives.py")]
    running = [
        subprocess.Popen(command, env={**env, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(processes)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert not any(process.returncode for process in running)
    return [json.loads(output.splitlines()[-1]) for output in outputs]


@pytest.mark.skipif(BACKEND != "torch", reason="backend unable: torch.distributed")
def test_torch_exchanges_sizes_once_a_step_and_a_batchnorm_one_message_in_each_direction():
    for of_process in counts(2):
        # Two waits: for the sizes, which are on the CPU, and for whether the step is finite.
        assert of_process["vit"] == VIT
        assert of_process["micro-batches"] == VIT
        # No log-sum-exp is exchanged.
        assert of_process["sigmoid"] == {"all_gather": 5, "all_reduce": 3, "tolist": 2}
        # One more reduction: the mean of the statistics of all layers.
        for kind, norms in (("norm", 1), ("resnet", 19)):
            assert of_process[kind] == {"all_gather": 6 + norms, "all_reduce": 5 + norms, "tolist": 2}, kind


@pytest.mark.skipif(BACKEND != "jax", reason="backend unable: has no compiled program to look at")
def test_jax_exchanges_nothing_in_the_loop_over_tiles():
    (programs,) = counts(1)
    assert len(programs) == 4
    for name, found in programs.items():
        assert not [kind for kind in found if "loop" in kind], (name, found)
        assert found["all-reduce"] <= (2 if name.startswith("sigmoid") else 1), (name, found)
