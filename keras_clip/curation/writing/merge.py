"""The second stage of writing: new shards, each a range of hashes of the samples of all shards of the pool."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_clip import files
from keras_clip.curation.draws import check_seed
from keras_clip.curation.keeping import keep, verdicts_of
from keras_clip.curation.passes import run_pass
from keras_clip.curation.pool import Pool
from keras_clip.curation.shards import Shard
from keras_clip.curation.writing.folder import ShardFolder
from keras_clip.curation.writing.formats import FORMATS, check_limit, require_tensorflow
from keras_clip.curation.writing.partition import (
    Partition,
    forget_without_samples,
    read_samples,
    remove_samples,
)
from keras_clip.curation.writing.places import Located, Range, locate, read_places
from keras_clip.data.readers.storage.manifest import check_manifests, read_manifest
from keras_clip.engines import Engine, engine_named
from keras_clip.lock import Lock

# Values that are stored with each sample if their passes are complete.
_COLUMNS = ("profile.width", "profile.height", "profile.sha256", "profile.language", "score.clip_score")
# The hashes are counted in at most this number of ranges, which takes 16 bytes each.
_MOST_BITS = 26
# A new shard is about this number of ranges, so that it is filled to 98 % on average.
_RANGES_IN_SHARD = 64


@dataclass(frozen=True)
class WriteSettings:
    """What the new shards look like.

    Args:
        format: "tar" (WebDataset) or "tfrecord" (as img2dataset names the features).
        max_samples: int >= 1. Samples of a shard.
        max_bytes: int >= 1. Bytes of the images and metadata of a shard, which a worker holds in memory; a sample of
            more is a shard by itself.
        columns: "<pass>.<column>" of values to store with each sample, in the dict "curation" of its metadata, beside
            its former key and shard. None: width, height, SHA-256 and language of the profile, and the CLIP score, as
            far as their passes are complete.
        seed: int in [0, 2 ** 64). The order of the samples depends on it.

    Raises:
        ValueError: an unknown format, or a number out of range.
    """

    format: str = "tar"
    max_samples: int = 10_000
    max_bytes: int = 2**30
    columns: Sequence[str] | None = None
    seed: int = 0

    def __post_init__(self):
        if self.format not in FORMATS:
            raise ValueError(f"`format` must be one of {', '.join(FORMATS)}. Received: format={self.format!r}.")
        for name in ("max_samples", "max_bytes"):
            check_limit(name, getattr(self, name))
        if isinstance(self.columns, str) or not all("." in column for column in self.columns or ()):
            raise ValueError(f'`columns` must be a list of "<pass>.<column>". Received: columns={self.columns!r}.')
        check_seed(self.seed)


def write(
    pool: Pool,
    folder: str | os.PathLike,
    verdicts: Sequence[str] | None = None,
    *,
    settings: WriteSettings | None = None,
    engine: str | Engine = "auto",
    progress: bool = True,
) -> Counter:
    """Writes the pairs that no verdict rejects as new shards, in the order of hashes of their keys.

    The shards are `00000.tar` and so on; their samples are `<key>.<extension>` with the unchanged bytes of the image,
    `<key>.txt`, and `<key>.json` with the metadata of the source and the values that `settings.columns` names. The keys
    are numbers, unique in all shards; the former ones are in the metadata. A sample with several kept captions stays
    one sample: they are a list in its `.json`, and `image_text_pairs` reads all of them. manifest.json has the numbers
    of samples and pairs, the size and the SHA-256 of each shard; `image_text_pairs` checks the sizes. The bytes depend
    neither on the engine nor on the order of the shards of the pool nor on interruptions; after one, the same call goes
    on. While it runs, the folder of the pool takes as much space as the kept samples.

    Args:
        pool: the pool, with its profile and verdicts.
        folder: folder of the new shards, new or empty or written by an earlier call, whose shards are replaced.
        verdicts: see `keep`.
        settings: `WriteSettings`. None: its defaults.
        engine: see `run_pass`.
        progress: bool. Whether to show progress bars.

    Returns:
        `Counter` of "shards", "samples", "pairs" and "bytes".

    Raises:
        ImportError: pyarrow is not installed, or TensorFlow for TFRecords.
        ValueError: nothing is kept; a pass is not complete; the samples are not those that were profiled; a folder with
            other files.
    """
    settings = settings or WriteSettings()
    if settings.format == "tfrecord":
        require_tensorflow()
    shards = ShardFolder(folder)
    _check_place(shards.path, pool)
    verdicts = verdicts_of(pool) if verdicts is None else list(verdicts)
    counts = keep(pool, verdicts, engine, progress=progress)
    if not counts["kept pairs"]:
        reasons = ", ".join(f"{name} {count:,}" for name, count in counts.most_common() if ": " in name)
        raise ValueError(f"At least one pair must be kept. Received: {counts['pairs']:,} pairs, rejected by {reasons}.")
    partition = Partition(pool.folder, _columns(pool, settings), settings.seed)
    key = _key(pool, partition, settings)
    with Lock(pool.folder / "writing.lock", f"new shards of {pool.folder}"):
        totals = _written(shards.path, key)
        if totals is None:
            forget_without_samples(pool)
            run_pass(pool, partition, engine, progress=progress)
            facts = {"key": key, "verdicts": ["profile", *(name for name in verdicts if name != "profile")]}
            facts |= {"settings": asdict(settings) | {"columns": list(partition.columns)}}
            ranges = _plan(pool, settings)
            shards.begin(item.name for item in ranges)
            task = _Merge(pool.folder.absolute(), shards.path, pool.shards, key, settings.format)
            totals = shards.finish(_merge(task, ranges, engine, progress), facts)
        remove_samples(pool)
    return totals


def ranges_of(
    counts: np.ndarray, sizes: np.ndarray, max_samples: int, max_bytes: int
) -> tuple[list[tuple[int, int]], bool]:
    """Joins small ranges of hashes to new shards, as many as the limits allow.

    Args:
        counts: int64 (R,), samples in each small range.
        sizes: int64 (R,), their bytes.
        max_samples: limit of samples.
        max_bytes: limit of bytes. A range of one sample may exceed it.

    Returns:
        The first small range of each new shard and the one after its last, and whether all keep the limits.
    """
    up_to, up_to_bytes = np.cumsum(counts), np.cumsum(sizes)
    start, shards, fits = 0, [], True
    while start < len(counts):
        before = (up_to[start - 1], up_to_bytes[start - 1]) if start else (0, 0)
        stop = np.searchsorted(up_to, before[0] + max_samples, side="right")
        stop = min(stop, np.searchsorted(up_to_bytes, before[1] + max_bytes, side="right"))
        if stop == start:
            # A range that is too large by itself.
            fits, stop = fits and counts[start] <= 1, start + 1
        if up_to[stop - 1] > before[0]:
            shards.append((start, int(stop)))
        start = int(stop)
    return shards, bool(fits)


def _plan(pool: Pool, settings: WriteSettings) -> list[Range]:
    """Returns the new shards."""
    total = sum(pool.marker(Partition.name, shard)["counts"]["samples"] for shard in pool.shards)
    size = sum(pool.marker(Partition.name, shard)["counts"]["bytes"] for shard in pool.shards)
    shards = max(total / settings.max_samples, size / settings.max_bytes)
    bits = min(_MOST_BITS, max(1, int(np.ceil(np.log2(_RANGES_IN_SHARD * shards)))))
    while True:
        counts, sizes = np.zeros(2**bits, np.int64), np.zeros(2**bits, np.int64)
        for table in pool.tables(Partition.name, ["order", "stored"]):
            table = table.drop_null()
            places = (table["order"].to_numpy() >> np.uint64(64 - bits)).astype(np.int64)
            np.add.at(counts, places, 1)
            np.add.at(sizes, places, table["stored"].to_numpy())
        found, fits = ranges_of(counts, sizes, settings.max_samples, settings.max_bytes)
        if fits or bits == _MOST_BITS:
            break
        bits = min(_MOST_BITS, bits + 4)
    width, step = max(5, len(str(len(found) - 1))), 64 - bits
    # The largest shard needs this number of digits, whatever its limit.
    samples = [int(counts[start:stop].sum()) for start, stop in found]
    digits = len(str(max(samples) - 1))
    prefixes = [f"{number:0{width}d}" for number in range(len(found))]
    return [
        Range(f"{prefix}.{settings.format}", prefix, digits, start << step, (stop << step) - 1, size)
        for prefix, size, (start, stop) in zip(prefixes, samples, found, strict=True)
    ]


class _Merge:
    """The task that writes a new shard: returns its entry of the manifest."""

    uses_accelerator = False

    def __init__(self, pool_folder: Path, folder: Path, shards: Sequence[Shard], key: str, form: str):
        self._folder, self._key, self._format = folder, key, form
        self.shards = [Shard(name, None) for name in sorted(shard.name for shard in shards)]
        self.pool_folder = pool_folder
        self.records, self.places = pool_folder / "write_shards", pool_folder / "write_places"

    def start(self) -> None:
        return None

    def run(self, state: None, located: Located) -> dict[str, Any]:
        item = located.range
        samples = read_samples(self.pool_folder, self.shards, read_places(self.places, located))
        with FORMATS[self._format](self._folder / item.name) as shard:
            for row, sample in enumerate(samples):
                shard.add(f"{item.prefix}{row:0{item.digits}d}", sample)
        entry = shard.entry()
        # The shard is whole by now: after an interruption it is not written again.
        files.write_json(self.record_path(item), {"key": self.key_of(item), "entry": entry})
        return entry

    def record_path(self, item: Range) -> Path:
        """Returns the path of the record of a new shard that is done."""
        return self.records / f"{item.name}.json"

    def key_of(self, item: Range) -> str:
        """Returns a digest of all that the new shard depends on."""
        return _digest([self._key, str(self._folder), item])

    def done(self, item: Range) -> dict[str, Any] | None:
        """Returns the entry of a new shard that is done, otherwise None."""
        try:
            record = json.loads(self.record_path(item).read_text(encoding="utf-8"))
            size = (self._folder / item.name).stat().st_size
        except (OSError, ValueError):
            return None
        is_done = record.get("key") == self.key_of(item) and record["entry"]["bytes"] == size
        return record["entry"] if is_done else None


def _merge(task: _Merge, ranges: Sequence[Range], engine: str | Engine, progress: bool) -> dict[str, Any]:
    """Writes the new shards that are not there yet, and returns the entries of all."""
    from tqdm import tqdm

    task.records.mkdir(exist_ok=True)
    entries = {item.name: task.done(item) for item in ranges}
    located = []
    if None in entries.values():
        located = locate(task.pool_folder, task.shards, ranges, task.places)
    left = [each for each in located if entries[each.range.name] is None]
    with tqdm(total=len(ranges), initial=len(ranges) - len(left), desc="merge", unit="shard",
              disable=not progress, delay=1) as bar:  # fmt: skip
        for number, entry in engine_named(engine).map(task, left):
            entries[left[number].range.name] = entry
            bar.update()
    shutil.rmtree(task.places, ignore_errors=True)
    return entries


def _check_place(folder: Path, pool: Pool) -> None:
    """Raises a ValueError if new shards would be among the results of passes, or among the shards of the pool."""
    taken = {pool.folder.absolute(): "the results of the passes"}
    sources = {os.path.dirname(shard.source) for shard in pool.shards if isinstance(shard.source, str)}
    taken |= {Path(source): "the pool itself" for source in sources}
    if what := taken.get(folder):
        raise ValueError(f"New shards must lie in a folder of their own. Received: {folder}, which has {what}.")


def _columns(pool: Pool, settings: WriteSettings) -> list[str]:
    if settings.columns is not None:
        return list(settings.columns)
    names = {column.split(".")[0] for column in _COLUMNS}
    complete = {name for name in names if all(pool.marker(name, shard) for shard in pool.shards)}
    return [column for column in _COLUMNS if column.split(".")[0] in complete]


def _key(pool: Pool, partition: Partition, settings: WriteSettings) -> str:
    """Returns a digest of all that the new shards depend on."""
    for name in partition.inputs:
        pool.require(name)
    shards = sorted(
        (shard.name, shard.stamp, [pool.marker(name, shard)["output"] for name in partition.inputs])
        for shard in pool.shards
    )
    limits = [settings.format, settings.max_samples, settings.max_bytes]
    return _digest([partition.config(), limits, shards])


def _written(folder: Path, key: str) -> Counter | None:
    """Returns the totals of new shards that are complete, otherwise None."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.get("key") != key:
        return None
    try:
        check_manifests([str(folder / name) for name in manifest["shards"]])
    except (OSError, ValueError):
        return None
    totals = {name: manifest[name] for name in ("samples", "pairs", "bytes")}
    return Counter({"shards": len(manifest["shards"])} | totals)


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
