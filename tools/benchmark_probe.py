"""Compares the search for C with scikit-learn's, on 20,000 images with 512 features and 100 classes.

    python tools/benchmark_probe.py ours theirs_float64 theirs_float32
    python tools/benchmark_probe.py --rows 4000 --classes 20 ours theirs_float64
    python tools/benchmark_probe.py ours theirs_float64 --rows 40000 --width 2048 --C 1 10
    python tools/benchmark_probe.py --digits

Each contender runs in its own process, one after the other, and makes the same search: 15 fits, then one on training
and validation split together. `--C` makes only fits of these C on the training split, each of ours from the solution
before. scikit-learn starts every fit from zero, with `tol=1e-4 / n`. Prints, and writes to --out, the seconds of each
fit (on a shared machine, compare the CPU seconds), the memory at the start of the fits and at most, the selected C, and
for each C the difference of the float64 objective from scikit-learn's and the fraction of test images with the same
prediction. Environment variables that restrict OpenBLAS to slower kernels are unset. `--digits` instead prints the
table "Objectives" of docs/linear_probe.md: single fits on the digits of scikit-learn, which a weak penalty makes
difficult.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

# The scripts of both folders use `terminal`, which is in examples/.
sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
import numpy as np
import terminal

CONTENDERS = ("ours", "theirs_float64", "theirs_float32")


def make_splits(arguments):
    """Returns training, validation and test split: overlapping clusters in few strong and many weak directions."""
    rng = np.random.default_rng(0)
    rows, width, classes = arguments.rows, arguments.width, arguments.classes
    sizes = np.arange(1, width + 1) ** -0.7
    centres = rng.normal(size=(classes, width)) * sizes * arguments.spread
    rotation = np.linalg.qr(rng.normal(size=(width, width)))[0]
    mean = rng.normal(size=width) * 0.5
    splits = []
    for count in (rows // 2, rows - rows // 2, rows):
        labels = rng.permutation(np.arange(count) % classes)
        features = (centres[labels] + rng.normal(size=(count, width)) * sizes) @ rotation + mean
        # The features have norms of about 10, like those of CLIP.
        splits.append((features.astype("float32") * np.float32(10 / np.sqrt(width * 0.25 + np.sum(sizes**2))), labels))
    return splits


def steps(scores):
    """Yields the steps of the paper's search, where C = 10 ** (step / 8)."""
    yield from range(-48, 49, 16)
    for interval in (8, 4, 2, 1):
        best = max(sorted(scores), key=scores.get)
        yield from (step for step in (best - interval, best + interval) if abs(step) <= 48)


class Stopwatch:
    """Measures the wall and CPU seconds of each fit, and prints them."""

    def __init__(self):
        self.seconds = []

    def measure(self, fit, C):
        begin = time.perf_counter(), time.process_time()
        probe = fit()
        self.seconds.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
        iterations = probe.n_iter_[0] if hasattr(probe, "n_iter_") else probe.iterations
        wall, cpu = self.seconds[-1]
        print(f"  C={C:.3g}: {iterations} iterations, {wall:.1f} s, {cpu:.1f} s of all cores together", flush=True)
        return probe


def fits_by_scikit_learn(train, validation, dtype, only):
    from sklearn.linear_model import LogisticRegression

    def fit(features, labels, step):
        probe = LogisticRegression(C=10 ** (step / 8), tol=1e-4 / len(labels), max_iter=1000)
        return stopwatch.measure(lambda: probe.fit(features, labels), probe.C)

    stopwatch = Stopwatch()
    train, validation = ((features.astype(dtype), labels) for features, labels in (train, validation))
    scores, probes = {}, {}
    for step in only or steps(scores):
        probes[step] = fit(*train, step)
        scores[step] = probes[step].score(*validation)
    if not only:
        best = max(sorted(scores), key=scores.get)
        both = [np.concatenate(parts) for parts in zip(train, validation, strict=True)]
        probes["refit"] = fit(*both, best)
    return scores, {key: (probe.coef_, probe.intercept_, probe.n_iter_[0]) for key, probe in probes.items()}


