"""The pass that applies rules to the pairs of a pool, with thresholds of shares over the whole pool."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_clip.curation.expressions import numbers_of
from keras_clip.curation.passes import ShardPass, run_pass
from keras_clip.curation.pool import Pool
from keras_clip.curation.profiling import profile_schema
from keras_clip.curation.rules import Rule, first_reasons, share_threshold
from keras_clip.curation.shards import Shard
from keras_clip.curation.verdicts import alive_rows
from keras_clip.engines import Engine

if TYPE_CHECKING:
    import pyarrow


class Filter(ShardPass):
    """The verdict of rules on the pairs of a shard: `reason` of the first rule that rejects a pair, null if none does.

    Args:
        rules: rules, applied in this order.
        name: str, name of the pass.
        places: {column: name of the pass that has it}.
        thresholds: {(column, share): threshold}, see `Rule.keeps`.
        lists: {name: values}, see `Rule.keeps`.
        after: names of the passes with verdicts that the thresholds depend on.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        name: str,
        places: Mapping[str, str],
        thresholds: Mapping[tuple[str, float], float],
        lists: Mapping[str, Sequence[Any]],
        after: Sequence[str] = (),
    ):
        self.name, self.inputs = name, tuple(dict.fromkeys(("profile", *places.values())))
        of_shares = [places[column] for column, _ in thresholds]
        self.global_inputs = tuple(dict.fromkeys([*of_shares, *after])) if thresholds else ()
        self._rules, self._places, self._thresholds = tuple(rules), dict(places), dict(thresholds)
        self._lists = {key: list(values) for key, values in lists.items()}

    def config(self) -> dict[str, Any]:
        """See `ShardPass.config`."""
        return {
            "version": 1,
            "rules": [rule.as_json() for rule in self._rules],
            "columns": self._places,
            "thresholds": [[*key, value] for key, value in sorted(self._thresholds.items())],
            "lists": {name: _digest(values) for name, values in self._lists.items()},
        }

    def run(
        self, state: Any, shard: Shard, inputs: Mapping[str, "pyarrow.Table"]
    ) -> tuple["pyarrow.Table", Mapping[str, int]]:
        """Computes the table of a shard; arguments as of `ShardPass.run`."""
        import pyarrow as pa

        columns = {column: inputs[name][column] for column, name in self._places.items()}
        # A table without columns would have no rows.
        table = pa.table(columns or {"key": inputs["profile"]["key"]})
        reasons = first_reasons(self._rules, table, self._thresholds, self._lists)
        return pa.table({"reason": reasons}), Counter(filter(None, reasons.to_pylist()))


def filter_pairs(
    pool: Pool,
    rules: Sequence[Rule],
    engine: str | Engine = "auto",
    *,
    name: str = "filter",
    after: Sequence[str] = (),
    lists: Mapping[str, Sequence[Any]] | None = None,
    places: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Counter:
    """Applies rules to the pairs of a pool, and writes the verdict of each shard.

    Args:
        pool: the pool.
        rules: the rules. Their columns are those of the profile and of other passes that are complete.
        engine: see `run_pass`.
        name: str, name of the pass.
        after: names of passes with verdicts: the shares of `top` are those of the pairs that they keep. Without them,
            the shares are those of all pairs that have a value.
        lists: {name: values}, for `listed` and `mentions`.
        places: {column: name of the pass that has it}. None: those of the profile, and those of one other pass.
        progress: bool. Whether to show a progress bar.

    Returns:
        Number of pairs by reason.

    Raises:
        ValueError: a column or list that is absent, a pass that is not complete, no rule.
    """
    rules, lists = tuple(rules), dict(lists or {})
    if not rules:
        raise ValueError("`rules` must have at least one rule. Received: none. An example: 'clip_score >= 0.28'.")
    missing = sorted({each for rule in rules for each in rule.lists} - set(lists))
    if missing:
        raise ValueError(f"Lists that rules name must be given. Received: lists={sorted(lists)}, without {missing}.")
    places = _places(pool, [column for rule in rules for column in rule.columns], places or {}, name)
    pool.require("profile", *after, *places.values())
    for column, place in places.items():
        pool.column_type(place, column)
    shares = dict.fromkeys(share for rule in rules for share in rule.shares)
    thresholds = {share: _threshold(pool, places[share[0]], share, after) for share in shares}
    used = {key: values for key, values in lists.items() if any(key in rule.lists for rule in rules)}
    return run_pass(pool, Filter(rules, name, places, thresholds, used, after), engine, progress=progress)


def _places(pool, columns, given, own_name) -> dict[str, str]:
    import pyarrow.parquet as parquet

    profile = set(profile_schema().names)
    places = {column: given.get(column, "profile") for column in columns if column in given or column in profile}
    wanted = [column for column in dict.fromkeys(columns) if column not in places]
    folders = sorted(path.name for path in pool.folder.iterdir() if path.is_dir()) if wanted else []
    found: dict[str, list[str]] = {column: [] for column in wanted}
    for folder in folders:
        if folder in ("profile", own_name) or not pool.shards or not pool.is_complete(folder):
            continue
        there = parquet.read_schema(pool.path(folder, pool.shards[0])).names
        for column in set(wanted) & set(there):
            found[column].append(folder)
    for column, names in found.items():
        if len(names) != 1:
            raise ValueError(
                f"A rule reads columns of the profile or of one other complete pass. Received: {column!r}, which is "
                f"{'a column of ' + ' and of '.join(names) if names else 'no column of any of them'} in "
                f"{str(pool.folder)!r}. `clip_score` takes the pass `score`, `cluster` the pass "
                "`clusters`; `places` names the pass of a column."
            )
        places[column] = names[0]
    return places


def _threshold(pool, name, share, after) -> float:
    column = share[0]
    passes = tuple(dict.fromkeys(after))

    def parts():
        for shard in pool.shards:
            values = numbers_of(pool.table(name, shard, [column])[column], column).fill_null(np.nan).to_numpy()
            if passes:
                values = values[alive_rows({each: pool.table(each, shard) for each in passes}, passes)]
            yield values

    return share_threshold(parts, share[1])


def _digest(values) -> str:
    return hashlib.sha256(json.dumps([str(value) for value in values]).encode()).hexdigest()
