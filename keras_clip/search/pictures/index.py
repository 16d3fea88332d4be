"""Reads an index of pictures: a snapshot of its latest complete state."""

import json
import os
import sqlite3
import threading
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_clip.data.image_files import MAX_PIXELS, open_image
from keras_clip.evaluation.features.store import FeatureStore
from keras_clip.model import CLIPModel, ImageEmbedder
from keras_clip.printable import printable
from keras_clip.search.pictures import database, rows, thumbnails
from keras_clip.search.pictures.indexed_model import require_model
from keras_clip.search.pictures.reading import open_inside

_EPOCH = datetime(1970, 1, 1)
# Columns of numbers, with their dtypes, and of strings.
_NUMBERS = {
    **dict.fromkeys(("root", "size", "width", "height"), np.int64),
    "taken": np.dtype("datetime64[s]"),
    "perceptual_hash": np.uint64,
}
_STRINGS = ("name", "folder", "sha256", "format", "caption")
_COLUMNS = (
    "id, root, path, size, width, height, taken, sha256, format, "
    "CASE WHEN caption = '' THEN description ELSE caption END AS caption, perceptual_hash, removed"
)


class Picture(NamedTuple):
    """A picture of an index.

    Attributes:
        id: int, which no other picture of the index ever has.
        root: int, the root that it lies below: see `PictureIndex.roots`.
        path: absolute Path of the file.
        name: str, the name of the file, printable.
        folder: str, the folder below the root, with slashes, printable; "" for the root itself.
        size: int, bytes.
        width: int, pixels of the upright picture.
        height: int, pixels of the upright picture.
        taken: datetime without a time zone, from EXIF, else when the file was last changed.
        sha256: str, digest of the file, 64 hexadecimal digits.
        caption: str, the text of the .txt of the same name beside it, or of its metadata; "" for none.
        format: str, Pillow's name of the format.
        perceptual_hash: int in [0, 2**64), see `similarity.perceptual_hash`.
    """

    id: int
    root: int
    path: Path
    name: str
    folder: str
    size: int
    width: int
    height: int
    taken: datetime
    sha256: str
    caption: str
    format: str
    perceptual_hash: int


class BrokenFile(NamedTuple):
    """A file or folder below a root that cannot be read.

    Attributes:
        root: int.
        path: str, relative to the root, printable.
        reason: str, by which they are counted, such as "undecodable image".
        detail: str, printable.
    """

    root: int
    path: str
    reason: str
    detail: str


class RemovedPicture(KeyError):
    """A picture that the index had and that was removed."""


