"""The first stage of writing: the kept samples of each shard of the pool, in the order of the hashes of their keys."""

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_clip import files
from keras_clip.curation.draws import hash_strings, mix
from keras_clip.curation.passes import ShardPass
from keras_clip.curation.pool import Pool
from keras_clip.curation.shards import Shard
from keras_clip.curation.writing.formats import EXTENSIONS, StoredSample, as_json

if TYPE_CHECKING:
    import pyarrow

_BLOCK = 64
_LENGTHS = struct.Struct("<II")
# Columns of the profile that belong to the image, so that several captions share one value.
_OF_IMAGE = ("format", "mode", "width", "height", "aspect", "bytes", "sha256", "perceptual_hash")
_NEEDED = ("key", "sample", "caption", "format", "sha256")
INDEX = np.dtype([("order", "<u8"), ("sample", "<i4"), ("offset", "<i8"), ("size", "<i8")])


class Partition(ShardPass):
    """Stores the kept samples of a shard, each once with its kept captions, in the order of their hashes.

    Beside the table, the samples are in `<shard>.samples` and their places in `<shard>.npy`, an array of `INDEX`. The
    table has a row for each pair, whose columns are null except at the first kept pair of each sample: `order`, uint64,
    the hash of the seed, the shard, and the key; and `stored`, int64, bytes of the sample.

    Args:
        folder: folder of the pool.
        columns: "<pass>.<column>" of values that are stored with each sample.
        seed: int in [0, 2 ** 64).
    """

    name = "write"
    reads_source = True
    version = 1

    def __init__(self, folder: Path, columns: Sequence[str], seed: int):
        self.folder, self.columns, self.seed = folder.absolute(), tuple(columns), seed
        self.inputs = tuple(dict.fromkeys(["profile", "keep", *(column.split(".")[0] for column in columns)]))

    def config(self) -> dict[str, Any]:
        """See `ShardPass.config`."""
        return {"version": self.version, "columns": list(self.columns), "seed": self.seed}

    def run(
        self, state: None, shard: Shard, inputs: Mapping[str, "pyarrow.Table"]
    ) -> tuple["pyarrow.Table", Mapping[str, int]]:
        """Stores the samples of a shard; arguments as of `ShardPass.run`."""
        import pyarrow as pa

        rows = np.flatnonzero(np.asarray(inputs["keep"]["rejected_by"].is_null()))
        samples = inputs["profile"]["sample"].to_numpy()[rows]
        # The pairs of a sample stand one after the other.
        starts = np.flatnonzero(np.diff(samples, prepend=-1))
        groups = np.split(rows, starts[1:]) if len(rows) else []
        firsts = rows[starts]
        kept = _Kept({name: table.take(pa.array(rows)) for name, table in inputs.items()}, rows, self.columns)
        orders = _orders(shard, samples[starts], kept.keys(firsts), self.seed)
        index = np.zeros(len(groups), INDEX)
        sequence = np.lexsort([samples[starts], orders])
        index["order"], index["sample"] = orders[sequence], samples[starts][sequence]
        path = stored_path(self.folder, shard)
        with files.replacing(path) as temporary, open(temporary, "wb") as file:
            stored = kept.samples(shard, [groups[place] for place in sequence.tolist()])
            for place, data in enumerate(map(_pack, stored)):
                index["offset"][place], index["size"][place] = file.tell(), len(data)
                file.write(data)
        with files.replacing(path.with_suffix(".npy")) as temporary:
            np.save(temporary, index)
        columns = {"order": np.zeros(len(inputs["keep"]), np.uint64), "stored": np.zeros(len(inputs["keep"]), np.int64)}
        is_first = np.zeros(len(inputs["keep"]), bool)
        is_first[firsts] = True
        columns["order"][firsts[sequence]], columns["stored"][firsts[sequence]] = index["order"], index["size"]
        table = pa.table({name: pa.array(values, mask=~is_first) for name, values in columns.items()})
        return table, {"samples": len(groups), "pairs": len(rows), "bytes": int(index["size"].sum())}


