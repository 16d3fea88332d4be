"""The index of folders of pictures on disk: facts, features, embeddings and thumbnails, brought up to date and read."""

from keras_clip.search.pictures.index import Picture, PictureIndex
from keras_clip.search.pictures.updating import Changes, update_index
from keras_clip.search.pictures.watching import watch
