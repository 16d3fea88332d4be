"""Passes over a stream, whose samples can only be iterated over."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_clip.data.epochs.base import Epochs, call_python, first_place, parallel_images
from keras_clip.data.readers import Stream

if TYPE_CHECKING:
    import tensorflow as tf

# Number of samples within which a stream is shuffled in training.
_BUFFER = 1024


class StreamedEpochs(Epochs):
    """Epochs over a stream."""

    def __init__(self, stream: Stream, training: bool, *options: Any):
        super().__init__(*options)
        self._stream, self._training = stream.part((self._part, self._parts), training), training
        self.num_samples = self._stream.size

    def samples(self, decode: Callable) -> "tf.data.Dataset":
        """Returns (place, pixels, caption) of the samples, mapped in a graph, without broken ones.

        Errors of the stream itself must be raised, so each sample is tried separately.
        """
        import tensorflow as tf

        pairs = self._stream.pairs(parallel_images())
        failure = tf.data.Dataset.from_tensors((decode.nothing, False))

        def attempt(place, is_end, seed, image, caption):
            # Graphs have no `try`: this dataset has the decoded sample, unless decoding fails, and then the failure.
            trial = tf.data.Dataset.from_tensors((image, seed, caption)).map(lambda *sample: (decode(*sample), True))
            pixels, is_good = trial.ignore_errors().concatenate(failure).take(1).get_single_element()
            return place, pixels, is_good, is_end, image, caption

        passes = first_place(self).flat_map(lambda place: self._from_place(pairs, place))
        tried = passes.map(attempt, num_parallel_calls=parallel_images(), deterministic=True)
        good = tried.enumerate().filter(self._is_good)
        return good.map(lambda _, sample: (sample[0], sample[1], sample[-1]))

    def _from_place(self, pairs, place):
        """Returns (place, is end, crop seed, image, caption) of the samples of a pass that begins at a place."""
        import tensorflow as tf

        def number(position, pair):
            image, captions = pair
            seed = tf.stack([self.stream_seed(place[0]), position])
            count = tf.size(captions)
            choice = tf.random.stateless_uniform((), seed, 0, tf.maximum(count, 1), tf.int32) if self._training else 0
            caption = tf.cond(count > 0, lambda: captions[choice], lambda: tf.constant(b""))
            return place, False, seed, image, caption

        # Sets the seed of this graph only. A global seed would change the order, and a global seed of 0 would break
        # seeds in the graph.
        tf.compat.v1.set_random_seed(1)
        shuffled = pairs.shuffle(_BUFFER, seed=self.stream_seed(place[0])) if self._training else pairs
        samples = shuffled.enumerate().map(number)
        is_array = pairs.element_spec[0].dtype == tf.uint8
        no_image = tf.zeros((0, 0, 3), tf.uint8) if is_array else tf.constant(b"")
        end = (place, True, tf.zeros(2, tf.int64), no_image, tf.constant(b""))
        once = samples.concatenate(tf.data.Dataset.from_tensors(end))
        # As for indexed sources, a second pass replaces broken samples. Earlier samples are read and shuffled again,
        # but not decoded.
        twice = once.concatenate(samples) if self._training and self.num_samples else once
        return twice.skip(self._elements_before(place))

    def _elements_before(self, place):
        """Returns the number of elements before a place. The end of a pass is also an element."""
        import tensorflow as tf

        size = self.num_samples
        return place[2] if size is None else place[2] + tf.cast(place[2] > size, tf.int64)

    def _is_good(self, count, sample):
        """Returns whether a tried sample is good; records the others, and the end of the pass."""
        import tensorflow as tf

        place, _, is_good, is_end, image, caption = sample

        def report():
            at = (place[0], count + self._elements_before(place))
            return tf.cond(
                is_end,
                lambda: call_python(self.end, at, tf.bool),
                lambda: call_python(self.skip, (*at, image, caption), tf.bool),
            )

        return tf.cond(is_good, lambda: True, report)

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
