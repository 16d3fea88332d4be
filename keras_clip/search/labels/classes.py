"""Saved classes and labels by hand, in a database beside the index.

Labels by hand belong to the content of a picture, by the digest of its file: they stay when it is renamed, moved,
removed or found again, and all copies of a file have them.
"""

import contextlib
import json
import math
import os
import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from keras_clip.printable import printable

FORMAT = 1
FILE = "labels.sqlite"
MAX_CLASSES = 1000
MAX_NAME, MAX_PROMPT, MAX_PROMPTS = 200, 500, 100
# Milliseconds that a transaction waits for that of another process.
_PATIENCE = 60_000
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE classes (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, prompts TEXT NOT NULL, threshold REAL NOT NULL
);
CREATE TABLE by_hand (
    class INTEGER NOT NULL, sha256 TEXT NOT NULL, value INTEGER NOT NULL, PRIMARY KEY (class, sha256)
) WITHOUT ROWID;
CREATE INDEX of_picture ON by_hand (sha256);
"""
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class SavedClass:
    """A class of pictures.

    Args:
        id: int, which no other class ever has.
        name: str.
        prompts: texts that describe it, such as "a photo of a cat"; their mean is compared with pictures.
        threshold: float, the cosine from which a picture belongs to it.
    """

    id: int
    name: str
    prompts: tuple[str, ...]
    threshold: float


class Classes:
    """The classes and labels by hand of an index. Any threads and processes may use one folder at the same time.

    Every method is one transaction: what has returned is on the disk, also if the process is killed then.

    Args:
        folder: folder of the index. The database `labels.sqlite` is created in it.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a damaged database, or one of another format.
    """

    def __init__(self, folder: str | os.PathLike):
        self._path, self._mutex = Path(folder) / FILE, threading.Lock()
        if not self._path.parent.is_dir():
            raise FileNotFoundError(f"Labels are kept beside an index. Received: {folder}, which is no folder.")
        self._connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            self._begin()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Closes the database."""
        with self._mutex:
            self._connection.close()

    @property
    def revision(self) -> int:
        """A number that grows with every change, by whichever process."""
        with self._reading() as connection:
            return _revision(connection)

    def all(self) -> list[SavedClass]:
        """Returns all classes by name."""
        with self._reading() as connection:
            return [_saved(row) for row in connection.execute("SELECT * FROM classes ORDER BY name, id")]

    def get(self, class_id: int) -> SavedClass:
        """Returns a class; a `KeyError` if there is none of this id."""
        with self._reading() as connection:
            return _existing(connection, class_id)

    def named(self, name: str) -> SavedClass:
        """Returns the class of a name; a `KeyError` if there is none."""
        with self._reading() as connection:
            found = connection.execute("SELECT * FROM classes WHERE name = ?", (name,)).fetchone()
        if found is None:
            raise KeyError(f"There must be a class of this name. Received: {name!r}. Add it, or choose another one.")
        return _saved(found)

    def add(self, name: str, prompts: Sequence[str] | None = None, threshold: float = 0.0) -> SavedClass:
        """Adds a class.

        Args:
            name: 1 to 200 printable characters, not the name of another class.
            prompts: 1 to 100 texts that describe it. None: the name.
            threshold: float in [-1, 1].

        Returns:
            The class.

        Raises:
            ValueError: a name that there is already, other values, or more than 1000 classes.
        """
        prompts = [name] if prompts is None else prompts
        values = (_checked_name(name), _checked_prompts(prompts), _checked_threshold(threshold))
        with self._writing() as connection:
            if connection.execute("SELECT COUNT(*) FROM classes").fetchone()[0] >= MAX_CLASSES:
                raise ValueError(f"There may be at most {MAX_CLASSES} classes. Remove one.")
            with _unique(name):
                cursor = connection.execute("INSERT INTO classes (name, prompts, threshold) VALUES (?, ?, ?)", values)
            return _existing(connection, cursor.lastrowid)

    def change(
        self,
        class_id: int,
        name: str | None = None,
        prompts: Sequence[str] | None = None,
        threshold: float | None = None,
    ) -> SavedClass:
        """Changes what is given of a class.

        Args:
            class_id: int.
            name: as of `add`, or None.
            prompts: as of `add`, or None.
            threshold: as of `add`, or None.

        Returns:
            The class as it is now.

        Raises:
            KeyError: no such class.
            ValueError: as of `add`.
        """
        changes = {
            "name": None if name is None else _checked_name(name),
            "prompts": None if prompts is None else _checked_prompts(prompts),
            "threshold": None if threshold is None else _checked_threshold(threshold),
        }
        with self._writing() as connection:
            _existing(connection, class_id)
            for column, value in changes.items():
                if value is not None:
                    with _unique(name):
                        connection.execute(f"UPDATE classes SET {column} = ? WHERE id = ?", (value, class_id))
            return _existing(connection, class_id)

    def remove(self, class_id: int) -> None:
        """Removes a class and its labels; a `KeyError` if there is none of this id."""
        with self._writing() as connection:
            _existing(connection, class_id)
            connection.execute("DELETE FROM by_hand WHERE class = ?", (class_id,))
            connection.execute("DELETE FROM classes WHERE id = ?", (class_id,))

    def set(self, sha256s: Iterable[str], class_id: int, value: bool | None) -> int:
        """Labels pictures by hand.

        Args:
            sha256s: digests of their files, 64 hexadecimal digits each.
            class_id: int.
            value: True: they belong to the class. False: they do not. None: the model decides.

        Returns:
            int, the number of labels that changed.

        Raises:
            KeyError: no such class.
            ValueError: no digest, or another value.
        """
        digests = list(dict.fromkeys(sha256s))
        if wrong := [digest for digest in digests if not isinstance(digest, str) or not _SHA256.fullmatch(digest)]:
            raise ValueError(f"A picture is known by its SHA-256, 64 hexadecimal digits. Received: {wrong[0]!r}.")
        if value is not None and not isinstance(value, bool):
            raise ValueError(f"A label by hand is True, False or None. Received: value={value!r}.")
        with self._writing() as connection:
            _existing(connection, class_id)
            before = connection.total_changes
            if value is None:
                statement = "DELETE FROM by_hand WHERE class = ? AND sha256 = ?"
                connection.executemany(statement, [(class_id, digest) for digest in digests])
            else:
                connection.executemany(
                    "INSERT INTO by_hand VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value "
                    "WHERE value != excluded.value",
                    [(class_id, digest, int(value)) for digest in digests],
                )
            return connection.total_changes - before

    def by_hand(self, class_id: int) -> dict[str, bool]:
        """Returns the labels by hand of a class: digest of a file -> whether it belongs to the class."""
        with self._reading() as connection:
            found = connection.execute("SELECT sha256, value FROM by_hand WHERE class = ?", (class_id,))
            return {digest: bool(value) for digest, value in found}

    def by_hand_of(self, sha256s: Iterable[str]) -> dict[tuple[str, int], bool]:
        """Returns the labels by hand of pictures: (digest, id of the class) -> whether it belongs to it."""
        digests = json.dumps(list(sha256s))
        with self._reading() as connection:
            found = connection.execute(
                "SELECT sha256, class, value FROM by_hand WHERE sha256 IN (SELECT value FROM json_each(?))", (digests,)
            )
            return {(digest, class_id): bool(value) for digest, class_id, value in found}

    def _begin(self) -> None:
        with self._explained():
            connection = self._connection
            connection.execute(f"PRAGMA busy_timeout = {_PATIENCE}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            try:
                if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
                    for statement in filter(str.strip, _TABLES.split(";")):
                        connection.execute(statement)
                    connection.execute("INSERT INTO meta VALUES ('format', ?), ('revision', 0)", (FORMAT,))
            finally:
                connection.execute("COMMIT")
            found = connection.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
        if found != (FORMAT,):
            raise ValueError(f"Labels must be of format {FORMAT}. Received: {self._path} of format {found}.")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._mutex, self._explained():
            yield self._connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._mutex, self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'revision'")
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(f"{error}. Received: the labels {self._path}.") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"The database of labels must be whole. Received: {self._path}: {error}. Restore a copy of it."
            ) from error


