"""The manifest of a folder of shards: the size and digest of each, by which one that is missing or changed is noticed.

`curation.write` writes it as manifest.json beside the shards. Files of this name that other programs wrote are ignored.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
# The values of the entries "kind", by which our manifests are recognised, and "format".
KIND, FORMAT = "keras_clip shards", 1


def check_manifests(paths: Iterable[str], *, digests: bool = False) -> int:
    """Checks shards against the manifests that lie beside them.

    Args:
        paths: paths of shards. Those without a manifest in their folder are not checked.
        digests: bool. Whether to compare the SHA-256 of these shards too, for which they are read as a whole; sizes are
            always compared.

    Returns:
        int, the number of shards that were checked.

    Raises:
        ValueError: a shard has changed, is in the folder but not in its manifest, or is in the manifest but not in the
            folder; or the folder is not complete.
    """
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        by_folder.setdefault(os.path.dirname(os.path.abspath(path)), []).append(path)
    checked = 0
    for folder, shards in by_folder.items():
        manifest = read_manifest(folder)
        if manifest is not None:
            _check_folder(folder, manifest)
            for path in shards:
                _check_shard(path, manifest["shards"], digests)
            checked += len(shards)
    return checked


def read_manifest(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Returns the manifest of a folder.

    Args:
        folder: the folder.

    Returns:
        {"kind", "complete", "shards": {name: {"samples", "pairs", "bytes", "sha256"}}, ...}; None if there is none.
    """
    path = Path(folder) / MANIFEST
    try:
        return _read(path, path.stat().st_mtime_ns)
    except OSError:
        return None


@functools.lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> dict[str, Any] | None:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    is_ours = isinstance(manifest, dict) and manifest.get("kind") == KIND and isinstance(manifest.get("shards"), dict)
    if not is_ours:
        return None
    if manifest.get("format", FORMAT) != FORMAT:
        raise ValueError(
            f"A {MANIFEST} must have the format {FORMAT}. Received: {path} with the format {manifest['format']!r}. Use "
            "the version of keras_clip that wrote it; to train without checks, remove it."
        )
    # Shards of an earlier call are removed by these names, so none may be a path to another folder.
    wrong = [name for name, entry in manifest["shards"].items() if not (_is_name(name) and _is_entry(entry))]
    if wrong:
        raise ValueError(
            f"A {MANIFEST} must have the names and sizes of files in its folder. Received: {path}, with {wrong[0]!r}. "
            "Remove it."
        )
    return manifest


def _is_name(name: str) -> bool:
    return name == os.path.basename(name) and name not in ("", ".", "..", MANIFEST) and "\\" not in name


def _is_entry(entry: Any) -> bool:
    # Of a shard that is not complete, only the name is known.
    return entry is None or isinstance(entry, dict) and isinstance(entry.get("bytes"), int)


def _check_folder(folder: str, manifest: dict[str, Any]) -> None:
    if not manifest.get("complete"):
        raise ValueError(
            f"Shards must be complete. Received: {folder}, where writing was interrupted or goes on. Write them again: "
            "shards that are done are kept."
        )
    missing = sorted(set(manifest["shards"]) - set(os.listdir(folder)))
    if missing:
        raise ValueError(
            f"All shards of a manifest must be in its folder. Received: {folder}, where {missing[0]} is missing"
            f"{f' and {len(missing) - 1} more' if missing[1:] else ''}. Copy or write them again; to train on a "
            f"part of the shards, remove {MANIFEST}."
        )


def _check_shard(path: str, shards: dict[str, Any], digests: bool) -> None:
    entry = shards.get(os.path.basename(path))
    if entry is None:
        raise ValueError(
            f"Shards beside a {MANIFEST} must be named in it. Received: {path}, which is not. Put it into a folder of "
            "its own."
        )
    size = os.path.getsize(path)
    if size != entry["bytes"]:
        raise ValueError(
            f"A shard must have the size of its {MANIFEST}. Received: {path} with {size:,} bytes instead of "
            f"{entry['bytes']:,}: it is cut short or was replaced. Copy or write it again."
        )
    if digests:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != entry["sha256"]:
            raise ValueError(
                f"A shard must have the SHA-256 of its {MANIFEST}. Received: {path} with {digest} instead of "
                f"{entry['sha256']}: it is damaged or was replaced. Copy or write it again."
            )
