"""A folder of new shards with its manifest, which names what belongs to it while the shards are written."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from keras_clip import files
from keras_clip.curation.writing.formats import FORMATS
from keras_clip.data.readers.storage.manifest import FORMAT, KIND, MANIFEST, read_manifest
from keras_clip.data.readers.storage.paths import INDEX_SUFFIXES


class ShardFolder:
    """A folder for new shards.

    Args:
        path: the folder, which need not exist. It must be empty, or of an earlier call, whose shards are replaced.

    Raises:
        ValueError: it has other files.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).absolute()
        manifest = read_manifest(self.path)
        self._former = dict(manifest["shards"]) if manifest else {}
        names = os.listdir(self.path) if self.path.exists() else []
        others = sorted(name for name in names if not name.startswith(".") and name not in self._own())
        if manifest:
            # Beside the shards of an earlier call there may be a data card, but no other shards.
            others = [name for name in others if name.endswith(tuple(FORMATS))]
        if others:
            raise ValueError(
                f"A folder of new shards must be empty, or of an earlier call. Received: {self.path} with "
                f"{others[0]!r}. Name another folder."
            )

    def begin(self, names: Iterable[str] = ()) -> None:
        """Makes the folder, and a manifest that is not complete and names what may be in it from now on."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._former |= dict.fromkeys(names)
        self._write({"complete": False, "shards": dict.fromkeys(self._former)})

    def finish(self, entries: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any] | None = None) -> Counter:
        """Removes shards of earlier calls and unfinished files, and completes the manifest.

        Args:
            entries: what the manifest has of each shard, by name.
            facts: further entries of the manifest.

        Returns:
            `Counter` of "shards", "samples", "pairs" and "bytes".
        """
        for name in set(self._former) - set(entries):
            for path in (self.path / name, *(self.path / f"{name}{suffix}" for suffix in INDEX_SUFFIXES)):
                path.unlink(missing_ok=True)
        # Of writers that were killed.
        for path in self.path.glob(f".*{files.PART}.*"):
            path.unlink(missing_ok=True)
        totals = {name: sum(entry[name] for entry in entries.values()) for name in ("samples", "pairs", "bytes")}
        self._write({"complete": True, **totals, **(facts or {}), "shards": dict(entries)})
        return Counter({"shards": len(entries)} | totals)

    def _own(self) -> set[str]:
        return {MANIFEST, *self._former, *(f"{name}{suffix}" for name in self._former for suffix in INDEX_SUFFIXES)}

    def _write(self, manifest: Mapping[str, Any]) -> None:
        files.write_json(self.path / MANIFEST, {"kind": KIND, "format": FORMAT, **manifest})