def _revision(connection: sqlite3.Connection) -> int:
    return connection.execute("SELECT value FROM meta WHERE key = 'revision'").fetchone()[0]


def _saved(row: tuple) -> SavedClass:
    class_id, name, prompts, threshold = row
    return SavedClass(class_id, name, tuple(json.loads(prompts)), threshold)


def _existing(connection: sqlite3.Connection, class_id: int) -> SavedClass:
    found = connection.execute("SELECT * FROM classes WHERE id = ?", (class_id,)).fetchone()
    if found is None:
        raise KeyError(f"There must be a class of this id. Received: {class_id}. It may have been removed.")
    return _saved(found)


class ClassExists(ValueError):
    """There is a class of this name already."""


@contextlib.contextmanager
def _unique(name: str | None) -> Iterator[None]:
    try:
        yield
    except sqlite3.IntegrityError:
        raise ClassExists(f"The name of a class must be new. Received: {name!r}. Choose another name.") from None


def _checked_name(name: str) -> str:
    # A name is a folder of the export, a cell, a line and a word of the page.
    is_text = isinstance(name, str) and name == name.strip() and 0 < len(name) <= MAX_NAME
    if not is_text or printable(name) != name:
        raise ValueError(
            f"The name of a class must have 1 to {MAX_NAME} printable characters and no space at its ends. "
            f"Received: {name!r}."
        )
    return name


def _checked_prompts(prompts: Sequence[str]) -> str:
    prompts = list(prompts) if isinstance(prompts, (list, tuple)) else [None]
    if not 0 < len(prompts) <= MAX_PROMPTS or not all(_is_prompt(prompt) for prompt in prompts):
        raise ValueError(
            f"A class must have 1 to {MAX_PROMPTS} prompts of 1 to {MAX_PROMPT} characters. Received: {prompts!r:.200}."
        )
    return json.dumps(prompts)


def _is_prompt(prompt: str) -> bool:
    if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > MAX_PROMPT:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in prompt)


def _checked_threshold(threshold: float) -> float:
    is_number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
    if not is_number or not math.isfinite(threshold) or not -1 <= threshold <= 1:
        raise ValueError(f"A threshold must be a cosine, from -1 to 1. Received: threshold={threshold!r}.")
    return float(threshold)
