"""Tasks of `tools/benchmark.py` for the reading of data: the index of large sets of shards, and remote shards.

    python tools/benchmark.py index                       10 million samples
    python tools/benchmark.py pipeline_remote             the pipeline from a web server that answers after 20 ms
    python tools/benchmark_data.py --samples 400000000    an index of any size, in a folder of its own; prints one line

The shards of the index are empty files of the right size: an index is generated for them, opened in another process,
and samples are looked up at random places. The web server is another process of this machine, and takes a part of its
cores.
"""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmark_tasks import Entry, Task, pipeline_shards

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
import terminal

REPOSITORY = Path(__file__).resolve().parents[1]
PER_SHARD = 10_000
BATCH = 64
DELAY = 0.02
TASKS = {"index": Task("samples/s", 5), "pipeline_remote": Task("samples/s", 5)}


def generate(folder, samples):
    """Makes shards without content and their index: pairs of an image of 5 to 60 kB, a caption and a record."""
    import numpy as np

    from keras_clip.data.readers.storage import indexing
    from keras_clip.data.readers.storage.shard_index import ShardIndex, pack

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = [str(folder / f"{number:06d}.tar") for number in range(-(-samples // PER_SHARD))]
    templates = []
    for number in range(8):
        sizes = np.stack([rng.integers(5_000, 60_000, PER_SHARD), *rng.integers(20, 900, (2, PER_SHARD))], axis=1)
        ends = np.cumsum(512 + -(-sizes // 512) * 512).reshape(sizes.shape)
        spans = np.stack([ends - -(-sizes // 512) * 512, sizes], axis=-1)
        keys = [f"{number:03d}{row:06d}".encode() for row in range(PER_SHARD)]
        templates.append((ShardIndex.of_spans("", spans, 3, keys), int(ends.max()) + 1024))
    packed = [pack(index, size, 0) for index, size in templates]

    def shards():
        for number, path in enumerate(paths):
            shard, size = packed[number % len(packed)], templates[number % len(packed)][1]
            with open(path, "wb") as file:
                file.truncate(size)
            section = shard.section.copy()
            section["changed"] = os.stat(path).st_mtime_ns
            yield shard._replace(section=section)

    place = indexing._places(paths, "")[0]
    indexing._write(place, shards(), "")
    return paths


def resident():
    """Returns the memory of this process that is resident, in MiB: (all, of which pages of files)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {
        name: int(value.split()[0]) / 1024
        for name, _, value in (line.partition(":") for line in lines)
        if "Rss" in name or name == "VmRSS"
    }
    return values["VmRSS"], values["RssFile"]


def opened(folder):
    """Opens the shards of a folder; returns the reader and the facts: seconds, bytes a sample, MiB."""
    from keras_clip.data.readers import find_files
    from keras_clip.data.readers.tar import TarReader

    before, start = resident(), time.perf_counter()
    reader = TarReader(find_files(str(folder / "*.tar")))
    seconds = time.perf_counter() - start
    (file,) = folder.glob(".keras_clip-*.index")
    return reader, {
        "open_seconds": seconds,
        "bytes_per_sample": file.stat().st_size / len(reader) - 10.125,
        "resident_mib": resident()[0] - before[0],
    }


def look_up(reader, batches, facts, before):
    """Looks up samples at random places; keeps the largest memory in `facts`."""
    import numpy as np

    rng = np.random.default_rng(1)
    for _ in range(batches):
        reader._index.spans(rng.integers(0, len(reader), BATCH))
        facts["resident_mib"] = max(facts["resident_mib"], resident()[0] - before)
    return batches * BATCH


def index_task(arguments):
    folder = REPOSITORY / "runs" / "benchmark" / ("index_tiny" if arguments.tiny else "index")
    if not list(folder.glob(".keras_clip-*.index")):
        generate(folder, 100_000 if arguments.tiny else 10_000_000)
    before = resident()[0]
    reader, facts = opened(folder)
    run = functools.partial(look_up, reader, 20 if arguments.tiny else 500, facts, before)
    run.facts = facts
    return run


SERVER = """
import sys
from range_server import RangeServer
with RangeServer(sys.argv[1], float(sys.argv[2])) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


def remote_pipeline(shuffle, keeps_blocks, arguments):
    """Reads the shards of the task `pipeline` from a web server with a delay; every run begins with an empty cache."""
    shards = [Path(path) for path in pipeline_shards(arguments)]
    command = [sys.executable, "-c", SERVER, str(shards[0].parent), str(DELAY)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tests")}
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    atexit.register(server.kill)
    cache = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["XDG_CACHE_HOME"] = str(cache)
    if not keeps_blocks:
        os.environ["KERAS_CLIP_CACHE_BYTES"] = "0"
    url = server.stdout.readline().strip()
    dataset = pipeline([f"{url}/{path.name}" for path in shards], shuffle)

    def run():
        shutil.rmtree(cache / "keras_clip" / "blocks", ignore_errors=True)
        return sum(len(batch["images"]) for batch in dataset)

    return run


def local_pipeline(arguments):
    dataset = pipeline(pipeline_shards(arguments), "samples")
    return lambda: sum(len(batch["images"]) for batch in dataset)


def pipeline(shards, shuffle):
    from keras_clip.data import CLIPTokenizer, ImagePreprocessor, image_text_pairs

    parts = {"tokenizer": CLIPTokenizer(), "image_preprocessor": ImagePreprocessor(224)}
    return image_text_pairs(shards, batch_size=64, shuffle=shuffle, **parts)


def contenders(task, arguments):
    """Returns the entries of the tasks of this module."""
    if task == "pipeline_remote":
        kinds = {
            "20 ms, samples by ranges, no cache": ("samples", False),
            "20 ms, samples, blocks fetched anew": ("samples", True),
            "20 ms, blocks, fetched anew": ("blocks", True),
        }
        entries = [
            Entry(label, "tensorflow", functools.partial(remote_pipeline, *kind), "local files", 0.8)
            for label, kind in kinds.items()
        ]
        return [*entries, Entry("local files", "tensorflow", local_pipeline)]
    return [Entry("keras_clip", "tensorflow", index_task)]


def parse_args(argv):
    parser = terminal.Parser(__doc__)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--batches", type=int, default=20_000, help="batches of 64 samples to look up")
    parser.add_argument("--folder", type=Path, help="where the index is generated; default: a temporary folder")
    parser.add_argument("--open", action="store_true", help="open the index of --folder, which exists")
    return parser.parse_args(argv)


def main(argv=None):
    import keras_clip.data.readers.tar  # noqa: F401

    arguments = parse_args(argv)
    folder = arguments.folder or Path(tempfile.mkdtemp())
    if not arguments.open:
        generate(folder, arguments.samples)
        command = [sys.executable, __file__, "--open", "--folder", str(folder), "--batches", str(arguments.batches)]
        os.execv(sys.executable, command)
    before = resident()[0]
    reader, facts = opened(folder)
    start = time.perf_counter()
    count = look_up(reader, arguments.batches, facts, before)
    rate = count / (time.perf_counter() - start)
    print(
        f"{len(reader):,} samples in {len(reader.paths):,} shards: opened in {facts['open_seconds']:.1f} s, "
        f"{facts['bytes_per_sample']:.1f} bytes a sample beside the keys, {facts['resident_mib']:,.0f} MiB resident at "
        f"most while {count:,} samples were looked up at {rate:,.0f} a second"
    )


if __name__ == "__main__":
    terminal.start(parse_args)
    terminal.run(main)
