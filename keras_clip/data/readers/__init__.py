"""The readers of image-caption pairs: a file for each storage form, a common interface, and a table of forms."""

from keras_clip.data.readers.forms import open_reader
from keras_clip.data.readers.paths import find_files
from keras_clip.data.readers.reader import Captions, Reader
