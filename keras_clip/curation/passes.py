"""A pass: a function of one shard that gives one table, run on every shard of a pool and restartable at each."""

import hashlib
import json
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from keras_clip import files
from keras_clip.curation.pool import Pool, require_parquet, write_table
from keras_clip.curation.shards import Shard, described_mapping
from keras_clip.engines import Engine, engine_named
from keras_clip.lock import Lock

if TYPE_CHECKING:
    import pyarrow


# A pass that fails on each of the first shards ends.
_FAILURES = 10


class ShardPass:
    """Computes a table of each shard of a pool, independently of other shards.

    Derive a class from this one. Its objects are sent to workers, so they hold little data and can be pickled. The same
    arguments give the same bytes, whatever the engine and the order of the shards.

    Attributes:
        name: str. The folder of the results in the folder of the pool.
        inputs: names of the passes whose tables of the same shard are read.
        global_inputs: names of the passes whose tables of all shards the results depend on, as thresholds of shares do.
            If a shard is added, removed or changed, all results are stale.
        reads_source: bool. Whether the samples are read too, so that a changed shard is processed again.
        uses_accelerator: bool. Whether a worker needs a GPU, where a cluster has some.
    """

    name: str
    inputs: tuple[str, ...] = ()
    global_inputs: tuple[str, ...] = ()
    reads_source: bool = False
    uses_accelerator: bool = False

    def config(self) -> dict[str, Any]:
        """Returns all that the results depend on besides the shard and the tables that are read, as JSON data."""
        return {}

    def start(self) -> Any:
        """Returns what a worker loads once, such as a model."""
        return None

    @abstractmethod
    def run(
        self, state: Any, shard: Shard, inputs: Mapping[str, "pyarrow.Table"]
    ) -> tuple["pyarrow.Table", Mapping[str, int]]:
        """Computes the result of a shard.

        Args:
            state: the result of `start` in this worker.
            shard: the shard.
            inputs: the table of each pass in `inputs`.

        Returns:
            The table, with one row for each pair in the order of the profile, and counts, which are summed over all
            shards.
        """


def run_pass(pool: Pool, shard_pass: ShardPass, engine: str | Engine = "auto", *, progress: bool = True) -> Counter:
    """Runs a pass on all shards that it has no result for, and returns the counts of all shards.

    A result is kept if it was made from the same shard and tables with the same `config`. After an interruption, the
    same call goes on. Only one process at a time runs a pass in a folder; others wait.

    Args:
        pool: the pool.
        shard_pass: the pass.
        engine: "auto", "serial", "processes", "ray", or an `engines.Engine`.
        progress: bool. Whether to show a progress bar.

    Returns:
        `Counter`, the sums of the counts.

    Raises:
        ValueError: a pass whose tables are read is not complete, or it failed on some shards. The other shards are
            done nevertheless, unless it fails on each of the first ten.
        TypeError: the pass cannot be sent to other processes.
    """
    from tqdm import tqdm

    require_parquet()
    if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*", shard_pass.name):
        raise ValueError(
            "The name of a pass must have letters, digits, '_', '-' and '.' only, since its folder has this name. "
            f"Received: name={shard_pass.name!r}."
        )
    pool.require(*shard_pass.inputs, *shard_pass.global_inputs)
    (pool.folder / shard_pass.name).mkdir(parents=True, exist_ok=True)
    with Lock(pool.folder / f"{shard_pass.name}.lock", f"the results of {shard_pass.name!r} in {pool.folder}"):
        _require_name(pool, shard_pass)
        made_of_all = {name: pool.state(name) for name in shard_pass.global_inputs}
        items = [Item(shard, _key(pool, shard_pass, shard, made_of_all)) for shard in pool.shards]
        left = [item for item in items if not _is_done(pool, shard_pass, item)]
        task = _RunPass(pool, shard_pass, made_of_all)
        counts = Counter()
        with tqdm(total=len(items), initial=len(items) - len(left), desc=shard_pass.name, unit="shard",
                  disable=not progress, delay=1) as bar:  # fmt: skip
            failures = []
            for done, (_, failure) in enumerate(engine_named(engine).map(task, left), start=1):
                failures += [failure] if failure else []
                bar.update(failure is None)
                if done == len(failures) == _FAILURES:
                    break
        if failures:
            raise ValueError(
                f"Every shard must be readable. Received: {len(failures)} of {len(items)} shards that "
                f"{shard_pass.name!r} failed on: {' | '.join(failures[:3])} Repair or remove these files, and start "
                "again: the results of the other shards are kept."
            )
        # Left by workers that were killed while they wrote.
        for leftover in (pool.folder / shard_pass.name).glob(f".*{files.PART}*"):
            leftover.unlink(missing_ok=True)
        for item in items:
            counts.update(pool.marker(shard_pass.name, item.shard)["counts"])
    return counts


