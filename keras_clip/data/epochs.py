"""The Python half of the pipeline: which sample comes when, with which crop and caption, and what was skipped."""

import functools
import itertools
from typing import Any

import numpy as np

from keras_clip.data.readers import Reader
from keras_clip.data.skipped import SkippedSamples

# The index of the mark that follows the last sample of an epoch.
END = np.int64(-1)


class _Epochs:
    """Counts epochs and hears of the samples that are skipped in each."""

    num_samples: int | None = None

    def __init__(self, source: Any, seed: int, preprocessor: Any):
        self.seed = seed
        self.skipped = SkippedSamples(repr(source))
        self._preprocessor = preprocessor
        self._count = itertools.count()
        self._latest, self._ended = -1, False

    def begin(self) -> np.int64:
        """The number of the epoch that starts now."""
        self._latest, self._ended = next(self._count), False
        self.skipped.begin()
        return np.int64(self._latest)

    def name(self, index: int) -> str:
        raise NotImplementedError

    def skip(self, position: int, epoch: int, index: int, image: Any, caption: bytes) -> np.bool_:
        """Takes note of a sample that could not be used, or of the end of the epoch. False: not to be passed on."""
        if epoch != self._latest or self._ended:
            return np.False_  # of an iterator that was given up, or met for the second time
        self._ended = ended = bool(index == END)
        if not ended:
            self.skipped.add(self.name(int(index)), *self._diagnose(image, caption))
        seen = int(position) + (not ended)
        self.skipped.check(seen, self.num_samples, ended)
        if ended:
            self.skipped.finish(seen)
        return np.False_

    def _diagnose(self, image: Any, caption: bytes) -> tuple[str, str]:
        """(reason, detail), found by doing again what has failed in graph."""
        import tensorflow as tf

        from keras_clip.data.graph_images import decode_image

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
            decode_image(tf.constant(image), self._preprocessor.max_pixels)
        except (tf.errors.OpError, ValueError) as error:
            reason = "image too large" if "pixel limit" in str(error) else "undecodable image"
            return reason, f"{len(image)} bytes that begin with {image[:12]!r}"
        return "undecodable image", "decoded, but not cropped"


class IndexedEpochs(_Epochs):
    """Epochs over a source that is read by number."""

    def __init__(
        self, reader: Reader, source: Any, seed: int, training: bool, shard: tuple[int, int], preprocessor: Any
    ):
        super().__init__(source, seed, preprocessor)
        self._reader, self._training = reader, training
        self._part, self._parts = shard
        # In training every process takes equally many steps, or the others would wait for it at the end.
        self.num_samples = (
            (len(reader) - (0 if training else self._part)) // self._parts
            if training
            else len(range(self._part, len(reader), self._parts))
        )
        # The epoch that runs and the one that starts meanwhile.
        self.order = functools.lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> np.ndarray:
        """The indices of an epoch's samples. All processes permute alike, and each takes every n-th."""
        order = np.arange(len(self._reader))
        if self._training:
            np.random.default_rng([self.seed, epoch]).shuffle(order)
        return order[self._part :: self._parts][: self.num_samples]

    def name(self, index: int) -> str:
        return self._reader.name(index)

    def read(self, epoch: int, start: int, count: int) -> tuple[np.ndarray, ...]:
        """(epochs, indices, crop seeds, images, captions) of a block of samples, or of the mark of the end."""
        if start == END:
            ids, images, captions = np.array([END]), [b""], [[]]
        else:
            ids = self.order(epoch)[start : start + count]
            images, captions = self._reader.read(ids)
        draws = _hash(self.seed, epoch, ids) if self._training else np.zeros(len(ids), np.uint64)
        chosen = [
            texts[draw % len(texts)] if texts else b"" for texts, draw in zip(captions, draws.tolist(), strict=True)
        ]
        # The upper bits: the lower ones have chosen the caption.
        seeds = np.stack([(draws >> 33).astype(np.int64), ids], axis=1)
        return np.full(len(ids), epoch), ids, seeds, np.array(images, object), np.array(chosen, object)


class StreamedEpochs(_Epochs):
    """Epochs over a `tf.data.Dataset`."""

    def __init__(self, source: Any, seed: int, preprocessor: Any):
        super().__init__(source, seed, preprocessor)
        size = int(source.cardinality())
        self.num_samples = size if size >= 0 else None

    def name(self, index: int) -> str:
        return f"element {index} of the epoch"

    def stream_seed(self, epoch: Any) -> Any:
        """The seed of an epoch, in graph."""
        return self.seed * 1_000_003 + epoch


def _hash(seed: int, epoch: int, ids: np.ndarray) -> np.ndarray:
    """A random 64-bit number for each sample that depends on these three alone (SplitMix64's finaliser)."""
    (base,) = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    with np.errstate(over="ignore"):
        x = base + ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
