"""Runs a pass on a Ray cluster of two nodes whose parts fail, in a process of its own.

    python tests/ray_cluster.py FOLDER

In one round a worker and then a node are lost while the pass runs, in another one the driver; the results must be those
of an undisturbed run in one process. FOLDER has tars.
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
from keras_clip.engines import Ray, Serial


def content(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("slow/*"))}


def drive(folder, work, engine):
    """Runs the pass; the process of a driver that may be killed."""
    pool = curation.Pool.open(str(folder / "*.tar"), work)
    counts = curation.run_pass(pool, Slow(work / "log"), engine, progress=False)
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


def results(work):
    return content(work), (work / "counts.json").read_text()


def lose_worker_and_node(cluster, node, work, process):
    """Kills one worker and then the node that was added last, each while shards are processed."""
    wait_for_lines(work, 2, process)
    os.kill(random.choice(workers()), signal.SIGKILL)
    wait_for_lines(work, lines(work) + 2, process)
    assert process.poll() is None, "The pass ended before the node was removed."
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=1)


def main(folder):
    drive(folder, folder / "alone", Serial())
    # A worker takes a whole core, so each node has one worker.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    for kind in ("worker and node", "driver"):
        work = folder / kind
        process = start_driver(folder, work, cluster.address)
        if kind == "driver":
            wait_for_lines(work, 3, process)
            process.kill()
            process.communicate()
            assert not (work / "counts.json").exists(), "The pass ended before the driver was killed."
            process = start_driver(folder, work, cluster.address)
        else:
            lose_worker_and_node(cluster, node, work, process)
        process.communicate(timeout=120)
        assert process.returncode == 0, (kind, process.returncode)
        assert results(work) == results(folder / "alone"), kind
        print(f"{kind} lost, results equal, {lines(work)} runs of shards", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    if sys.argv[2:3] == ["drive"]:
        drive(Path(sys.argv[1]), Path(sys.argv[3]), Ray(sys.argv[4]))
        ray.shutdown()
    else:
        main(Path(sys.argv[1]))
