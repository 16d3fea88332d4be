"""The order of an epoch: every sample once, disjoint parts, other orders for other seeds, and how well it shuffles."""

import numpy as np
import pytest

from keras_clip.data.epochs.indexed import IndexedEpochs
from keras_clip.data.epochs.order import BLOCK, WINDOW_BLOCKS, SampleOrder
from keras_clip.data.skipped import SkippedSamples

pytestmark = pytest.mark.backend_free
WINDOW = BLOCK * WINDOW_BLOCKS
SIZES = (1, 2, 3, 7, 64, 255, 256, 257, 1000, WINDOW - 1, WINDOW, WINDOW + 300, 3 * WINDOW + 77)


def order(size, shuffle="samples", seed=0, epoch=0):
    return SampleOrder(size, shuffle, seed, epoch).samples(np.arange(size))


@pytest.mark.parametrize("shuffle", ["samples", "blocks"])
class TestOrders:
    @pytest.mark.parametrize("size", SIZES)
    def test_every_sample_once(self, size, shuffle):
        for seed, epoch in ((0, 0), (5, 3)):
            assert np.array_equal(np.sort(order(size, shuffle, seed, epoch)), np.arange(size))

    def test_any_position_alone(self, shuffle):
        whole, places = order(40_000, shuffle, 2, 1), np.random.default_rng(0).permutation(40_000)
        assert np.array_equal(SampleOrder(40_000, shuffle, 2, 1).samples(places), whole[places])
        assert [int(SampleOrder(40_000, shuffle, 2, 1).samples(np.array([k]))[0]) for k in range(9)] == whole[
            :9
        ].tolist()

    def test_seed_and_epoch_change_it(self, shuffle):
        orders = [order(1000, shuffle, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
        assert len({each.tobytes() for each in orders}) == 4
        # Equal positions are as frequent as in a random permutation, where one is expected.
        assert max(int((a == b).sum()) for k, a in enumerate(orders) for b in orders[:k]) < 40

    @pytest.mark.parametrize("size", [3, 5, 300, 2000])
    def test_every_sample_is_everywhere_in_time(self, size, shuffle):
        """Each quarter of an epoch has every sample equally often, so that other samples are dropped at its end."""
        epochs = 400
        quarters = np.zeros((size, 4))
        for epoch in range(epochs):
            quarters[order(size, shuffle, 0, epoch), 4 * np.arange(size) // size] += 1
        share = quarters.sum(axis=0, keepdims=True) / size
        if shuffle == "samples" or size < 2000:
            assert np.abs(quarters - share).max() < 0.3 * epochs
        assert (quarters > 0)[:, share[0] > 0].all()

    @pytest.mark.parametrize("parts", [1, 2, 3, 7])
    def test_parts_are_disjoint(self, parts, shuffle):
        samples = np.concatenate([part_of(1003, (part, parts), shuffle) for part in range(parts)])
        assert len(samples) == 1003 // parts * parts == len(np.unique(samples))


class Numbers:
    """A reader whose samples are never read."""

    def __init__(self, size):
        self._size = size

    def __len__(self):
        return self._size


def part_of(size, shard, shuffle, training=True):
    epochs = IndexedEpochs(Numbers(size), training, SkippedSamples("x"), 0, shard, 1, None, shuffle=shuffle)
    found = [epochs._ids(2, start, 64) for start in range(0, epochs.num_samples, 64)]
    return np.concatenate(found)


def test_without_training_the_order_is_kept():
    assert part_of(10, (0, 1), "blocks", training=False).tolist() == list(range(10))
    assert part_of(10, (1, 3), "samples", training=False).tolist() == [1, 4, 7]


@pytest.mark.parametrize("size", [4, 5])
def test_all_permutations_of_few_samples_occur(size):
    found = [order(size, "samples", 0, epoch).tobytes() for epoch in range(4000)]
    counts = np.unique(found, return_counts=True)[1]
    expected = 4000 / np.prod(range(1, size + 1))
    assert len(counts) == round(4000 / expected) and counts.min() > 0.3 * expected and counts.max() < 2.5 * expected


def test_quality_of_the_shuffle_across_all_samples():
    size = 100_000
    found = order(size)
    # A random permutation moves a sample by a third of the samples, and keeps one pair of neighbours.
    assert np.abs(found - np.arange(size)).mean() / size == pytest.approx(1 / 3, abs=0.01)
    assert (np.diff(found) == 1).sum() < 8
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02


def test_blocks_are_read_in_few_places_at_a_time():
    size = 40 * WINDOW
    found = order(size, "blocks")
    assert np.abs(found - np.arange(size)).mean() / size == pytest.approx(1 / 3, abs=0.05)
    for start in range(0, size, WINDOW):
        # A window has 64 blocks, some of which wrap around the last sample.
        runs = np.diff(np.sort(found[start : start + WINDOW]))
        assert (runs > 1).sum() <= WINDOW_BLOCKS
    # Within a window, neighbours are as rare as in a random order.
    assert (np.diff(found) == 1).mean() < 3 / WINDOW
    batches = found[: 64 * 256].reshape(64, 256) // BLOCK
    assert np.mean([len(np.unique(batch)) for batch in batches]) > 40
