"""The readers of image-caption pairs: one file for each form of storage, one interface, one table of forms."""

from keras_clip.data.readers.forms import open_reader
from keras_clip.data.readers.paths import find_files
from keras_clip.data.readers.reader import Captions, Reader
