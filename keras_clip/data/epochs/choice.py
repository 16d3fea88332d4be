"""Chooses the kind of epochs that fits a source."""

from typing import Any

from keras_clip.data.epochs.base import Epochs
from keras_clip.data.epochs.indexed import IndexedEpochs
from keras_clip.data.epochs.streamed import StreamedEpochs
from keras_clip.data.readers import Reader, Stream


def make_epochs(reader: Reader | Stream, training: bool, *options: Any, shuffle: str = "samples") -> Epochs:
    """Returns the epochs over the samples of a source.

    Args:
        reader: as `open_reader` returns it.
        training: whether samples are shuffled, and broken ones replaced.
        *options: of `Epochs`.
        shuffle: "samples" or "blocks", as of `SampleOrder`.

    Returns:
        `IndexedEpochs` or `StreamedEpochs`.

    Raises:
        ValueError: a stream by blocks.
    """
    if not isinstance(reader, Stream):
        return IndexedEpochs(reader, training, *options, shuffle=shuffle)
    if shuffle != "samples":
        raise ValueError(
            f"A stream has no blocks; it is shuffled within 1,024 samples. Received: shuffle={shuffle!r}. Leave it out."
        )
    return StreamedEpochs(reader, training, *options)
