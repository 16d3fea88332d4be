"""Turns a raw pool of image-caption pairs into a training set, in passes that can be run one by one.

    python examples/curate.py profile "raw/*.tar" --work work/
    python examples/curate.py COMMAND --work work/
    python examples/curate.py all "raw/*.tar" --work work/ --out curated/

`all` runs the passes one after the other. `profile` reads the source, which may have any form that `image_text_pairs`
reads; the other commands go on from its results in the folder `--work`. A command that was interrupted goes on where it
stopped. `COMMAND --help` describes the options of a command.
"""

import argparse
import functools
import itertools
import math
import sys
import time
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
    parser.add_argument("--after", nargs="*", help="verdicts whose rejected pairs do not count (default: all)")
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
        checks=args.checks,
        beam_options=[*([f"--runner={args.runner}"] if args.runner else []), *args.beam],
        sample_rows=args.sample_rows,
    )
    for feature, kind, description, part in outcome.anomalies:
        print(printable(f"{feature or 'pairs'}{f' ({part})' if part else ''}: {kind}: {description}"))
    print(f"{'valid' if outcome.valid else f'{len(outcome.anomalies)} anomalies'}: {outcome.report}")
    if not outcome.valid:
        raise SystemExit(1)


def add_duplicates_arguments(parser):
    methods = ("exact", "perceptual", "embedding")
    parser.add_argument("--method", nargs="+", choices=methods, default=methods[:2], help="in the order of application")
    parser.add_argument(
        "--same", choices=("image", "pair"), default="image", help="compare images alone, or with equal captions"
    )
    parser.add_argument("--distance", type=int, default=4, help="bits in which perceptual hashes may differ")
    add_colours_argument(parser)
    parser.add_argument("--cosine", type=float, default=0.95, help="embeddings with a larger cosine are duplicates")
    parser.add_argument("--clusters", type=int, help="clusters of embeddings (default: one for 8,000 images)")
    parser.add_argument("--prefer", metavar="PASS.COLUMN", help="of duplicates the largest stays, as profile.pixels")
    parser.add_argument(
        "--after", nargs="*", metavar="PASS", help="passes whose rejects take no part (default: all that are complete)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=float, default=2, help="GiB for merging and for embeddings, about")
    parser.add_argument(
        "--test-set", action="append", default=[], metavar="NAME=PATH", help="images that may not be in the pool"
    )
    parser.add_argument("--test-distance", type=int, default=4, help="as --distance, for the images of test sets")
    parser.add_argument("--test-cosine", type=float, default=0.95, help="as --cosine, for the images of test sets")
    compared = parser.add_mutually_exclusive_group()
    compared.add_argument("--test-model", help="the model of `score`, to compare test sets by its embeddings too")
    compared.add_argument("--detector", type=Path, help="detector.keras of train_duplicate_detector.py, instead")
    parser.add_argument("--list-only", action="store_true", help="list pairs near test images without rejecting them")
    terminal.add_source_arguments(parser)
    add_pool_arguments(parser)


def add_colours_argument(parser):
    parser.add_argument(
        "--colours",
        type=lambda text: None if text == "any" else float(text),
        default=16.0,
        metavar="NUMBER",
        help="of 255, in which the colours of images with near hashes may differ, or any (default: 16)",
    )


def duplicates(args):
    pool = open_pool(args)
    prefer = tuple(args.prefer.partition(".")[::2]) if args.prefer else None
    if prefer and not prefer[1]:
        raise SystemExit(f"--prefer is PASS.COLUMN, such as profile.pixels. Received: --prefer {args.prefer}.")
    if not args.memory > 0 or not math.isfinite(args.memory):
        raise SystemExit(f"--memory must be a positive number of GiB. Received: --memory {args.memory}.")
    settings = curation.DuplicateSettings(
        methods=tuple(args.method),
        same=args.same,
        distance=args.distance,
        colours=args.colours,
        cosine=args.cosine,
        clusters=args.clusters,
        prefer=prefer,
        after=None if args.after is None else tuple(args.after),
        seed=args.seed,
    )
    show(curation.find_duplicates(pool, engine(args), settings=settings, memory=max(1, int(args.memory * 2**30))))
    if args.test_set:
        show(find_test_sets(args, pool))


def find_test_sets(args, pool):
    """Compares the pool with the images of test sets; returns the number of pairs that are near one."""
    pairs = [named.partition("=") for named in args.test_set]
    if not all(name and path for name, _, path in pairs):
        raise SystemExit(f"--test-set is NAME=PATH. Received: --test-set {' '.join(args.test_set)}.")
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise SystemExit(f"The names of test sets must differ. Received: --test-set {' '.join(args.test_set)}.")
    if args.detector and not args.detector.is_file():
        raise SystemExit(f"--detector is the file detector.keras. Received: --detector {args.detector}, no file.")
    options = terminal.source_options(args)
    delimiter = {"delimiter": options["delimiter"]} if "delimiter" in options else {}
    readers = {name: open_reader(path, options.get("mapping"), captions=False, **delimiter) for name, _, path in pairs}
    vectors, embeddings = {}, ("score", "image_embedding")
    embedder = None
    if args.detector:
        load = functools.partial(load_detector, str(args.detector.absolute()))
        digest = curation.model_digest(args.detector)
        curation.run_pass(pool, curation.ImageEmbeddings(load, digest, "detector"), engine(args))
        embedder, embeddings = load(), ("detector", "image_embedding")
    elif args.test_model:
        embedder = presets.load(args.test_model, encoder="image")
        embedder = getattr(embedder, "image_embedder", embedder)
    if embedder is not None:
        for name, reader in readers.items():
            is_embedded, found = curation.embed_images(embedder, reader, np.arange(len(reader)))
            vectors[name] = np.where(is_embedded[:, None], found, np.nan)
    fingerprints = {name: curation.fingerprint_images(reader) for name, reader in readers.items()}
    test_images = curation.TestImages(
        {name: hashes for name, (hashes, _) in fingerprints.items()},
        vectors,
        colours={} if args.colours is None else {name: colours for name, (_, colours) in fingerprints.items()},
        most_colours=args.colours or 0.0,
        distance=args.test_distance,
        cosine=args.test_cosine,
        embeddings=embeddings,
        drop=not args.list_only,
    )
    return curation.find_test_images(pool, test_images, engine(args))


def load_detector(path):
    """Loads a duplicate detector, in a worker too; returns its `ImageEmbedder`."""
    import keras

    from keras_clip.evaluation import duplicate_detector  # noqa: F401  (registers the class)

    return keras.saving.load_model(path).embedder


def add_score_arguments(parser):
    parser.add_argument("--model", required=True, help="a .keras file, a preset, a folder or hf://organisation/name")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--dtype", help="dtype policy of the model, such as bfloat16")
    parser.add_argument("--name", default="score", help="name of the pass, for the scores of several models")
    add_pool_arguments(parser)


def score(args):
    pool = open_pool(args)
    options = {"batch_size": args.batch_size, "dtype": args.dtype, "name": args.name}
    show(curation.score(pool, args.model, engine(args), **options))


def add_filter_arguments(parser):
    parser.add_argument("--basic", action="store_true", help="the basic filter of DataComp")
    parser.add_argument(
        "--lenient", action="store_true", help="no file names as captions, a side of 64 pixels, an aspect of at most 3"
    )
    parser.add_argument("--language", default="en", help="language of --basic, ISO 639-1")
    parser.add_argument(
        "--rule",
        action="append",
        default=[],
        metavar="RULE",
        help="such as 'clip_score >= 0.28'",
    )
    parser.add_argument("--rules", type=Path, help="JSON list of {expression, reason, name}")
    parser.add_argument(
        "--list", action="append", default=[], metavar="NAME=FILE", help="a list for rules, one value a line"
    )
    parser.add_argument("--column", action="append", default=[], metavar="COLUMN=PASS", help="the pass of a column")
    parser.add_argument(
        "--after", nargs="+", default=[], metavar="PASS", help="shares are those of pairs that these keep"
    )
    parser.add_argument("--name", default="filter", help="name of the pass, for several filters")
    add_pool_arguments(parser)


def filter_pairs(args):
    rules = [*curation.datacomp_basic(args.language)] if args.basic else []
    rules += [curation.Rule(*rule) for rule in LENIENT] if args.lenient else []
    if args.rules:
        rules += curation.read_rules(args.rules)
    rules += map(curation.Rule, args.rule)
    if not rules:
        raise SystemExit("A filter needs rules. Received: none of --basic, --lenient, --rule and --rules.")
    wrong = [each for each in [*args.list, *args.column] if not all(each.partition("="))]
    if wrong:
        raise SystemExit(f"--list is NAME=FILE and --column COLUMN=PASS. Received: {wrong[0]}.")
    lists = {name: list_values(path) for name, _, path in (each.partition("=") for each in args.list)}
    places = dict(each.split("=", 1) for each in args.column)
    options = {"name": args.name, "after": args.after, "lists": lists, "places": places}
    show(curation.filter_pairs(open_pool(args), rules, engine(args), **options))


# Expressions and reasons of `filter --lenient`.
LENIENT = (
    ("not file_name_like", "a file name as caption"),
    ("min(width, height) >= 64", "a side of less than 64 pixels"),
    ("aspect <= 3", "an aspect of more than 3"),
)


def list_values(path):
    """Returns the lines of a file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SystemExit(f"A list must be UTF-8, one value a line. Received: {path}: {error}.") from error
    return [line for line in text.splitlines() if line.strip()]


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


def add_all_arguments(parser):
    parser.add_argument("source", nargs="+", help="tars, TFRecords, Parquet files, tables or folders")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new shards and their data card")
    parser.add_argument("--basic", action="store_true", help="filter as DataComp does (default: as filter --lenient)")
    parser.add_argument("--model", help="score the pairs by this model; see `score`")
    parser.add_argument("--min-score", type=float, help="reject pairs with a lower CLIP score; needs --model")
    parser.add_argument("--same", choices=("image", "pair"), default="image", help="see `duplicates`")
    parser.add_argument("--distance", type=int, default=4, help="bits in which hashes of duplicates may differ")
    add_colours_argument(parser)
    parser.add_argument("--test-set", action="append", default=[], metavar="NAME=PATH", help="see `duplicates`")
    parser.add_argument("--test-distance", type=int, default=4, help="as --distance, for the images of test sets")
    parser.add_argument("--queries", type=Path, help="balance the pairs over these queries; see `match`")
    parser.add_argument("--t", type=float, help="see `balance`")
    parser.add_argument("--format", choices=("tar", "tfrecord"), default="tar", help="WebDataset tars or TFRecords")
    parser.add_argument("--seed", type=int, default=0, help="of all draws")
    add_card_texts(parser)
    terminal.add_source_arguments(parser)
    add_pool_arguments(parser)


def run_all(args):
    for name, value, other in (("--min-score", args.min_score, args.model), ("--t", args.t, args.queries)):
        if value is not None and other is None:
            needed = "--model" if name == "--min-score" else "--queries"
            raise SystemExit(f"{name} needs {needed}. Received: {name} {value} without it.")
    if args.min_score is not None and not math.isfinite(args.min_score):
        raise SystemExit(f"--min-score must be a number. Received: --min-score {args.min_score}.")
    seconds, verdicts = {}, ["profile"]
    for command, *options in steps(args):
        options = [*options, *(["--verdicts", *verdicts] if command in ("write", "card") else [])]
        start = time.monotonic()
        try:
            print(f"\n{command}")
            main([command, *map(str, options), *pool_options(args, command)])
        except (ImportError, OSError, RuntimeError, ValueError, SystemExit) as error:
            # What a validation finds, or that it cannot run here, does not keep the other passes from their work.
            if command != "validate":
                raise
            print("not valid" if isinstance(error, SystemExit) else f"not run: {error}")
        seconds[command] = time.monotonic() - start
        verdicts += ["test_images"] if command == "duplicates" and args.test_set else []
        verdicts += [command] if command in ("filter", "duplicates", "balance") else []
    show_results(curation.keep(open_pool(args), verdicts, engine(args)), verdicts, seconds)


def steps(args):
    """Yields the commands of `all` with their options, except those of the pool."""
    options = {"--image": args.image, "--caption": args.caption, "--delimiter": args.delimiter}
    yield "profile", *args.source, *given(options)
    yield ("validate",)
    if args.model:
        yield "score", "--model", args.model
    scores = ["--rule", f"clip_score >= {args.min_score}"] if args.min_score is not None else []
    yield "filter", "--basic" if args.basic else "--lenient", *scores
    tests = [option for named in args.test_set for option in ("--test-set", named)]
    colours = "any" if args.colours is None else args.colours
    limits = ("--same", args.same, "--distance", args.distance, "--test-distance", args.test_distance)
    limits += ("--colours", colours)
    yield "duplicates", "--after", "filter", "--seed", args.seed, *limits, *tests
    if args.queries:
        yield "match", "--queries", args.queries
        after = ["filter", *(["test_images"] if args.test_set else []), "duplicates"]
        yield "balance", "--after", *after, "--seed", args.seed, *given({"--t": args.t})
    yield "write", args.out, "--format", args.format, "--seed", args.seed
    texts = {"--title": args.title, "--licence": args.licence, "--description": args.description}
    yield "card", args.out, *given(texts)


def given(options):
    """Returns the options that have a value, as arguments."""
    return [part for name, value in options.items() if value not in (None, "") for part in (name, value)]


def pool_options(args, command):
    """Returns the options of the pool as arguments."""
    engines = {"--engine": args.engine, "--workers": args.workers, "--address": args.address}
    return ["--work", str(args.work), *map(str, given({} if command == "validate" else engines))]


def show_results(counts, verdicts, seconds):
    """Prints what each pass rejected, what is left, and how long it took."""
    print(f"\n{'pass':<12}{'rejected':>12}{'left':>12}{'seconds':>10}")
    left = counts["pairs"]
    for name in dict.fromkeys([*verdicts, *seconds]):
        rejected = sum(count for key, count in counts.items() if key.startswith(f"{name}: "))
        left -= rejected
        took = f"{seconds[name]:.1f}" if name in seconds else ""
        numbers = (f"{rejected:,}", f"{left:,}") if name in verdicts else ("", "")
        print(f"{name:<12}{numbers[0]:>12}{numbers[1]:>12}{took:>10}")


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
    "duplicates": Command(add_duplicates_arguments, duplicates, "find pairs that occur twice, and images of test sets"),
    "score": Command(add_score_arguments, score, "compute the CLIP score of every pair"),
    "filter": Command(add_filter_arguments, filter_pairs, "reject pairs by rules on the profile and the scores"),
    "write": Command(add_write_arguments, write, "write the pairs that no pass rejects as new shards"),
    "card": Command(add_card_arguments, card, "write the data card, as HTML and Markdown"),
    "all": Command(add_all_arguments, run_all, "run the steps from profile to card, and go on where they stopped"),
    "check": Command(add_check_arguments, check, "compare new shards with the digests of their manifest"),
}

if __name__ == "__main__":
    terminal.start(parse_args)

import numpy as np

from keras_clip import curation, presets
from keras_clip.data import check_manifests
from keras_clip.data.readers import find_files, open_reader
from keras_clip.engines import Processes, Ray
from keras_clip.printable import printable


def main(argv=None):
    args = parse_args(argv)
    # The data card names the commands that made it: those that have succeeded, and itself. `all` consists of others.
    line = ["python", *(sys.argv if argv is None else ["examples/curate.py", *argv])]
    is_recorded = args.command != "all" and getattr(args, "work", None) is not None
    if is_recorded and args.command == "card":
        curation.record_command(args.work, line)
    COMMANDS[args.command].run(args)
    if is_recorded and args.command != "card":
        curation.record_command(args.work, line)


if __name__ == "__main__":
    terminal.run(main)
