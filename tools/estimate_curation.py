"""Estimates what it takes to curate a pool: core-hours, GPU-hours, bytes, machines for one day, and cost.

    python tools/estimate_curation.py                                        the tables of docs/data.md
    python tools/estimate_curation.py --measure rates.json --data DATA       measures the rates of this machine first
    python tools/estimate_curation.py --rates rates.json --pairs 5e9 --core-price 0.03

A rate is the time that all threads of one process computed, divided by the number of pairs: waiting for storage and for
other processes does not count. The rates do not depend on the size of the pool, since each pass reads a shard at a
time. GPU time is computed from the FLOPs of the encoders. Prices, the utilisation of the GPU and the share of the pairs
that are kept are assumptions, which are arguments.
"""

import argparse
import io
import json
import shutil
import tarfile
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

# Core-seconds for each pair, bytes of the Parquet table for each pair, and bytes of an image file, as `measure` returns
# them. Measured on one core of a machine with two (x86-64), photographs of 256 pixels on the shorter side.
RATES = {
    "core_seconds": {
        "profile": 0.000544,
        "duplicates": 6.58e-05,
        "write": 0.000253,
        "score": 0.00169,
        "match": 2.94e-05,
        "balance": 2.7e-05,
    },
    "table_bytes": {
        "profile": 300.0,
        "duplicates": 46.5,
        "match": 43.2,
        "balance": 4.0,
        "score": 2050.0,
        "image": 20200.0,
    },
}
PASSES = {
    "profile": "decode every image, tokenise every caption",
    "match": "490,000 queries",
    "duplicates": "exact and perceptual hashes",
    "score": "ViT-B/32, images decoded by PIL",
    "balance": "t = 20,000",
    "write": "the kept pairs",
}
PAIRS = (1e6, 4e8, 1e10)
CAPTIONS, QUERIES = 40_000, 490_000


