"""Epochs over a reader or a stream: the order of the samples, their crops and captions, and the skipped samples."""

from keras_clip.data.epochs.base import Epochs, Place
from keras_clip.data.epochs.choice import make_epochs
from keras_clip.data.epochs.indexed import IndexedEpochs
from keras_clip.data.epochs.streamed import StreamedEpochs
