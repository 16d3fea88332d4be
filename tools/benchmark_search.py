"""Tasks of `tools/benchmark.py` for search: queries to indexes of 10,000 to a million vectors, and pages of a searcher.

The vectors are clustered: their centres are photographs of --data, reduced to 24 x 24 pixels and projected at random,
or else drawn at random; points lie around them. Queries lie apart from the vectors, as the embeddings of texts lie
apart from those of pictures. Each factory sets up an implementation, and returns a function that does the work once and
returns the number of queries.
"""

import functools
import itertools
import os
import time
from types import SimpleNamespace

import numpy as np
from benchmark_tasks import Entry, Task

SIZES = {"search_1e4": 10_000, "search_1e5": 100_000, "search_1e6": 1_000_000}
TASKS = {
    **{name: Task("queries/s", 5) for name in SIZES},
    "search_filtered_1e5": Task("queries/s", 5),
    "search_page_1e5": Task("searches/s", 5),
}
DIMENSIONS, QUERIES, K = 512, 100, 10
EXACT = "keras_clip, exact"
# What the filter of `search_filtered_1e5` keeps.
KEPT = 0.2


def photographs(arguments, most=2000):
    """Returns photographs of the tars as float32 (P, 576); none without --data."""
    import io
    import tarfile
    from pathlib import Path

    from PIL import Image

    rows = []
    for shard in sorted(Path(arguments.data).rglob("*.tar")) if arguments.data else ():
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith((".jpg", ".png")) and len(rows) < most:
                    image = Image.open(io.BytesIO(tar.extractfile(member).read())).convert("L").resize((24, 24))
                    rows.append(np.asarray(image, np.float32).ravel())
    return np.array(rows, np.float32)


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def vectors(arguments, count):
    """Returns unit vectors (N, 512) and queries (100, 512)."""
    rng = np.random.default_rng(0)
    centres = photographs(arguments)
    if not len(centres):
        # The variance of embeddings decreases from one principal direction to the next.
        centres = rng.normal(size=(2000, 576)).astype(np.float32) * np.arange(1, 577) ** -0.5
    centres = (centres - centres.mean(axis=0)) @ rng.normal(size=(576, DIMENSIONS)).astype(np.float32)
    size = np.linalg.norm(centres, axis=1).mean()
    spectrum = np.linalg.svd(centres[:1000], compute_uv=True, full_matrices=False)
    directions = (spectrum[1][:, None] / np.linalg.norm(spectrum[1]) * spectrum[2]).astype(np.float32)
    offset = unit(rng.normal(size=(1, DIMENSIONS)))[0] * size

    def around(count, spread):
        noise = rng.normal(size=(count, len(directions))).astype(np.float32) @ directions
        return centres[rng.integers(0, len(centres), count)] + spread * size * noise

    blocks = [unit(around(min(50_000, count - start), 0.7) + offset) for start in range(0, count, 50_000)]
    # Opposite offsets: pictures and texts are in two cones.
    return np.concatenate(blocks), unit(around(QUERIES, 0.9) - 0.5 * offset)


def count_of(task, arguments):
    return 2000 if arguments.tiny else SIZES.get(task, 100_000)


def search_factory(kind, task, arguments, k=K):
    """Sets up an index; its searches are of one query at a time, as a person makes them."""
    from keras_clip.search import vectors as indexes

    embeddings, queries = vectors(arguments, count_of(task, arguments))
    allowed = np.random.default_rng(1).random(len(embeddings)) < KEPT if "filtered" in task else None
    exact = indexes.ExactIndex()
    exact.build(embeddings)
    expected, _ = exact.search(queries, k, allowed)
    start = time.perf_counter()
    index = kind(indexes)
    index.build(embeddings)
    build = time.perf_counter() - start

    def run():
        begin = time.process_time()
        found = [index.search(query[None], k, allowed)[0][0] for query in queries]
        recall = np.mean([len(set(f) & set(e)) / k for f, e in zip(found, expected, strict=True)])
        run.facts = {
            "cpu_ms": 1000 * (time.process_time() - begin) / len(queries),
            "recall_at_10": float(recall),
            "build_seconds": build,
        }
        return len(queries)

    return run


