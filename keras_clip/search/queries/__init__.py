"""Queries: text and pictures to ranked results."""

from keras_clip.search.queries.clustering import Cluster
from keras_clip.search.queries.copies import find_copies
from keras_clip.search.queries.cursors import CursorError, StaleCursor
from keras_clip.search.queries.filters import Filters
from keras_clip.search.queries.query import Query, Term, parse
from keras_clip.search.queries.searcher import Page, Result, Searcher
