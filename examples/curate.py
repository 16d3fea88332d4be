"""Turns a raw pool of image-caption pairs into a training set, in passes that can be run one by one.

    python examples/curate.py profile "raw/*.tar" --work work/
    python examples/curate.py COMMAND --work work/

`profile` reads the source, which may have any form that `image_text_pairs` reads; the other commands go on from its
results in the folder `--work`. A command that was interrupted goes on where it stopped. `COMMAND --help` describes the
options of a command.
"""

import argparse
from collections.abc import Callable, Mapping
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
    return parser.parse_args(argv)


def add_pool_arguments(parser):
    """Adds the arguments of every pass over a pool."""
    parser.add_argument("--work", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--engine", choices=("auto", "serial", "processes"), default="auto", help="where shards are processed"
    )
    parser.add_argument("--workers", type=int, help="number of processes (default: one for each core)")


def add_profile_arguments(parser):
    parser.add_argument("source", nargs="+", help="tars, TFRecords, Parquet files, tables or folders")
    parser.add_argument("--shard-size", type=int, default=10_000, help="samples of a shard of folders and tables")
    terminal.add_source_arguments(parser)
    add_pool_arguments(parser)


def profile(args):
    source = args.source[0] if len(args.source) == 1 else args.source
    options = terminal.source_options(args)
    pool = curation.Pool.open(source, args.work, shard_size=args.shard_size, **options)
    show(curation.profile(pool, engine(args)))


def add_validate_arguments(parser):
    parser.add_argument("--work", type=Path, required=True, help="folder of the results")
    parser.add_argument("--out", type=Path, help="folder of the report (default: validate in --work)")
    parser.add_argument("--scores", type=Path, help="folder of scores (default: score in --work, where it is complete)")
    parser.add_argument("--previous", type=Path, help="folder of an earlier validation, for drift")
    parser.add_argument("--schema", type=Path, help=".pbtxt file (default: the schema of keras_clip)")
    parser.add_argument(
        "--checks", choices=("auto", "tfdv", "checker"), default="auto", help="auto: TFDV where it is installed"
    )
    parser.add_argument("--sample-rows", type=int, default=1_000_000, help="pairs that are looked at, at most about")
    parser.add_argument("--runner", help="Apache Beam's runner for TFDV, such as DataflowRunner (default: one process)")
    parser.add_argument("--beam", default=[], nargs=argparse.REMAINDER, help="options of Apache Beam; must be the last")


def validate(args):
    outcome = curation.validate(
        args.work,
        args.out,
        scores=args.scores,
        previous=args.previous,
        schema=args.schema,
        engine=args.checks,
        beam_options=[*([f"--runner={args.runner}"] if args.runner else []), *args.beam],
        sample_rows=args.sample_rows,
    )
    for feature, kind, description, part in outcome.anomalies:
        print(printable(f"{feature or 'pairs'}{f' ({part})' if part else ''}: {kind}: {description}"))
    print(f"{'valid' if outcome.valid else f'{len(outcome.anomalies)} anomalies'}: {outcome.report}")
    if not outcome.valid:
        raise SystemExit(1)


def open_pool(args) -> "curation.Pool":
    """Opens the pool of the folder `--work`."""
    return curation.Pool.open(None, args.work)


def engine(args):
    """Returns the engine that the arguments name."""
    if args.workers is not None:
        if args.engine == "serial":
            raise SystemExit(f"--workers goes with --engine processes. Received: --workers {args.workers}.")
        return Processes(args.workers)
    return args.engine


def show(counts: Mapping[str, int]) -> None:
    """Prints counts, one a line."""
    for name, count in counts.items():
        print(f"{count:>12,}  {name}")


# To add a command, write its function and a row.
COMMANDS = {
    "profile": Command(add_profile_arguments, profile, "decode every image and read every caption once"),
    "validate": Command(
        add_validate_arguments, validate, "check the profile; exit status 0: valid, 1: anomalies, 2: could not run"
    ),
}

if __name__ == "__main__":
    terminal.start(parse_args)

from keras_clip import curation
from keras_clip.engines import Processes
from keras_clip.printable import printable


def main(argv=None):
    args = parse_args(argv)
    COMMANDS[args.command].run(args)


if __name__ == "__main__":
    terminal.run(main)
