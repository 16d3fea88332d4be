"""The database of an index: SQLite, with one writer, and readers that see the latest transaction that is complete."""

import contextlib
import errno
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FORMAT = 2
_NAME = "index.sqlite"
# A cure of an error. The labels belong to the content of files, so that they fit the new index.
BUILD_AGAIN = "delete the folder, but keep labels.sqlite with the labels by hand, and build the index again"
# Milliseconds that a reader or writer waits for another transaction.
_PATIENCE = 60_000
# Paths are bytes: names need not be UTF-8. An id is never given twice; `row` is the place among the embeddings.
# `caption_stamp` differs between versions of the text beside a picture; NULL: it was not read at this place.
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE roots (id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE);
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY, row INTEGER NOT NULL, root INTEGER NOT NULL, path BLOB NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, sha256 TEXT NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL,
    taken INTEGER NOT NULL, format TEXT NOT NULL, caption TEXT NOT NULL, description TEXT NOT NULL,
    caption_stamp TEXT, perceptual_hash INTEGER NOT NULL, removed INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX place ON pictures (root, path) WHERE removed = 0;
CREATE INDEX content ON pictures (sha256);
CREATE INDEX size ON pictures (size);
CREATE TABLE broken (
    root INTEGER NOT NULL, path BLOB NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    reason TEXT NOT NULL, detail TEXT NOT NULL, PRIMARY KEY (root, path)
) WITHOUT ROWID;
"""


def path_of(folder: Path) -> Path:
    """Returns the file of the database of an index."""
    return folder / _NAME


def open_to_read(folder: Path) -> sqlite3.Connection:
    """Opens the database of an index for reading.

    Args:
        folder: folder of the index.

    Returns:
        A connection, which any thread may use, one at a time.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: a damaged database, or one of another format.
    """
    path = path_of(folder)
    if not path.exists():
        raise FileNotFoundError(_no_index(folder))
    # On a medium that cannot be written to, SQLite cannot make its files beside the database; nobody else can either.
    mode = "ro" if os.access(folder, os.W_OK) else "ro&immutable=1"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
    )
    try:
        _begin(connection, folder)
        with explained(folder):
            if not _has_tables(connection):
                raise FileNotFoundError(_no_index(folder))
            _require_format(connection, folder)
    except BaseException:
        connection.close()
        raise
    return connection


def open_to_write(folder: Path, facts: Callable[[], dict[str, Any]]) -> sqlite3.Connection:
    """Opens the database of an index for writing, and creates it if there is none. The caller holds the lock.

    Args:
        folder: folder of the index.
        facts: function that returns what `meta` holds of a new index.

    Returns:
        A connection.

    Raises:
        ValueError: a damaged database, or one of another format.
    """
    connection = sqlite3.connect(path_of(folder), isolation_level=None, check_same_thread=False)
    try:
        _begin(connection, folder)
        with explained(folder):
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            # A process that was killed may have left a file without tables.
            if not _has_tables(connection):
                new = {"format": FORMAT, "version": 0, "rows": 0, "generation": 0, "next_id": 0, **facts()}
                with transaction(connection):
                    for statement in filter(str.strip, _TABLES.split(";")):
                        connection.execute(statement)
                    write_meta(connection, new)
            _require_format(connection, folder)
    except BaseException:
        connection.close()
        raise
    return connection


def _begin(connection: sqlite3.Connection, folder: Path) -> None:
    with explained(folder):
        connection.execute(f"PRAGMA busy_timeout = {_PATIENCE}")


def _has_tables(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone() is not None


def _require_format(connection: sqlite3.Connection, folder: Path) -> None:
    found = read_meta(connection)["format"]
    if found != FORMAT:
        cure = "Upgrade keras_clip" if found > FORMAT else f"{BUILD_AGAIN[0].upper()}{BUILD_AGAIN[1:]}"
        raise ValueError(
            f"The index must be of format {FORMAT}. Received: {folder} of format {found}. {cure}, or give another "
            "folder."
        )


def _no_index(folder: Path) -> str:
    return (
        f"There must be an index of pictures. Received: {folder}, which has none. `keras_clip.search.update_index` or "
        "`python examples/search.py index` makes one."
    )


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """A block whose changes are made all together, or not at all; of kind "DEFERRED", one that reads one state."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Raises errors of SQLite as those that callers expect: a full disk, or a damaged index."""
    try:
        yield
    except sqlite3.OperationalError as error:
        is_full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        raise OSError(errno.ENOSPC if is_full else errno.EIO, f"{error}: the index {folder}") from error
    except sqlite3.DatabaseError as error:
        raise ValueError(
            f"The database of an index must be whole. Received: {path_of(folder)}: {error}. Restore a copy, or "
            f"{BUILD_AGAIN}."
        ) from error


def read_meta(connection: sqlite3.Connection) -> dict[str, Any]:
    """Returns the facts of the whole index by name."""
    return {key: json.loads(value) for key, value in connection.execute("SELECT key, value FROM meta")}


def write_meta(connection: sqlite3.Connection, facts: dict[str, Any]) -> None:
    """Changes facts of the whole index."""
    rows = [(key, json.dumps(value)) for key, value in facts.items()]
    connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)
