"""The pass that balances a pool over its queries; it comes last, when duplicates and unwanted pairs are gone."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from keras_clip.curation.balancing.limits import (
    CapSearch,
    Collected,
    Window,
    draws_of_matches,
    keep_probability,
    kept_by_limits,
    limits_of_probability,
    t_of_tail_share,
)
from keras_clip.curation.draws import check_seed, hash_pairs, hash_strings
from keras_clip.curation.keeping import verdicts_of
from keras_clip.curation.matching import queries_path, read_matches
from keras_clip.curation.passes import ShardPass, run_pass
from keras_clip.curation.pool import Pool, read_table, write_table
from keras_clip.curation.queries import read_queries
from keras_clip.curation.shards import Shard
from keras_clip.curation.verdicts import alive_rows, unusable_reasons
from keras_clip.engines import Engine, engine_named

if TYPE_CHECKING:
    import pyarrow

# Reasons of the verdicts.
NO_QUERY = "matches no query"
NOT_DRAWN = "enough pairs of its queries"
BEFORE = "rejected before balancing"
# Groups of shards whose results are merged by the workers, before those of the groups are merged.
_GROUPS = 256


def balance(
    pool: Pool,
    *,
    t: float | None = None,
    tail_share: float | None = None,
    cap: int | None = None,
    seed: int = 0,
    after: Sequence[str] | None = None,
    engine: str | Engine = "auto",
    progress: bool = True,
) -> Counter:
    """Keeps a part of the pairs of frequent queries and all pairs of rare ones.

    With t, a pair is kept with the probability `1 - prod(1 - min(1, t / count))` over its queries, where `count` is the
    number of pairs that a query matches (MetaCLIP, Xu et al., 2024, with t = 20,000 for 1.6e9 matched pairs). With a
    cap, every query selects at most that number of pairs (CLIP, Radford et al., 2021: 20,000). Pairs without a query
    are rejected. The draw of a pair for a query is a hash of the seed, the key, the number of its caption and the
    query: the result depends neither on the order of shards nor on workers.

    The results of a shard are the columns `reason` (null: kept) and `probability` (float32; of being kept, null with a
    cap and for pairs that were rejected before). query_counts.parquet in the folder of the pool has a row for each
    query: entry, source, the `count` of pairs that match it, and of those, how many are `kept`.

    Args:
        pool: the pool, with the results of `match`.
        t: float > 0. None: 20,000, if neither of the following is given.
        tail_share: float in [0, 1). t is the largest one for which queries with fewer than t pairs have at most this
            share of all matches, so that it grows with the pool.
        cap: int >= 1. The largest number of pairs that a query selects.
        seed: int in [0, 2 ** 64).
        after: names of passes with verdicts. The pairs that they or the profile reject are neither counted nor kept.
            None: all that are complete.
        engine: see `run_pass`.
        progress: bool. Whether to show progress bars.

    Returns:
        `Counter`: "pairs", "kept", and the number of pairs rejected for each reason.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: an invalid argument, or a pass whose results are read is not complete.
    """
    given = {name: value for name, value in (("t", t), ("tail_share", tail_share), ("cap", cap)) if value is not None}
    if len(given) > 1:
        raise ValueError(f"At most one of `t`, `tail_share` and `cap` must be given. Received: {given}.")
    if after is None:
        after = verdicts_of(pool, before=Balance.name)
    elif Balance.name in after:
        raise ValueError(f"Balancing cannot come after itself. Received: after={list(after)}. Leave it out.")
    check_seed(seed)
    matches = _Matches.of(pool, after)
    counts = matches.count(pool, engine, progress)
    if tail_share is not None:
        t = t_of_tail_share(counts, tail_share)
    elif cap is None and t is None:
        t = 20_000
    if t is not None:
        limits = limits_of_probability(counts, t)
    else:
        limits = matches.search(pool, CapSearch(counts, cap), seed, engine, progress)
    path = pool.folder / "query_limits.parquet"
    digest = _write_limits(path, counts, limits)
    verdict = Balance(matches, path.absolute(), digest, seed, t)
    result = run_pass(pool, verdict, engine, progress=progress)
    kept = matches._replace(after=(*matches.after, Balance.name)).count(pool, engine, progress)
    _write_counts(pool, counts, kept)
    return result


class _Matches(NamedTuple):
    """The matches of the pairs that were not rejected before.

    Attributes:
        folder: Path of the pool.
        digest: of the queries.
        after: names of the passes with verdicts.
        num_queries: int, K.
    """

    folder: Path
    digest: str
    after: tuple[str, ...]
    num_queries: int

    @classmethod
    def of(cls, pool: Pool, after: Sequence[str]) -> "_Matches":
        after = tuple(dict.fromkeys(("profile", *after)))
        for name in (*after, "match"):
            pool.require(name)
        queries = read_queries(queries_path(pool))
        return cls(pool.folder.absolute(), queries.digest, after, queries.table.num_rows)

    def count(self, pool: Pool, engine, progress) -> np.ndarray:
        """Returns the number of pairs that each query matches, int64 (K,)."""
        total = np.zeros(self.num_queries, np.int64)
        for entries, counts in _in_groups(pool, _Count(self), engine, progress):
            total[entries] += counts
        return total

    def search(self, pool: Pool, search: CapSearch, seed, engine, progress) -> np.ndarray:
        """Returns the limits of a cap."""
        while search.is_open:
            parts = _in_groups(pool, _Collect(self, search.window(), seed), engine, progress)
            search.add(Collected.merged(parts))
        return search.limits

    def read(self, tables: Mapping[str, "pyarrow.Table"], where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns which pairs were not rejected, bool (N,), and their offsets and queries; others have none."""
        is_left = np.zeros(tables["match"].num_rows, bool)
        is_left[alive_rows(tables, self.after)] = True
        is_left &= np.asarray(unusable_reasons(tables["profile"]).is_null().combine_chunks())
        offsets, entries = read_matches(tables["match"], self.digest, where)
        lengths = np.diff(offsets)
        entries = entries[np.repeat(is_left, lengths)]
        return is_left, np.concatenate([[0], np.cumsum(lengths * is_left)]), entries

    def read_shard(self, shard: Shard, columns: Sequence[str] = ()) -> tuple[Any, np.ndarray, np.ndarray]:
        """Returns the profile of a shard, and its offsets and queries."""
        pool = Pool([], self.folder)
        tables = {name: pool.table(name, shard, ["reason"]) for name in self.after}
        tables["profile"] = pool.table("profile", shard, ["reason", "utf8_ok", "blank", *columns])
        tables["match"] = pool.table("match", shard)
        return tables["profile"], *self.read(tables, shard.name)[1:]


