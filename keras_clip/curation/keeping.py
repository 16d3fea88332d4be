"""The keep list: the pairs that no verdict rejects, and for each other pair the first pass that rejects it, and why."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keras_clip.curation.passes import ShardPass, run_pass
from keras_clip.curation.pool import Pool, require_parquet
from keras_clip.curation.shards import Shard
from keras_clip.curation.verdicts import unusable_reasons
from keras_clip.engines import Engine

if TYPE_CHECKING:
    import pyarrow

# The order in which the passes reject; others that a user adds come between those of `_LAST` and the rest.
_FIRST = ("profile", "basic", "filter")
_LAST = ("duplicates", "balance")


class KeepList(ShardPass):
    """Joins the verdicts of several passes.

    The table has the columns `rejected_by` and `reason`, the name of the first pass that rejects the pair and its
    reason; both are null for pairs that are kept. Counts: "pairs", "samples", "kept pairs", "kept samples", and
    "<pass>: <reason>" for the others.

    Args:
        verdicts: names of the passes, in the order in which they reject.
    """

    name = "keep"
    version = 1

    def __init__(self, verdicts: Sequence[str]):
        self.inputs = ("profile", *(name for name in verdicts if name != "profile"))

    def config(self) -> dict[str, Any]:
        """See `ShardPass.config`."""
        return {"version": self.version, "verdicts": list(self.inputs)}

    def run(
        self, state: None, shard: Shard, inputs: Mapping[str, "pyarrow.Table"]
    ) -> tuple["pyarrow.Table", Mapping[str, int]]:
        """Joins the verdicts of a shard; arguments as of `ShardPass.run`."""
        import pyarrow as pa
        from pyarrow import compute

        profile = inputs["profile"]
        reason = unusable_reasons(profile)
        rejected_by = compute.if_else(compute.is_valid(reason), "profile", pa.scalar(None, pa.string()))
        for name in self.inputs[1:]:
            if "reason" not in inputs[name].column_names:
                raise ValueError(
                    f"A verdict must have the column 'reason'. Received: the pass {name!r} with the columns "
                    f"{inputs[name].column_names}. Name other verdicts."
                )
            verdict = compute.cast(inputs[name]["reason"], pa.string())
            is_first = compute.and_(compute.is_valid(verdict), compute.is_null(rejected_by))
            rejected_by = compute.if_else(is_first, name, rejected_by)
            reason = compute.coalesce(reason, verdict)
        is_kept = compute.is_null(rejected_by)
        samples = profile["sample"]
        counts = {
            "pairs": profile.num_rows,
            "samples": len(samples.unique()),
            "kept pairs": compute.sum(is_kept).as_py() or 0,
            "kept samples": len(samples.filter(is_kept).unique()),
        }
        table = pa.table({"rejected_by": rejected_by, "reason": reason})
        rejected = table.filter(compute.is_valid(rejected_by)).to_pylist()
        return table, counts | Counter(f"{row['rejected_by']}: {row['reason']}" for row in rejected)


def keep(
    pool: Pool, verdicts: Sequence[str] | None = None, engine: str | Engine = "auto", *, progress: bool = True
) -> Counter:
    """Joins the verdicts of several passes to one keep list, the pass `keep`.

    Args:
        pool: the pool, with its profile.
        verdicts: names of the passes, in the order in which they reject; `verdicts_of` has those that are complete.
            The profile always comes first: it rejects images that cannot be decoded, and captions that are blank or
            not UTF-8. None: all that are complete.
        engine: see `run_pass`.
        progress: bool. Whether to show a progress bar.

    Returns:
        `Counter`: see `KeepList`.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: a pass is not complete or gives no verdicts; see `run_pass`.
    """
    return run_pass(pool, KeepList(verdicts_of(pool) if verdicts is None else verdicts), engine, progress=progress)


def verdicts_of(pool: Pool, without: Sequence[str] = (), before: str | None = None) -> list[str]:
    """Finds the passes that have a verdict on every shard.

    Args:
        pool: the pool.
        without: names of passes that do not count.
        before: name of a pass. Those that were made from its results do not count, and neither does itself.

    Returns:
        Their names in the order in which they reject pairs: the profile, rules and filters, others in alphabetical
        order, duplicates, and balancing.

    Raises:
        ValueError: a pass has verdicts on some shards only.
    """
    names = {folder.name for folder in pool.folder.iterdir() if folder.is_dir()} - {KeepList.name, *_FIRST, *_LAST}
    ordered = [*_FIRST, *sorted(names), *_LAST]
    later = {name for name in ordered if before is not None and before in {name, *pool.reads(name)}}
    return [name for name in ordered if name not in {*without, *later} and _gives_verdicts(pool, name)]


def _gives_verdicts(pool: Pool, name: str) -> bool:
    done = sum(pool.marker(name, shard) is not None for shard in pool.shards)
    if not done:
        return False
    if done < len(pool.shards):
        raise ValueError(
            f"Passes that were begun must be complete. Received: {str(pool.folder)!r}, where {name!r} has a result for "
            f"{done} of {len(pool.shards)} shards. Run it again, name the passes whose verdicts count, or remove its "
            "folder."
        )
    path = pool.path(name, pool.shards[0])
    return path.exists() and "reason" in require_parquet().read_schema(path).names
