"""Measures keras_clip, and with --peers what others take for the same work, in one run.

    python tools/benchmark.py --peers                     everything; half an hour on two cores
    python tools/benchmark.py tokenizer step_vit_b32      some of it, without peers
    python tools/benchmark.py --render docs/benchmarks.md runs/benchmark/*.json

Each contender runs in a process of its own, and they take turns, so that a busy machine slows all of them alike: read
ratios, not seconds. A run is written to runs/benchmark/<time>.json with commit, versions, threads and every repeat;
`--render` makes the tables of the documentation from such files. Captions come from --data (a folder of WebDataset
tars), or from the drawn scenes that are built in.
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

REPOSITORY = Path(__file__).resolve().parents[1]
BACKENDS = ("tensorflow", "jax", "torch")
PACKAGES = ("keras", "tensorflow", "jax", "torch", "open-clip-torch", "tokenizers", "numpy", "pillow", "torchvision")
BATCH = 16

# What a task counts, what it must reach against its peer, and how often it repeats.
TASKS = {
    "tokenizer": ("captions/s", 5.0, 7),
    "pipeline": ("samples/s", 1.5, 5),
    "step_vit_b32": ("pairs/s", 2.0, 5),
    "step_rn50": ("pairs/s", 2.0, 5),
    "class_embeddings": ("prompts/s", 6.0, 3),
}


# Contenders: each sets up, then gives a function that does the work once and returns how much that was.


def captions(arguments, count):
    """Real captions where there are some, drawn ones otherwise; the same for every contender."""
    import tarfile

    texts = []
    for shard in sorted(Path(arguments.data).rglob("*.tar")) if arguments.data else ():
        with tarfile.open(shard) as tar:
            texts += [tar.extractfile(m).read().decode() for m in tar if m.name.endswith(".txt")]
    if not texts:
        from keras_clip.data import synthetic

        texts = list(synthetic.captions(2000, seed=0))
    return [texts[i % len(texts)] for i in range(count)]


def our_tokenizer(arguments):
    from keras_clip.data import CLIPTokenizer

    tokenizer, texts = CLIPTokenizer(), captions(arguments, 20_000)
    return lambda: len(tokenizer(texts, truncate=True))


def their_tokenizer(arguments):
    open_clip = import_open_clip()
    tokenizer, texts = open_clip.tokenizer.SimpleTokenizer(), captions(arguments, 20_000)
    return lambda: len(tokenizer(texts))


def import_open_clip():
    sys.path.insert(0, str(REPOSITORY / "tests"))
    import torchvision_shim  # noqa: F401  # isort: skip
    import open_clip  # isort: skip

    return open_clip


def pipeline_shards(arguments):
    """Photographs of 256 to 512 pixels as JPEG: real ones, or drawn ones written once."""
    if arguments.data:
        grocery = sorted(Path(arguments.data).rglob("grocery/train/*.tar"))
        if grocery:
            return [str(path) for path in grocery]
    import io
    import tarfile

    from PIL import Image

    from keras_clip.data import synthetic

    folder = REPOSITORY / "runs" / "benchmark" / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "00000.tar"
    if not path.exists():
        with tarfile.open(path, "w") as tar:
            for i in range(1000):
                image, caption = synthetic.sample(i, image_size=320, seed=0)
                buffer = io.BytesIO()
                Image.fromarray(image).save(buffer, "JPEG", quality=92)
                for name, data in ((f"{i:05d}.jpg", buffer.getvalue()), (f"{i:05d}.txt", caption.encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return [str(path)]


def our_pipeline(arguments):
    from keras_clip.data import CLIPTokenizer, ImagePreprocessor, image_text_pairs

    dataset = image_text_pairs(
        pipeline_shards(arguments), batch_size=64, tokenizer=CLIPTokenizer(), image_preprocessor=ImagePreprocessor(224)
    )
    return lambda: sum(len(batch["images"]) for batch in dataset)


def our_pipeline_without_onednn(arguments):
    # As where an accelerator trains: TensorFlow does nothing but this. Read when TensorFlow is imported.
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    return our_pipeline(arguments)


def their_pipeline(arguments):
    import io
    import tarfile

    import torch

    open_clip = import_open_clip()
    from PIL import Image

    shards = pipeline_shards(arguments)
    transform = open_clip.image_transform(224, is_train=True)
    tokenizer = open_clip.tokenizer.SimpleTokenizer()

    class Samples(torch.utils.data.IterableDataset):
        """Tars read in sequence, a part of the samples for each worker, as webdataset does it."""

        def __iter__(self):
            worker = torch.utils.data.get_worker_info()
            index = 0
            for shard in shards:
                parts = {}
                with tarfile.open(shard, "r|") as tar:
                    for member in tar:
                        key, _, extension = member.name.partition(".")
                        sample = parts.setdefault(key, {})
                        sample[extension] = tar.extractfile(member).read()
                        image = sample.get("jpg") or sample.get("png")
                        if image and "txt" in sample and "done" not in sample:
                            sample["done"] = True
                            index += 1
                            if index % worker.num_workers == worker.id:
                                pixels = transform(Image.open(io.BytesIO(image)).convert("RGB"))
                                yield pixels, tokenizer([sample["txt"].decode()])[0]

    loader = torch.utils.data.DataLoader(Samples(), batch_size=64, num_workers=os.cpu_count(), persistent_workers=True)
    return lambda: sum(len(images) for images, _ in loader)


def our_model(name):
    import keras_clip
    from keras_clip import encoders

    if name == "rn50":
        image, embed_dim = encoders.ModifiedResNet(224, (3, 4, 6, 3), 64), 1024
    else:
        image, embed_dim = encoders.VisionTransformer(224, 32, 768, 12, 12), 512
    return keras_clip.CLIPModel(image, encoders.TextTransformer(512, 12, 8), embed_dim)


def our_step(name, arguments):
    import numpy as np

    import keras_clip

    clip = our_model(name)
    clip.compile(keras_clip.training.adamw(clip, 5e-4, warmup_steps=10, total_steps=1000))
    images = np.random.default_rng(0).integers(0, 256, size=(BATCH, 224, 224, 3)).astype("uint8")
    longest = clip.tokenizer(captions(arguments, BATCH), truncate=True, length="longest")
    # As the pipeline hands texts over: cut to the batch's longest, rounded up to one of three lengths.
    length = next(length for length in (16, 32, 77) if length >= longest.shape[1])
    batch = {"images": images, "token_ids": clip.tokenizer(captions(arguments, BATCH), truncate=True, length=length)}

    def run():
        clip.train_on_batch(batch)
        return BATCH

    return run


def their_step(name, arguments):
    import torch

    open_clip = import_open_clip()
    from open_clip.loss import ClipLoss

    model = open_clip.create_model({"rn50": "RN50-quickgelu", "vit_b32": "ViT-B-32-quickgelu"}[name]).train()
    gains = [p for p in model.parameters() if p.ndim < 2]
    others = [p for p in model.parameters() if p.ndim >= 2]
    optimizer = torch.optim.AdamW(
        [{"params": gains, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.2}], lr=5e-4, betas=(0.9, 0.98)
    )
    images = torch.rand(BATCH, 3, 224, 224)
    tokens = open_clip.tokenizer.SimpleTokenizer()(captions(arguments, BATCH))
    loss_function = ClipLoss()

    def run():
        optimizer.zero_grad()
        loss_function(*model(images, tokens)).backward()
        optimizer.step()
        return BATCH

    return run


CLASS_NAMES = [f"{colour} {thing}" for colour in "red green blue grey pink".split() for thing in (
    "cat dog bird fish horse car bus train boat plane tree flower house chair table lamp cup fork clock door".split()
)]  # fmt: skip


def eighty_templates():
    from keras_clip.data import prompts

    return [*prompts.templates(), *prompts.templates("a kind of thing")][:80]


def our_class_embeddings(arguments):
    from keras_clip import ZeroShotClassifier

    clip, templates = our_model("vit_b32"), eighty_templates()

    def run():
        ZeroShotClassifier(clip, CLASS_NAMES, templates)
        return len(CLASS_NAMES) * len(templates)

    return run


def their_class_embeddings(arguments):
    open_clip = import_open_clip()
    model = open_clip.create_model("ViT-B-32-quickgelu").eval()
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    templates = [template.format for template in eighty_templates()]

    def run():
        # A tenth of the classes, which is one batch there: the rate is that of all of them.
        open_clip.build_zero_shot_classifier(model, tokenizer, CLASS_NAMES[::10], templates, num_classes_per_batch=10)
        return len(CLASS_NAMES[::10]) * len(templates)

    return run


def contenders(task, arguments):
    """(label, backend, factory) of each: ours on every backend that the task depends on, then the peer."""
    every = [backend for backend in BACKENDS if backend in arguments.backends]
    if task == "tokenizer":
        ours, theirs = [("keras_clip", "tensorflow", our_tokenizer)], their_tokenizer
    elif task == "pipeline":
        ours = [("keras_clip", "tensorflow", our_pipeline)]
        ours += [("keras_clip, TF_ENABLE_ONEDNN_OPTS=0", "tensorflow", our_pipeline_without_onednn)]
        theirs = their_pipeline
    elif task == "class_embeddings":
        ours = [(f"keras_clip, {backend}", backend, our_class_embeddings) for backend in every]
        theirs = their_class_embeddings
    else:
        name = task.removeprefix("step_")
        ours = [(f"keras_clip, {b}", b, lambda arguments: our_step(name, arguments)) for b in every]

        def theirs(arguments):
            return their_step(name, arguments)

    peer = "torch DataLoader, PIL, torchvision" if task == "pipeline" else "open_clip"
    return ours + ([(peer, "torch", theirs)] if arguments.peers else [])


# One process a contender, all of them taking turns.


def serve(task, label, arguments):
    """The contender's process: sets up, then runs once for every line that arrives."""
    import torch  # noqa: F401  (before TensorFlow)

    factory = next(f for name, _, f in contenders(task, arguments) if name == label)
    start = time.perf_counter()
    run = factory(arguments)
    print(json.dumps({"setup": time.perf_counter() - start}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        amount = run()
        print(json.dumps({"seconds": time.perf_counter() - start, "amount": amount}), flush=True)


class Contender:
    def __init__(self, task, label, backend, arguments):
        command = [sys.executable, __file__, task, "--serve", label, "--peers", "--backends", *arguments.backends]
        command += ["--data", arguments.data] if arguments.data else []
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.label, self.setup = label, self._answer()["setup"]
        # The first run compiles and fills caches; the second shows what of it was for good.
        self.first = self.run()["seconds"]
        self.runs = []

    def _answer(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"The contender {self.label!r} stopped with exit code {self.process.wait()}.")

    label = "?"

    def run(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def measure(task, arguments):
    unit, target, repeats = TASKS[task]
    repeats = arguments.repeats or repeats
    racers = []
    try:
        for label, backend, _ in contenders(task, arguments):
            racers.append(Contender(task, label, backend, arguments))
            print(f"  {label}: set up in {racers[-1].setup:.1f} s, first run {racers[-1].first:.1f} s", flush=True)
        for _ in range(repeats):
            for racer in racers:
                racer.runs.append(racer.run())
    finally:
        for racer in racers:
            racer.close()
    results = []
    for racer in racers:
        rates = [run["amount"] / run["seconds"] for run in racer.runs]
        steady = statistics.median(run["seconds"] for run in racer.runs)
        results.append(
            {
                "contender": racer.label,
                "rates": rates,
                "median": statistics.median(rates),
                "compile_seconds": max(0.0, racer.first - steady),
            }
        )
        print(f"  {racer.label}: {results[-1]['median']:,.1f} {unit}", flush=True)
    return {"task": task, "unit": unit, "target": target, "results": results}


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


def table(record, run):
    peer = next((r for r in record["results"] if not r["contender"].startswith("keras_clip")), None)
    best = max((r["median"] for r in record["results"] if r is not peer), default=0.0)
    lines = [
        f"### {record['task']}",
        "",
        f"| contender | {record['unit']} (median) | lowest to highest | against the peer | compile, s |",
        "|---|---|---|---|---|",
    ]
    for result in record["results"]:
        ratio = "" if peer is None or result is peer else f"{result['median'] / peer['median']:.2f} x"
        low, high = min(result["rates"]), max(result["rates"])
        lines.append(
            f"| {result['contender']} | {result['median']:,.1f} | {low:,.1f} to {high:,.1f} | {ratio} | "
            f"{result['compile_seconds']:.1f} |"
        )
    if peer is not None:
        reached = best / peer["median"]
        verdict = "reached" if reached >= record["target"] else "missed"
        lines += ["", f"Target {record['target']:g} x: {verdict} ({reached:.2f} x)."]
    lines += ["", f"Commit {run['commit']}, {run['threads']} threads, {run['time']}.", ""]
    return "\n".join(lines)


def render(page, files):
    """Puts a table for the newest record of each task between the marks of `page`."""
    newest = {}
    for run in sorted((json.loads(Path(file).read_text()) for file in files), key=lambda run: run["time"]):
        for record in run["tasks"]:
            newest[record["task"]] = (record, run)
    text = page.read_text()
    head, _, rest = text.partition(START)
    tables = "\n".join(table(*newest[task]) for task in TASKS if task in newest)
    page.write_text(f"{head}{START}\n\n{tables}\n{END}{rest.partition(END)[2]}")


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", help=f"of {', '.join(TASKS)}; all by default. With --render: JSON files")
    parser.add_argument("--peers", action="store_true", help="measure the peers too, where they are installed")
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=BACKENDS)
    parser.add_argument("--repeats", type=int, help="of each contender; each task has its own default")
    parser.add_argument("--data", help="folder of WebDataset tars with real captions and photographs")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "runs" / "benchmark")
    parser.add_argument("--render", type=Path, metavar="PAGE", help="write the tables of the given JSON files to PAGE")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    unknown = [] if arguments.render else [task for task in arguments.tasks if task not in TASKS]
    if unknown:
        parser.error(f"no such task: {', '.join(unknown)}; there are {', '.join(TASKS)}")
    return arguments


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
        "tasks": [],
    }
    for task in arguments.tasks or TASKS:
        print(task, flush=True)
        run["tasks"].append(measure(task, arguments))
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{run['time'].replace(' ', '_').replace(':', '')}.json"
    path.write_text(json.dumps(run, indent=1))
    print(path)


if __name__ == "__main__":
    main()
