"""The roots of an index: the folders whose pictures it has."""

import os
import sqlite3
from pathlib import Path

_ROWS = 5_000


def check_roots(given: list[bytes], folder: Path) -> None:
    """Raises an error unless new roots are folders, and neither the folder of the index nor inside it."""
    index = os.path.realpath(os.fsencode(folder))
    for path in given:
        real = os.path.realpath(path)
        if real == index or real.startswith(index.rstrip(b"/") + b"/"):
            raise ValueError(
                f"An index must have a folder of its own. Received: {os.fsdecode(path)!r} as a folder of pictures, and "
                f"{os.fspath(folder)!r} for the index. Give another one for the index."
            )


def enter_roots(
    connection: sqlite3.Connection, known: dict[int, bytes], given: list[bytes] | None, folder: Path
) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """Adds new roots. The caller is in a transaction.

    A folder inside another root is a part of that root, which is scanned instead. A root that lies inside a new one is
    merged into it: its pictures keep their ids.

    Args:
        connection: the writer's connection.
        known: absolute path of each root that the index has.
        given: absolute paths of the folders to scan; None: all.
        folder: folder of the index, for messages.

    Returns:
        All roots, and those to be scanned, {id: absolute path}.

    Raises:
        FileNotFoundError: a new root does not exist.
        ValueError: a new root is no folder, or there are no roots.
    """
    roots, scanned = dict(known), set(known) if given is None else set()
    for path in given or ():
        place = _holder(path, roots)
        if place is None:
            require_folder(path)
            place = 1 + max(
                max(roots, default=-1), connection.execute("SELECT COALESCE(MAX(root), -1) FROM pictures").fetchone()[0]
            )
            connection.execute("INSERT INTO roots VALUES (?, ?)", (place, path))
            for inner in [number for number, root in roots.items() if _inside(root, path) is not None]:
                _merge(connection, inner, _inside(roots.pop(inner), path), place)
                scanned.discard(inner)
            roots[place] = path
        scanned.add(place)
    if not roots:
        raise ValueError(f"The index must have a folder of pictures. Received: {folder}, which has none. Pass `roots`.")
    return roots, {number: roots[number] for number in sorted(scanned)}


def _holder(path: bytes, roots: dict[int, bytes]) -> int | None:
    """The root that is or holds a folder."""
    equal = (number for number, root in roots.items() if root == path)
    return next(equal, next((number for number, root in roots.items() if _inside(path, root) is not None), None))


def _inside(path: bytes, root: bytes) -> bytes | None:
    """The path relative to a root in which a scan finds it; None if it does not, as where a part is hidden."""
    real, outer = os.path.realpath(path), os.path.realpath(root).rstrip(b"/")
    if real == (outer or b"/"):
        return b""
    if not real.startswith(outer + b"/"):
        return None
    inner = real[len(outer) + 1 :]
    return None if any(part.startswith(b".") for part in inner.split(b"/")) else inner


def require_folder(path: bytes) -> None:
    """Raises an error unless a new root is a folder that exists."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"A folder of pictures must exist. Received: {os.fsdecode(path)!r}.")
    if not os.path.isdir(path):
        raise ValueError(f"A root must be a folder of pictures. Received: {os.fsdecode(path)!r}, a file.")


def _merge(connection: sqlite3.Connection, inner: int, path: bytes, outer: int) -> None:
    prefix, last = path + b"/" if path else b"", -1
    while block := connection.execute(
        "SELECT id, path FROM pictures WHERE root = ? AND id > ? ORDER BY id LIMIT ?", (inner, last, _ROWS)
    ).fetchall():
        last = block[-1][0]
        moved = [(outer, prefix + each, id) for id, each in block]
        connection.executemany("UPDATE pictures SET root = ?, path = ? WHERE id = ?", moved)
    # They are tried again.
    connection.execute("DELETE FROM broken WHERE root = ?", (inner,))
    connection.execute("DELETE FROM roots WHERE id = ?", (inner,))
