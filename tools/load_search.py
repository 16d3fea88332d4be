"""Measures the search server under load, on the loopback: latencies of many clients, and its memory.

    python tools/load_search.py --pictures 100000 --clients 50 --queries 10000
    python tools/load_search.py --pictures 2000 --kills 50

Makes an index of drawn vectors in a temporary folder, without files of pictures, and a CLIP of random weights with a
small text tower; starts the server in another process; then each client sends one query after another, all different.
Prints p50 and p99, the answers by status, and the resident memory of the server at every tenth of the queries. With
--kills, the server is killed by SIGKILL this number of times while clients label pictures, and what it had answered
must be there when it has started again.
"""

import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np

DIMENSIONS, WORDS = 512, ("red", "blue", "car", "night", "sea", "dog", "tree", "snow", "city", "old", "round", "glass")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=1800, help="the longest time of the queries (default: 1800)")
    parser.add_argument("--kills", type=int, default=0)
    # The server process of this script.
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if args.serve:
        serve(args.serve)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_index(Path(folder), args.pictures)
        if args.kills:
            print(json.dumps(kill(folder, args.kills, args.pictures)))
        else:
            print(json.dumps(load(folder, args.clients, args.queries, args.seconds)))


def build_clip():
    import keras

    import keras_clip

    keras.utils.set_random_seed(0)
    image_encoder = keras_clip.encoders.VisionTransformer(32, 16, 64, 1, 2)
    text_encoder = keras_clip.encoders.TextTransformer(128, 2, 2)
    return keras_clip.CLIPModel(image_encoder, text_encoder, DIMENSIONS)


def make_index(folder, count):
    """Writes an index of random unit vectors; 5 % are near-duplicates of the row before them."""
    from keras_clip.search.pictures import database, rows
    from keras_clip.search.pictures.indexed_model import IndexedModel

    facts = {**IndexedModel(build_clip()).facts(), "widths": {"features": 64, "embeddings": DIMENSIONS}}
    connection = database.open_to_write(folder, lambda: facts)
    rng = np.random.default_rng(0)
    for start in range(0, count, 10_000):
        size = min(10_000, count - start)
        vectors = rng.normal(size=(size, DIMENSIONS)).astype(np.float32)
        vectors[20::20] = vectors[19:-1:20] + 0.05 * vectors[20::20]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        rows.append(rows.path_of(folder, "embeddings", 0), start, vectors)
        rows.append(rows.path_of(folder, "features", 0), start, vectors[:, :64])
        with database.transaction(connection):
            connection.executemany(
                "INSERT INTO pictures VALUES (?, ?, 0, ?, 1000000, 0, ?, 4000, 3000, ?, 'JPEG', ?, '', 0, 0, 0)",
                [
                    (
                        *(number, number, f"20{number % 25:02}/{WORDS[number % 12]}/{number:08}.jpg".encode()),
                        *(f"{number:064x}", 1_600_000_000 + 60 * number),
                        f"a photo of {WORDS[number % 12]} and {WORDS[number // 12 % 12]}",
                    )
                    for number in range(start, start + size)
                ],
            )
            database.write_meta(connection, {"rows": start + size, "next_id": start + size, "version": start + 1})
    with database.transaction(connection):
        connection.execute("INSERT INTO roots VALUES (0, ?)", (os.fsencode(folder / "photos"),))
    connection.close()


def serve(folder):
    from keras_clip.search.server import serve

    serve(folder, build_clip(), port=0, report=lambda line: print(line, flush=True))


def start(folder):
    """Returns the process of the server and its port, when it answers."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(folder)], stdout=subprocess.PIPE, stderr=sys.stderr, text=True
    )
    for line in process.stdout:
        if line.startswith("Open "):
            port = int(line.strip().rstrip("/").rpartition(":")[2])
            break
    else:
        raise RuntimeError(f"The server has not started; its status is {process.wait()}.")
    while True:
        try:
            request(connect(port), "GET", "/api/index")
            return process, port
        except OSError:
            time.sleep(0.05)


def connect(port):
    return http.client.HTTPConnection("127.0.0.1", port, timeout=120)


def request(connection, method, path, body=None):
    headers = {"Content-Type": "application/json"} if body is not None else {}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    return response.status, response.read()


def resident(process):
    """The resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def load(folder, clients, queries, seconds):
    process, port = start(folder)
    latencies, statuses, memory, lock = [], Counter(), [resident(process)], threading.Lock()
    numbers, end = iter(range(queries)), time.monotonic() + seconds

    def work():
        connection = connect(port)
        while time.monotonic() < end:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            text = " ".join(WORDS[number // 12**place % 12] for place in range(4)) + f" {number}"
            filters = {"words": WORDS[number % 12]} if number % 5 == 0 else {}
            began = time.perf_counter()
            status, _ = request(connection, "POST", "/api/search", {"query": text, "filters": filters})
            took = time.perf_counter() - began
            with lock:
                latencies.append(took)
                statuses[status] += 1
                if len(latencies) % max(1, queries // 10) == 0:
                    memory.append(resident(process))

    began, cpu = time.monotonic(), cpu_seconds(process)
    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took, cpu = time.monotonic() - began, cpu_seconds(process) - cpu
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    p50, p99 = np.percentile(latencies, [50, 99])
    return {
        "queries": len(latencies),
        "statuses": dict(statuses),
        "p50_ms": round(1000 * p50, 1),
        "p99_ms": round(1000 * p99, 1),
        "queries_per_second": round(len(latencies) / took, 1),
        "server_cpu_ms_per_query": round(1000 * cpu / len(latencies), 2),
        "resident_mib": memory,
    }


def cpu_seconds(process):
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kill(folder, kills, pictures):
    """Kills the server while labels are set, and counts those that it had answered and that are lost."""
    from keras_clip.search import Classes, PictureIndex

    classes = Classes(folder)
    number, answered, rng = classes.add("class", ["a class"]).id, set(), np.random.default_rng(0)
    for _ in range(kills):
        process, port = start(folder)
        timer = threading.Timer(rng.uniform(0.02, 0.5), process.kill)
        timer.start()
        connection = connect(port)
        try:
            while True:
                picture = int(rng.integers(pictures))
                fields = {"pictures": [picture], "class": number, "value": True}
                if request(connection, "POST", "/api/labels", fields)[0] == 200:
                    answered.add(picture)
        except (OSError, http.client.HTTPException):
            process.wait()
    with PictureIndex.open(folder) as index:
        there = len(index)
    kept = {int(digest, 16) for digest in classes.by_hand(number)}
    return {"kills": kills, "answered": len(answered), "lost": len(answered - kept), "pictures": there}


if __name__ == "__main__":
    main()
