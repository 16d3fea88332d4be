"""Passes over a source that is read by index, in an order shuffled across all of its samples."""

import functools
import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_clip.data.epochs.base import Epochs, call_python, first_place, parallel_images
from keras_clip.data.epochs.order import SampleOrder
from keras_clip.data.readers import Reader

if TYPE_CHECKING:
    import tensorflow as tf

# What a run that is resumed must share. Another way to order the samples gets another name.
ORDER = "keyed permutation"
# Samples that identify a source.
_DIGESTED = 64
# Samples that are read at a time.
_BLOCK = 64


class IndexedEpochs(Epochs):
    """Epochs over a source that is read by index."""

    def __init__(self, reader: Reader, training: bool, *options: Any, shuffle: str = "samples"):
        super().__init__(*options)
        self._shuffle = shuffle if training else None
        self._reader, self._training = reader, training
        # In training, all processes take the same number of steps; otherwise they would wait for each other at the end.
        everything = range(len(reader))
        self.num_samples = len(reader) // self._parts if training else len(everything[self._part :: self._parts])
        self._failure: Exception | None = None
        if self._shuffle == "blocks" and hasattr(reader, "expect_neighbours"):
            reader.expect_neighbours()
        # Blocks that are being read, by epoch and position, for readers that wait for answers.
        self._blocks_ahead = getattr(reader, "blocks_ahead", 0)
        self._ahead: dict[tuple[int, int], Future] = {}
        self._lock = threading.Lock()
        if self._blocks_ahead:
            self._readers = ThreadPoolExecutor(self._blocks_ahead, "read ahead")
        # Of two epochs: the current one, and the next one, which starts before the current one ends.
        self._order = functools.lru_cache(maxsize=2)(self._order_of)

    @property
    def identity(self) -> dict[str, Any]:
        order = {"order": f"{ORDER} by {self._shuffle}"} if self._training else {}
        return {**super().identity, **order, "source": self._source_digest}

    @functools.cached_property
    def _source_digest(self) -> str:
        """A digest of the number of samples and of a few of them, evenly spaced: other sources have other ones."""
        ids = np.unique(np.linspace(0, len(self._reader) - 1, _DIGESTED).astype(np.int64))
        digest = hashlib.sha256(str(len(self._reader)).encode())
        for image, captions in zip(*self._reader.read(ids), strict=True):
            for part in (image, *captions):
                digest.update(f" {len(part)} ".encode() + bytes(part))
        return digest.hexdigest()

    def begin(self) -> np.ndarray:
        self._failure = None
        return super().begin()

    def _order_of(self, epoch: int) -> SampleOrder:
        return SampleOrder(len(self._reader), self._shuffle, self.seed, epoch)

    def samples(self, decode: Callable) -> "tf.data.Dataset":
        """Returns (place, pixels, caption) of the samples without broken ones.

        `ignore_errors` drops samples that cannot be decoded. A gap in the remaining positions shows which sample was
        dropped, and only then does Python determine the reason. Every block ends with a marker, so that a gap is
        noticed early.
        """
        import tensorflow as tf

        def starts(place):
            first, size = place[2], self.num_samples
            numbers = tf.data.Dataset.range(first, size, _BLOCK)
            numbers = numbers.concatenate(tf.data.Dataset.from_tensors(tf.constant(-1, tf.int64)))
            if self._training:
                # Broken samples are replaced by those at the beginning of the epoch.
                numbers = numbers.concatenate(tf.data.Dataset.range(tf.maximum(first, size), 2 * size, _BLOCK))
            return tf.data.Dataset.zip((tf.data.Dataset.from_tensors(place).repeat(), numbers))

        def read(place, start):
            dtypes = (tf.int64, tf.bool, tf.int64, tf.string, tf.string)
            columns = tf.numpy_function(lambda *at: self.read(*map(int, at), _BLOCK), (place[0], start), dtypes)
            for column, shape in zip(columns, ([None], [None], [None, 2], [None], [None]), strict=True):
                column.set_shape(shape)
            return tf.tile(place[None], [tf.size(columns[0]), 1]), *columns

        def attempt(place, position, is_mark, seed, image, caption):
            pixels = tf.cond(is_mark, lambda: decode.nothing, lambda: decode(image, seed, caption))
            return place, position, is_mark, pixels, caption

        def compare(expected, sample):
            place, position, is_mark, pixels, caption = sample
            expected = tf.maximum(expected, place[2])
            is_told = (position > expected) | (is_mark & (position == self.num_samples))
            gap = (place[0], expected, position)
            told = tf.cond(is_told, lambda: call_python(self.missed, gap, tf.bool), lambda: False)
            expected = tf.maximum(expected, position + tf.cast(~is_mark, tf.int64))
            return expected, (place, pixels, caption, told | ~is_mark)

        # Two blocks are read at a time, which is enough to hide the latency of a disk behind the decoding.
        samples = first_place(self).flat_map(starts).map(read, num_parallel_calls=2, deterministic=True).unbatch()
        tried = samples.map(attempt, num_parallel_calls=parallel_images(), deterministic=True).ignore_errors()
        compared = tried.scan(tf.constant(0, tf.int64), compare)
        good = compared.filter(lambda place, pixels, caption, is_good: is_good)
        return good.map(lambda place, pixels, caption, _: (place, pixels, caption))

    def read(self, epoch: int, start: int, count: int) -> tuple[np.ndarray, ...]:
        """Reads a block of samples and adds a marker: columns (position, is marker, crop seed, image file, caption).

        Positions continue after the end of the epoch, with the first sample again. If `start` is -1, only the
        marker of the end is returned. If the source itself fails, only the marker is returned too, and `missed` raises
        the error: an exception that is raised here would count as a broken sample.
        """
        ids = self._ids(epoch, start % self.num_samples, count) if start >= 0 else np.zeros(0, np.int64)
        first = start if start >= 0 else self.num_samples
        positions = np.append(first + np.arange(len(ids)), first + len(ids))
        try:
            images, captions, seeds = self._block(epoch, start, ids) if start >= 0 else self._pairs(epoch, ids)
        except Exception as error:
            self._failure = error
            positions, ids = positions[-1:], ids[:0]
            images, captions, seeds = [], [], np.zeros((0, 2), np.int64)
        seeds = np.concatenate([seeds, np.zeros((1, 2), np.int64)])
        images, captions = (np.array([*column, b""], object) for column in (images, captions))
        return positions, np.arange(len(ids) + 1) == len(ids), seeds, images, captions

    def _block(self, epoch: int, start: int, ids: np.ndarray) -> tuple[list[bytes], list[bytes], np.ndarray]:
        """The pairs of a block, which has been read ahead if the reader requests that."""
        if not self._blocks_ahead:
            return self._pairs(epoch, ids)
        with self._lock:
            last = min(self.num_samples, start + (self._blocks_ahead + 1) * _BLOCK)
            for following in range(start, last, _BLOCK):
                if (epoch, following) not in self._ahead:
                    some = ids if following == start else self._ids(epoch, following, _BLOCK)
                    self._ahead[epoch, following] = self._readers.submit(self._pairs, epoch, some)
            block = self._ahead.pop((epoch, start), None)
            # What an epoch that was abandoned has read ahead.
            while len(self._ahead) > 4 * self._blocks_ahead:
                self._ahead.pop(next(iter(self._ahead))).cancel()
        return self._pairs(epoch, ids) if block is None else block.result()

    def _ids(self, epoch: int, start: int, count: int) -> np.ndarray:
        """The samples at places of this process's part of an epoch. The parts are disjoint."""
        places = np.arange(start, min(start + count, self.num_samples))
        if self._shuffle == "blocks":
            # Each process reads other blocks.
            places += self._part * self.num_samples
        else:
            places = places * self._parts + self._part
        return self._order(epoch).samples(places)

    def _pairs(self, epoch: int, ids: np.ndarray) -> tuple[list[bytes], list[bytes], np.ndarray]:
        images, captions = self._reader.read(ids)
        draws = _hash(self.seed, epoch, ids) if self._training else np.zeros(len(ids), np.uint64)
        chosen = [
            texts[draw % len(texts)] if texts else b"" for texts, draw in zip(captions, draws.tolist(), strict=True)
        ]
        # The crop uses the upper bits, because the lower bits chose the caption.
        return images, chosen, np.stack([(draws >> np.uint64(33)).astype(np.int64), ids], axis=1)

    def missed(self, epoch: int, start: int, stop: int) -> np.bool_:
        """Records the dropped samples at these positions, and the end of the epoch.

        Raises:
            Exception: the source failed; too many samples are broken.
        """
        if self._failure is not None:
            raise self._failure
        self._pass_over(epoch, start, stop)
        for position in range(start, min(stop, self.num_samples)):
            if self._is_over(epoch):
                break
            ids = self._ids(epoch, position, 1)
            (image,), (caption,), _ = self._pairs(epoch, ids)
            self._note(self._reader.name(int(ids[0])), image, caption, position + 1)
        if stop >= self.num_samples and not self._is_over(epoch):
            self._end(self.num_samples)
        return np.False_


def _hash(seed: int, epoch: int, ids: np.ndarray) -> np.ndarray:
    """Returns a random 64-bit number per sample that depends only on these three (finaliser of SplitMix64)."""
    (base,) = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    with np.errstate(over="ignore"):
        x = base + ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
