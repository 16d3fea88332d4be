"""Benchmarks keras_clip, and with --peers other implementations of the same work, in one run.

    python tools/benchmark.py --peers                     all tasks that this machine can run; an hour on two cores
    python tools/benchmark.py tokenizer step_vit_b32      some tasks, without peers
    python tools/benchmark.py --peers bf16_vit_b32        on an accelerator
    python tools/benchmark.py --render docs/benchmarks.md runs/benchmark/*.json

Each implementation runs in its own process, and the processes take turns, so that a busy machine slows down all of
them equally: compare the ratios rather than the seconds. A run is written to runs/benchmark/<time>.json with the
commit, package versions, number of threads and every repeat. `--render` generates the tables of the documentation from
such files, and leaves the tables of other tasks unchanged. Captions come from --data (a folder of WebDataset tars) or
from the built-in synthetic scenes. benchmark_tasks.py defines the tasks, benchmark_curation.py those that prepare data,
benchmark_scale.py those for large batches and accelerators, and benchmark_search.py those of search.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

# The scripts of both folders use `terminal`, which is in examples/.
sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
import benchmark_curation
import benchmark_data
import benchmark_inference
import benchmark_scale
import benchmark_search
import benchmark_tasks
import terminal

REPOSITORY = Path(__file__).resolve().parents[1]
BACKENDS = ("tensorflow", "jax", "torch")
PACKAGES = ("keras", "tensorflow", "jax", "torch", "open-clip-torch", "tokenizers", "numpy", "pillow", "torchvision")
MODULES = (
    benchmark_tasks,
    benchmark_inference,
    benchmark_data,
    benchmark_curation,
    benchmark_scale,
    benchmark_search,
)
TASKS = {name: task for module in MODULES for name, task in module.TASKS.items()}


def contenders(task, arguments):
    module = next(module for module in MODULES if task in module.TASKS)
    return module.contenders(task, arguments)


# One process per contender; the processes take turns.


def serve(task, label, arguments):
    """Runs in the process of one contender: sets it up, then runs it once per line of the standard input."""
    import torch  # noqa: F401  (before TensorFlow)

    factory = next(entry.factory for entry in contenders(task, arguments) if entry.label == label)
    start = time.perf_counter()
    run = factory(arguments)
    print(json.dumps({"setup": time.perf_counter() - start}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        amount = run()
        answer = {"seconds": time.perf_counter() - start, "amount": amount, "facts": getattr(run, "facts", {})}
        print(json.dumps(answer), flush=True)


class Contender:
    def __init__(self, task, entry, arguments):
        command = [sys.executable, __file__, task, "--serve", entry.label, "--peers", "--backends", *arguments.backends]
        command += ["--data", arguments.data] if arguments.data else []
        command += ["--tiny"] if arguments.tiny else []
        environment = {**os.environ, "KERAS_BACKEND": entry.backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        # All contenders share the accelerator, so none may reserve its memory.
        environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self.entry = entry
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.setup = self._answer()["setup"]
        # The first run compiles and fills caches, so it is reported separately.
        self.first = self.run()["seconds"]
        self.runs = []

    def _answer(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"The contender {self.entry.label!r} stopped with exit code {self.process.wait()}.")

    def run(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def result_of(racer, peak_flops):
    rates = [run["amount"] / run["seconds"] for run in racer.runs]
    median = statistics.median(rates)
    steady = statistics.median(run["seconds"] for run in racer.runs)
    facts = dict(racer.runs[-1]["facts"])
    if "flops" in facts and peak_flops is not None:
        facts["mfu"] = median * facts["flops"] / peak_flops
    entry = racer.entry._asdict()
    wanted = {key: entry[key] for key in ("reference", "rate", "memory_reference", "memory") if entry[key] is not None}
    return {
        "contender": racer.entry.label,
        "rates": rates,
        "median": median,
        "compile_seconds": max(0.0, racer.first - steady),
        **wanted,
        **facts,
    }


def measure(task, arguments):
    settings = TASKS[task]
    racers = []
    try:
        for entry in contenders(task, arguments):
            racers.append(Contender(task, entry, arguments))
            print(
                f"  {entry.label}: set up in {racers[-1].setup:.1f} s, first run {racers[-1].first:.1f} s", flush=True
            )
            if settings.accelerator:
                # Contenders run one at a time, since the memory may be too small for two.
                race(racers[-1:], arguments.repeats or settings.repeats)
                racers[-1].close()
        if not settings.accelerator:
            race(racers, arguments.repeats or settings.repeats)
    finally:
        for racer in racers:
            racer.close()
    results = [result_of(racer, arguments.peak_flops if settings.accelerator else None) for racer in racers]
    for result in results:
        print(f"  {result['contender']}: {result['median']:,.1f} {settings.unit}", flush=True)
    return {"task": task, "unit": settings.unit, "target": settings.target, "results": results}


def race(racers, repeats):
    for _ in range(repeats):
        for racer in racers:
            racer.runs.append(racer.run())


def versions():
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def commit():
    try:
        git = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# Tables.

START, END = "<!-- tables: start -->", "<!-- tables: end -->"
# Columns that only some tasks have: heading, key of the result, format.
MORE_COLUMNS = (
    ("memory per step, MiB", "memory_mib", "{:,.0f}"),
    ("MFU", "mfu", "{:.1%}"),
    ("peak memory, GiB", "device_gib", "{:.1f}"),
    ("CPU ms per query", "cpu_ms", "{:.2f}"),
    ("recall at 10", "recall_at_10", "{:.3f}"),
    ("build, s", "build_seconds", "{:.1f}"),
    ("resident, MiB", "resident_mib", "{:,.0f}"),
    ("open, s", "open_seconds", "{:.2f}"),
    ("bytes per sample", "bytes_per_sample", "{:.1f}"),
)


def ratio(results, result, reference, key):
    """Returns the ratio of a result's value to that of its reference; None if one of them was not measured."""
    other = next((r for r in results if r["contender"] == result.get(reference)), None)
    return result[key] / other[key] if other is not None and other.get(key) and key in result else None


