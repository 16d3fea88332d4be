"""Measures the limits of a CLIP that the paper names: counting, digits, rendered text, fine classes, people's labels.

    python examples/limits.py --model runs/demo/clip.keras --out runs/limits
    python examples/limits.py --model vit_b32 --clevr --fine-grained "grocery/val/*.tar"
    python examples/limits.py --model vit_b32 --people fairface_label_val.csv --people-label race --group age

Without further arguments it draws scenes to count in and words to read, and takes the digits of scikit-learn. The bias
probe (section 7.1) takes people from tars or from a table, such as that of FairFace. Prints the measurements, and
writes report.html and results.json into `--out`. Needs the extra `evaluation`.
"""

from pathlib import Path

import terminal

WORDS = ("yes", "no", "stop", "open", "water", "danger", "welcome", "sale", "free", "hello")


def parse_args(argv=None):
    parser = terminal.Parser(__doc__)
    parser.add_argument("--model", required=True, help="a .keras file, a preset, a folder or hf://organisation/name")
    parser.add_argument("--images", type=int, default=100, help="drawn images of each class")
    parser.add_argument("--clevr", action="store_true", help="also count in CLEVR, through tensorflow-datasets")
    parser.add_argument("--fine-grained", help="tars with a fine and a coarse class in each .json")
    parser.add_argument("--label", default="name", help="key of the fine class in the .json of tars")
    parser.add_argument("--coarse", default="coarse", help="key of the coarse class")
    parser.add_argument("--people", help="tars or a table of people, for the probe of section 7.1")
    parser.add_argument(
        "--people-label", default="label", help="column, or key of the .json of tars, of a class of people"
    )
    parser.add_argument("--group", default="group", help="column, or key of the .json of tars, of the group")
    terminal.add_max_broken_argument(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/limits"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    terminal.start(parse_args)

import keras_clip
from keras_clip import evaluation
from keras_clip.evaluation import catalogue, limits, sources
from keras_clip.printable import printable


def drawn_tasks(count, size):
    """Counting, digits and rendered text, which need no download."""
    scenes = [sources.counting_scenes(count, size, seed, split) for seed, split in ((0, "test"), (1, "train"))]
    words = [sources.rendered_text(WORDS, count, size, seed, split) for seed, split in ((0, "test"), (1, "train"))]
    shapes = [
        f"{size} {colour} {shape}s"
        for size, colour, shape in zip(
            ("small", "large", "small", "large"),
            ("red", "blue", "green", "yellow"),
            ("circle", "square", "star", "heart"),
            strict=True,
        )
    ]
    return [
        evaluation.Task(*scenes, templates=[f"a photo of {{}} {name}" for name in shapes], limits=["counting"]),
        evaluation.Task(
            sources.digits("test"),
            sources.digits("train"),
            templates=['a photo of the number: "{}".', "the digit {}."],
            limits=["pixels"],
        ),
        evaluation.Task(*words, templates=['the word "{}".', "{}"], limits=["rendered_text"]),
    ]


def clevr_task():
    record = catalogue.record("CLEVRCounts")
    test, train = record.images("test"), record.images("train")
    return evaluation.Task(test, train, templates=record.templates, limits=["counting"])


def fine_grained_task(tars, label, coarse):
    fine, rough = (sources.from_files(tars, label=key) for key in (label, coarse))
    of_class = {fine.class_names[f]: rough.class_names[c] for f, c in zip(fine.labels, rough.labels, strict=True)}
    return evaluation.Task(fine, templates=["a photo of {}.", "{}."], limits=["fine_grained"], coarse=of_class)


def people_task(source, label, group):
    return evaluation.Task(
        sources.from_files(source, label=label, group=group),
        templates=["a photo of a {}."],
        class_sets=limits.people_class_sets(),
        watched=limits.CRIME_RELATED + limits.NON_HUMAN,
    )


def main(argv=None) -> evaluation.Results:
    args = parse_args(argv)
    clip = keras_clip.presets.load(args.model)
    tasks = drawn_tasks(args.images, clip.image_preprocessor.sides[0])
    if args.clevr:
        tasks.append(clevr_task())
    if args.fine_grained:
        tasks.append(fine_grained_task(args.fine_grained, args.label, args.coarse))
    people = people_task(args.people, args.people_label, args.group) if args.people else None
    options = {"folder": args.out / "stores", "model": args.model, "max_broken": args.max_broken}
    results = evaluation.evaluate(clip, tasks, parts=["zero_shot", "limits"], out=args.out, **options)
    if people:
        results.extend(evaluation.evaluate(clip, people, parts=["zero_shot", "class_design"], **options))
    page = evaluation.report.write(results, args.out, title=f"Limits of {args.model}")
    for name, rows in results.tables.items():
        print(f"\n{printable(name)}")
        for row in rows:
            cells = (
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
            print(f"  {printable(', '.join(cells))}")
    print(f"Report: {page}")
    if results.failures:
        raise SystemExit(f"{len(results.failures)} parts failed. {args.out / 'results.json'} has the others.")
    return results


if __name__ == "__main__":
    terminal.run(main)
