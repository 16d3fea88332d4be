"""Measures a CLIP as the paper does, and writes a report: zero-shot, probes, few-shot, calibration, errors.

    python examples/evaluate.py --model runs/mine/clip.keras --data digits --out runs/eval
    python examples/evaluate.py --model vit_b32 --data photos/test --train photos/train --out runs/eval
    python examples/evaluate.py --model runs/mine/clip.keras --data "val/*.tar" --train "train/*.tar" --captions
    python examples/evaluate.py --model vit_b32 --data tfds:CIFAR10 tfds:DTD --out runs/eval
    python examples/evaluate.py ... --compare runs/other/results.json

`--data` names the test images (`--image`, `--label`, `--caption` and `--delimiter` name what is not called as usual):

    digits          the handwritten digits of scikit-learn, with their own training split
    a folder        with one folder of images for each class
    tables          .csv, .tsv or .jsonl with the columns path and label (and group)
    tars            WebDataset; the class is "name" of each .json, or the .cls
    other shards    .tfrecord or .parquet files, with the class in "label"
                    (a path, a glob in quotes, or braces; also compressed, as .csv.gz and .tar.bz2)
    tfds:NAME       a dataset of the paper, through tensorflow-datasets, with its prompts: tfds:Food101. With the name
                    of a preset as `--model`, the report shows the paper's scores. Its shifts of ImageNet are named
                    likewise, `--shift tfds:ImageNet-R`, or by a folder of that name: `--shift files/ObjectNet`

Images are encoded once; the features stay in `<out>/stores`, so a second run takes seconds. Writes results.json and
results.csv into `--out` after each part, and at the end report.html, which opens in any browser without a network. A
part that fails does not stop the others: the files name it, and the exit status is 2. Needs the extra `evaluation`.
"""

import argparse
import json
import logging
import os
from pathlib import Path

import terminal


def parse_args(argv=None) -> argparse.Namespace:
    parser = terminal.Parser(__doc__)
    parser.add_argument("--model", required=True, help="a .keras file, a preset, a folder or hf://organisation/name")
    parser.add_argument("--data", nargs="+", required=True, help="test images; see above")
    parser.add_argument("--train", help="images of the same classes to train probes on, as --data")
    parser.add_argument(
        "--shift", nargs="+", default=[], help="images of the same classes from another distribution, as --data"
    )
    parser.add_argument(
        "--pooled",
        type=Path,
        help="JSON {shift: {class of the shift: [classes of --data]}}, for shifts with coarser classes",
    )
    terminal.add_source_arguments(parser)
    terminal.add_max_broken_argument(parser)
    parser.add_argument("--label", help="column of the class, key of the .json of tars, or cls; see above")
    parser.add_argument("--captions", action="store_true", help="measure retrieval by the captions of the images")
    parser.add_argument(
        "--missing",
        choices=("error", "drop", "keep"),
        default="error",
        help="of classes that --data or --train lacks, and of images without captions: an error; drop and count them; "
        "or keep classes of --train without test images as choices",
    )
    templates = parser.add_mutually_exclusive_group()
    templates.add_argument("--templates", nargs="+", default=["a photo of a {}."], help="the simplest template first")
    templates.add_argument("--templates-file", help="one template per line, or a JSON list")
    parser.add_argument(
        "--parts", nargs="+", help="such as zero_shot, linear_probe; by default, all that the data allow"
    )
    parser.add_argument("--compare", type=Path, help="results.json of another model on the same data")
    parser.add_argument("--efficiency", type=Path, help="efficiency.json of examples/efficiency.py, for figure 2")
    parser.add_argument("--out", type=Path, default=Path("runs/eval"))
    args = parser.parse_args(argv)
    if len(args.data) > 1 and (args.train or args.shift):
        parser.error("--train and --shift go with one --data. Run the command once for each.")
    if args.train and args.data[0].startswith("tfds:"):
        parser.error("--train goes with your own --data: a dataset of the paper has its own training split.")
    return args


if __name__ == "__main__":
    terminal.start(parse_args)

import keras

import keras_clip
from keras_clip import evaluation, prompts
from keras_clip.data.readers.forms import parts_of
from keras_clip.evaluation import catalogue, sources
from keras_clip.evaluation.metrics.comparison import comparable_scores
from keras_clip.evaluation.results import format_value
from keras_clip.printable import printable


def load(model: str) -> keras_clip.CLIPModel:
    if model.endswith(".keras"):
        if not os.path.exists(model):
            raise SystemExit(f"No such file: --model {model}. examples/train.py writes one.")
        return keras.saving.load_model(model)
    return keras_clip.presets.load(model)