def fits_by_us(train, validation, only):
    from keras_clip.evaluation import accuracy
    from keras_clip.evaluation.classifiers import linear_probe

    stopwatch, probes, take = Stopwatch(), [], linear_probe.LinearProbe._take
    minimise = linear_probe.Problem.minimise
    linear_probe.Problem.minimise = lambda self, C, *a: stopwatch.measure(lambda: minimise(self, C, *a), C)
    linear_probe.LinearProbe._take = lambda self, *a: probes.append(self) or take(self, *a)
    if only:
        problem, solution = linear_probe.Problem(*train, int(train[1].max()) + 1), None
        for step in only:
            solution = problem.minimise(10 ** (step / 8), 1000, solution)
            linear_probe.LinearProbe(10 ** (step / 8))._take(solution, False)
        found = dict(zip(only, probes, strict=True))
        scores = {
            step: accuracy(probe.decision_function(validation[0]), validation[1]) for step, probe in found.items()
        }
    else:
        search = linear_probe.search_C(train, validation, verbose=0)
        scores = {round(8 * np.log10(C)): score for C, score in search.scores.items()}
        found = {round(8 * np.log10(probe.C)): probe for probe in probes[:-1]} | {"refit": search.probe}
    return scores, {key: (probe.coef, probe.intercept, probe.iterations) for key, probe in found.items()}


def contend(arguments):
    """Runs one contender on the splits of the folder `arguments.one`, and writes its scores and parameters there."""
    warnings.simplefilter("ignore")
    folder, name = Path(arguments.one), arguments.contenders[0]
    train, validation = ([np.load(folder / f"{split}_{i}.npy") for i in (0, 1)] for split in (0, 1))
    only = [round(8 * np.log10(C)) for C in arguments.C]
    if name == "ours":
        from keras_clip.evaluation.classifiers import matmul

        matmul.multiply(train[0][:1], train[0][:1])  # starts the backend
    else:
        from sklearn.linear_model import LogisticRegression  # noqa: F401
    memory = [peak_memory()]
    begin = time.perf_counter(), time.process_time()
    scores, parameters = (
        fits_by_us(train, validation, only)
        if name == "ours"
        else fits_by_scikit_learn(train, validation, name.removeprefix("theirs_"), only)
    )
    seconds = time.perf_counter() - begin[0], time.process_time() - begin[1]
    memory.append(peak_memory())
    arrays = {f"{step}/{i}": x for step, values in parameters.items() for i, x in enumerate(values)}
    steps_ = sorted(scores)
    np.savez(
        folder / f"{name}.npz",
        seconds=seconds,
        memory=memory,
        steps=steps_,
        scores=[scores[step] for step in steps_],
        **arrays,
    )


def peak_memory():
    """Returns the largest resident memory of the process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def environment():
    slowed = {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"}
    kept = {key: value for key, value in os.environ.items() if key not in slowed}
    return kept


def objective(features, labels, coef, intercept, C):
    scores = features.astype("float64") @ coef.astype("float64").T + intercept
    highest = scores.max(axis=1)
    losses = np.log(np.exp(scores - highest[:, None]).sum(axis=1)) + highest - scores[np.arange(len(labels)), labels]
    return losses.mean() + np.sum(coef.astype("float64") ** 2) / (2 * C * len(labels))


def compare(results, splits):
    """Prints, for each C of all contenders, objectives relative to scikit-learn's in float64, and equal predictions."""
    train, validation, (test, _) = splits
    both = [np.concatenate(parts) for parts in zip(train, validation, strict=True)]
    reference, lines = results["theirs_float64"], []
    best = int(reference["steps"][reference["scores"].argmax()])
    for step in [*map(int, reference["steps"]), "refit"]:
        if any(f"{step}/0" not in result for result in results.values()):
            continue
        data, C = (both if step == "refit" else train), 10 ** ((best if step == "refit" else step) / 8)
        found = {name: [result[f"{step}/{i}"] for i in (0, 1, 2)] for name, result in results.items()}
        least = objective(*data, *found["theirs_float64"][:2], C)
        classes = {name: (test @ coef.T + intercept).argmax(axis=1) for name, (coef, intercept, _) in found.items()}
        lines.append({"step": step, "C": C, "objective": least, "iterations": int(found["theirs_float64"][2])})
        for name in results:
            if name != "theirs_float64":
                relative = objective(*data, *found[name][:2], C) / least - 1
                equal = float(np.mean(classes[name] == classes["theirs_float64"]))
                lines[-1][name] = {"relative": relative, "equal": equal, "iterations": int(found[name][2])}
        print(json.dumps(lines[-1]))
    return lines


