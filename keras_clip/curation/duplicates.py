"""Finds pairs that occur more than once in a pool: copies, re-encoded images, and images with similar embeddings.

Each method makes a short sketch of each pair, merges the sketches of all shards, and decides which pairs stay. Of
duplicates, the pair that is preferred stays, then the one with the smallest hash of (seed, key): neither depends on the
order of the shards. `Duplicates` turns the decisions into the verdict of each shard.

Memory: the search for copies needs 48 bytes for each pair of a part of the pool, and divides the pool into as many
parts as the limit requires. The search for perceptual hashes needs 280 bytes for each image, of the whole pool, and 80
bytes for each distinct hash if colours do not count.
The search for embeddings needs the embeddings of a few clusters.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_clip import files
from keras_clip.curation.clusters import ClusterDuplicates, Clusters, cluster_ranges, train_centroids
from keras_clip.curation.colours import MOST_COLOURS, check_colours, colour_rows, verifier
from keras_clip.curation.draws import check_seed, hash_pairs, mix
from keras_clip.curation.keeping import verdicts_of
from keras_clip.curation.passes import ShardPass, run_pass
from keras_clip.curation.pool import Pool
from keras_clip.curation.shards import Shard
from keras_clip.curation.verdicts import alive_rows
from keras_clip.engines import Engine, engine_named
from keras_clip.similarity.hamming import greedy_representatives, near_pairs

if TYPE_CHECKING:
    import pyarrow

REASONS = {
    "exact": "exact duplicate",
    "perceptual": "near duplicate (perceptual hash)",
    "embedding": "near duplicate (embedding)",
}
SKETCH = "duplicates_sketch"
# Passes with verdicts that come after this one.
_LATER = ("test_images", "balance")
# A pair that is removed, and the pair that it is a duplicate of: numbers of shards in the order of their names, and
# rows of their profiles.
REMOVED = np.dtype([("shard", "<i4"), ("row", "<i4"), ("of_shard", "<i4"), ("of_row", "<i4"), ("method", "<i4")])
_BYTES = 48
_COLUMNS = ("image", "image_low", "text", "hash", "rank", "draw")
# Units that are merged at a time at least.
_MERGED = 2**20


@dataclasses.dataclass(frozen=True)
class DuplicateSettings:
    """What counts as a duplicate, and which one stays.

    Args:
        methods: of "exact", "perceptual" and "embedding", in the order in which they are applied.
        same: "image": images are compared, whatever their captions; if one is removed, all its captions are. "pair":
            pairs are duplicates only if their captions have the same `text_hash` too.
        distance: int in [0, 16]. Perceptual hashes that differ in at most this number of bits are near duplicates.
        colours: float >= 0 or None. Of near duplicates by hash, the mean colours of each of 8 x 8 parts differ by at
            most this number of 255, after their brightness is made equal. None: colours do not count.
        cosine: float in (-1, 1]. Embeddings with a cosine above it are near duplicates: 1 - epsilon of SemDeDup.
        clusters: int or None: one for 8,000 images, and at most 50,000.
        prefer: (pass, column) or None. The duplicate with the largest value stays; the column "pixels" of the profile
            is width * height. None: the smallest hash.
        after: names of passes with verdicts. The pairs that they reject neither stay nor remove others. None: all that
            are complete, except `test_images` and `balance`, which come later.
        embeddings: (pass, column) of the embeddings, unit vectors.
        seed: int in [0, 2 ** 64).

    Raises:
        ValueError: a value out of range.
    """

    methods: tuple[str, ...] = ("exact", "perceptual")
    same: str = "image"
    distance: int = 4
    colours: float | None = MOST_COLOURS
    cosine: float = 0.95
    clusters: int | None = None
    prefer: tuple[str, str] | None = None
    after: tuple[str, ...] | None = None
    embeddings: tuple[str, str] = ("score", "image_embedding")
    seed: int = 0

    def __post_init__(self):
        if not self.methods or set(self.methods) - set(REASONS) or len(set(self.methods)) < len(self.methods):
            raise ValueError(
                f"`methods` must be some of {', '.join(REASONS)}, each once. Received: methods={self.methods!r}."
            )
        if self.same not in ("image", "pair"):
            raise ValueError(f'`same` must be "image" or "pair". Received: same={self.same!r}.')
        if isinstance(self.distance, bool) or not isinstance(self.distance, int) or not 0 <= self.distance <= 16:
            raise ValueError(f"`distance` must be an integer in [0, 16]. Received: distance={self.distance!r}.")
        check_colours(self.colours)
        if not -1 < self.cosine <= 1:
            raise ValueError(f"`cosine` must be in (-1, 1]. Received: cosine={self.cosine!r}.")
        check_seed(self.seed)
        if self.clusters is not None and not (isinstance(self.clusters, int) and self.clusters >= 1):
            raise ValueError(f"`clusters` must be a positive integer, or None. Received: clusters={self.clusters!r}.")


class Sketch(ShardPass):
    """What is compared of each pair; null if it is rejected, or if another caption stands for the image.

    Columns, all uint64: `image` and `image_low`, the first 128 bits of SHA-256; `text`, 64 bits of `text_hash`, 0 if
    captions do not count; `hash`, the perceptual hash; `rank`, smaller for preferred pairs; `draw`, the hash of (seed,
    key, caption number).

    Args:
        settings: `DuplicateSettings`.
    """

    name = SKETCH

    def __init__(self, settings: DuplicateSettings):
        self._settings = settings
        preferred = settings.prefer[:1] if settings.prefer else ()
        self.inputs = tuple(dict.fromkeys(("profile", *settings.after, *preferred)))

    def config(self) -> dict[str, Any]:
        """See `ShardPass.config`."""
        names = ("same", "prefer", "after", "seed")
        return {"version": 1} | {name: getattr(self._settings, name) for name in names}

    def run(
        self, state: Any, shard: Shard, inputs: Mapping[str, "pyarrow.Table"]
    ) -> tuple["pyarrow.Table", Mapping[str, int]]:
        """Computes the table of a shard; arguments as of `ShardPass.run`."""
        import pyarrow as pa

        profile, settings = inputs["profile"], self._settings
        alive = alive_rows(inputs, ("profile", *settings.after))
        samples = profile["sample"].to_numpy()[alive]
        by_image = settings.same == "image"
        # The first row of each image that is alive stands for it; the rows of an image are adjacent.
        starts = np.flatnonzero(np.diff(samples, prepend=-1)) if by_image else np.arange(len(alive))
        units = alive[starts]
        numbers = np.zeros(len(units), int) if by_image else profile["caption_number"].to_numpy()[units]
        high, low = _digits(profile["sha256"], units, 32)
        columns = {
            "image": high,
            "image_low": low,
            "text": np.zeros(len(units), np.uint64) if by_image else _digits(profile["text_hash"], units, 16)[0],
            "hash": profile["perceptual_hash"].fill_null(0).to_numpy()[units],
            "rank": self._rank(inputs, alive, starts),
            "draw": hash_pairs(profile["key"].take(pa.array(units)).to_pylist(), numbers, settings.seed),
        }
        if not len(units):
            columns = {name: np.zeros(0, np.uint64) for name in columns}
        return _scattered(columns, units, profile.num_rows), {"compared": len(units)}

    def _rank(self, inputs, alive, starts):
        if self._settings.prefer is None or not len(starts):
            return np.zeros(len(starts), np.uint64)
        name, column = self._settings.prefer
        table = inputs[name]
        if (name, column) == ("profile", "pixels"):
            values = table["width"].to_numpy().astype(np.float64) * table["height"].to_numpy()
        else:
            values = table[column].to_numpy().astype(np.float64)
        # The best caption of an image counts. NaN comes last.
        best = np.maximum.reduceat(np.nan_to_num(values[alive], nan=-np.inf), starts) + 0.0
        bits = best.view(np.uint64)
        ascending = np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(2**63))
        return ~ascending


class Duplicates(ShardPass):
    """The verdict on duplicates of a shard.

    Columns: `reason`, null for pairs that stay; `of_shard` and `of_row`, the row of a profile that a removed pair is a
    duplicate of.

    Args:
        name: str, name of the pass.
        names: names of all shards, sorted.
        path: file of `REMOVED`.
        digest: str, of this file.
        settings: `DuplicateSettings`, with `after`.
    """

    def __init__(self, name: str, names: Sequence[str], path: Path, digest: str, settings: DuplicateSettings):
        self.name, self.inputs = name, ("profile", *settings.after)
        preferred = settings.prefer[:1] if settings.prefer else ()
        embedded = settings.embeddings[:1] if "embedding" in settings.methods else ()
        # A pair may be a duplicate of one in any shard.
        self.global_inputs = tuple(dict.fromkeys((*self.inputs, *preferred, *embedded)))
        self._names, self._path, self._digest = list(names), Path(path), digest
        self._same = settings.same

    def config(self) -> dict[str, Any]:
        """See `ShardPass.config`."""
        return {"version": 1, "removed": self._digest, "same": self._same, "after": self.inputs[1:]}

    def start(self) -> np.ndarray:
        """See `ShardPass.start`."""
        return np.load(self._path, mmap_mode="r")

    def run(
        self, state: np.ndarray, shard: Shard, inputs: Mapping[str, "pyarrow.Table"]
    ) -> tuple["pyarrow.Table", Mapping[str, int]]:
        """Computes the table of a shard; arguments as of `ShardPass.run`."""
        import pyarrow as pa

        number = self._names.index(shard.name)
        removed = np.array(state[slice(*np.searchsorted(state["shard"], [number, number + 1]))])
        profile = inputs["profile"]
        which = np.full(profile.num_rows, -1)
        which[removed["row"]] = np.arange(len(removed))
        if self._same == "image":
            # All captions of a removed image that are not rejected already.
            by_sample = np.full(int(profile["sample"].to_numpy().max(initial=-1)) + 1, -1)
            by_sample[profile["sample"].to_numpy()[removed["row"]]] = np.arange(len(removed))
            which = by_sample[profile["sample"].to_numpy()]
            rejected = np.ones(profile.num_rows, bool)
            rejected[alive_rows(inputs, self.inputs)] = False
            which[rejected] = -1
        rows = np.flatnonzero(which >= 0)
        found = removed[which[rows]]
        reasons = list(REASONS.values())
        columns = {"reason": [None] * profile.num_rows, "of_shard": [None] * profile.num_rows}
        columns["of_row"] = [None] * profile.num_rows
        for row, entry in zip(rows.tolist(), found.tolist(), strict=True):
            columns["reason"][row] = reasons[entry[4]]
            columns["of_shard"][row], columns["of_row"][row] = self._names[entry[2]], entry[3]
        schema = pa.schema([("reason", pa.string()), ("of_shard", pa.string()), ("of_row", pa.int32())])
        return pa.table(columns, schema), Counter(reason for reason in columns["reason"] if reason)


def find_duplicates(
    pool: Pool,
    engine: str | Engine = "auto",
    *,
    settings: DuplicateSettings | None = None,
    name: str = "duplicates",
    memory: int = 2**31,
    progress: bool = True,
) -> Counter:
    """Finds the duplicates of a pool that is profiled, and writes the verdict of each shard.

    After an interruption, the same call goes on: sketches and verdicts of each shard, and what each method removes, are
    kept.

    Args:
        pool: the pool.
        engine: see `run_pass`.
        settings: `DuplicateSettings`; None: its defaults.
        name: str, name of the verdicts.
        memory: bytes that the merging of sketches and the comparison of embeddings may take, about.
        progress: bool. Whether to show progress bars.

    Returns:
        Number of pairs removed by each reason.

    Raises:
        ValueError: a pass that is needed is not complete, or `memory` is not positive.
    """
    settings = settings or DuplicateSettings()
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 1:
        raise ValueError(f"`memory` must be a positive number of bytes. Received: memory={memory!r}.")
    if settings.after is None:
        after = verdicts_of(pool, without=["profile", *_LATER], before=name)
        settings = dataclasses.replace(settings, after=tuple(after))
    _check_columns(pool, settings)
    run_pass(pool, Sketch(settings), engine, progress=progress)
    sketches = _Sketches(pool)
    removed, key = np.zeros(0, REMOVED), sketches.digest() + repr(settings.same)
    for number, method in enumerate(settings.methods):
        key = hashlib.sha256(f"{key} {method} {_own_settings(method, settings, pool)}".encode()).hexdigest()
        path = pool.folder / f"{name}_{number}_{method}.npy"
        removed = _kept_or_made(path, key, lambda: _merge(method, pool, sketches, settings, removed, memory, engine))  # noqa: B023
    path = pool.folder / f"{name}.npy"
    digest = _write(path, removed, key)
    verdict = Duplicates(name, sketches.names, path.absolute(), digest, settings)
    return run_pass(pool, verdict, engine, progress=progress)


def exact_duplicates(
    parts: Callable[[], Iterator[tuple[int, np.ndarray, Mapping[str, np.ndarray]]]], num_parts: int = 1
) -> np.ndarray:
    """Returns the copies among the units of a pool.

    Args:
        parts: function that yields (number of the shard, rows, columns of `Sketch`) for each shard, anew for each call.
        num_parts: int. The units are merged in this number of parts, divided by their digest.

    Returns:
        `REMOVED`, sorted.
    """
    found = []
    for part in range(num_parts):
        units = _gathered(parts(), lambda columns: columns["image"] % np.uint64(num_parts) == part)  # noqa: B023
        order = _order(units, ("image", "image_low", "text"))
        same = np.ones(max(0, len(order) - 1), bool)
        for name in ("image", "image_low", "text"):
            same &= np.diff(units[name][order]) == 0
        first = _first_of_runs(same, len(order))
        found.append(_removals(units, order, order[first]))
    return np.sort(np.concatenate(found), order=["shard", "row"])


def perceptual_duplicates(
    parts: Callable[[], Iterator[tuple[int, np.ndarray, Mapping[str, np.ndarray]]]],
    distance: int,
    colours: float | None = None,
) -> np.ndarray:
    """Returns the near duplicates by perceptual hash.

    Units with equal hashes, colours and captions are one node, for which its first unit stands. A node is removed if it
    is near a node before it that stays.

    Args:
        parts: as of `exact_duplicates`; with a number for `colours`, the columns have `colours`, uint8 (N, 192), too.
        distance: as of `DuplicateSettings`.
        colours: as of `DuplicateSettings`.

    Returns:
        `REMOVED`, sorted.
    """
    nodes, pending, held = None, [], 0
    names = _COLUMNS if colours is None else (*_COLUMNS, "colours")
    for part in parts():
        pending.append(_gathered([part], lambda columns: slice(None), names))
        held += len(pending[-1]["row"])
        # Merged whenever as much has come as there are nodes: each unit is sorted a few times at most.
        if held > max(_MERGED, 0 if nodes is None else len(nodes["row"])):
            nodes, pending, held = _leaders(nodes, pending), [], 0
    nodes = _leaders(nodes, pending)
    if nodes is None or not len(nodes["hash"]):
        return np.zeros(0, REMOVED)
    has_text = bool(nodes["text"].any())
    verify = None if colours is None else verifier(nodes["colours"], nodes["colours"], colours)
    rows, others = near_pairs(nodes["hash"], None, distance, nodes["text"] if has_text else None, verify)
    places = np.empty(len(nodes["hash"]), np.int64)
    places[_order(nodes, ())] = np.arange(len(places))
    stays = greedy_representatives(len(places), rows, others, places)
    # A number of 64 bits stands for hash, text and colours.
    keys = _keys(nodes)
    sorted_keys = np.argsort(keys)
    found = []
    for part in parts():
        units = _gathered([part], lambda columns: slice(None), names)
        node = stays[sorted_keys[np.searchsorted(keys, _keys(units), sorter=sorted_keys)]]
        found.append(_removals(units, np.arange(len(node)), node, nodes))
    return np.sort(np.concatenate(found), order=["shard", "row"])


class _Sketches:
    """The sketches of all shards, whose numbers are those of their names in alphabetical order."""

    def __init__(self, pool: Pool):
        self._pool = pool
        self.shards = sorted(pool.shards, key=lambda shard: shard.name)
        self.names = [shard.name for shard in self.shards]

    def digest(self) -> str:
        outputs = [(shard.name, self._pool.marker(SKETCH, shard)["output"]) for shard in self.shards]
        return hashlib.sha256(repr(outputs).encode()).hexdigest()

    def num_units(self) -> int:
        return sum(self._pool.marker(SKETCH, shard)["counts"]["compared"] for shard in self.shards)

    def without(self, removed: np.ndarray, has_colours: bool = False) -> Callable:
        """Returns a function that yields the units of each shard, except those that are removed already."""

        def parts():
            for number, shard in enumerate(self.shards):
                table = self._pool.table(SKETCH, shard)
                is_unit = ~np.asarray(table["image"].is_null().combine_chunks())
                is_unit[removed["row"][removed["shard"] == number]] = False
                rows = np.flatnonzero(is_unit)
                filled = {name: table[name].fill_null(0).to_numpy()[rows] for name in table.column_names}
                if has_colours:
                    filled["colours"] = colour_rows(self._pool.table("profile", shard, ["colours"])["colours"], rows)
                yield number, rows, filled

        return parts


def _merge(method, pool, sketches, settings, removed, memory, engine) -> np.ndarray:
    parts = sketches.without(removed)
    if method == "exact":
        new = exact_duplicates(parts, max(1, -(-sketches.num_units() * _BYTES // memory)))
    elif method == "perceptual":
        parts = sketches.without(removed, settings.colours is not None)
        new = perceptual_duplicates(parts, settings.distance, settings.colours)
    else:
        new = _embedding_duplicates(pool, sketches, settings, removed, memory, engine)
    new["method"] = list(REASONS).index(method)
    return np.sort(np.concatenate([removed, new]), order=["shard", "row"])


def _embedding_duplicates(pool, sketches, settings, removed, memory, engine) -> np.ndarray:
    name, column = settings.embeddings
    pool.require(name)
    num_units = sketches.num_units()
    count = settings.clusters or min(50_000, max(1, round(num_units / 8000)))
    parts = (
        (pool.table(name, sketches.shards[number], [column]), rows, columns["draw"])
        for number, rows, columns in sketches.without(removed)()
    )
    centroids = train_centroids(parts, column, count, num_units)
    if centroids is None:
        return np.zeros(0, REMOVED)
    path = pool.folder / "centroids.npy"
    digest = _write(path, centroids, "centroids")
    clusters = Clusters(path.absolute(), digest, (name, column))
    counts = run_pass(pool, clusters, engine, progress=False)
    removed_path = pool.folder / "clusters_removed.npy"
    _write(removed_path, removed, "removed")
    ranges = cluster_ranges(counts, len(centroids), centroids.shape[1], memory)
    task = ClusterDuplicates(pool.folder.absolute(), sketches.shards, (name, column), settings.cosine, removed_path)
    found = [result for _, result in engine_named(engine).map(task, ranges)]
    entries = np.concatenate(found) if found else np.zeros((0, 4), np.int64)
    result = np.zeros(len(entries), REMOVED)
    for position, field in enumerate(("shard", "row", "of_shard", "of_row")):
        result[field] = entries[:, position]
    return np.sort(result, order=["shard", "row"])


def _check_columns(pool: Pool, settings: DuplicateSettings) -> None:
    """Raises a ValueError unless the columns that the settings name exist and have values of the right kind."""
    import pyarrow as pa

    if settings.prefer not in (None, ("profile", "pixels")):
        pool.require(settings.prefer[0])
        kind = pool.column_type(*settings.prefer)
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise ValueError(
                "The column of `prefer` must have numbers. Received: "
                f"prefer={settings.prefer!r}, of type {kind}. `('profile', 'pixels')` is width * height."
            )
    if "perceptual" in settings.methods and settings.colours is not None:
        pool.require("profile")
        pool.column_type("profile", "colours")
    if "embedding" in settings.methods:
        pool.require(settings.embeddings[0])
        kind = pool.column_type(*settings.embeddings)
        if not pa.types.is_fixed_size_list(kind):
            raise ValueError(
                "The column of `embeddings` must have vectors of one length. Received: "
                f"embeddings={settings.embeddings!r}, of type {kind}."
            )


def _own_settings(method, settings, pool) -> Any:
    if method == "perceptual":
        return settings.distance, settings.colours
    if method == "embedding":
        name = settings.embeddings[0]
        outputs = [pool.marker(name, shard) for shard in sorted(pool.shards, key=lambda shard: shard.name)]
        return settings.cosine, settings.clusters, settings.embeddings, [each and each["output"] for each in outputs]
    return ""


def _kept_or_made(path: Path, key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    record = path.with_suffix(".json")
    try:
        stored = record.read_text(encoding="utf-8")
        array = np.load(path)
        if stored == _record(key, array):
            return array
    except (FileNotFoundError, ValueError):
        pass
    array = make()
    _write(path, array, key)
    return array


def _write(path: Path, array: np.ndarray, key: str) -> str:
    with files.replacing(path) as temporary:
        np.save(temporary, array, allow_pickle=False)
    files.write_text(path.with_suffix(".json"), _record(key, array))
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _record(key: str, array: np.ndarray) -> str:
    return f"{key} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}\n"


def _digits(column, rows, length) -> tuple[np.ndarray, ...]:
    """Returns the first hexadecimal digits of texts as numbers of 64 bits."""
    import pyarrow as pa

    texts = column.take(pa.array(rows)).to_pylist()
    data = bytes.fromhex("".join(text[:length] for text in texts))
    words = np.frombuffer(data, ">u8").astype(np.uint64).reshape(len(rows), length // 16)
    return tuple(words.T)


def _scattered(columns, rows, num_rows) -> "pyarrow.Table":
    import pyarrow as pa

    absent = np.ones(num_rows, bool)
    absent[rows] = False
    table = {}
    for name, values in columns.items():
        whole = np.zeros(num_rows, np.uint64)
        whole[rows] = values
        table[name] = pa.array(whole, pa.uint64(), mask=absent)
    return pa.table(table)


def _gathered(parts, chosen, names: Sequence[str] = _COLUMNS) -> dict[str, np.ndarray]:
    gathered: dict[str, list] = {name: [] for name in (*names, "shard", "row")}
    for number, rows, columns in parts:
        which = chosen(columns)
        for name in names:
            gathered[name].append(columns[name][which])
        gathered["row"].append(rows[which].astype(np.int32))
        gathered["shard"].append(np.full(len(rows[which]), number, np.int32))
    return {name: np.concatenate(values) if values else np.zeros(0, np.uint64) for name, values in gathered.items()}


def _order(units, leading: Sequence[str]) -> np.ndarray:
    """Returns the order by the leading columns, then from the preferred unit to the others."""
    names = (*leading, "rank", "draw", "shard", "row")
    return np.lexsort([units[name] for name in reversed(names)])


def _keys(units) -> np.ndarray:
    """Returns a number of 64 bits for hash, text and colours, if there are any, uint64 (N,)."""
    keys = units["hash"].astype(np.uint64) ^ mix(units["text"].astype(np.uint64))
    if "colours" in units:
        # 24 words of 8 bytes each; there may be no row.
        colours = np.ascontiguousarray(units["colours"])
        for word in colours.view(np.uint64).reshape(len(keys), colours.shape[1] // 8).T:
            keys = mix(keys) ^ word
    return keys


def _leaders(nodes, pending) -> dict[str, np.ndarray] | None:
    """Returns the first unit of each hash, text and colours, sorted by the key of these."""
    gathered = [each for each in (nodes, *pending) if each is not None]
    if not gathered:
        return None
    units = {name: np.concatenate([each[name] for each in gathered]) for name in gathered[0]}
    units["key"] = _keys(units)
    order = _order(units, ("key",))
    same = np.diff(units.pop("key")[order]) == 0
    leaders = order[np.unique(_first_of_runs(same, len(order)))]
    return {name: values[leaders] for name, values in units.items()}


def _first_of_runs(same: np.ndarray, size: int) -> np.ndarray:
    """Returns for each place the first place of its run; `same` (size - 1,): which are equal to the one before."""
    places = np.arange(size)
    if size:
        places[1:][same] = 0
    return np.maximum.accumulate(places) if size else places


def _removals(units, rows, stays, nodes=None) -> np.ndarray:
    """Returns the entries of units that are not those that stay instead of them."""
    nodes = units if nodes is None else nodes
    entries = np.zeros(len(rows), REMOVED)
    entries["shard"], entries["row"] = units["shard"][rows], units["row"][rows]
    entries["of_shard"], entries["of_row"] = nodes["shard"][stays], nodes["row"][stays]
    return entries[(entries["shard"] != entries["of_shard"]) | (entries["row"] != entries["of_row"])]
