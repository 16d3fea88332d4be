"""Tasks of `tools/benchmark.py` that prepare data: the passes of `keras_clip.curation`.

Each factory sets up an implementation, and returns a function that does the work once and returns the number of items.
"""

import functools
import io
import resource
import shutil
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from benchmark_tasks import Entry, Task, captions, pipeline_shards

TASKS = {
    "profile": Task("samples/s", 5, 0.9),
    "match": Task("captions/s", 5, 1.0),
    "match_and_balance": Task("pairs/s", 1),
    "score": Task("pairs/s", 5),
}
WORDS_OF_CAPTION = 13
PAIRS_OF_SHARD = 10_000
PLAIN, PEER, DECODING = "plain loops over n-grams", "pyahocorasick", "plain decoding (PIL, RGB)"
# Of the task `score`.
PHOTOGRAPHS, BATCH = 128, 32


def our_profile(arguments):
    from keras_clip import curation

    folder = Path(tempfile.mkdtemp())
    pool = curation.Pool.open(pipeline_shards(arguments), folder)

    def run():
        shutil.rmtree(folder / "profile", ignore_errors=True)
        return curation.profile(pool, "serial", progress=False)["samples"]

    return run


def plain_decoding(arguments):
    from keras_clip.data.image_files import MAX_PIXELS, open_image
    from keras_clip.data.readers import open_reader

    reader = open_reader(pipeline_shards(arguments))

    def run():
        for start in range(0, len(reader), 64):
            images, _ = reader.read(np.arange(start, min(start + 64, len(reader))))
            for image in images:
                open_image(image, "image", MAX_PIXELS)
        return len(reader)

    return run


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


def small_model():
    import keras_clip
    from keras_clip import encoders

    image = encoders.VisionTransformer(224, 32, 384, 8, 6)
    return keras_clip.CLIPModel(image, encoders.TextTransformer(256, 6, 4), 256)


def photographs(arguments):
    """Returns the bytes of photographs of 256 pixels and more, or of scenes of 320 pixels, as JPEG."""
    from keras_clip.data.readers import open_reader

    if arguments.data and (shards := sorted(Path(arguments.data).rglob("grocery/train/*.tar"))):
        return open_reader(str(shards[0])).read(np.arange(PHOTOGRAPHS))[0]
    from PIL import Image

    from keras_clip.data import synthetic

    files = [io.BytesIO() for _ in range(PHOTOGRAPHS)]
    for i, file in enumerate(files):
        Image.fromarray(synthetic.sample(i, image_size=320, seed=0)[0]).save(file, "JPEG", quality=92)
    return [file.getvalue() for file in files]


def our_score(arguments):
    from keras_clip import curation

    folder = Path(tempfile.mkdtemp())
    with tarfile.open(folder / "00000.tar", "w") as tar:
        pairs = zip(photographs(arguments), captions(arguments, PHOTOGRAPHS), strict=True)
        for i, (image, caption) in enumerate(pairs):
            for name, data in ((f"{i:05d}.jpg", image), (f"{i:05d}.txt", caption.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    pool = curation.Pool.open(str(folder / "00000.tar"), folder / "work")
    curation.profile(pool, "serial", progress=False)
    clip = small_model()

    def run():
        shutil.rmtree(folder / "work" / "score", ignore_errors=True)
        return curation.score(pool, clip, batch_size=BATCH, progress=False)["scored"]

    return run


def encoders_alone(arguments):
    """The same batches, decoded and tokenised in advance; the texts padded to the same widths."""
    clip = small_model()
    pixels = clip.image_embedder.image_preprocessor.to_uint8(list(photographs(arguments)))
    token_ids = np.unique(clip.tokenizer(captions(arguments, PHOTOGRAPHS), truncate=True), axis=0)
    lengths = (token_ids == clip.tokenizer.end_token_id).argmax(axis=1) + 1
    groups = [token_ids[lengths <= 16, :16], token_ids[(lengths > 16) & (lengths <= 32), :32], token_ids[lengths > 32]]

    def run():
        for start in range(0, PHOTOGRAPHS, BATCH):
            clip.image_embedder.predict_on_batch(pixels[start : start + BATCH])
        for group in groups:
            for start in range(0, len(group), BATCH):
                rows = group[start : start + BATCH]
                clip.text_embedder.predict_on_batch(rows[np.resize(np.arange(len(rows)), BATCH)])
        return PHOTOGRAPHS

    return run


def profile_contenders(arguments):
    ours = [Entry("curation.profile", "tensorflow", our_profile, reference=DECODING)]
    return ours + ([Entry(DECODING, "tensorflow", plain_decoding)] if arguments.peers else [])


def match_contenders(arguments):
    ours = [Entry("keras_clip", "tensorflow", our_matcher, reference=PEER if arguments.peers else PLAIN)]
    plain = [Entry(PLAIN, "tensorflow", plain_matcher)]
    return ours + plain + ([Entry(PEER, "tensorflow", their_matcher)] if arguments.peers else [])


def match_and_balance_contenders(arguments):
    quarter, whole = 250_000, 1_000_000
    smaller = f"keras_clip, {quarter:,} pairs"
    larger = functools.partial(our_pool, whole)
    return [
        Entry(smaller, "tensorflow", functools.partial(our_pool, quarter)),
        Entry(f"keras_clip, {whole:,} pairs", "tensorflow", larger, memory_reference=smaller, memory=1.1),
    ]


def score_contenders(arguments):
    """Returns, for each backend, our entry and that of the encoders alone."""
    entries = []
    for backend in arguments.backends:
        alone = f"the encoders alone, {backend}"
        entries += [Entry(f"curation.score, {backend}", backend, our_score, reference=alone, rate=0.9)]
        entries += [Entry(alone, backend, encoders_alone)]
    return entries


def contenders(task, arguments):
    """Returns our entries, then those to compare with."""
    of_task = {
        "profile": profile_contenders,
        "match": match_contenders,
        "match_and_balance": match_and_balance_contenders,
        "score": score_contenders,
    }
    return of_task[task](arguments)