def _require_name(pool: Pool, shard_pass: ShardPass) -> None:
    """Raises a ValueError if results of a pass of another kind have this name."""
    markers = (pool.marker(shard_pass.name, shard) for shard in pool.shards)
    kind = next((marker["kind"] for marker in markers if marker and "kind" in marker), type(shard_pass).__name__)
    if kind != type(shard_pass).__name__:
        raise ValueError(
            f"Results of different passes need different names. Received: name={shard_pass.name!r} for "
            f"{type(shard_pass).__name__}, which {kind} has in {str(pool.folder)!r}. Choose another name."
        )


class Item(NamedTuple):
    """What a worker is given: a shard, and the key of its result."""

    shard: Shard
    key: str


class _RunPass:
    """The task of an engine that runs a pass on a shard and writes its result."""

    def __init__(self, pool: Pool, shard_pass: ShardPass, made_of_all: Mapping[str, str]):
        # Without the shards, of which each worker gets its own.
        self._pool, self._pass = Pool([], pool.folder.absolute()), shard_pass
        self._made_of_all = dict(made_of_all)
        self.uses_accelerator = shard_pass.uses_accelerator

    def start(self) -> Any:
        return self._pass.start()

    def run(self, state: Any, item: Item) -> str | None:
        """Writes the result of a shard. If that fails because of the data, returns the error as a text."""
        try:
            self._run(state, item)
        except (OSError, ValueError) as error:
            return f"{item.shard.name}: {error}"
        return None

    def _run(self, state: Any, item: Item) -> None:
        shard, name = item.shard, self._pass.name
        inputs = {each: self._pool.table(each, shard) for each in self._pass.inputs}
        table, counts = self._pass.run(state, shard, inputs)
        if inputs and table.num_rows != (rows := next(iter(inputs.values())).num_rows):
            raise ValueError(
                f"The table of a pass must have a row for each pair. Received: {table.num_rows} rows of {name!r} for "
                f"{shard.name!r} with {rows} pairs."
            )
        # If this process dies between the table and the marker, the old marker must not vouch for the new table.
        # One with the same key may have been written by another worker that was taken for lost.
        marker = self._pool.marker(name, shard)
        if marker is not None and marker["key"] != item.key:
            self._pool.marker_path(name, shard).unlink()
        output = write_table(self._pool.path(name, shard), table)
        counts = {key: int(value) for key, value in sorted(counts.items())}
        marker = {"kind": type(self._pass).__name__, "key": item.key, "output": output}
        made_of = {each: self._pool.marker(each, shard)["output"] for each in self._pass.inputs}
        marker |= {"inputs": made_of, "global_inputs": self._made_of_all, "rows": table.num_rows, "counts": counts}
        files.write_json(self._pool.marker_path(name, shard), marker)


def _key(pool: Pool, shard_pass: ShardPass, shard: Shard, made_of_all: Mapping[str, str]) -> str:
    """Returns a digest of all that the result of a shard depends on."""
    parts = {
        "config": shard_pass.config(),
        "global inputs": made_of_all,
        "inputs": {name: pool.marker(name, shard)["output"] for name in shard_pass.inputs},
        "source": [shard.start, shard.stop, described_mapping(shard.mapping), shard.delimiter, shard.stamp]
        if shard_pass.reads_source
        else None,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _is_done(pool: Pool, shard_pass: ShardPass, item: Item) -> bool:
    marker = pool.marker(shard_pass.name, item.shard)
    return marker is not None and marker["key"] == item.key and pool.path(shard_pass.name, item.shard).exists()
