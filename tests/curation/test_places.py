"""The places of the samples of new shards: sorted, complete, and found in one reading of each index."""

import numpy as np
import pytest

from keras_clip.curation import Shard
from keras_clip.curation.writing import places
from keras_clip.curation.writing.partition import INDEX, stored_path

pytestmark = pytest.mark.backend_free


@pytest.fixture
def indexes(tmp_path):
    """Indexes of 30 shards, some of which are empty, with equal hashes in several of them."""
    generator = np.random.default_rng(0)
    shards = [Shard(f"{number:02d}", None) for number in range(30)]
    stored_path(tmp_path, shards[0]).parent.mkdir()
    everything = []
    for number, shard in enumerate(shards):
        index = np.zeros(0 if number % 7 == 3 else int(generator.integers(1, 40)), INDEX)
        index["order"] = np.sort(generator.integers(0, 2**10, len(index)).astype(np.uint64) << np.uint64(54))
        index["sample"] = generator.permutation(1000)[: len(index)]
        index["offset"], index["size"] = np.arange(len(index)) * 10, number + 1
        np.save(stored_path(tmp_path, shard).with_suffix(".npy"), index)
        everything += [(*row, number) for row in index.tolist()]
    return tmp_path, shards, sorted((order, number, sample, *rest) for order, sample, *rest, number in everything)


def ranges_of(everything, bounds):
    edges = list(zip(bounds[:-1], bounds[1:], strict=True))
    return [
        places.Range(f"{n}.tar", str(n), 3, low, high - 1, sum(low <= each[0] < high for each in everything))
        for n, (low, high) in enumerate(edges)
    ]


@pytest.mark.parametrize("group, open_files", [(10**9, 200), (100, 200), (50, 2), (1, 3)])
def test_each_new_shard_has_the_samples_of_its_range_in_order(indexes, monkeypatch, group, open_files):
    folder, shards, everything = indexes
    monkeypatch.setattr(places, "_OPEN_FILES", open_files)
    ranges = ranges_of(everything, [0, 2**54, 2**60, 2**61, 2**62, 5 * 2**61, 3 * 2**62, 2**64])
    located = places.locate(folder, shards, ranges, folder / "places", group)
    assert [each.range for each in located] == ranges
    found = [places.read_places(folder / "places", each) for each in located]
    expected = [(order, number, sample, offset, size) for order, number, sample, offset, size in everything]
    assert [row for rows in found for row in rows.tolist()] == expected
    assert list(map(len, found)) == [each.samples for each in ranges]


def test_each_index_is_read_once(indexes, monkeypatch):
    folder, shards, everything = indexes
    loads, load = [], np.load
    monkeypatch.setattr(np, "load", lambda *args, **options: loads.append(args) or load(*args, **options))
    bounds = [number * 2**57 for number in range(129)]
    places.locate(folder, shards, ranges_of(everything, bounds), folder / "places", 50)
    assert len(loads) == len(shards)
