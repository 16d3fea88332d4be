"""The passes `match` and `balance` over a pool: results by hand, restarts, engines, order, and what they refuse."""

import hashlib
import pickle
import random

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from scripts import load_script

from keras_clip.curation.balancing.limits import keep_probability
from keras_clip.curation.balancing.selection import BEFORE, NO_QUERY, NOT_DRAWN, balance
from keras_clip.curation.draws import draw, hash_pairs, hash_strings
from keras_clip.curation.matching import match
from keras_clip.curation.pool import Pool, read_table, write_table
from keras_clip.curation.queries import given_queries
from keras_clip.curation.shards import Shard
from keras_clip.files import write_json

pytestmark = pytest.mark.backend_free

ENTRIES = ["photo", "photo of", "cat", "dog", "rare bird", "猫", "never"]
SIZES = {"a": 40, "b": 0, "c": 300, "d": 1, "e": 159}


def fill(pool, name, tables):
    """Stores the tables of a pass as `run_pass` does."""
    (pool.folder / name).mkdir(parents=True)
    for shard, table in zip(pool.shards, tables, strict=True):
        output = write_table(pool.path(name, shard), table)
        write_json(pool.marker_path(name, shard), {"key": "", "output": output, "rows": len(table), "counts": {}})


def profile_of(shard, count):
    """A profile of pairs, of which each tenth image is broken and each sample has two captions."""
    rng = random.Random(shard)
    captions = [
        rng.choice(["a photo of a cat", "photo, photo", "a dog", "no match", "", "一只猫 photo", "photo of a dog"])
        for _ in range(count)
    ]
    if count > 100:
        captions[5] = "photo of a rare bird"
    columns = {
        "key": [f"{shard}{i // 2:05d}" for i in range(count)],
        "caption_number": pa.array([i % 2 for i in range(count)], pa.int16()),
        "caption": pa.array(captions, pa.string()),
        "utf8_ok": [i % 50 != 3 for i in range(count)],
        "blank": [not caption for caption in captions],
        "reason": pa.array(["no image" if i % 10 == 9 else None for i in range(count)], pa.string()),
    }
    return pa.table(columns)


def make_pool(folder, order=None):
    names = list(order or SIZES)
    pool = Pool([Shard(name, None) for name in names], folder)
    fill(pool, "profile", [profile_of(name, SIZES[name]) for name in names])
    verdicts = [["too small" if i % 7 == 0 else None for i in range(SIZES[name])] for name in names]
    fill(pool, "basic", [pa.table({"reason": pa.array(reasons, pa.string())}) for reasons in verdicts])
    return pool


def run_both(pool, engine="serial", **options):
    matched = match(pool, given_queries(ENTRIES), engine, progress=False)
    return matched, balance(pool, engine=engine, progress=False, **options)


def digests(pool):
    names = [f"{name}/{shard}.parquet" for name in ("match", "balance") for shard in SIZES]
    names += ["query_limits.parquet", "query_counts.parquet", "queries.parquet"]
    return {name: hashlib.sha256((pool.folder / name).read_bytes()).hexdigest() for name in names}


@pytest.fixture
def pool(tmp_path):
    return make_pool(tmp_path / "work")


def rows_of(pool, name):
    return [row for table in pool.tables(name) for row in table.to_pylist()]


def by_hand(pool, after=("profile",)):
    """Returns the queries of each pair and the counts of the queries, by loops."""
    rows = rows_of(pool, "profile")
    left = [all(row["reason"] is None for row in pair) for pair in zip(*(rows_of(pool, n) for n in after), strict=True)]
    left = [ok and row["utf8_ok"] and not row["blank"] for ok, row in zip(left, rows, strict=True)]
    queries = []
    for row in rows:
        words = f" {row['caption'].replace(',', ' , ')} "
        queries.append([i for i, e in enumerate(ENTRIES) if (e in words if e == "猫" else f" {e} " in words)])
    counts = [sum(ok and i in own for ok, own in zip(left, queries, strict=True)) for i in range(len(ENTRIES))]
    return rows, left, queries, counts


def test_matches_of_a_pool(pool):
    counts = match(pool, given_queries(ENTRIES), "serial", progress=False)
    _, _, queries, _ = by_hand(pool)
    rows = rows_of(pool, "match")
    assert [row["entries"] for row in rows] == queries
    expected = {"pairs": 500, "matched": sum(map(bool, queries)), "matches": sum(map(len, queries))}
    assert counts == expected
    assert pool.table("match", pool.shards[0]).schema.field("entries").type == pa.list_(pa.int32())