def digits_table():
    """Yields the rows of the table of objectives on 1,000 digits, Markdown."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    from keras_clip.evaluation import LinearProbe

    features, labels = (array[:1000] for array in load_digits(return_X_y=True))
    yield "| C | iterations, keras_clip | objective, keras_clip | scikit-learn, `max_iter=1000` | `max_iter=20000` |"
    yield "|---|---|---|---|---|"
    for C in (0.01, 1, 100, 1000, 100_000, 1_000_000):
        probe = LinearProbe(C).fit(features, labels)
        theirs = [
            LogisticRegression(C=C, tol=1e-4 / len(labels), max_iter=most).fit(features, labels)
            for most in (1000, 20_000)
        ]
        found = [(probe.coef, probe.intercept), *((fit.coef_, fit.intercept_) for fit in theirs)]
        cells = " | ".join(_seven_digits(objective(features, labels, *parameters, C)) for parameters in found)
        yield f"| {C:,} | {probe.iterations} | {cells} |"


def _seven_digits(value):
    return f"{value:#.7g}" if value >= 1e-3 else f"{value:.6e}".replace("e-0", "e-")


def parse_args(argv):
    parser = terminal.Parser(__doc__)
    parser.add_argument("contenders", nargs="*", default=list(CONTENDERS))
    parser.add_argument(
        "--rows", type=int, default=20_000, help="number of images of training and validation split together"
    )
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--spread", type=float, default=0.15, help="spread of the clusters")
    parser.add_argument("--C", type=float, nargs="+", default=[], help="only these fits, powers of 10 ** (1 / 8)")
    parser.add_argument("--out", default="runs/benchmark/probe.json")
    parser.add_argument("--digits", action="store_true", help="print the table of objectives on digits instead")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv=None):
    arguments = parse_args(argv)
    if arguments.one:
        return contend(arguments)
    if arguments.digits:
        warnings.simplefilter("ignore")
        for row in digits_table():
            print(row, flush=True)
        return None
    results, splits = {}, make_splits(arguments)
    with tempfile.TemporaryDirectory() as folder:
        for split, arrays in enumerate(splits[:2]):
            for i, array in enumerate(arrays):
                np.save(Path(folder) / f"{split}_{i}.npy", array)
        for name in arguments.contenders:
            command = [sys.executable, __file__, name, "--one", folder, "--C", *map(str, arguments.C)]
            subprocess.run(command[: None if arguments.C else -1], check=True, env=environment())
            results[name] = dict(np.load(Path(folder) / f"{name}.npz"))
            best = results[name]["steps"][results[name]["scores"].argmax()]
            seconds, cpu_seconds = results[name]["seconds"]
            before, most = results[name]["memory"]
            print(
                f"{name}: {seconds:.1f} s, {cpu_seconds:.1f} s of all cores together, C=1e{best / 8:+.3f}, "
                f"memory {before:.0f} MiB before and {most:.0f} MiB at most",
                flush=True,
            )
    report = {key: {name: result[key].tolist() for name, result in results.items()} for key in ("seconds", "memory")}
    if "theirs_float64" in results:
        report["fits"] = compare(results, splits)
    Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
    from keras_clip import files

    files.write_json(arguments.out, report)


if __name__ == "__main__":
    terminal.start(parse_args)
    terminal.run(main)
