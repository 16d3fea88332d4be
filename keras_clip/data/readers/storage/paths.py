"""Expands a user's paths, globs and braces to local files, and reads the content of a file."""

import errno
import glob
import os
import re
import stat
from collections.abc import Sequence

from keras_clip.data.readers.storage.remote import find_urls
from keras_clip.data.readers.storage.urls import PROTOCOLS, is_remote, protocol_of

# The index that `indexing` writes beside a shard, `<shard>.index`, and that of earlier versions.
INDEX_SUFFIX = ".index"
OLD_INDEX_SUFFIX = ".index.npz"
INDEX_SUFFIXES = (INDEX_SUFFIX, OLD_INDEX_SUFFIX)


def find_files(source: str | os.PathLike | Sequence) -> list[str]:
    """Returns the files that a path, a glob, a brace expression or a list of these matches.

    Args:
        source: `a.tar`, `shards/*.tar`, `{00000..00031}.tar`, `{train,val}/*.tar`, `s3://bucket/*.tar`, or a list of
            these. Remote files are not checked.

    Returns:
        Existing paths in order, each once.

    Raises:
        FileNotFoundError: no file matches, or the list is empty.
        ValueError: another protocol; `*` in a web address.
        ImportError: the package for the protocol is not installed.
    """
    found = {}
    for entry in [source] if isinstance(source, (str, os.PathLike)) else source:
        for pattern in _expand_braces(os.path.expanduser(os.fspath(entry))):
            paths = _matching(pattern)
            paths = [path for path in paths if not path.endswith(INDEX_SUFFIXES)]
            if not paths:
                raise FileNotFoundError(
                    f"No file matches. Received: source={pattern!r}, in the folder {os.getcwd()}. Check the path."
                )
            found.update(dict.fromkeys(paths))
    if not found:
        raise FileNotFoundError(f"A source must name files. Received: source={source!r}, an empty list.")
    return list(found)


def _matching(pattern: str) -> list[str]:
    if is_remote(pattern):
        return find_urls(pattern)
    if protocol_of(pattern) == "file":
        pattern = re.sub(r"^file://(localhost)?(?=/)", "", pattern, flags=re.IGNORECASE)
    if re.match(r"\w+:", pattern):
        raise ValueError(
            f"A source must be local files, or files of {', '.join(f'{name}://' for name in PROTOCOLS)}. "
            f"Received: {pattern!r}. Download or mount it first."
        )
    return [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))


def _expand_braces(pattern: str) -> list[str]:
    """Expands `a{00..02}b` and `a{x,y}b` as a shell does."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        return [pattern]
    first, last, choices = match.groups()
    if choices is None:
        step = 1 if int(first) <= int(last) else -1
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
        parts = [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]
    else:
        parts = choices.split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    rests = _expand_braces(tail)
    return [head + part + rest for part in parts for rest in rests]


def file_bytes(path: str | bytes | os.PathLike) -> bytes:
    """Returns the content of a file, or `b""` if it does not exist, or is a device or a pipe, which may never end.

    Other errors, such as a failing disk or a missing permission, affect more than one sample and are raised.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return b""
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return b""
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return b""
        raise


def names_among(paths: Sequence[str]) -> list[str]:
    """Returns short, unique names of files that do not depend on the location of the folder.

    Args:
        paths: several different paths.

    Returns:
        The paths below the folder that they have in common, with slashes and without extensions where these are equal.
    """
    # URLs are taken for relative paths, which gives the same names.
    whole = [os.path.abspath(path) for path in paths]
    folder = os.path.commonpath([os.path.dirname(path) for path in whole])
    names = [os.path.relpath(path, folder).replace(os.sep, "/") for path in whole]
    stems = [os.path.splitext(name)[0] for name in names]
    return stems if len(set(stems)) == len(stems) else names
