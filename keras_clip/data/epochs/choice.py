"""Chooses the kind of epochs that fits a source."""

from typing import Any

from keras_clip.data.epochs.base import Epochs
from keras_clip.data.epochs.indexed import IndexedEpochs
from keras_clip.data.epochs.streamed import StreamedEpochs
from keras_clip.data.readers import Reader, Stream


def make_epochs(reader: Reader | Stream, training: bool, *options: Any) -> Epochs:
    """Returns the epochs over the samples of a source.

    Args:
        reader: as `open_reader` returns it.
        training: whether samples are shuffled, and broken ones replaced.
        *options: of `Epochs`.

    Returns:
        `IndexedEpochs` or `StreamedEpochs`.
    """
    return (StreamedEpochs if isinstance(reader, Stream) else IndexedEpochs)(reader, training, *options)
