"""Search of one's own pictures by words and pictures: an index that grows, queries, labels and a page.

Nothing leaves the machine, and nothing is written beside the pictures.
"""

from keras_clip.search.labels import Classes, Labelling, SavedClass, train_probe
from keras_clip.search.pictures import Changes, Picture, PictureIndex, update_index, watch
from keras_clip.search.queries import (
    Cluster,
    CursorError,
    Filters,
    Page,
    Query,
    Result,
    Searcher,
    StaleCursor,
    Term,
    find_copies,
    parse,
)
from keras_clip.search.vectors import ExactIndex, Index, QdrantIndex, UsearchIndex