def images(source: str, args: argparse.Namespace, split: str) -> evaluation.LabelledImages:
    """The images that a word of the command line names."""
    if source.startswith("tfds:"):
        return catalogue.record(source.removeprefix("tfds:")).images("test")
    if source == "digits":
        return sources.digits(split)
    try:
        return sources.from_files(
            source,
            label=args.label,
            image=args.image,
            delimiter=args.delimiter,
            name=dataset_name(source),
            split=split,
        )
    except FileNotFoundError as error:
        raise SystemExit(
            f"Cannot read {source!r}: it is neither `digits`, a folder, a table, shards nor tfds:NAME. {error}"
        ) from error


def dataset_name(source: str) -> str:
    """The name of a dataset in the results: that of a folder or table, or of the two folders that shards are in."""
    path = Path(source)
    if path.is_dir() or {part.form.name for part in parts_of(source)} == {"table"}:
        return path.stem.strip("*") or path.resolve().parent.name
    folder = path.resolve().parent
    return f"{folder.parent.name}_{folder.name}"


def make_task(source: str, args: argparse.Namespace, templates: list[str]) -> evaluation.Task:
    names = [shift.removeprefix("tfds:") if shift.startswith("tfds:") else Path(shift).stem for shift in args.shift]
    if len(set(names)) < len(names):
        raise SystemExit(f"Shifts must have different names. Received: --shift {' '.join(args.shift)}. Rename one.")
    shifts = {name: images(shift, args, "shift") for name, shift in zip(names, args.shift, strict=True)}
    pooled = json.loads(args.pooled.read_text(encoding="utf-8")) if args.pooled else {}
    if source.startswith("tfds:"):
        record = catalogue.record(source.removeprefix("tfds:"))
        model = args.model if args.model in keras_clip.presets.names() else None
        return evaluation.Task.from_record(record, shifts, model, pooled=pooled, missing=args.missing)
    train = args.train or ("digits" if source == "digits" else None)
    captions = {}
    if args.captions:
        if source == "digits":
            raise SystemExit(f"--captions needs images with captions. Received: --data {source}.")
        captions = sources.captions_of(source, **terminal.source_options(args))
    return evaluation.Task(
        images(source, args, "test"),
        images(train, args, "train") if train else None,
        templates=templates,
        shifts=shifts,
        pooled=pooled,
        captions=captions,
        missing=args.missing,
    )


def main(argv=None) -> evaluation.Results:
    args = parse_args(argv)
    if args.debug:
        # The tracebacks of parts that fail.
        logging.basicConfig()
        logging.getLogger("keras_clip").setLevel(logging.DEBUG)
    templates = prompts.read(args.templates_file) if args.templates_file else args.templates
    other = evaluation.Results.from_json(args.compare.read_text(encoding="utf-8")) if args.compare else None
    curves = json.loads(args.efficiency.read_text(encoding="utf-8"))["curves"] if args.efficiency else {}
    clip = load(args.model)
    tasks = [make_task(source, args, templates) for source in args.data]
    results = evaluation.evaluate(
        clip, tasks, args.out / "stores", args.parts, args.model, out=args.out, max_broken=args.max_broken
    )
    if curves:
        results.tables["efficiency"] = [{"objective": name, **point} for name in curves for point in curves[name]]
    print_scores(results)
    write_report(results, args.out, other, f"Evaluation of {args.model}")
    if results.failures:
        raise SystemExit(f"{len(results.failures)} parts failed. {args.out / 'results.json'} has the others.")
    return results


def print_scores(results: evaluation.Results) -> None:
    for score in results.scores:
        value, low, high = (format_value(number, score.unit) for number in (score.value, score.low, score.high))
        name = printable(score.dataset)
        print(f"{name}\t{score.method}\t{score.metric}\t{value} [{low}, {high}]\tn={score.n}")


def write_report(results: evaluation.Results, out: Path, other: evaluation.Results | None, title: str) -> None:
    """Draws the report; what fails in it is written beside the numbers."""
    if other:
        try:
            comparable_scores(results, other)
        except ValueError as error:
            results.failures.append(evaluation.Failure.of("all", "comparison", error))
            other = None
    try:
        print(f"Report: {evaluation.report.write(results, out, other, title=title)}")
    except Exception as error:
        logging.getLogger("keras_clip").debug("no report", exc_info=error)
        results.failures.append(evaluation.Failure.of("all", "report", error))
        results.save(out)
        for failure in results.failures:
            print(printable(f"{failure.part} of {failure.dataset}: {failure.error}"))


if __name__ == "__main__":
    terminal.run(main)