def verdicts(record):
    """Yields one sentence per target and memory ratio, and one line per series of memory by batch size."""
    results = record["results"]
    rates = {r["contender"]: ratio(results, r, "reference", "median") for r in results}
    if record["target"] is not None and any(rates.values()):
        best = max(filter(None, rates.values()))
        word = "met" if best >= record["target"] else "missed"
        yield f"The target of {record['target']:g} x the peer's throughput is {word} ({best:.2f} x)."
    for result in results:
        label, reached = result["contender"], rates[result["contender"]]
        if "rate" in result and record["target"] is None and reached is not None:
            word = "met" if reached >= result["rate"] else "missed"
            yield (
                f"- `{label}` reaches {reached:.2f} x the throughput of `{result['reference']}`; the target of "
                f"at least {result['rate']:.2f} x is {word}."
            )
        memory = ratio(results, result, "memory_reference", "memory_mib")
        if memory is not None:
            line = f"- `{label}` needs {memory:.2f} x the memory of `{result['memory_reference']}`"
            if "memory" in result:
                word = "met" if memory <= result["memory"] else "missed"
                line += f"; the target of at most {result['memory']:.2f} x is {word}"
            yield f"{line}."
        if "memory_by_pairs" in result:
            series = ", ".join(f"{pairs}: {mib:,.0f}" for pairs, mib in result["memory_by_pairs"].items())
            yield f"- Memory per step of `{label}` by number of pairs, in MiB: {series}."