def measure(data):
    """Returns the rates of this machine."""
    import benchmark_curation
    import benchmark_tasks
    from benchmark_curation import PHOTOGRAPHS, photographs

    from keras_clip import curation
    from keras_clip.curation.queries import given_queries
    from keras_clip.data.decoding import decoded
    from keras_clip.data.images import ImagePreprocessor

    arguments = SimpleNamespace(data=data, tiny=False)
    seconds, sizes = {}, {}
    folder = Path(tempfile.mkdtemp())
    try:
        images = list(photographs(arguments))
        captions = benchmark_tasks.captions(arguments, PHOTOGRAPHS)
        with tarfile.open(folder / "00000.tar", "w") as tar:
            for number, pair in enumerate(zip(images, captions, strict=True)):
                for extension, content in zip(("jpg", "txt"), (pair[0], pair[1].encode()), strict=True):
                    member = tarfile.TarInfo(f"{number:05d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        pool = curation.Pool.open(folder / "00000.tar", folder / "work")
        quiet = {"engine": "serial", "progress": False}
        count = len(images)
        for name, run in {
            "profile": lambda: curation.profile(pool, **quiet),
            "duplicates": lambda: curation.find_duplicates(pool, **quiet),
            "write": lambda: curation.write(pool, folder / "out", [], **quiet),
            "score": lambda: list(decoded([images], ImagePreprocessor(224))),
        }.items():
            if name != "write":
                # Without the time of imports.
                run()
            for made in pool.folder.glob(f"{name}*"):
                shutil.rmtree(made) if made.is_dir() else made.unlink()
            seconds[name] = core_seconds(run) / count
        sizes["profile"] = table_bytes(pool, "profile") / count
        sizes["duplicates"] = table_bytes(pool, "duplicates*") / count
        (folder / "synthetic").mkdir()
        synthetic = benchmark_curation.synthetic_pool(folder / "synthetic", QUERIES, CAPTIONS)
        queries = given_queries(benchmark_curation.synthetic_queries(QUERIES))
        curation.match(synthetic, queries, **quiet)
        building = core_seconds(lambda: curation.Matcher(queries.table["entry"].to_pylist()))
        shutil.rmtree(synthetic.folder / "match")
        seconds["match"] = (core_seconds(lambda: curation.match(synthetic, queries, **quiet)) - building) / CAPTIONS
        seconds["balance"] = core_seconds(lambda: curation.balance(synthetic, t=1000, **quiet)) / CAPTIONS
        sizes["match"] = table_bytes(synthetic, "match") / CAPTIONS
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    # 512 numbers and the score, and a probability, which do not compress.
    sizes["score"], sizes["balance"] = 4 * 513, 4
    sizes["image"] = sum(map(len, images)) / count
    return {"core_seconds": seconds, "table_bytes": sizes}


def core_seconds(run):
    """Returns the seconds that all threads of this process computed."""
    start = time.process_time()
    run()
    return time.process_time() - start


def table_bytes(pool, name):
    """Returns the bytes of all files of a pass but its markers."""
    paths = (path for path in pool.folder.glob(f"{name}/**/*") if path.is_file() and path.suffix != ".json")
    return sum(path.stat().st_size for path in paths)


def gpu_seconds(arguments):
    """Returns the seconds of a GPU for the forward passes of a pair through ViT-B/32; most captions have 16 tokens."""
    from keras_clip import flops
    from keras_clip.presets.architectures import ARCHITECTURES

    architecture = ARCHITECTURES["vit_b32"]
    total = flops.image_encoder(architecture.image_encoder) + flops.text_encoder(architecture.text_encoder, 16)
    return total / (arguments.peak_tflops * 1e12 * arguments.utilisation)


def estimate(pairs, rates, arguments):
    """Returns {pass: (core-hours, GPU-hours, bytes of tables or shards)} for a number of pairs."""
    rows = {}
    for name in PASSES:
        share = arguments.kept if name == "write" else 1
        gpu = gpu_seconds(arguments) * pairs / 3600 if name == "score" else 0.0
        size = rates["table_bytes"]["image"] * arguments.kept if name == "write" else rates["table_bytes"][name]
        rows[name] = pairs * share * rates["core_seconds"][name] / 3600, gpu, pairs * size
    return rows


def tables(rates, arguments):
    """Returns the tables as Markdown."""
    estimates = {pairs: estimate(pairs, rates, arguments) for pairs in arguments.pairs}
    names = [f"{pairs:.0e} pairs".replace("e+0", "e").replace("e+", "e") for pairs in arguments.pairs]
    lines = ["| pass | what | pairs/s a core | bytes a pair | core-hours: " + " | ".join(names) + " |"]
    lines += ["|---" * (4 + len(names)) + "|"]
    for name, what in PASSES.items():
        rate, size = 1 / rates["core_seconds"][name], estimates[arguments.pairs[0]][name][2] / arguments.pairs[0]
        hours = " | ".join(number(each[name][0]) for each in estimates.values())
        lines.append(f"| `{name}` | {what} | {number(rate)} | {number(size)} | {hours} |")
    lines += ["", "| | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    totals = {pairs: [sum(column) for column in zip(*each.values(), strict=True)] for pairs, each in estimates.items()}
    hours = 24 * arguments.days
    summary = {
        "core-hours": [number(cores) for cores, _, _ in totals.values()],
        "GPU-hours": [number(gpus) for _, gpus, _ in totals.values()],
        "source": [in_bytes(pairs * rates["table_bytes"]["image"]) for pairs in totals],
        "tables": [
            in_bytes(sum(row[2] for name, row in each.items() if name != "write")) for each in estimates.values()
        ],
        "new shards": [in_bytes(each["write"][2]) for each in estimates.values()],
        f"machines of {arguments.cores} cores for {arguments.days:g} day(s)": [
            number(max(1, -(-cores // (hours * arguments.cores)))) for cores, _, _ in totals.values()
        ],
        f"GPUs for {arguments.days:g} day(s)": [number(max(1, -(-gpus // hours))) for _, gpus, _ in totals.values()],
        "read rate of the source, in that time": [
            in_bytes(pairs * rates["table_bytes"]["image"] / (hours * 3600)) + "/s" for pairs in totals
        ],
        "cost": [
            f"${number(cores * arguments.core_price + gpus * arguments.gpu_price)}"
            for cores, gpus, _ in totals.values()
        ],
    }
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in summary.items()]
    return "\n".join(lines)


def number(value):
    """Returns a number with two significant digits, and thousands separated."""
    if value == 0:
        return "0"
    if value >= 100:
        digits = len(str(int(value))) - 2
        return f"{round(value, -digits):,.0f}"
    return f"{value:.2g}"


def in_bytes(value):
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000:
            return f"{number(value)} {unit}"
        value /= 1000
    return f"{number(value)} PB"


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path, help="measure, and write the rates to this file")
    parser.add_argument("--data", help="folder with grocery/train/*.tar to measure on; default: drawn scenes")
    parser.add_argument("--rates", type=Path, help="a file that --measure wrote")
    parser.add_argument("--pairs", type=float, nargs="+", default=PAIRS)
    parser.add_argument("--days", type=float, default=1.0)
    parser.add_argument("--cores", type=int, default=64, help="cores of a machine")
    parser.add_argument("--kept", type=float, default=0.25, help="share of the pairs that are kept")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU, in bfloat16")
    parser.add_argument("--utilisation", type=float, default=0.25, help="share of the peak")
    parser.add_argument("--core-price", type=float, default=0.04, help="dollars for a core for an hour")
    parser.add_argument("--gpu-price", type=float, default=2.5, help="dollars for a GPU for an hour")
    return parser.parse_args(argv)


def main(argv=None):
    arguments = parse_args(argv)
    rates = RATES
    if arguments.measure:
        rates = measure(arguments.data)
        arguments.measure.write_text(json.dumps(rates, indent=2) + "\n")
    elif arguments.rates:
        rates = json.loads(arguments.rates.read_text())
    print(tables(rates, arguments))


if __name__ == "__main__":
    main()
