"""Keeps an index up to date while files come, change and go."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from keras_clip.engines import Engine
from keras_clip.model import CLIPModel, ImageEmbedder
from keras_clip.search.pictures.indexed_model import IndexedModel
from keras_clip.search.pictures.updating import Changes, Updater

# The pause is at least this many times as long as the update before it, so that scanning a slow disk leaves it free.
_PAUSE = 10


def watch(
    folder: str | os.PathLike,
    roots: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    clip: CLIPModel | ImageEmbedder | str | os.PathLike | None = None,
    *,
    interval: float = 2.0,
    on_change: Callable[[Changes], None] | None = None,
    stop: threading.Event | None = None,
    engine: str | Engine | None = None,
    batch_size: int = 32,
    fast_jpeg: bool = False,
    progress: bool = False,
) -> None:
    """Updates an index again and again: see `update_index`.

    Folders are scanned for sizes and times of change, which works on network drives too, where the system does not tell
    of changes. 100,000 files take about a second.

    Args:
        folder: see `update_index`.
        roots: see `update_index`.
        clip: see `update_index`. It is loaded once.
        interval: float > 0. Seconds between two scans; ten times the duration of a scan if that is longer.
        on_change: function of the `Changes` of the first update, and of each later one that changed something.
        stop: ends the watch when it is set, after the present update. None: it never ends.
        engine: see `update_index`.
        batch_size: see `update_index`.
        fast_jpeg: see `update_index`.
        progress: see `update_index`.

    Raises:
        ValueError: see `update_index`.
    """
    if not interval > 0:
        raise ValueError(f"`interval` must be a positive number of seconds. Received: interval={interval!r}.")
    stop = stop or threading.Event()
    updater = Updater(Path(folder), IndexedModel(clip), engine, batch_size, fast_jpeg=fast_jpeg, progress=progress)
    is_first = True
    while not stop.is_set():
        began = time.monotonic()
        changes = updater.update(roots)
        if on_change is not None and (is_first or not changes.is_empty):
            on_change(changes)
        is_first = False
        # A long update encoded pictures; only its scan would be repeated.
        took = time.monotonic() - began if changes.is_empty else 0
        stop.wait(max(interval, _PAUSE * took))
