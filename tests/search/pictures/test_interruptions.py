"""Killed, concurrent and failing updates; readers meanwhile; compaction; a watched folder."""

import errno
import os
import signal
import sqlite3
import threading
import time

import numpy as np
import pytest
from picture_folders import build_embedder, draw, names
from PIL import Image
from subprocesses import REPOSITORY, forking  # noqa: F401

from keras_clip import engines
from keras_clip.search import PictureIndex, update_index, watch
from keras_clip.search.pictures import compaction, facts, rows, thumbnails, updating

pytestmark = pytest.mark.backend_free