def table(record, run):
    results = record["results"]
    extra = [column for column in MORE_COLUMNS if any(result.get(column[1]) is not None for result in results)]
    headings = ["implementation", f"{record['unit']} (median)", "range", "relative throughput", "warm-up, s"]
    headings += [heading for heading, _, _ in extra]
    lines = [
        f"### {record['task']}",
        "",
        f"| {' | '.join(headings)} |",
        f"|{'---|' * len(headings)}",
    ]
    for result in results:
        rate = ratio(results, result, "reference", "median")
        cells = [
            result["contender"],
            f"{result['median']:,.1f}",
            f"{min(result['rates']):,.1f} to {max(result['rates']):,.1f}",
            "" if rate is None else f"{rate:.2f} x {result['reference']}",
            f"{result['compile_seconds']:.1f}",
        ]
        cells += ["" if result.get(key) is None else form.format(result[key]) for _, key, form in extra]
        lines.append(f"| {' | '.join(cells)} |")
    sentences = list(verdicts(record))
    lines += ["", *sentences] if sentences else []
    lines += ["", f"Commit {run['commit']}, {run.get('device', '')}{run['threads']} threads, {run['time']}.", ""]
    return "\n".join(lines)


def render(page, files):
    """Writes the table of the newest record of each task between the two table markers of `page`."""
    text = page.read_text()
    head, _, rest = text.partition(START)
    old, _, tail = rest.partition(END)
    tables = {part.split("\n", 1)[0]: f"### {part.strip()}\n" for part in old.split("### ")[1:]}
    for run in sorted((json.loads(Path(file).read_text()) for file in files), key=lambda run: run["time"]):
        if run.get("is_tiny"):
            raise SystemExit(
                f"Expected runs at full size. Received: the run of {run['time']}, which was made with --tiny and does "
                "not measure speed. Leave its file out."
            )
        tables |= {record["task"]: table(record, run) for record in run["tasks"]}
    new = "\n".join(tables[task] for task in TASKS if task in tables)
    page.write_text(f"{head}{START}\n\n{new}\n{END}{tail}")


def parse_args(argv):
    parser = terminal.Parser(__doc__)
    parser.add_argument("tasks", nargs="*", help=f"some of {', '.join(TASKS)}; default: all. With --render: JSON files")
    parser.add_argument("--peers", action="store_true", help="also measure the peers that are installed")
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=BACKENDS)
    parser.add_argument("--repeats", type=int, help="runs per implementation; the default depends on the task")
    parser.add_argument("--data", help="folder of WebDataset tars with real captions and photographs")
    parser.add_argument(
        "--peak-flops", type=float, default=989e12, help="peak FLOP/s of the accelerator in bfloat16; default: H100"
    )
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to check that it works; speeds are meaningless")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "runs" / "benchmark")
    parser.add_argument("--render", type=Path, metavar="PAGE", help="write the tables of the JSON files to PAGE")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    unknown = [] if arguments.render else [task for task in arguments.tasks if task not in TASKS]
    if unknown:
        parser.error(f"unknown tasks: {', '.join(unknown)}; the tasks are {', '.join(TASKS)}")
    return arguments


def possible(task, arguments):
    """Returns whether this machine can run a task; prints a line if it cannot."""
    if not TASKS[task].accelerator or arguments.tiny or benchmark_scale.has_accelerator():
        return True
    print(f"{task}: skipped, no accelerator is available")
    return False


def main(argv=None):
    arguments = parse_args(argv)
    if arguments.render:
        return render(arguments.render, arguments.tasks)
    if arguments.serve:
        return serve(arguments.tasks[0], arguments.serve, arguments)
    run = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "commit": commit(),
        "versions": versions(),
        "python": platform.python_version(),
        "threads": os.cpu_count(),
        "device": benchmark_scale.device_name(),
        "is_tiny": arguments.tiny,
        "tasks": [],
    }
    # Not with the other imports: a process that serves tasks chooses its backend first.
    from keras_clip import files

    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{run['time'].replace(' ', '_').replace(':', '')}.json"
    for task in arguments.tasks or TASKS:
        if possible(task, arguments):
            print(task, flush=True)
            run["tasks"].append(measure(task, arguments))
        # A task that fails or is interrupted does not take those before it along.
        files.write_json(path, run)
    print(path)


if __name__ == "__main__":
    terminal.start(parse_args)
    terminal.run(main)
