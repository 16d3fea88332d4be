"""Rewrites the rows of an index without those of pictures that were removed, when most are of such pictures."""

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

import numpy as np

from keras_clip.files import PART
from keras_clip.lock import Lock
from keras_clip.search.pictures import database, rows

# Below this number, removed rows stay: their pictures come back without being encoded, as when a disk is connected
# again.
_FEWEST = 1024
_ROWS = 8192
# Seconds after which a temporary file was left by a process that was killed.
_STALE = 3600


def compact(connection: sqlite3.Connection, folder: Path, facts: dict[str, Any], lock: Lock) -> None:
    """Compacts the index if more than half of its rows are of removed pictures, which are forgotten.

    The new rows are files of a new generation, which count from one transaction on. A reader of the old ones keeps
    them mapped; pictures keep their ids.

    Args:
        connection: the writer's connection.
        folder: folder of the index.
        facts: `database.read_meta`, which is changed.
        lock: of the writer.
    """
    alive = connection.execute("SELECT COUNT(*) FROM pictures WHERE removed = 0").fetchone()[0]
    dead = facts["rows"] - alive
    if dead < _FEWEST or dead * 2 <= facts["rows"]:
        return
    kept = connection.execute("SELECT id, row FROM pictures WHERE removed = 0 ORDER BY row")
    pairs = np.fromiter(kept, np.dtype((np.int64, 2)), alive).reshape(-1, 2)
    generation = facts["generation"] + 1
    try:
        for name in rows.COLUMNS:
            old = rows.mapped(rows.path_of(folder, name, generation - 1), facts["rows"], facts["widths"][name])
            new = rows.path_of(folder, name, generation)
            new.unlink(missing_ok=True)
            for start in range(0, alive, _ROWS):
                rows.append(new, start, old[pairs[start : start + _ROWS, 1]])
        lock.require_held()
        with database.transaction(connection):
            connection.execute("DELETE FROM pictures WHERE removed = 1")
            numbered = ((place, id) for place, id in enumerate(pairs[:, 0].tolist()))
            connection.executemany("UPDATE pictures SET row = ? WHERE id = ?", numbered)
            changed = {"generation": generation, "rows": alive, "version": facts["version"] + 1}
            database.write_meta(connection, changed)
    except BaseException:
        remove_old_files(folder, generation - 1)
        raise
    facts.update(changed)
    # The old files may go when the transaction is on the disk for certain.
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    remove_old_files(folder, generation)
    _remove_thumbnails(connection, folder)


def remove_old_files(folder: Path, generation: int) -> None:
    """Removes rows of other generations, which a compaction that was killed may have left."""
    current = {rows.path_of(folder, name, generation) for name in rows.COLUMNS}
    for name in rows.COLUMNS:
        for path in set(folder.glob(f"{name}-*.f32")) - current:
            # On Windows, a file that a reader has mapped stays until the next time.
            with contextlib.suppress(PermissionError):
                path.unlink(missing_ok=True)


def _remove_thumbnails(connection: sqlite3.Connection, folder: Path) -> None:
    """Removes thumbnails of pictures that are forgotten, and what killed processes left."""
    for path in folder.glob("thumbnails/*/*"):
        if path.name.endswith(PART):
            is_needed = time.time() - path.stat().st_mtime < _STALE
        else:
            found = connection.execute("SELECT 1 FROM pictures WHERE sha256 = ? LIMIT 1", (path.stem,))
            is_needed = found.fetchone() is not None
        if not is_needed:
            path.unlink(missing_ok=True)
