"""Passes over the samples: counts epochs, resumes in the middle of one, and records the samples that are skipped."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from keras_clip.data.image_files import reason_of
from keras_clip.data.skipped import SkippedSamples

if TYPE_CHECKING:
    import tensorflow as tf


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


class Epochs(ABC):
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

    @abstractmethod
    def samples(self, decode: Callable) -> "tf.data.Dataset":
        """Returns the samples of the next pass over the data, without broken ones.

        Args:
            decode: graph function (image, crop seed, caption) -> uint8 (H, W, 3), which fails for a broken sample. Its
                attribute `nothing` is an empty image.

        Returns:
            Dataset of (place, pixels, caption); `place` is int64 (3,) as of `begin`. In training, other samples follow
            the end of the epoch, to replace broken ones.
        """

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
            return "no caption", "white space only" if caption else ""
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


def first_place(epochs: Any) -> "tf.data.Dataset":
    """Returns a dataset of one element, the place where this pass begins: int64 (epoch, step, position)."""
    import tensorflow as tf

    def begin(_):
        place = tf.numpy_function(epochs.begin, (), tf.int64)
        return tf.ensure_shape(place, (3,))

    return tf.data.Dataset.from_tensors(0).map(begin)


def call_python(function: Callable, inputs: Sequence, dtype: Any) -> Any:
    """Returns the scalar that a Python function returns for the values of tensors."""
    import tensorflow as tf

    output = tf.numpy_function(function, inputs, dtype)
    output.set_shape(())
    return output


def parallel_images() -> int:
    """Returns the number of images to decode at a time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Results keep their order: with one image per core, the cores would wait for a large image.
    return 2 * cores