@pytest.mark.parametrize("after", [(), ("basic",)], ids=["profile", "profile and basic"])
@pytest.mark.parametrize(
    "options", [{"t": 20}, {"t": 7.5, "seed": 3}, {"cap": 20}, {"cap": 1, "seed": 2**64 - 1}, {}], ids=str
)
def test_verdicts_by_hand(pool, options, after):
    _, totals = run_both(pool, after=after, **options)
    rows, left, queries, counts = by_hand(pool, ("profile", *after))
    seed = options.get("seed", 0)
    keys = [f"{row['key']}\n{row['caption']}" for row in rows]
    pairs = hash_pairs(keys, [row["caption_number"] for row in rows], seed)
    hashes = hash_strings(ENTRIES)
    draws = [[int(draw(pairs[i : i + 1], hashes[q : q + 1])[0]) for q in own] for i, own in enumerate(queries)]
    if "cap" in options:
        chosen = set()
        for query in range(len(ENTRIES)):
            own = sorted(
                (d[q.index(query)], i)
                for i, (q, d) in enumerate(zip(queries, draws, strict=True))
                if query in q and left[i]
            )
            chosen |= {i for _, i in own[: options["cap"]]}
        keep = [i in chosen for i in range(len(rows))]
    else:
        t = options.get("t", 20_000)
        keep = [
            any(d / 2**63 < min(1, t / counts[q]) for q, d in zip(*both, strict=True))
            for both in zip(queries, draws, strict=True)
        ]
    expected = [
        BEFORE if not ok else None if kept else NOT_DRAWN if own else NO_QUERY
        for ok, kept, own in zip(left, keep, queries, strict=True)
    ]
    results = rows_of(pool, "balance")
    assert [row["reason"] for row in results] == expected
    names = {None: "kept", BEFORE: BEFORE, NO_QUERY: NO_QUERY, NOT_DRAWN: NOT_DRAWN}
    assert totals == {"pairs": 500, **{names[each]: expected.count(each) for each in set(expected)}}
    table = read_table(pool.folder / "query_counts.parquet").to_pydict()
    kept_queries = [q for own, reason in zip(queries, expected, strict=True) if reason is None for q in own]
    assert table["entry"] == ENTRIES and table["source"] == ["given"] * 7 and table["count"] == counts
    assert table["kept"] == [kept_queries.count(i) for i in range(7)]
    if "cap" not in options:
        offsets, flat = np.cumsum([0, *map(len, queries)]), np.array(sum(queries, []))
        probability = keep_probability(counts, options.get("t", 20_000), offsets, flat)
        assert [row["probability"] is None for row in results] == [not ok for ok in left]
        assert [r["probability"] or 0 for r in results] == pytest.approx(np.where(left, probability, 0), abs=1e-6)


@pytest.mark.parametrize("options", [{"t": 10}, {"cap": 10}], ids=str)
def test_order_of_shards_and_restart(tmp_path, options, monkeypatch):
    reference = make_pool(tmp_path / "reference")
    run_both(reference, **options)
    expected = digests(reference)
    shuffled = make_pool(tmp_path / "shuffled", order="ecdab")
    monkeypatch.setattr("keras_clip.curation.balancing.selection._GROUPS", 2)
    run_both(shuffled, **options)
    assert digests(shuffled) == expected
    # As after a process that died: a table without marker, and one that is missing.
    for name in ("match", "balance"):
        reference.marker_path(name, reference.shards[2]).unlink()
        reference.path(name, reference.shards[0]).unlink()
    run_both(reference, **options)
    assert digests(reference) == expected


class Sending:
    """An engine that sends what processes and clusters send: tasks, items and results, the items in another order."""

    def map(self, task, items):
        task = pickle.loads(pickle.dumps(task))
        state = task.start()
        for number in reversed(range(len(items))):
            item = pickle.loads(pickle.dumps(items[number]))
            yield number, pickle.loads(pickle.dumps(task.run(state, item)))


@pytest.mark.parametrize("options", [{"t": 10}, {"cap": 10}], ids=str)
def test_other_engines_give_the_same(tmp_path, options):
    pools = [make_pool(tmp_path / name) for name in ("serial", "sending")]
    for pool, engine in zip(pools, ["serial", Sending()], strict=True):
        run_both(pool, engine, **options)
    assert digests(pools[0]) == digests(pools[1])


def test_all_verdicts_that_are_complete_come_before(pool):
    run_both(pool, t=10)
    by_default = digests(pool)
    balance(pool, t=10, engine="serial", progress=False)  # with its own verdict, which does not count
    assert digests(pool) == by_default
    balance(pool, t=10, after=["basic"], engine="serial", progress=False)
    assert digests(pool) == by_default
    balance(pool, t=10, after=[], engine="serial", progress=False)
    assert digests(pool) != by_default