def exact_index(indexes):
    return indexes.ExactIndex()


def usearch_index(indexes):
    return indexes.UsearchIndex()


def qdrant_index(indexes):
    """The server of QDRANT_URL, or the local mode of the client, which compares all vectors in Python."""
    import qdrant_client

    url = os.environ.get("QDRANT_URL")
    client = None if url else qdrant_client.QdrantClient(":memory:")
    return indexes.QdrantIndex(url or "memory", "keras_clip_benchmark", os.environ.get("QDRANT_API_KEY"), client)


def pictures_of(embeddings):
    """Returns an index of drawn facts, as much of a `PictureIndex` as a search uses, without files."""
    rng, count = np.random.default_rng(2), len(embeddings)
    columns = {
        "root": np.zeros(count, np.int64),
        "folder": np.array([f"{2000 + row % 25}/{row % 300}" for row in range(count)], object),
        "name": np.array([f"IMG_{row}.jpg" for row in range(count)], object),
        "caption": np.array(["" if row % 3 else "two people on the beach at sunset" for row in range(count)], object),
        "width": rng.integers(100, 6000, count),
        "height": rng.integers(100, 6000, count),
        "size": rng.integers(1000, 10**7, count),
        "taken": rng.integers(0, 1_700_000_000, count).astype("datetime64[s]"),
    }
    rows = np.arange(count)
    facts = {"version": 1, "generation": 0, "embeddings": embeddings, "ids": rows + 1, "rows": rows}
    return SimpleNamespace(**facts, columns=lambda names: columns)


def page_factory(task, arguments, is_product=False):
    """Searches with filters and without near-duplicates, for pages of 100; the text encoder takes no time.

    With `is_product`, only the cosines with all pictures, which each search needs.
    """
    from keras_clip.search import ExactIndex, Filters, Query, Searcher, Term

    embeddings, queries = vectors(arguments, count_of(task, arguments))
    exact = ExactIndex()
    exact.build(embeddings)
    numbers = itertools.count()
    clip = SimpleNamespace(
        embed_dim=DIMENSIONS,
        logit_scale=np.float32(4.6),
        logit_bias=None,
        tokenizer=lambda texts, truncate: np.zeros((len(texts), 1), int),
        # Another embedding for each text, so that no ranking is known from before.
        text_embedder=SimpleNamespace(
            predict_on_batch=lambda ids: np.roll(queries[np.arange(len(ids)) % QUERIES], next(numbers), axis=1)
        ),
    )
    searcher = Searcher(pictures_of(embeddings), clip)
    filters = Filters(words="beach", min_width=200, taken_after="1980-01-01")
    start = time.perf_counter()
    if not is_product:
        searcher.prepare()
        searcher.search("a picture", filters, collapse=0.95)
    prepared = time.perf_counter() - start

    def run():
        begin = time.process_time()
        for query in queries:
            if is_product:
                exact.scores(query[None])
            else:
                text = Query([Term(text=f"text {next(numbers)}")])
                searcher.search(text, filters, limit=100, collapse=0.95)
        run.facts = {"cpu_ms": 1000 * (time.process_time() - begin) / QUERIES, "build_seconds": prepared}
        return QUERIES

    return run


def contenders(task, arguments):
    """Returns the indexes; Qdrant on the local mode of its client only with --peers, and for up to 10,000 vectors."""
    if task == "search_page_1e5":
        product, page = (functools.partial(page_factory, task, is_product=is_product) for is_product in (True, False))
        return [
            Entry("cosines alone", "tensorflow", product),
            Entry("page of 100 with filters, without near-duplicates", "tensorflow", page, "cosines alone"),
        ]
    kinds = {EXACT: exact_index, "keras_clip, usearch": usearch_index}
    has_server = "QDRANT_URL" in os.environ
    if has_server or (arguments.peers and count_of(task, arguments) <= 10_000):
        kinds["keras_clip, Qdrant" + ("" if has_server else " client in local mode")] = qdrant_index
    return [
        Entry(label, "tensorflow", functools.partial(search_factory, kind, task), None if label == EXACT else EXACT)
        for label, kind in kinds.items()
    ]