class _Kept:
    """The kept pairs of a shard: tables of these rows of the profile and other passes."""

    def __init__(self, tables: Mapping[str, "pyarrow.Table"], rows: np.ndarray, columns: Sequence[str]):
        self._tables, self._rows = tables, rows
        self._columns = {name: tables["profile"][name].to_pylist() for name in _NEEDED}
        self._stored = {}
        for column in columns:
            name, _, of = column.partition(".")
            if of not in tables[name].column_names:
                raise ValueError(
                    f"A stored column must be one of its pass. Received: {column!r}, where {name!r} has the columns "
                    f"{tables[name].column_names}."
                )
            self._stored[column] = tables[name][of].to_pylist()

    def keys(self, rows: np.ndarray) -> list[str]:
        """The keys of these rows of the profile."""
        keys = self._columns["key"]
        return [keys[place] for place in np.searchsorted(self._rows, rows).tolist()]

    def samples(self, shard: Shard, groups: Sequence[np.ndarray]) -> Iterator[StoredSample]:
        """Reads the samples whose rows of the profile are given."""
        reader, _ = shard.open()
        read_metadata = getattr(reader, "metadata", lambda ids: [{} for _ in ids])
        for start in range(0, len(groups), _BLOCK):
            block = [np.searchsorted(self._rows, rows).tolist() for rows in groups[start : start + _BLOCK]]
            ids = np.array([self._columns["sample"][places[0]] for places in block], np.int64)
            images, _ = reader.read(ids)
            for places, image, metadata in zip(block, images, read_metadata(ids), strict=True):
                yield self._sample(shard, places, image, metadata)

    def _sample(self, shard: Shard, places: Sequence[int], image: bytes, metadata: Mapping) -> StoredSample:
        first = places[0]
        if hashlib.sha256(image).hexdigest() != self._columns["sha256"][first]:
            raise ValueError(
                f"Samples must be as they were profiled. Received: {self._columns['key'][first]!r} of {shard.name!r} "
                "with another image. Run the profile and the passes after it again."
            )
        ours: dict[str, Any] = {"key": self._columns["key"][first], "shard": shard.name}
        for column, values in self._stored.items():
            name, _, of = column.partition(".")
            found = [values[place] for place in places]
            of_image = name == "profile" and of in _OF_IMAGE
            ours[of] = found[0] if of_image or len(found) == 1 else found
        captions = [self._columns["caption"][place].encode() for place in places]
        extension = EXTENSIONS.get(self._columns["format"][first], "jpg")
        return StoredSample(image, extension, captions, as_json({**metadata, "curation": ours}))


def stored_path(folder: Path, shard: Shard) -> Path:
    """Returns the path of the samples that the pass stores for a shard.

    Args:
        folder: folder of the pool.
        shard: the shard.

    Returns:
        Path, which may not exist.
    """
    return folder / Partition.name / f"{shard.name}.samples"


def forget_without_samples(pool: Pool) -> None:
    """Makes the pass run again on shards whose samples were removed after they had been merged."""
    for shard in pool.shards:
        path = stored_path(pool.folder, shard)
        if not (path.exists() and path.with_suffix(".npy").exists()):
            pool.marker_path(Partition.name, shard).unlink(missing_ok=True)


def remove_samples(pool: Pool) -> None:
    """Removes the samples of all shards, which are in the new shards now."""
    for shard in pool.shards:
        path = stored_path(pool.folder, shard)
        path.unlink(missing_ok=True)
        path.with_suffix(".npy").unlink(missing_ok=True)


def read_samples(folder: Path, shards: Sequence[Shard], places: np.ndarray) -> list[StoredSample]:
    """Reads stored samples. The file of each shard of the pool is opened once.

    Args:
        folder: folder of the pool.
        shards: the shards that the places number.
        places: structured array (N,) with the fields `shard`, `offset` and `size`.

    Returns:
        The samples, in the order of the places.
    """
    found: list[Any] = [None] * len(places)
    order = np.lexsort([places["offset"], places["shard"]])
    for rows in np.split(order, np.flatnonzero(np.diff(places["shard"][order])) + 1):
        if not len(rows):
            continue
        with open(stored_path(folder, shards[places["shard"][rows[0]]]), "rb") as file:
            for row in rows.tolist():
                data = os.pread(file.fileno(), int(places["size"][row]), int(places["offset"][row]))
                found[row] = _unpack(data)
    return found


def _orders(shard: Shard, samples: np.ndarray, keys: Sequence[str], seed: int) -> np.ndarray:
    """Returns a hash of each sample, uint64. Keys may repeat in other shards, and in one (a table)."""
    names = [f"{shard.name}/{sample}/{key}" for sample, key in zip(samples.tolist(), keys, strict=True)]
    return mix(hash_strings(names) ^ mix(np.uint64(seed)))


def _pack(sample: StoredSample) -> bytes:
    # Captions that are kept are UTF-8.
    record = {"extension": sample.extension, "captions": [each.decode() for each in sample.captions]}
    text = json.dumps(record | {"metadata": sample.metadata}).encode()
    return _LENGTHS.pack(len(text), len(sample.image)) + text + sample.image


def _unpack(data: bytes) -> StoredSample:
    length, _ = _LENGTHS.unpack_from(data)
    text, image = data[_LENGTHS.size : _LENGTHS.size + length], data[_LENGTHS.size + length :]
    record = json.loads(text)
    captions = [caption.encode() for caption in record["captions"]]
    return StoredSample(image, record["extension"], captions, record["metadata"])
