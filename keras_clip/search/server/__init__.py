"""The server of the page: a Starlette application with a JSON API, for one person on one machine."""

from keras_clip.search.server.application import create_application
from keras_clip.search.server.errors import ApiError
from keras_clip.search.server.library import Library
from keras_clip.search.server.serving import serve
