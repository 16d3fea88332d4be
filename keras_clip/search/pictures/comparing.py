"""Compares what was found below the roots with the index: what is unchanged, renamed, copied, gone, or to be read.

The lists are temporary tables on the disk, so that memory does not grow with the number of pictures.
"""

import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from keras_clip.data.decoding import Broken
from keras_clip.search.pictures import facts, rows, scanning
from keras_clip.search.pictures.database import transaction

# Rows of a table that are written or read at once, and files whose digests are computed between two transactions.
_ROWS, _FILES = 5_000, 500
# `todo` has the files that are not as the index knows them, until they are settled without a model.
_TABLES = """
CREATE TEMP TABLE found (
    root INTEGER, path BLOB, stem BLOB, size INTEGER, mtime_ns INTEGER, caption_stamp TEXT,
    PRIMARY KEY (root, path)
) WITHOUT ROWID;
CREATE TEMP TABLE texts (root INTEGER, stem BLOB, stamp TEXT, PRIMARY KEY (root, stem)) WITHOUT ROWID;
CREATE TEMP TABLE todo (
    number INTEGER PRIMARY KEY, root INTEGER, path BLOB, caption_stamp INTEGER,
    size INTEGER, mtime_ns INTEGER, sha256 TEXT, UNIQUE (root, path)
);
"""
# Whether the file of an alive picture p is no longer where the index has it.
_IS_FREED = """
(NOT EXISTS (SELECT 1 FROM found WHERE found.root = p.root AND found.path = p.path)
 OR EXISTS (SELECT 1 FROM todo WHERE todo.root = p.root AND todo.path = p.path AND todo.sha256 IS NOT p.sha256))
"""


def begin(connection: sqlite3.Connection) -> None:
    """Makes the temporary tables, empty."""
    for name in ("found", "texts", "todo"):
        connection.execute(f"DROP TABLE IF EXISTS temp.{name}")
    for statement in filter(str.strip, _TABLES.split(";")):
        connection.execute(statement)


class Scanned:
    """What was found below the roots beside the pictures.

    Attributes:
        unreadable: (root, path relative to it, detail) of folders and files whose state is unknown.
        passed_over: the number of other files by extension.
    """

    def __init__(self):
        self.unreadable: list[tuple[int, bytes, str]] = []
        self.passed_over: Counter[str] = Counter()


def scan(
    connection: sqlite3.Connection, roots: dict[int, bytes], left_out: frozenset[bytes], progress: Callable[[int], None]
) -> Scanned:
    """Fills the table of what was found. What is below a folder that cannot be read is taken for unchanged.

    Args:
        connection: the writer's connection.
        roots: absolute path of each root that is scanned.
        left_out: see `scanning.scan`; the roots are among them.
        progress: is called with numbers of pictures that were found.

    Returns:
        What was found beside the pictures.
    """
    scanned = Scanned()
    for root, path in roots.items():
        try:
            for block in _blocks(scanning.scan(path, left_out - {os.path.realpath(path)})):
                _insert(connection, root, block, scanned)
                progress(sum(each.kind == scanning.PICTURE for each in block))
        except OSError as error:
            # A disk that is not connected: nothing below is taken for removed.
            scanned.unreadable.append((root, b"", error.strerror or str(error)))
    connection.execute(
        "UPDATE found SET caption_stamp = COALESCE((SELECT stamp FROM texts WHERE texts.root = found.root AND "
        "texts.stem = found.stem), ?)",
        (facts.NO_CAPTION,),
    )
    for root, path, _ in scanned.unreadable:
        low, high = (path + b"/", path + b"0") if path else (b"", b"\xff" * 8)
        connection.execute(
            "INSERT OR IGNORE INTO found SELECT root, path, NULL, size, mtime_ns, caption_stamp FROM pictures "
            "WHERE removed = 0 AND root = ? AND (path = ? OR path >= ? AND path < ?)",
            (root, path, low, high),
        )
    # Pictures of roots that are not scanned stay as they are.
    marks = ", ".join(map(str, roots))
    connection.execute(
        "INSERT OR IGNORE INTO found SELECT root, path, NULL, size, mtime_ns, caption_stamp FROM pictures "
        f"WHERE removed = 0 AND root NOT IN ({marks})"
    )
    return scanned


def _blocks(found: Iterable[scanning.Found]) -> Iterator[list[scanning.Found]]:
    block = []
    for each in found:
        block.append(each)
        if len(block) >= _ROWS:
            yield block
            block = []
    yield block


