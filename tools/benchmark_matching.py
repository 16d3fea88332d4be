"""Tasks of `tools/benchmark.py` for curation: matching captions with queries, and matching and balancing a pool."""

import functools
import resource
import shutil
import tempfile
from pathlib import Path

import numpy as np
from benchmark_tasks import Entry, Task

TASKS = {
    "match": Task("captions/s", 5, 1.0),
    "match_and_balance": Task("pairs/s", 1),
}
WORDS_OF_CAPTION = 13
PAIRS_OF_SHARD = 10_000
PLAIN, PEER = "plain loops over n-grams", "pyahocorasick"


@functools.cache
def synthetic_words(count):
    """Returns different words of 2 to 10 letters, and their probabilities, which follow Zipf's law."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    drawn = ("".join(rng.choice(letters, length)) for length in rng.integers(2, 11, 3 * count))
    words = list(dict.fromkeys(drawn))[:count]
    probability = 1 / (np.arange(len(words)) + 10)
    return np.array(words), probability / probability.sum()


@functools.cache
def synthetic_queries(count):
    """Returns `count` entries, of which half are words and the others have two to five, as titles have."""
    words, probability = synthetic_words(count // 2)
    rng = np.random.default_rng(1)
    drawn = rng.choice(words, (3 * count, 5), p=probability)
    # Few long ones.
    lengths = rng.choice([2, 3, 4, 5], 3 * count, p=[0.7, 0.15, 0.1, 0.05])
    entries = (" ".join(row[:length]) for row, length in zip(drawn, lengths, strict=True))
    return list(dict.fromkeys([*words, *entries]))[:count]


def synthetic_captions(num_queries, count, seed=2):
    """Returns captions of about 90 characters, in which words of the queries occur."""
    words, probability = synthetic_words(num_queries // 2)
    drawn = np.random.default_rng(seed).choice(words, (count, WORDS_OF_CAPTION), p=probability)
    return [f"{' '.join(row)}." for row in drawn]


def sizes(arguments):
    """Returns the numbers of queries and captions of the task `match`."""
    return (2000, 500) if arguments.tiny else (490_000, 40_000)


def our_matcher(arguments):
    from keras_clip.curation.matching import Matcher

    queries, captions = sizes(arguments)
    matcher, captions = Matcher(synthetic_queries(queries)), synthetic_captions(queries, captions)

    def run():
        run.facts = {"matches": len(matcher.find(captions)[1])}
        return len(captions)

    return run


def their_matcher(arguments):
    import ahocorasick

    from keras_clip.curation.queries.separated import pattern_of, separated

    queries, captions = sizes(arguments)
    automaton = ahocorasick.Automaton()
    for number, entry in enumerate(synthetic_queries(queries)):
        automaton.add_word(pattern_of(entry), number)
    automaton.make_automaton()
    captions = synthetic_captions(queries, captions)

    def run():
        found = [sorted({number for _, number in automaton.iter(f" {separated(text)} ")}) for text in captions]
        run.facts = {"matches": sum(map(len, found))}
        return len(captions)

    return run


def plain_matcher(arguments):
    """The dictionary of n-grams that one would write without an automaton."""
    from keras_clip.curation.queries.separated import separated

    queries, captions = sizes(arguments)
    numbers = {separated(entry): number for number, entry in enumerate(synthetic_queries(queries))}
    longest = max(entry.count(" ") for entry in numbers) + 1
    captions = synthetic_captions(queries, captions)

    def run():
        total = 0
        for text in captions:
            words = separated(text).split(" ")
            grams = (" ".join(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1))
            total += len(sorted({numbers[gram] for gram in grams if gram in numbers}))
        run.facts = {"matches": total}
        return len(captions)

    return run


def synthetic_pool(folder, num_queries, pairs):
    """Returns a pool that has the columns of the profile which matching and balancing read."""
    import pyarrow as pa

    from keras_clip import curation, files
    from keras_clip.curation.pool import write_table

    shards = [curation.Shard(f"{number:05d}", None) for number in range(-(-pairs // PAIRS_OF_SHARD))]
    pool = curation.Pool(shards, Path(folder))
    (pool.folder / "profile").mkdir()
    for number, shard in enumerate(shards):
        count = min(PAIRS_OF_SHARD, pairs - number * PAIRS_OF_SHARD)
        columns = {
            "key": [f"{shard.name}{i:05d}" for i in range(count)],
            "caption_number": pa.array(np.zeros(count, np.int16)),
            "caption": synthetic_captions(num_queries, count, seed=number),
            "reason": pa.nulls(count, pa.string()),
            "utf8_ok": np.ones(count, bool),
            "blank": np.zeros(count, bool),
        }
        output = write_table(pool.path("profile", shard), pa.table(columns))
        marker = {"key": "", "output": output, "rows": count, "counts": {}}
        files.write_json(pool.marker_path("profile", shard), marker)
    return pool


def our_pool(pairs, arguments):
    """Matches and balances a pool of synthetic captions, in one process for each core."""
    from keras_clip.curation.balancing import balance
    from keras_clip.curation.matching import match
    from keras_clip.curation.queries import given_queries

    num_queries, pairs = (200, pairs // 1000) if arguments.tiny else (100_000, pairs)
    folder = tempfile.TemporaryDirectory()
    pool = synthetic_pool(folder.name, num_queries, pairs)
    queries = given_queries(synthetic_queries(num_queries))

    def run():
        for name in ("match", "balance"):
            shutil.rmtree(pool.folder / name, ignore_errors=True)
        match(pool, queries, progress=False)
        counts = balance(pool, t=1000, progress=False)
        peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        # Of the largest process: memory that is flat in the number of pairs.
        run.facts = {"memory_mib": max(peaks) / 1024, "kept": counts["kept"]}
        return pairs

    run.folder = folder
    return run


def contenders(task, arguments):
    """Returns our entries, then those to compare with."""
    if task == "match":
        ours = [Entry("keras_clip", "tensorflow", our_matcher, reference=PEER if arguments.peers else PLAIN)]
        plain = [Entry(PLAIN, "tensorflow", plain_matcher)]
        return ours + plain + ([Entry(PEER, "tensorflow", their_matcher)] if arguments.peers else [])
    quarter, whole = 250_000, 1_000_000
    smaller = f"keras_clip, {quarter:,} pairs"
    return [
        Entry(smaller, "tensorflow", functools.partial(our_pool, quarter)),
        Entry(
            f"keras_clip, {whole:,} pairs",
            "tensorflow",
            functools.partial(our_pool, whole),
            memory_reference=smaller,
            memory=1.1,
        ),
    ]
