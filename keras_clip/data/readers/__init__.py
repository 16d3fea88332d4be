"""The readers of image-caption pairs: one interface, a table of the forms of storage, and a file for each form.

`storage` and `elements` are what several forms have in common: files on disk, and what an element says of its pair.
"""

from keras_clip.data.readers.forms import open_reader
from keras_clip.data.readers.reader import Captions, Reader, Stream
from keras_clip.data.readers.storage.paths import find_files
