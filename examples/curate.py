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
        "--engine", choices=("auto", "serial", "processes", "ray"), default="auto", help="where shards are processed"
    )
    parser.add_argument("--workers", type=int, help="number of workers (default: one for each core)")
    parser.add_argument("--address", help="of the Ray cluster (default: RAY_ADDRESS, or this machine alone)")


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


def open_pool(args) -> "curation.Pool":
    """Opens the pool of the folder `--work`."""
    return curation.Pool.open(None, args.work)


def engine(args):
    """Returns the engine that the arguments name."""
    if args.address is not None and args.engine != "ray":
        raise SystemExit(f"--address goes with --engine ray. Received: --address {args.address}.")
    if args.engine == "ray":
        return Ray(args.address, args.workers)
    if args.workers is None:
        return args.engine
    if args.engine == "serial":
        raise SystemExit(f"--workers goes with --engine processes or ray. Received: --workers {args.workers}.")
    return Processes(args.workers)


def show(counts: Mapping[str, int]) -> None:
    """Prints counts, one a line."""
    for name, count in counts.items():
        print(f"{count:>12,}  {name}")


# To add a command, write its function and a row.
COMMANDS = {
    "profile": Command(add_profile_arguments, profile, "decode every image and read every caption once"),
}

if __name__ == "__main__":
    terminal.start(parse_args)

from keras_clip import curation
from keras_clip.engines import Processes, Ray


def main(argv=None):
    args = parse_args(argv)
    COMMANDS[args.command].run(args)


if __name__ == "__main__":
    terminal.run(main)