def test_share_of_the_tail(pool):
    run_both(pool, tail_share=0.1)
    counts = read_table(pool.folder / "query_counts.parquet")["count"].to_pylist()
    assert 0 < min(filter(None, counts)) < max(counts)
    t = max(c for c in counts if sum(each for each in counts if each < c) <= 0.1 * sum(counts))
    by_share = digests(pool)
    run_both(pool, t=t)
    assert digests(pool) == by_share


def test_only_what_changed_is_done_again(pool):
    run_both(pool, t=10)
    times = {path: path.stat().st_mtime_ns for path in (pool.folder / "match").iterdir()}
    before = digests(pool)
    run_both(pool, t=11)
    assert times == {path: path.stat().st_mtime_ns for path in (pool.folder / "match").iterdir()}
    assert digests(pool) != before
    run_both(pool, t=10)
    assert digests(pool) == before


def test_results_of_other_queries(pool):
    run_both(pool, t=10)
    stale = pool.path("match", pool.shards[2]).read_bytes()
    match(pool, given_queries([*ENTRIES, "a"]), "serial", progress=False)
    pool.path("match", pool.shards[2]).write_bytes(stale)
    with pytest.raises(ValueError, match="queries in queries.parquet. Received: other ones for 'c'"):
        balance(pool, t=10, engine="serial", progress=False)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"t": 5, "cap": 5}, "At most one of `t`, `tail_share` and `cap`"),
        ({"t": 0}, "`t` must be a positive number"),
        ({"cap": 0}, "`cap` must be a positive integer"),
        ({"tail_share": 1.0}, r"`share` must be in \[0, 1\)"),
        ({"seed": -1}, "`seed` must be an integer"),
        ({"after": ["filter"]}, "The pass 'filter' must be complete"),
        ({"after": ["balance"]}, "cannot come after itself"),
    ],
)
def test_invalid_arguments(pool, options, message):
    match(pool, given_queries(ENTRIES), "serial", progress=False)
    with pytest.raises(ValueError, match=message):
        balance(pool, engine="serial", progress=False, **options)


def test_balance_before_match(pool):
    with pytest.raises(ValueError, match="The pass 'match' must be complete"):
        balance(pool, progress=False)


def test_match_without_a_profile(tmp_path):
    with pytest.raises(ValueError, match="The pass 'profile' must be complete"):
        match(Pool([Shard("a", None)], tmp_path), given_queries(["cat"]), progress=False)


def test_commands(tmp_path, capsys):
    """The three commands of examples/curate.py, from a corpus to verdicts."""
    curate = load_script("examples/curate.py")
    source, work, queries = tmp_path / "source.csv", tmp_path / "work", tmp_path / "lists" / "queries.parquet"
    for number in range(12):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    captions = ["a cat", "a dog, a dog", "a cat and a dog", "nothing"] * 3
    rows = [f"{tmp_path / str(number)}.png\t{caption}" for number, caption in enumerate(captions)]
    source.write_text("filepath\ttitle\n" + "\n".join(rows) + "\n")
    (tmp_path / "corpus.txt").write_text("cat dog\n" * 3)
    curate.main(["profile", str(source), "--work", str(work), "--engine", "serial"])
    command = ["queries", str(queries), "--corpus", str(tmp_path / "corpus.txt"), "--work", str(work), "--digits"]
    curate.main([*command, "--min-count", "5", "--min-pmi", "9"])
    # 3 in the corpus and 6 or 9 in the captions; "cat dog" and "nothing" have 3.
    assert read_table(queries)["entry"].to_pylist()[:3] == ["dog", "cat", "0"]
    curate.main(["match", "--queries", str(queries), "--work", str(work), "--engine", "serial"])
    capsys.readouterr()
    curate.main(["balance", "--t", "1", "--work", str(work), "--engine", "serial"])
    assert {"12  pairs", f"3  {NO_QUERY}"} <= {line.strip() for line in capsys.readouterr().out.splitlines()}
    assert read_table(work / "query_counts.parquet")["count"].to_pylist()[:3] == [6, 6, 0]


def test_queries_from_a_file(pool, tmp_path):
    (tmp_path / "list.txt").write_text("cat\n猫\n")
    assert match(pool, tmp_path / "list.txt", "serial", progress=False)["matches"] > 0
    assert read_table(pool.folder / "queries.parquet")["entry"].to_pylist() == ["cat", "猫"]
