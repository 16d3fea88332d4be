"""What a data card shows of a pool: counts of its pairs, and some pairs of each verdict, chosen by hashes."""

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_clip.curation.draws import hash_pairs
from keras_clip.curation.pool import Pool
from keras_clip.curation.shards import Shard
from keras_clip.engines import Engine, engine_named

# Upper bounds of the groups of lengths, in pixels of the shorter side and in words.
SIDES = (64, 128, 256, 512, 1024, 2048)
WORDS = (1, 2, 4, 8, 16, 32, 64)
_CONTEXT = 77
_COLUMNS = ("key", "caption", "caption_number", "sample", "format", "width", "height", "words", "tokens", "language")


class Pick(NamedTuple):
    """A pair of the contact sheet; those with the smallest draws are shown."""

    draw: int
    shard: str
    sample: int
    caption: str


class Summary(NamedTuple):
    """Sums over the pairs of a pool, and some of its pairs.

    Attributes:
        kept: counts of kept pairs by (what, value): "side" and "words" by the number of the group, "format",
            "language", and "truncated" captions.
        picks: pairs by verdict: (pass, reason) that rejected them, and None for those that are kept.
    """

    kept: Counter
    picks: dict[Any, list[Pick]]


class _Summarise:
    """The task that summarises a shard."""

    uses_accelerator = False

    def __init__(self, folder: Path, seed: int, num_kept: int, num_rejected: int):
        self._folder, self._seed, self._numbers = folder.absolute(), seed, (num_kept, num_rejected)

    def start(self) -> None:
        return None

    def run(self, state: None, name: str) -> Summary:
        pool, shard = Pool([], self._folder), Shard(name, None)
        profile, keep = pool.table("profile", shard, _COLUMNS), pool.table("keep", shard)
        is_kept = np.asarray(keep["rejected_by"].is_null())
        kept: Counter = Counter()
        if is_kept.any():
            table = profile.filter(is_kept)
            sides = np.minimum(table["width"].to_numpy(), table["height"].to_numpy())
            words, tokens = table["words"].to_numpy(), table["tokens"].to_numpy()
            for what, groups in (("side", np.searchsorted(SIDES, sides)), ("words", np.searchsorted(WORDS, words))):
                kept.update({(what, group): count for group, count in enumerate(np.bincount(groups).tolist()) if count})
            for what in ("format", "language"):
                kept.update((what, value) for value in table[what].to_pylist())
            kept["truncated", True] += int((tokens > _CONTEXT).sum())
        return Summary(kept, self._picks(name, profile, keep))

    def _picks(self, name: str, profile: Any, keep: Any) -> dict[Any, list[Pick]]:
        rejected_by, reasons = keep["rejected_by"].to_pylist(), keep["reason"].to_pylist()
        keys = [f"{name}/{key}" for key in profile["key"].to_pylist()]
        draws = hash_pairs(keys, profile["caption_number"].to_numpy(), self._seed)
        seen: Counter = Counter()
        picks: dict[Any, list[Pick]] = {}
        for row in np.argsort(draws, kind="stable").tolist():
            verdict = None if rejected_by[row] is None else (rejected_by[row], reasons[row])
            if seen[verdict] < self._numbers[verdict is not None]:
                seen[verdict] += 1
                sample, caption = profile["sample"][row].as_py(), profile["caption"][row].as_py()
                picks.setdefault(verdict, []).append(Pick(int(draws[row]), name, sample, caption))
        return picks


def summarise(pool: Pool, engine: str | Engine, seed: int, num_kept: int, num_rejected: int) -> Summary:
    """Summarises a pool; the result depends neither on the engine nor on the order of the shards.

    Args:
        pool: the pool, with its profile and keep list.
        engine: see `run_pass`.
        seed: int in [0, 2 ** 64). Of the choice of pairs.
        num_kept: int. Kept pairs to choose.
        num_rejected: int. Pairs to choose of each reason.

    Returns:
        `Summary`.
    """
    task = _Summarise(pool.folder, seed, num_kept, num_rejected)
    kept: Counter = Counter()
    picks: dict[Any, list[Pick]] = {}
    names = [shard.name for shard in pool.shards]
    for _, part in engine_named(engine).map(task, names):
        kept.update(part.kept)
        for verdict, found in part.picks.items():
            count = num_kept if verdict is None else num_rejected
            picks[verdict] = heapq.nsmallest(count, picks.get(verdict, []) + found)
    return Summary(kept, picks)


def bars(counts: Mapping[Any, int], most: int = 8) -> list[tuple[str, int]]:
    """Returns the largest counts and their names, and the sum of the others as "other".

    Args:
        counts: numbers by value.
        most: int. Rows to return at most.

    Returns:
        (name, count), in decreasing order, then in the order of names.
    """
    ordered = sorted(((str(name), count) for name, count in counts.items()), key=lambda row: (-row[1], row[0]))
    if len(ordered) <= most:
        return ordered
    return [*ordered[: most - 1], ("other", sum(count for _, count in ordered[most - 1 :]))]


def grouped(counts: Mapping[int, int], bounds: Sequence[int]) -> list[tuple[str, int]]:
    """Returns counts of groups of lengths, from the first to the last one that has any.

    Args:
        counts: numbers by the number of the group.
        bounds: the largest length of each group but the last.

    Returns:
        (range of lengths, count), such as ("65–128", 3).
    """
    if not counts:
        return []
    rows = []
    for group in range(min(counts), max(counts) + 1):
        low = bounds[group - 1] + 1 if group else 0
        if group == len(bounds):
            name = f"over {bounds[-1]:,}"
        else:
            name = f"up to {bounds[0]:,}" if not group else f"{low:,}–{bounds[group]:,}"
        if group < len(bounds) and max(1, low) == bounds[group]:
            name = f"{bounds[group]:,}"
        rows.append((name, counts.get(group, 0)))
    return rows