class PictureIndex:
    """A snapshot of an index of pictures, which stays as it is while the index grows, until `refresh`.

    Open it with `PictureIndex.open`. Any threads may use it.

    Args:
        folder: Path of the index.
        connection: connection to its database.

    Attributes:
        folder: Path.
        version: int, which increases with every change of the index.
        generation: int, which increases when the rows of the embeddings are renumbered.
        embeddings: float32 (N, E) of unit length, memory-mapped; N includes pictures that are removed.
        features: float32 (N, D), before the projection, memory-mapped: the input of linear probes.
        ids: int64 (M,), the ids of the pictures, ascending.
        rows: int64 (M,), their rows in `embeddings` and `features`.
        roots: absolute Path of each root, by its number.
        model: str, the model as `presets.load` takes it; None if the index was made by a model in memory.
        model_parts: dict that identifies the model: digests of weights and architecture, preprocessing, logit scale.
        embed_dim: int E.
        loss: str, the loss of the model: "contrastive", "sigmoid", or the class of a loss layer.
        logit_scale: float, log(1 / temperature); None: unknown.
        logit_bias: float, of a sigmoid loss; None: none.
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection):
        self.folder, self._connection, self._mutex = folder, connection, threading.RLock()
        self.version = -1
        self._load()

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "PictureIndex":
        """Opens an index, without its model.

        Args:
            folder: folder of the index.

        Returns:
            The snapshot.

        Raises:
            FileNotFoundError: there is no index.
            ValueError: a damaged index, or one of another format.
        """
        folder = Path(folder)
        return cls(folder, database.open_to_read(folder))

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return printable(f"PictureIndex({self.folder}: {len(self):,} pictures, version {self.version})")

    def __enter__(self) -> "PictureIndex":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Closes the database."""
        with self._mutex:
            self._connection.close()

    def refresh(self) -> bool:
        """Moves on to the latest state of the index.

        Returns:
            bool. Whether there was a newer one. Arrays that were taken before stay as they were.
        """
        with self._mutex:
            before = self.version
            if self._read("SELECT value FROM meta WHERE key = 'version'") == [(str(before),)]:
                return False
            self._load()
            return self.version != before

    def picture(self, id: int) -> Picture:
        """Returns the facts of a picture.

        Args:
            id: int.

        Returns:
            The facts as they are now: a picture may have been renamed since the snapshot.

        Raises:
            KeyError: no such picture; a `RemovedPicture` if it was removed.
        """
        found = self._read(f"SELECT {_COLUMNS} FROM pictures WHERE id = ?", (int(id),))
        if not found or found[0][-1]:
            state = "one that was removed" if found else "none"
            error = RemovedPicture if found else KeyError
            raise error(f"There must be a picture of this id. Received: id={id}, {state}. `refresh` the index.")
        return self._picture(found[0])

    def pictures(self, ids: Sequence[int], removed: bool = True) -> dict[int, Picture]:
        """Returns the facts of several pictures, as they are now.

        Args:
            ids: ints; those of no picture are left out.
            removed: whether to return pictures that were removed, too: with the facts that they had.

        Returns:
            {id: facts}, in the order of `ids`.
        """
        wanted = list(dict.fromkeys(map(int, ids)))
        # A list of SQLite has no limit on its length, in contrast to the number of values of a statement.
        rows = self._read(
            f"SELECT {_COLUMNS} FROM pictures WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(wanted),)
        )
        found = {row[0]: self._picture(row) for row in rows if removed or not row[-1]}
        return {id: found[id] for id in wanted if id in found}

    def columns(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns facts of all pictures.

        Args:
            names: "root", "size", "width", "height" (int64), "taken" (datetime64[s]), "perceptual_hash" (uint64),
                "name", "folder", "sha256", "format", "caption" (str objects).

        Returns:
            {name: array (M,)}, in the order of `ids`.

        Raises:
            ValueError: another name.
            RuntimeError: pictures of this snapshot are no longer in the index.
        """
        if wrong := [name for name in names if name not in _NUMBERS and name not in _STRINGS]:
            raise ValueError(f"`names` must be of {[*_NUMBERS, *_STRINGS]}. Received: {wrong}.")
        with self._mutex:
            ids, size = self.ids, len(self.ids)
            columns = {name: np.zeros(size, _NUMBERS.get(name, object)) for name in names}
            wanted = {
                "name": "path",
                "folder": "path",
                "caption": "CASE WHEN caption = '' THEN description ELSE caption END",
            }
            selected = ", ".join(["id", *(wanted.get(name, name) for name in names)])
            place, last = 0, int(ids[-1]) if size else -1
            with database.explained(self.folder):
                for id, *values in self._connection.execute(
                    f"SELECT {selected} FROM pictures WHERE id <= ? ORDER BY id", (last,)
                ):
                    if place < size and ids[place] == id:
                        for name, value in zip(names, values, strict=True):
                            columns[name][place] = _value(name, value)
                        place += 1
        if place < size:
            raise RuntimeError(
                f"The snapshot must be of this generation. Received: {self!r}, some pictures of which are no longer in "
                "the index. Call `refresh` before."
            )
        return columns

    def broken(self) -> list[BrokenFile]:
        """Returns the files and folders below the roots that cannot be read, as of the latest state."""
        found = self._read("SELECT root, path, reason, detail FROM broken ORDER BY root, path")
        return [
            BrokenFile(root, printable(os.fsdecode(path)), reason, printable(detail))
            for root, path, reason, detail in found
        ]

    def broken_counts(self) -> dict[str, int]:
        """Returns how many files and folders cannot be read, by reason."""
        return dict(self._read("SELECT reason, COUNT(*) FROM broken GROUP BY reason ORDER BY reason"))

    def thumbnail(self, id: int) -> bytes:
        """Returns the thumbnail of a picture, which is made again if its file is lost.

        Args:
            id: int.

        Returns:
            A WebP file of at most 256 pixels a side.

        Raises:
            KeyError: no such picture.
            FileNotFoundError: neither the thumbnail nor the picture is there.
            OSError: the picture cannot be read, or is no longer inside its root: see `open_inside`.
            ValueError: the picture is broken now.
        """
        picture = self.picture(id)
        path = thumbnails.path_of(self.folder, picture.sha256)
        try:
            # A power cut can leave an empty file.
            if data := path.read_bytes():
                return data
        except FileNotFoundError:
            pass
        with open_inside(self.roots[picture.root], picture.path) as file:
            image = open_image(file.read(), "picture", MAX_PIXELS)
        try:
            return thumbnails.write(path, image)
        except OSError:
            # The index is on a medium that is full, or cannot be written to.
            return thumbnails.encoded(image)

    def require_model(self, clip: CLIPModel | ImageEmbedder) -> None:
        """Raises a ValueError if the index was made by another model than this one."""
        require_model(clip, self.model_parts, self.folder)

    def store(
        self, ids: Sequence[int], labels: np.ndarray, class_names: Sequence[str] | None = None, name: str = "pictures"
    ) -> FeatureStore:
        """Returns features and embeddings of labelled pictures, for probes and evaluations.

        Args:
            ids: N ids of this snapshot.
            labels: integers (N,) below K, or (N, K): see `FeatureStore.from_arrays`.
            class_names: K names, or None.
            name: name of the dataset.

        Returns:
            The store, in memory.

        Raises:
            KeyError: an id that is not in the snapshot.
            ValueError: labels that do not fit.
        """
        of_ids = self.rows_of(ids)
        return FeatureStore.from_arrays(
            self.features[of_ids],
            self.embeddings[of_ids],
            labels,
            class_names,
            ids=[str(id) for id in ids],
            name=name,
            logit_scale=self.logit_scale,
        )

    def rows_of(self, ids: Sequence[int]) -> np.ndarray:
        """Returns the rows of pictures in `embeddings` and `features`.

        Args:
            ids: N ids of this snapshot.

        Returns:
            int64 (N,).

        Raises:
            KeyError: an id that is not in the snapshot.
        """
        ids = np.asarray(ids, np.int64).reshape(-1)
        places = np.searchsorted(self.ids, ids)
        is_known = places < len(self.ids)
        is_known[is_known] = self.ids[places[is_known]] == ids[is_known]
        if not is_known.all():
            raise KeyError(f"Pictures must be in the snapshot. Received: id={ids[~is_known][0]}. `refresh` the index.")
        return self.rows[places]

    def _load(self) -> None:
        while True:
            with self._mutex, database.explained(self.folder), database.transaction(self._connection, "DEFERRED"):
                facts = database.read_meta(self._connection)
                roots = {
                    id: Path(os.fsdecode(path)) for id, path in self._connection.execute("SELECT id, path FROM roots")
                }
                count = self._connection.execute("SELECT COUNT(*) FROM pictures WHERE removed = 0").fetchone()[0]
                alive = self._connection.execute("SELECT id, row FROM pictures WHERE removed = 0 ORDER BY id")
                pairs = np.fromiter(alive, np.dtype((np.int64, 2)), count)
            try:
                features, embeddings = (
                    rows.mapped(
                        rows.path_of(self.folder, name, facts["generation"]), facts["rows"], facts["widths"][name]
                    )
                    for name in rows.COLUMNS
                )
                break
            except FileNotFoundError as error:
                # A compaction replaced the files meanwhile.
                if database.read_meta(self._connection)["generation"] == facts["generation"]:
                    raise ValueError(
                        f"The files of an index must be complete. Received: {error.filename}, which is missing. "
                        f"Restore a copy, or {database.BUILD_AGAIN}."
                    ) from None
        self.features, self.embeddings = features, embeddings
        self.ids, self.rows = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
        self.roots: dict[int, Path] = roots
        self.version, self.generation = facts["version"], facts["generation"]
        self.model, self.model_parts, self.embed_dim = (
            facts["model"],
            facts["model_parts"],
            facts["widths"]["embeddings"],
        )
        self.loss, self.logit_scale, self.logit_bias = facts["loss"], facts["logit_scale"], facts["logit_bias"]

    def _read(self, statement: str, values: Sequence[Any] = ()) -> list[tuple]:
        with self._mutex, database.explained(self.folder):
            return self._connection.execute(statement, values).fetchall()

    def _picture(self, found: tuple) -> Picture:
        id, root, path, size, width, height, taken, sha256, format, caption, bits, _ = found
        if root not in self.roots:
            # A root that was added after the snapshot.
            roots = self._read("SELECT id, path FROM roots")
            self.roots = {number: Path(os.fsdecode(each)) for number, each in roots}
        return Picture(
            id,
            root,
            self.roots[root] / os.fsdecode(path),
            _value("name", path),
            _value("folder", path),
            size,
            width,
            height,
            _EPOCH + timedelta(seconds=taken),
            sha256,
            caption,
            format,
            bits % 2**64,
        )


def _value(column: str, value: Any) -> Any:
    """A value of the database as `PictureIndex.columns` returns it."""
    if column == "name":
        return printable(os.fsdecode(value.rpartition(b"/")[2]))
    if column == "folder":
        return printable(os.fsdecode(value.rpartition(b"/")[0]))
    if column == "perceptual_hash":
        # SQLite has signed integers only.
        return value % 2**64
    return value
