"""The Python part of the pipeline: the order of the samples, their crops and captions, and the skipped samples."""

import functools
import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from keras_clip.data.image_files import reason_of
from keras_clip.data.readers import Reader, Stream
from keras_clip.data.skipped import SkippedSamples

# Samples that identify a source.
_DIGESTED = 64


class Place(NamedTuple):
    """The place at which a pass over the samples begins.

    Attributes:
        epoch: int. It determines order, crops and captions.
        step: int. Number of batches of the epoch before this place.
        broken: int. Number of broken samples before this place.
    """

    epoch: int
    step: int = 0
    broken: int = 0


class _Epochs:
    """Counts epochs, each of which may begin in the middle, and records the samples that are skipped in each.

    Attributes:
        num_samples: int or None. Samples of this process's part of an epoch.
        batch_size: int.
        identity: dict of plain data that is equal for runs that read the same samples.
        skipped: `SkippedSamples`.
    """

    num_samples: int | None = None
    # What else the samples of an epoch depend on, such as the crops: plain data.
    options: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, skipped: SkippedSamples, seed: int, shard: tuple[int, int], batch_size: int, preprocessor: Any):
        self.seed, self.batch_size = seed, batch_size
        self.skipped = skipped
        self._part, self._parts = shard
        self._preprocessor = preprocessor
        self._next = Place(0)
        self._latest, self._ended = -1, False
        # For each epoch, its first place and the positions of broken samples. Two epochs may run at a time.
        self._starts: dict[int, Place] = {}
        self._broken: dict[int, set[int]] = {}

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "num_samples": self.num_samples,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "processes": self._parts,
            **self.options,
        }

    def start_at(self, epoch: int, step: int = 0, broken: int = 0) -> None:
        """Makes the next pass over the data begin at a step of an epoch; whole epochs follow.

        Args:
            epoch: int >= 0.
            step: int >= 0. The first batch.
            broken: the result of `broken_before(epoch, step)` in the run that is resumed.
        """
        self._next = Place(epoch, step, broken)

    def broken_before(self, epoch: int, step: int) -> int:
        """Returns the number of broken samples of an epoch before a step, by which the later samples are shifted."""
        start = self._starts.get(epoch, Place(epoch))
        first = start.step * self.batch_size + start.broken
        place = first + (step - start.step) * self.batch_size
        for position in sorted(self._broken.get(epoch, ())):
            place += first <= position <= place
        return place - step * self.batch_size

    def begin(self) -> np.ndarray:
        """Begins the next epoch; returns int64 (3,): the epoch, its first step and its first position."""
        start = self._next
        self._next = Place(start.epoch + 1)
        self._latest, self._ended = start.epoch, False
        self._starts = {**dict(list(self._starts.items())[-1:]), start.epoch: start}
        self._broken = {epoch: self._broken.get(epoch, set()) for epoch in self._starts}
        self.skipped.begin()
        return np.array([start.epoch, start.step, start.step * self.batch_size + start.broken], np.int64)

    def _is_over(self, epoch: int) -> bool:
        """Returns whether skipped samples no longer count: the iterator was abandoned, or it is the second pass."""
        return epoch != self._latest or self._ended

    def _pass_over(self, epoch: int, start: int, stop: int) -> None:
        """Stores the positions of broken samples, including those of the second pass over an epoch."""
        if int(epoch) in self._broken:
            self._broken[int(epoch)].update(range(start, stop))

    def _note(self, name: str, image: Any, caption: bytes, seen: int) -> None:
        """Records a broken sample, the last of the `seen` samples."""
        self.skipped.add(name, *self._diagnose(image, caption))
        self.skipped.check(seen, self.num_samples, ended=False)

    def _end(self, seen: int) -> None:
        self._ended = True
        self.skipped.check(seen, self.num_samples, ended=True)
        self.skipped.finish(seen)

    def _diagnose(self, image: Any, caption: bytes) -> tuple[str, str]:
        """Returns (reason, detail) of a broken sample, by repeating in Python the steps that failed in the graph."""
        if not len(image):
            return "no image", ""
        if not caption.strip():
            return "no caption", ""
        try:
            caption.decode()
        except UnicodeDecodeError as error:
            return "caption not UTF-8", f"{error.reason} at byte {error.start}"
        if not isinstance(image, bytes):
            return "undecodable image", f"uint8 {image.shape}"
        try:
            self._preprocessor.to_uint8(image)
        except ValueError as error:
            return reason_of(error), f"{len(image)} bytes that begin with {image[:12]!r}"
        return "undecodable image", "PIL can decode it, TensorFlow cannot"


class IndexedEpochs(_Epochs):
    """Epochs over a source that is read by index."""

    def __init__(self, reader: Reader, training: bool, *options: Any):
        super().__init__(*options)
        self._reader, self._training = reader, training
        # In training, all processes take the same number of steps; otherwise they would wait for each other at the end.
        everything = range(len(reader))
        self.num_samples = len(reader) // self._parts if training else len(everything[self._part :: self._parts])
        self._failure: Exception | None = None
        # Two epochs are cached: the current one, and the next one, which starts before the current one ends.
        self.order = functools.lru_cache(maxsize=2)(self._order)

    @property
    def identity(self) -> dict[str, Any]:
        return {**super().identity, "source": self._source_digest}

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

    def _order(self, epoch: int) -> np.ndarray:
        """Returns the sample indices of an epoch. All processes permute equally, and each takes every n-th index."""
        order = np.arange(len(self._reader))
        if self._training:
            np.random.default_rng([self.seed, epoch]).shuffle(order)
        return order[self._part :: self._parts][: self.num_samples]

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
            images, captions, seeds = self._pairs(epoch, ids)
        except Exception as error:
            self._failure = error
            positions, ids = positions[-1:], ids[:0]
            images, captions, seeds = [], [], np.zeros((0, 2), np.int64)
        seeds = np.concatenate([seeds, np.zeros((1, 2), np.int64)])
        images, captions = (np.array([*column, b""], object) for column in (images, captions))
        return positions, np.arange(len(ids) + 1) == len(ids), seeds, images, captions

    def _ids(self, epoch: int, start: int, count: int) -> np.ndarray:
        return self.order(epoch)[start : start + count]

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


class StreamedEpochs(_Epochs):
    """Epochs over a stream."""

    def __init__(self, stream: Stream, *options: Any):
        super().__init__(*options)
        self.num_samples = stream.size

    def skip(self, epoch: int, position: int, image: Any, caption: bytes) -> np.bool_:
        """Records a sample that could not be used, and returns False, since it is dropped.

        Positions include the marker of the end, which lies between the first pass and the second.
        """
        place = int(position) - (self.num_samples is not None and position > self.num_samples)
        self._pass_over(epoch, place, place + 1)
        if not self._is_over(epoch):
            self._note(f"element {position} of the epoch", image, caption, int(position) + 1)
        return np.False_

    def end(self, epoch: int, position: int) -> np.bool_:
        """Records the end of the epoch."""
        if not self._is_over(epoch):
            self._end(int(position))
        return np.False_

    def stream_seed(self, epoch: Any) -> Any:
        """Returns the seed of an epoch, in a graph."""
        return self.seed * 1_000_003 + epoch


def _hash(seed: int, epoch: int, ids: np.ndarray) -> np.ndarray:
    """Returns a random 64-bit number per sample that depends only on these three (finaliser of SplitMix64)."""
    (base,) = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    with np.errstate(over="ignore"):
        x = base + ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
