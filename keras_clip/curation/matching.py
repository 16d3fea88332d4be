"""Finds which queries occur in each caption, with an automaton for all of them at once (Aho and Corasick, 1975)."""

import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_clip.curation.passes import ShardPass, run_pass
from keras_clip.curation.pool import Pool
from keras_clip.curation.queries import Queries, read_queries, write_queries
from keras_clip.curation.queries.separated import pattern_of, separated
from keras_clip.curation.shards import Shard
from keras_clip.engines import Engine

if TYPE_CHECKING:
    import pyarrow

# Captions that are searched in one call, as one text.
_BATCH = 512


class Matcher:
    """Finds the entries of a list of queries in texts.

    An entry occurs in a text where its words and marks stand in it one after the other (`separated`); within a word it
    does not. Occurrences may overlap and contain each other: "new york city hall" contains "new york", "york" and "city
    hall". In scripts without spaces an entry may occur anywhere (`pattern_of`). Several occurrences in a text count
    once. If two entries become equal when separated, as "T-shirt" and "T - shirt" do, the first stands for both.

    Building the automaton takes about 6 s and 160 MB for 490,000 entries. It cannot be sent to other processes: each
    builds its own.

    Args:
        entries: sequence of str.
        ignore_case: bool. Whether "Dog" and "dog" are equal. MetaCLIP (Xu et al., 2024) distinguishes them.

    Raises:
        ImportError: ahocorasick_rs is not installed.
        ValueError: an entry is blank.
    """

    def __init__(self, entries: Sequence[str], ignore_case: bool = False):
        ahocorasick_rs = _require_ahocorasick()
        self.num_entries, self.ignore_case = len(entries), ignore_case
        first: dict[str, int] = {}
        for number, entry in enumerate(entries):
            first.setdefault(pattern_of(entry, ignore_case), number)
        if "" in first:
            number = first[""]
            raise ValueError(
                f"Queries must not be blank. Received: {entries[number]!r} as entry {number} of {len(entries)}. "
                "Remove it."
            )
        self._ids = np.fromiter(first.values(), np.int64, len(first))
        # On bytes, since positions in a text would have to be converted from those in bytes.
        self._automaton = ahocorasick_rs.BytesAhoCorasick(
            [pattern.encode() for pattern in first], implementation=ahocorasick_rs.Implementation.ContiguousNFA
        )

    def find(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Finds the entries in each text.

        Args:
            texts: sequence of N str.

        Returns:
            Offsets, int64 (N + 1,), and numbers of entries, int32 (M,). Those of text i are
            `numbers[offsets[i]:offsets[i + 1]]`, ascending, each once.
        """
        lengths, numbers = [np.zeros(1, np.int64)], [np.zeros(0, np.int32)]
        for start in range(0, len(texts), _BATCH):
            rows, found = self._find_in_batch(texts[start : start + _BATCH])
            lengths.append(np.bincount(rows, minlength=min(_BATCH, len(texts) - start)))
            numbers.append(found.astype(np.int32))
        return np.cumsum(np.concatenate(lengths)), np.concatenate(numbers)

    def _find_in_batch(self, texts):
        """Returns (number of the text, number of the entry) of each match, int64, sorted, without duplicates."""
        padded = [f" {separated(text, self.ignore_case)} ".encode() for text in texts]
        # No entry has a line break in it, so none occurs across two texts.
        found = self._automaton.find_matches_as_indexes(b"\n".join(padded), overlapping=True)
        found = np.fromiter(itertools.chain.from_iterable(found), np.int64, 3 * len(found)).reshape(-1, 3)
        ends = np.cumsum([len(text) + 1 for text in padded])
        rows = np.searchsorted(ends, found[:, 1], side="right")
        keys = np.sort(rows * self.num_entries + self._ids[found[:, 0]])
        # Faster than np.unique.
        is_first = np.diff(keys, prepend=-1) > 0
        return np.divmod(keys[is_first], self.num_entries)


def match(
    pool: Pool, queries: Queries | str | os.PathLike, engine: str | Engine = "auto", *, progress: bool = True
) -> Counter:
    """Finds the queries that occur in each caption of a pool; see `Matcher` for what occurring means.

    The results of a shard are a column `entries`, list of int32: the numbers of the queries in the caption of each
    pair, ascending, each once. The queries are stored in the folder of the pool as queries.parquet.

    Args:
        pool: the pool, with its profile.
        queries: `Queries`, or a file that `read_queries` reads.
        engine: see `run_pass`. Each worker builds an automaton of its own.
        progress: bool. Whether to show a progress bar.

    Returns:
        `Counter`: "pairs", "matched" pairs, and "matches".

    Raises:
        ImportError: ahocorasick_rs or pyarrow is not installed.
        FileNotFoundError, ValueError: invalid queries, or a pool without profile.
    """
    _require_ahocorasick()
    pool.require("profile")
    queries = queries if isinstance(queries, Queries) else read_queries(queries)
    write_queries(queries, queries_path(pool))
    return run_pass(pool, Match(queries_path(pool).absolute(), queries.digest), engine, progress=progress)


def queries_path(pool: Pool) -> Path:
    """Returns the path of the queries that were last matched in a pool."""
    return pool.folder / "queries.parquet"


class Match(ShardPass):
    """Finds the queries in the captions of a shard.

    Args:
        path: Path of the queries, which the workers read.
        digest: str, their digest.
    """

    name, inputs = "match", ("profile",)

    def __init__(self, path: Path, digest: str):
        self._path, self._digest = path, digest

    def config(self) -> dict[str, Any]:
        return {"version": 1, "queries": self._digest}

    def start(self) -> Matcher:
        queries = read_queries(self._path)
        if queries.digest != self._digest:
            raise ValueError(
                f"The queries of a pool must stay as they are while they are matched. Received: {str(self._path)!r}, "
                "which was replaced meanwhile. Run it again."
            )
        return Matcher(queries.entries, queries.ignore_case)

    def run(
        self, state: Matcher, shard: Shard, inputs: Mapping[str, "pyarrow.Table"]
    ) -> tuple["pyarrow.Table", Mapping[str, int]]:
        import pyarrow as pa

        offsets, entries = state.find(inputs["profile"]["caption"].to_pylist())
        column = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(entries))
        # The numbers mean nothing with other queries.
        table = pa.table({"entries": column}).replace_schema_metadata({"queries": self._digest})
        matched = int(np.count_nonzero(np.diff(offsets)))
        return table, {"pairs": len(offsets) - 1, "matched": matched, "matches": len(entries)}


def read_matches(table: "pyarrow.Table", digest: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the matches in a table of the pass `match`, in the form of `Matcher.find`.

    Args:
        table: the table, N rows.
        digest: the digest of the queries that the numbers must refer to.
        where: name of the shard, for messages.

    Returns:
        Offsets, int64 (N + 1,), and numbers of queries, int32 (M,).

    Raises:
        ValueError: the table was made with other queries.
    """
    if (table.schema.metadata or {}).get(b"queries", b"").decode() != digest:
        raise ValueError(
            "All shards must have been matched with the queries in queries.parquet. Received: other ones for "
            f"{where!r}. Run `match` again."
        )
    column = table["entries"].combine_chunks()
    lengths = np.asarray(column.value_lengths(), np.int64)
    return np.concatenate([[0], np.cumsum(lengths)]), np.asarray(column.flatten())


def _require_ahocorasick() -> Any:
    try:
        import ahocorasick_rs
    except ImportError as error:
        raise ImportError(
            'Queries are matched by ahocorasick_rs, which is not installed. pip install "keras_clip[curation]"'
        ) from error
    return ahocorasick_rs
