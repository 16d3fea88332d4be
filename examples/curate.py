"""Turns a raw pool of image-caption pairs into a training set, in passes that can be run one by one.

    python examples/curate.py profile "raw/*.tar" --work work/
    python examples/curate.py COMMAND --work work/

`profile` reads the source, which may have any form that `image_text_pairs` reads; the other commands go on from its
results in the folder `--work`. A command that was interrupted goes on where it stopped. `COMMAND --help` describes the
options of a command.
"""

import argparse
import itertools
import sys
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


def add_queries_arguments(parser):
    parser.add_argument("out", type=Path, help="the list, a .parquet file")
    parser.add_argument("--corpus", type=Path, nargs="+", default=[], help="text or .jsonl files, such as of Wikipedia")
    parser.add_argument("--field", default="text", help="member of the objects of .jsonl files (default: text)")
    parser.add_argument("--work", type=Path, help="folder of a pool, whose captions are a corpus too")
    parser.add_argument("--titles", type=Path, help="lines of a title, a tab and the number of its views")
    parser.add_argument("--wordnet", type=Path, help="index.noun of WordNet, or its folder")
    parser.add_argument("--digits", action="store_true", help="add 0 to 99")
    parser.add_argument("--min-count", type=int, default=100, help="occurrences of a word or bigram (default: 100)")
    parser.add_argument("--min-pmi", type=float, default=10.0, help="mutual information of a bigram in bits (10)")
    parser.add_argument("--min-views", type=int, default=70, help="views of a title (default: 70)")
    parser.add_argument("--max-entries", type=int, default=500_000, help="largest number of entries (default: 500000)")
    parser.add_argument("--ignore-case", action="store_true", help="upper and lower case are equal")


def queries(args):
    if args.out.suffix != ".parquet":
        raise SystemExit(f"The list must be a .parquet file. Received: {args.out}.")
    tables = open_pool(args).tables("profile", ["caption"]) if args.work else ()
    captions = (text for table in tables for text in table["caption"].to_pylist())
    built = curation.build_queries(
        itertools.chain(curation.read_texts(args.corpus, args.field), captions),
        titles=curation.read_titles(args.titles) if args.titles else None,
        wordnet=curation.read_wordnet(args.wordnet) if args.wordnet else (),
        digits=args.digits,
        min_count=args.min_count,
        min_pmi=args.min_pmi,
        min_views=args.min_views,
        max_entries=args.max_entries,
        ignore_case=args.ignore_case,
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    curation.write_queries(built, args.out)
    for source, counts in built.facts["sources"].items():
        show({f"{source}: {name}": count for name, count in counts.items()})


def add_match_arguments(parser):
    parser.add_argument("--queries", type=Path, required=True, help="list from `queries`, or a text file, one a line")
    add_pool_arguments(parser)


def match(args):
    show(curation.match(open_pool(args), args.queries, engine(args)))


def add_balance_arguments(parser):
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument("--t", type=float, help="queries with fewer pairs keep all (default: 20000)")
    limits.add_argument("--tail-share", type=float, help="share of the matches of queries that keep all; determines t")
    limits.add_argument("--cap", type=int, help="instead of t: the largest number of pairs that a query selects")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--after", nargs="*", default=[], help="verdicts whose rejected pairs do not count")
    add_pool_arguments(parser)


def balance(args):
    limits = {"t": args.t, "tail_share": args.tail_share, "cap": args.cap}
    show(curation.balance(open_pool(args), **limits, seed=args.seed, after=args.after, engine=engine(args)))


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


def add_write_arguments(parser):
    parser.add_argument("out", type=Path, help="folder of the new shards")
    add_verdict_arguments(parser)
    parser.add_argument("--format", choices=("tar", "tfrecord"), default="tar", help="WebDataset tars or TFRecords")
    parser.add_argument("--max-samples", type=int, default=10_000, help="samples of a shard (default: 10000)")
    parser.add_argument("--max-bytes", type=int, default=2**30, help="bytes of a shard, about (default: 2 ** 30)")
    parser.add_argument("--columns", nargs="+", metavar="PASS.COLUMN", help="values that are stored with each sample")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the samples")
    add_pool_arguments(parser)


def add_verdict_arguments(parser):
    parser.add_argument(
        "--verdicts", nargs="+", metavar="PASS", help="passes that reject, in this order (default: all that have run)"
    )


def write(args):
    names = ("format", "max_samples", "max_bytes", "columns", "seed")
    settings = curation.WriteSettings(**{name: getattr(args, name) for name in names})
    show(curation.write(open_pool(args), args.out, args.verdicts, settings=settings, engine=engine(args)))


def add_card_arguments(parser):
    parser.add_argument("out", type=Path, help="folder of card.html and card.md, such as that of the new shards")
    add_verdict_arguments(parser)
    add_card_texts(parser)
    add_pool_arguments(parser)


def add_card_texts(parser):
    parser.add_argument("--title", default="Data card")
    parser.add_argument("--licence", "--license", default="", help="licence of the new shards")
    parser.add_argument("--description", default="", help="where the pool is from, and what it is for")


def card(args):
    settings = curation.CardSettings(title=args.title, licence=args.licence, description=args.description)
    print(curation.write_card(open_pool(args), args.out, args.verdicts, settings=settings, engine=engine(args)))


def add_check_arguments(parser):
    parser.add_argument("source", nargs="+", help="new shards; the manifest is in their folder")


def check(args):
    paths = find_files(args.source)
    checked = check_manifests(paths, digests=True)
    if checked < len(paths):
        raise SystemExit(f"Shards to check need a manifest.json beside them. Received: {len(paths) - checked} without.")
    print(f"{checked:,} shards have the sizes and digests of their manifest.")


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
    "queries": Command(add_queries_arguments, queries, "build a list of queries, with which captions are matched"),
    "match": Command(add_match_arguments, match, "find the queries in every caption"),
    "balance": Command(add_balance_arguments, balance, "keep a part of the pairs of frequent queries"),
    "validate": Command(
        add_validate_arguments, validate, "check the profile; exit status 0: valid, 1: anomalies, 2: could not run"
    ),
    "write": Command(add_write_arguments, write, "write the pairs that no pass rejects as new shards"),
    "card": Command(add_card_arguments, card, "write the data card, as HTML and Markdown"),
    "check": Command(add_check_arguments, check, "compare new shards with the digests of their manifest"),
}

if __name__ == "__main__":
    terminal.start(parse_args)

from keras_clip import curation
from keras_clip.data import check_manifests
from keras_clip.data.readers import find_files
from keras_clip.engines import Processes, Ray
from keras_clip.printable import printable


def main(argv=None):
    args = parse_args(argv)
    COMMANDS[args.command].run(args)
    if getattr(args, "work", None):
        # The data card names the commands that made it.
        curation.record_command(args.work, ["python", *(sys.argv if argv is None else ["examples/curate.py", *argv])])


if __name__ == "__main__":
    terminal.run(main)
