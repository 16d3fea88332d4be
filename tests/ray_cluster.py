"""Runs a pass on a Ray cluster of two nodes whose parts fail, in a process of its own.

    python tests/ray_cluster.py FOLDER [ROUNDS]

In each round a worker, a node or the driver is lost while the pass runs; the results must be those of an undisturbed
run. FOLDER has tars.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import ray
from curation_passes import Slow
from ray.cluster_utils import Cluster

from keras_clip import curation
from keras_clip.engines import Ray


def content(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("slow/*"))}


def drive(folder, work, address):
    """Runs the pass; the process of a driver that may be killed."""
    pool = curation.Pool.open(str(folder / "*.tar"), work)
    counts = curation.run_pass(pool, Slow(work / "log"), Ray(address), progress=False)
    (work / "counts.json").write_text(json.dumps(counts, sort_keys=True))


def start_driver(folder, work, address):
    command = [sys.executable, __file__, str(folder), "drive", str(work), address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def lines(work):
    log = work / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def wait_for_lines(work, number, process):
    deadline = time.monotonic() + 60
    while lines(work) < number and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


def workers():
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and "ray::_Worker" in title(path)]


def title(process):
    try:
        return (process / "cmdline").read_text()
    except OSError:
        return ""


def main(folder, rounds):
    # A worker takes a whole core, so each node has one worker.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    expected = None
    rng = random.Random(0)
    for number in range(rounds + 1):
        work = folder / f"work{number}"
        kind = ("worker", "node", "driver")[number % 3] if number else "nothing"
        process = start_driver(folder, work, cluster.address)
        wait_for_lines(work, rng.randrange(1, 6), process)
        if kind == "worker":
            os.kill(rng.choice(workers()), signal.SIGKILL)
        elif kind == "node":
            cluster.remove_node(node, allow_graceful=False)
            node = cluster.add_node(num_cpus=1)
        elif kind == "driver":
            process.kill()
            process.communicate()
            process = start_driver(folder, work, cluster.address)
        process.communicate(timeout=120)
        assert process.returncode == 0, (kind, process.returncode)
        found = content(work), (work / "counts.json").read_text()
        expected = expected or found
        assert found == expected, (kind, found, expected)
        print(f"round {number}: {kind} lost, results equal, {lines(work)} runs of shards", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    if sys.argv[2:3] == ["drive"]:
        drive(Path(sys.argv[1]), Path(sys.argv[3]), sys.argv[4])
        ray.shutdown()
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3)