def _insert(connection: sqlite3.Connection, root: int, block: list[scanning.Found], scanned: Scanned) -> None:
    pictures, texts = [], []
    for each in block:
        if each.kind == scanning.PICTURE:
            pictures.append((root, each.path, os.path.splitext(each.path)[0], each.size, each.mtime_ns))
        elif each.kind == scanning.TEXT:
            texts.append((root, each.path, f"{each.mtime_ns} {each.size}"))
        elif each.kind == scanning.UNREADABLE:
            scanned.unreadable.append((root, each.path, each.detail))
        else:
            scanned.passed_over[each.detail] += 1
    connection.executemany(
        "INSERT OR IGNORE INTO found (root, path, stem, size, mtime_ns) VALUES (?, ?, ?, ?, ?)", pictures
    )
    connection.executemany("INSERT OR IGNORE INTO texts VALUES (?, ?, ?)", texts)


def compare(connection: sqlite3.Connection) -> int:
    """Fills the table of what is to be done: new files, and those of another size or time of change.

    Returns:
        int. The number of unchanged pictures.
    """
    connection.execute(
        "INSERT INTO todo (root, path, caption_stamp, size, mtime_ns) "
        "SELECT found.root, found.path, found.caption_stamp, found.size, found.mtime_ns FROM found "
        "LEFT JOIN pictures p ON p.root = found.root AND p.path = found.path AND p.removed = 0 "
        "LEFT JOIN broken b ON b.root = found.root AND b.path = found.path "
        "WHERE (p.id IS NULL OR p.size != found.size OR p.mtime_ns != found.mtime_ns) "
        "AND (b.path IS NULL OR b.size != found.size OR b.mtime_ns != found.mtime_ns) "
        "ORDER BY found.root, found.path"
    )
    return connection.execute(
        "SELECT COUNT(*) FROM found JOIN pictures p ON p.root = found.root AND p.path = found.path AND p.removed = 0 "
        "AND p.size = found.size AND p.mtime_ns = found.mtime_ns"
    ).fetchone()[0]


def digest(connection: sqlite3.Connection, roots: dict[int, bytes], progress: Callable[[int, int], None]) -> None:
    """Computes the digests of files of the size of a picture that the index has or had: only these can be the same.

    Args:
        connection: the writer's connection.
        roots: absolute path of each root.
        progress: is called with (number of files that are done, number of all).
    """
    where = "FROM todo WHERE number > ? AND EXISTS (SELECT 1 FROM pictures p WHERE p.size = todo.size)"
    count, done, last = connection.execute(f"SELECT COUNT(*) {where}", (0,)).fetchone()[0], 0, 0
    while block := connection.execute(
        f"SELECT number, root, path {where} ORDER BY number LIMIT {_FILES}", (last,)
    ).fetchall():
        for number, root, path in block:
            file = facts.content(os.path.join(os.path.realpath(roots[root]), path))
            if isinstance(file, facts.Content):
                connection.execute(
                    "UPDATE todo SET size = ?, mtime_ns = ?, sha256 = ? WHERE number = ?",
                    (len(file.data), file.mtime_ns, file.sha256, number),
                )
            elif file is None:
                connection.execute("DELETE FROM todo WHERE number = ?", (number,))
            last, done = number, done + 1
            progress(done, count)


def settle(connection: sqlite3.Connection, folder: Path, changes: Counter, facts_of_index: dict) -> None:
    """Enters what needs no model: touched, renamed, returned, copied and removed files. The caller is in a transaction.

    Args:
        connection: the writer's connection.
        folder: folder of the index.
        changes: is added to.
        facts_of_index: `database.read_meta`; `rows` and `next_id` are changed.
    """
    last, displaced = 0, set()
    while block := connection.execute(
        "SELECT number, root, path, size, mtime_ns, sha256 FROM todo WHERE sha256 IS NOT NULL AND number > ? "
        f"ORDER BY number LIMIT {_FILES}",
        (last,),
    ).fetchall():
        last = block[-1][0]
        copies = []
        for number, root, path, size, mtime_ns, sha256 in block:
            # The row at this place may have been renamed since.
            at_place = connection.execute(
                "SELECT id, sha256 FROM pictures WHERE root = ? AND path = ? AND removed = 0", (root, path)
            ).fetchone()
            if at_place and at_place[1] == sha256:
                connection.execute(
                    "UPDATE pictures SET size = ?, mtime_ns = ? WHERE id = ?", (size, mtime_ns, at_place[0])
                )
                changes["unchanged"] += 1
            else:
                source = connection.execute(
                    f"SELECT id, removed, {_IS_FREED} AS is_freed FROM pictures p WHERE sha256 = ? "
                    "ORDER BY removed = 0 AND is_freed DESC, removed DESC, id LIMIT 1",
                    (sha256,),
                ).fetchone()
                if source is None:
                    continue
                if at_place:
                    connection.execute("UPDATE pictures SET removed = 1 WHERE id = ?", at_place[:1])
                id, was_removed, is_freed = source
                if was_removed or is_freed:
                    connection.execute(
                        "UPDATE pictures SET root = ?, path = ?, size = ?, mtime_ns = ?, removed = 0, "
                        "caption_stamp = NULL WHERE id = ?",
                        (root, path, size, mtime_ns, id),
                    )
                else:
                    copies.append((id, root, path, size, mtime_ns))
                if id in displaced or (is_freed and not was_removed):
                    changes["renamed"] += 1
                    # Another file took its place a moment ago, so it was counted as removed.
                    changes["removed"] -= id in displaced
                    displaced.discard(id)
                    if at_place:
                        displaced.add(at_place[0])
                        changes["removed"] += 1
                else:
                    changes["changed" if at_place else "added"] += 1
            connection.execute("DELETE FROM broken WHERE root = ? AND path = ?", (root, path))
            connection.execute("DELETE FROM todo WHERE number = ?", (number,))
        _copy(connection, folder, copies, facts_of_index)


