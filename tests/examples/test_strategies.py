"""`examples/train.py --strategy`: two processes or devices read and train the same batches as one."""

import csv
import io
import json
import os
import subprocess
import sys
import tarfile

import keras
import pytest
from PIL import Image
from scripts import load_script
from subprocesses import REPOSITORY, free_ports, xla_flags

from keras_clip.data import synthetic

pytestmark = pytest.mark.slow
BACKEND = keras.backend.backend()
PATHS = os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "examples")))
FLAGS = "--model vit_tiny --image-size 32 --epochs 2 --batch-size 32 --context-length 16".split()
# Strategies do not depend on the depth of a model, but the time of its compilation does.
SHALLOW = {"layers": 1, "text_layers": 1}
SCRIPT = f"import train; train.MODELS['vit_tiny'] |= {SHALLOW}; train.main()"
# The strategies with several processes.
PROCESSES = {"tensorflow": "multi_worker", "jax": "jax_data_parallel", "torch": "torch_ddp"}


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """70 pairs: two batches of 32 per epoch, and six pairs that are dropped."""
    path = tmp_path_factory.mktemp("shards") / "0.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(70):
            image, caption = synthetic.sample(i, image_size=32, seed=0)
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            for name, data in ((f"{i:05d}.png", buffer.getvalue()), (f"{i:05d}.txt", caption.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def start(shard, out, *flags, **env):
    environment = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1", **env}
    command = [sys.executable, "-c", SCRIPT, str(shard), *FLAGS, "--out", str(out), *flags]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes):
    try:
        outputs = [process.communicate(timeout=500)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n".join(outputs)


def losses(out):
    with (out / "history.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def alone(shard, tmp_path_factory):
    """The losses of a training on one device, in this process."""
    out, script = tmp_path_factory.mktemp("alone"), load_script("examples/train.py")
    script.MODELS["vit_tiny"] |= SHALLOW
    script.main([str(shard), *FLAGS, "--out", str(out)])
    return losses(out)


def test_two_processes(shard, alone, tmp_path):
    strategy, port = PROCESSES[BACKEND], free_ports(2)
    workers = [f"127.0.0.1:{port + i}" for i in range(2)]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}

    def worker(rank):
        config = json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}})
        return start(shard, tmp_path, "--strategy", strategy, RANK=str(rank), TF_CONFIG=config, **place)

    finish(worker(0), worker(1))
    assert losses(tmp_path) == pytest.approx(alone, rel=1e-4)
    assert keras.saving.load_model(tmp_path / "clip.keras").count_params() > 0


@pytest.mark.skipif(BACKEND == "torch", reason="backend unable: several devices in one process")
def test_one_process(shard, alone, tmp_path):
    strategy = {"tensorflow": "mirrored", "jax": "jax_data_parallel"}[BACKEND]
    flags = ["--strategy", strategy, "--microbatch-size", "8"]
    finish(start(shard, tmp_path, *flags, XLA_FLAGS=xla_flags("--xla_force_host_platform_device_count=2")))
    assert losses(tmp_path) == pytest.approx(alone, rel=1e-4)


def test_a_strategy_of_another_backend_is_refused(shard, tmp_path):
    other = next(strategy for backend, strategy in PROCESSES.items() if backend != BACKEND)
    with pytest.raises(ValueError, match=f"Received: '{other}' on {BACKEND}"):
        load_script("examples/train.py").main([str(shard), *FLAGS, "--out", str(tmp_path), "--strategy", other])