class _Count:
    """The task that counts the matches of a group of shards: returns the queries and their counts, int64."""

    uses_accelerator = False

    def __init__(self, matches: _Matches):
        self._matches = matches

    def start(self) -> None:
        return None

    def run(self, state: None, shards: Sequence[Shard]) -> tuple[np.ndarray, np.ndarray]:
        counts = np.zeros(0, np.int64)
        for shard in shards:
            _, _, entries = self._matches.read_shard(shard)
            added = np.bincount(entries, minlength=len(counts))
            added[: len(counts)] += counts
            counts = added
        entries = np.flatnonzero(counts)
        return entries, counts[entries]


class _Collect:
    """The task of a round of `CapSearch` on a group of shards."""

    uses_accelerator = False

    def __init__(self, matches: _Matches, window: Window, seed: int):
        self._matches, self._window, self._seed = matches, window, seed

    def start(self) -> np.ndarray:
        return hash_strings(read_queries(self._matches.folder / "queries.parquet").entries)

    def run(self, state: np.ndarray, shards: Sequence[Shard]) -> Collected:
        parts = []
        for shard in shards:
            profile, offsets, entries = self._matches.read_shard(shard, ["key", "caption", "caption_number"])
            draws = draws_of_matches(_hash_rows(profile, self._seed), state, offsets, entries)
            parts.append(self._window.collect(draws, entries))
        return Collected.merged(parts)


class Balance(ShardPass):
    """The verdict of balancing on the pairs of a shard.

    Args:
        matches: which matches count.
        path: Path of the limits, which the workers read.
        digest: str, digest of the file.
        seed: int.
        t: float or None, see `balance`.
    """

    name = "balance"

    def __init__(self, matches: _Matches, path: Path, digest: str, seed: int, t: float | None):
        self.inputs = self.global_inputs = (*matches.after, "match")
        self._matches, self._path, self._digest, self._seed, self._t = matches, path, digest, seed, t

    def config(self) -> dict[str, Any]:
        names = {"after": self._matches.after, "queries": self._matches.digest}
        return {"version": 1, "limits": self._digest, "seed": self._seed, "t": self._t, **names}

    def start(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        table = read_table(self._path)
        queries = hash_strings(read_queries(self._matches.folder / "queries.parquet").entries)
        return np.asarray(table["count"]), np.asarray(table["limit"]), queries

    def run(
        self, state: Any, shard: Shard, inputs: Mapping[str, "pyarrow.Table"]
    ) -> tuple["pyarrow.Table", Mapping[str, int]]:
        import pyarrow as pa

        counts, limits, queries = state
        is_left, offsets, entries = self._matches.read(inputs, shard.name)
        draws = draws_of_matches(_hash_rows(inputs["profile"], self._seed), queries, offsets, entries)
        is_kept = kept_by_limits(draws, limits, offsets, entries)
        has_query = offsets[:-1] < offsets[1:]
        reasons = np.select([~is_left, is_kept, ~has_query], [BEFORE, None, NO_QUERY], NOT_DRAWN)
        if self._t is None:
            probability = pa.nulls(len(is_left), pa.float32())
        else:
            probability = keep_probability(counts, self._t, offsets, entries)
            probability = pa.array(probability.astype(np.float32), mask=~is_left)
        table = pa.table({"reason": pa.array(reasons, pa.string()), "probability": probability})
        totals = Counter("kept" if reason is None else reason for reason in reasons)
        return table, {"pairs": len(is_left), **totals}


def _in_groups(pool: Pool, task, engine, progress) -> Iterator[Any]:
    """Yields the results of a task on groups of shards, in any order."""
    from tqdm import tqdm

    groups = [pool.shards[start::_GROUPS] for start in range(min(_GROUPS, len(pool.shards)))]
    with tqdm(total=len(groups), desc="balance", unit="group", disable=not progress, delay=1) as bar:
        for _, result in engine_named(engine).map(task, groups):
            yield result
            bar.update()


def _hash_rows(profile: "pyarrow.Table", seed: int) -> np.ndarray:
    # With the caption: keys may be equal in several shards, such as the numbers of the rows of Parquet files.
    pairs = zip(profile["key"].to_pylist(), profile["caption"].to_pylist(), strict=True)
    return hash_pairs([f"{key}\n{caption}" for key, caption in pairs], np.asarray(profile["caption_number"]), seed)


def _write_limits(path: Path, counts: np.ndarray, limits: np.ndarray) -> str:
    import pyarrow as pa

    return write_table(path, pa.table({"count": counts, "limit": limits}))


def _write_counts(pool: Pool, counts: np.ndarray, kept: np.ndarray) -> None:
    table = read_queries(queries_path(pool)).table.select(["entry", "source"])
    write_table(
        pool.folder / "query_counts.parquet", table.append_column("count", [counts]).append_column("kept", [kept])
    )