def _copy(connection: sqlite3.Connection, folder: Path, copies: list[tuple], facts_of_index: dict) -> None:
    """Adds pictures of the content of others, with their embeddings."""
    if not copies:
        return
    sources = [connection.execute("SELECT row FROM pictures WHERE id = ?", (id,)).fetchone()[0] for id, *_ in copies]
    start = facts_of_index["rows"]
    for name in rows.COLUMNS:
        path = rows.path_of(folder, name, facts_of_index["generation"])
        values = rows.mapped(path, start, facts_of_index["widths"][name])
        rows.append(path, start, values[sources])
    for place, (id, root, path, size, mtime_ns) in enumerate(copies):
        connection.execute(
            "INSERT INTO pictures SELECT ?, ?, ?, ?, ?, ?, sha256, width, height, taken, format, '', description, "
            "NULL, perceptual_hash, 0 FROM pictures WHERE id = ?",
            (facts_of_index["next_id"] + place, start + place, root, path, size, mtime_ns, id),
        )
    facts_of_index["rows"] += len(copies)
    facts_of_index["next_id"] += len(copies)


def remove_missing(connection: sqlite3.Connection) -> int:
    """Marks pictures without a file as removed, and forgets broken files that are gone.

    Returns:
        int. The number of pictures.
    """
    gone = connection.execute(
        "UPDATE pictures SET removed = 1 WHERE removed = 0 AND NOT EXISTS "
        "(SELECT 1 FROM found WHERE found.root = pictures.root AND found.path = pictures.path)"
    ).rowcount
    connection.execute(
        "DELETE FROM broken WHERE NOT EXISTS "
        "(SELECT 1 FROM found WHERE found.root = broken.root AND found.path = broken.path)"
    )
    return gone


def update_captions(connection: sqlite3.Connection, roots: dict[int, bytes]) -> int:
    """Reads the texts beside pictures that changed since they were read.

    Args:
        connection: the writer's connection.
        roots: absolute path of each root.

    Returns:
        int. The number of pictures with another caption.
    """
    changed, last = 0, -1
    while block := connection.execute(
        "SELECT p.id, p.root, p.path, found.caption_stamp, p.caption FROM pictures p JOIN found "
        "ON found.root = p.root AND found.path = p.path WHERE p.removed = 0 AND p.id > ? "
        f"AND p.caption_stamp IS NOT found.caption_stamp ORDER BY p.id LIMIT {_FILES}",
        (last,),
    ).fetchall():
        last = block[-1][0]
        with transaction(connection):
            for id, root, path, stamp, before in block:
                whole = os.path.join(os.path.realpath(roots[root]), path)
                caption = facts.caption_of(whole) if stamp != facts.NO_CAPTION else ""
                connection.execute(
                    "UPDATE pictures SET caption = ?, caption_stamp = ? WHERE id = ?", (caption, stamp, id)
                )
                changed += caption != before
    return changed


def enter_unreadable(connection: sqlite3.Connection, unreadable: list[tuple[int, bytes, str]]) -> None:
    """Enters folders that cannot be read among the broken files."""
    connection.executemany(
        "INSERT OR REPLACE INTO broken VALUES (?, ?, 0, ?, 'unreadable folder', ?)",
        [(root, path, facts.UNKNOWN_TIME, detail) for root, path, detail in unreadable],
    )


def enter_broken(connection: sqlite3.Connection, root: int, path: bytes, size: int, mtime_ns: int, why: Broken) -> int:
    """Enters a file that is no picture. What was at its place stays while it is unknown what is there now.

    Returns:
        int. 1 if a picture that was at its place is removed, else 0.
    """
    connection.execute(
        "INSERT OR REPLACE INTO broken VALUES (?, ?, ?, ?, ?, ?)", (root, path, size, mtime_ns, why.reason, why.detail)
    )
    if why.reason in facts.PASSING:
        return 0
    return connection.execute(
        "UPDATE pictures SET removed = 1 WHERE root = ? AND path = ? AND removed = 0", (root, path)
    ).rowcount
