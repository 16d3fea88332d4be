"""Finds, labels and cleans your own pictures with words. Nothing leaves the machine; pictures are only read.

    python examples/search.py index photos/ --model vit_b32
    python examples/search.py find "red car - night"
    python examples/search.py serve
    python examples/search.py label cat --prompt "a photo of a cat"
    python examples/search.py export cats.tar --classes cat

`index` encodes the pictures of folders, and brings the index up to date when it is called again. The other commands
work on the index. `COMMAND --help` describes the options of a command.
"""

import argparse
import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import terminal


class Command(NamedTuple):
    """A sub-command.

    Attributes:
        add_arguments: function that adds the arguments of the command to its parser.
        run: function of the parsed arguments.
        help: one line.
    """

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    help: str


def parse_args(argv=None):
    parser = terminal.Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=terminal.Parser)
    for name, command in COMMANDS.items():
        added = commands.add_parser(name, description=command.help, help=command.help)
        command.add_arguments(added)
        added.add_argument(
            "--index", type=Path, default=Path("picture_index"), help="folder of the index (default: picture_index)"
        )
    return parser.parse_args(argv)


def positive(text):
    """Returns the integer of at least 1 that an argument is."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"it must be an integer of at least 1. Received: {text}")
    return value


def add_index_arguments(parser):
    parser.add_argument("folders", nargs="*", help="folders of pictures (default: those of the index)")
    parser.add_argument(
        "--model",
        help="a published model, a hub id (hf://...), or the path of a saved one (default: that of the index)",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="pictures per step (default: 32)")
    parser.add_argument(
        "--engine",
        choices=("auto", "serial", "processes", "ray"),
        default="serial",
        help="where pictures are encoded (default: serial, in this process on all its cores or its GPU)",
    )
    parser.add_argument("--fast-jpeg", action="store_true", help="decode large JPEGs smaller: faster, slightly inexact")
    parser.add_argument("--workers", type=int, help="number of workers of an engine (default: one for each core)")
    parser.add_argument("--address", help="of the Ray cluster (default: RAY_ADDRESS, or this machine alone)")


def index(args):
    options = {"engine": chosen_engine(args), "batch_size": args.batch_size, "fast_jpeg": args.fast_jpeg}
    changes = search.update_index(args.index, args.folders or None, args.model, **options)
    show(changes, args.index)
    with search.PictureIndex.open(args.index) as opened:
        search.find_copies(opened)


def add_watch_arguments(parser):
    add_index_arguments(parser)
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between two scans (default: 2)")


def watch(args):
    print("Watching. End it with Ctrl-C.", flush=True)
    search.watch(
        args.index,
        args.folders or None,
        args.model,
        interval=args.interval,
        on_change=lambda changes: show(changes, args.index),
        engine=chosen_engine(args),
        batch_size=args.batch_size,
        fast_jpeg=args.fast_jpeg,
    )


def chosen_engine(args):
    if args.engine == "ray":
        return keras_clip.engines.Ray(args.address, args.workers)
    if args.address:
        raise SystemExit(f"--address goes with --engine ray. Received: --engine {args.engine}.")
    if args.engine == "processes":
        return keras_clip.engines.Processes(args.workers)
    if args.workers:
        raise SystemExit(f"--workers goes with --engine processes or ray. Received: --engine {args.engine}.")
    return args.engine


def show(changes, folder):
    """Prints what an update changed in one line, and the files that cannot be read below it."""
    kinds = ("added", "changed", "renamed", "removed", "captions", "unchanged")
    counts = {kind: getattr(changes, kind) for kind in kinds}
    line = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count) or "no pictures"
    rate = f", {changes.encoded / changes.seconds:.1f} encoded per second" if changes.encoded else ""
    print(f"{line} ({changes.seconds:.1f} s{rate})", flush=True)
    if changes.passed_over:
        print(
            "  passed over: "
            + ", ".join(
                f"{n:,} {printable(name) or 'without extension'}" for name, n in [*changes.passed_over.items()][:8]
            )
        )
    if changes.broken:
        with search.PictureIndex.open(folder) as opened:
            print("  broken: " + ", ".join(f"{count:,} {reason}" for reason, count in opened.broken_counts().items()))
            for broken in opened.broken()[:MOST_BROKEN]:
                print(f"    {opened.roots[broken.root].name}/{broken.path}: {broken.reason}")
        if changes.broken > MOST_BROKEN:
            print(f"    and {changes.broken - MOST_BROKEN:,} more: see `python examples/search.py broken`")


def add_broken_arguments(parser):
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def broken(args):
    with search.PictureIndex.open(args.index) as opened:
        for each in opened.broken():
            path = f"{opened.roots[each.root].name}/{each.path}"
            line = (
                json.dumps({"path": path, "reason": each.reason, "detail": each.detail})
                if args.json
                else f"{path}: {each.reason}: {each.detail}"
            )
            print(line)


def add_find_arguments(parser):
    parser.add_argument("query", help="""such as 'red car - night', '2*"red car" + picture:17', or '' for the newest""")
    parser.add_argument("--image", action="append", default=[], help="a picture file that joins the query")
    parser.add_argument("--limit", type=positive, default=20, help="results (default: 20)")
    parser.add_argument("--folder", help="only below this folder, ROOT:PATH, such as 0:2024/sea")
    parser.add_argument("--after", help="only taken at this date or later, such as 2024-01-31")
    parser.add_argument("--before", help="only taken at this date or earlier")
    parser.add_argument("--words", help="only with these words in caption, name or folder")
    parser.add_argument("--min-score", type=float, help="smallest cosine similarity")
    parser.add_argument("--min-relevance", type=float, help="smallest relevance, 0 to 1; above 0.5: like the query")
    parser.add_argument("--collapse", type=float, help="show only the best of pictures with this similarity, as 0.95")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--model", help="where the model of the index is now (default: where it was)")


def find(args):
    opened = search.PictureIndex.open(args.index)
    model = args.model or opened.model
    if model is None:
        raise SystemExit("The index was made by a model in memory. Pass --model, where it is saved.")
    clip = presets.load(model)
    opened.require_model(clip)
    query = search.parse(args.query)
    terms = [search.Term(upload=Path(path).read_bytes()) for path in args.image]
    if terms:
        query = search.Query([*query.terms, *terms])
    filters = search.Filters(
        folder=args.folder,
        taken_after=args.after,
        taken_before=args.before,
        words=args.words,
        min_score=args.min_score,
        min_relevance=args.min_relevance,
    )
    searcher, cursor, left = search.Searcher(opened, clip), None, args.limit
    while left > 0:
        page = searcher.search(query, filters, limit=min(left, 1000), cursor=cursor, collapse=args.collapse)
        for result in page.results:
            picture = opened.picture(result.id)
            if args.json:
                print(json.dumps(as_json(picture, result)))
            else:
                score = "" if result.relevance is None else f"{result.relevance:6.1%}  {result.score:.3f}  "
                copies = f"  ({result.copies} copies)" if result.copies > 1 else ""
                print(f"{score}{printable(picture.path)}{copies}")
        left, cursor = left - len(page.results), page.cursor
        if cursor is None:
            break


def as_json(picture, result):
    """A result as JSON. A path that is not UTF-8 has its other bytes as lone surrogates, as Python reads them."""
    return {
        "path": os.fspath(picture.path),
        "id": picture.id,
        "score": result.score,
        "relevance": result.relevance,
        "copies": result.copies,
        "width": picture.width,
        "height": picture.height,
        "taken": picture.taken.isoformat(),
        "caption": picture.caption,
        "sha256": picture.sha256,
    }


def add_draw_arguments(parser):
    parser.add_argument("folder", type=Path, help="folder of the pictures; existing ones are not drawn again")
    parser.add_argument("--pictures", type=positive, default=1500, help="number of pictures (default: 1500)")
    parser.add_argument("--size", type=int, default=192, help="width and height in pixels (default: 192)")


def draw(args):
    from PIL import Image
    from tqdm import tqdm

    from keras_clip.data import synthetic

    for number in tqdm(range(args.pictures), desc="Drawing", unit=" pictures", leave=False, delay=1):
        scene = synthetic.sample_scene(number, seed=5)
        path = args.folder / scene.rendition / scene.kind.colour / f"{scene.kind.shape} {number:05d}.jpg"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            # The picture is last: when it is there, so is its caption, also after an interruption.
            path.with_suffix(".txt").write_text(synthetic.caption(scene), encoding="utf-8")
            with keras_clip.files.replacing(path) as temporary:
                Image.fromarray(synthetic.draw(scene, args.size)).save(temporary, quality=92)
    print(f"{args.pictures:,} pictures in {args.folder}")


def add_serve_arguments(parser):
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8300, help="port, 0 for any free one (default: 8300)")
    parser.add_argument("--token", help="what clients must send; made if --host is not this machine")
    parser.add_argument(
        "--allow-host", action="append", default=[], help="a further name by which the server may be addressed"
    )
    parser.add_argument("--model", help="where the model of the index is now (default: where it was)")


def serve(args):
    from keras_clip.search.server import serve

    serve(
        args.index,
        args.model,
        host=args.host,
        port=args.port,
        token=args.token,
        allow_hosts=args.allow_host,
        report=lambda line: print(line, flush=True),
    )


def add_label_arguments(parser):
    parser.add_argument("name", nargs="?", help="the class; without one, all classes are listed")
    parser.add_argument("--prompt", action="append", help="a text that describes the class (default: its name)")
    parser.add_argument("--threshold", type=float, help="cosine from which a picture belongs to it (default: neutral)")
    parser.add_argument("--yes", type=int, nargs="+", default=[], help="ids of pictures that belong to it by hand")
    parser.add_argument("--no", type=int, nargs="+", default=[], help="ids of pictures that do not")
    parser.add_argument("--remove", action="store_true", help="remove the class and its labels by hand")
    parser.add_argument("--model", help="where the model of the index is now (default: where it was)")


def label(args):
    with library_of(args) as library:
        if args.name is not None:
            known = {each.name: each.id for each in library.classes_of_index.all()}
            if args.remove:
                library.remove_class(library.classes_of_index.named(args.name).id)
            elif args.name not in known:
                known[args.name] = library.add_class(args.name, args.prompt or [args.name], args.threshold)["id"]
            else:
                changes = {"prompts": args.prompt, "threshold": args.threshold}
                library.change_class(
                    known[args.name], {key: value for key, value in changes.items() if value is not None}
                )
            for ids, value in ((args.yes, True), (args.no, False)):
                if ids:
                    library.label(ids, known[args.name], value)
        for each in library.classes():
            print(
                f"{printable(each['name'])}: {each['pictures']:,} pictures, {each['by_hand']:,} by hand, "
                f"threshold {each['threshold']:.3f}"
            )


def add_export_arguments(parser):
    parser.add_argument("target", type=Path, help="file, or folder of the format folder")
    parser.add_argument("--format", choices=("csv", "json", "paths", "tar", "folder"), help="default: by the name")
    parser.add_argument("--classes", nargs="+", help="names of classes (default: all)")
    parser.add_argument("--model", help="where the model of the index is now (default: where it was)")


def export(args):
    formats = {".csv": "csv", ".jsonl": "json", ".txt": "paths", ".tar": "tar", ".zip": "folder", "": "folder"}
    chosen = args.format or formats.get(args.target.suffix.lower())
    if chosen is None:
        raise SystemExit(
            f"--format is needed for {args.target}: its name is none of *{', *'.join(filter(None, formats))}."
        )
    with library_of(args) as library:
        classes = args.classes and [library.classes_of_index.named(name).id for name in args.classes]
        left = library.write(chosen, args.target, classes=classes)
    print(f"Written to {printable(args.target)}")
    if left.pictures:
        id, reason = left.pictures[0]
        print(f"  left out: {len(left.pictures):,} pictures, such as {id}: {reason}")


@contextlib.contextmanager
def library_of(args):
    """The index with its model and labels; errors of the library are those of the command."""
    from keras_clip.search.server import ApiError, Library
    from keras_clip.search.server.serving import load_clip

    with (
        search.PictureIndex.open(args.index) as opened,
        contextlib.closing(Library(opened, load_clip(args.model, opened, args.index))) as library,
    ):
        try:
            yield library
        except ApiError as error:
            raise SystemExit(error.message) from None
        except KeyError as error:
            raise SystemExit(error.args[0]) from None


MOST_BROKEN = 10
COMMANDS = {
    "index": Command(add_index_arguments, index, "encode the pictures of folders, or bring the index up to date"),
    "watch": Command(add_watch_arguments, watch, "keep the index up to date until it is interrupted"),
    "find": Command(add_find_arguments, find, "print the pictures that fit words and pictures best"),
    "serve": Command(add_serve_arguments, serve, "serve the page on this machine, until it is interrupted"),
    "label": Command(add_label_arguments, label, "save a class that the model labels, or correct it by hand"),
    "export": Command(add_export_arguments, export, "write labelled pictures as a data set"),
    "broken": Command(add_broken_arguments, broken, "list the files that cannot be read"),
    "draw": Command(add_draw_arguments, draw, "draw scenes with captions, to try the search without pictures"),
}

if __name__ == "__main__":
    terminal.start(parse_args)

import keras_clip
from keras_clip import presets, search
from keras_clip.printable import printable


def main(argv=None):
    args = parse_args(argv)
    COMMANDS[args.command].run(args)


if __name__ == "__main__":
    terminal.run(main)
