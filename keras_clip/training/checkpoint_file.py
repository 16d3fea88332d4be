"""Checkpoint files that detect damage: safetensors whose last tensor is the SHA-256 of everything before it.

A file is written as a stream, so that no tensor is held twice, and under a temporary name until it is on the disk
(`keras_clip.files`). It contains no code.
"""

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from keras_clip import files

_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
_DTYPES = {code: name for name, code in _CODES.items()}
_DIGEST = 32
# Bytes that are read and hashed at a time.
_PART = 2**22


class Entry(NamedTuple):
    """The description of a tensor.

    Attributes:
        name: str.
        shape: tuple of ints.
        dtype: str. Its name in numpy or `ml_dtypes`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


def write(path: Path, entries: Sequence[Entry], arrays: Iterable[np.ndarray], record: dict[str, Any]) -> None:
    """Writes tensors and a record; the file gets its name once it is complete and on the disk.

    Args:
        path: Path. An existing file is replaced.
        entries: descriptions of the tensors, with distinct names.
        arrays: values of the tensors, in the order of `entries`.
        record: data that JSON can represent.
    """
    with files.replacing(path) as temporary, open(temporary, "wb") as file:
        digest = hashlib.sha256()
        for part in _parts(entries, arrays, record):
            digest.update(part)
            file.write(part)
        file.write(digest.digest())


def _parts(entries, arrays, record):
    tensors, offset = {}, 0
    for name, shape, dtype in [*entries, Entry("sha256", (_DIGEST,), "uint8")]:
        end = offset + math.prod(shape) * _dtype(dtype).itemsize
        tensors[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    header = json.dumps({"__metadata__": {"record": json.dumps(record)}, **tensors}).encode()
    # The format aligns the values to 8 bytes.
    header += b" " * (-len(header) % 8)
    yield struct.pack("<Q", len(header))
    yield header
    for entry, array in zip(entries, arrays, strict=True):
        if array.shape != entry.shape:
            raise ValueError(f"{entry.name!r} must be of shape {entry.shape}. Received: shape {array.shape}.")
        yield memoryview(np.ascontiguousarray(array, _dtype(entry.dtype)).reshape(-1).view(np.uint8))


def _dtype(name):
    return np.dtype(getattr(ml_dtypes, name, name))


def check(path: Path) -> None:
    """Raises a ValueError if a file differs from what was written."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with open(path, "rb") as file:
        left = size - _DIGEST
        while left > 0 and (part := file.read(min(_PART, left))):
            digest.update(part)
            left -= len(part)
        if left or file.read() != digest.digest():
            raise ValueError(f"A checkpoint must be complete. Received: {path} of {size:,} bytes, which is damaged.")


def read(path: Path) -> tuple[dict[str, Any], list[Entry], Iterable[np.ndarray]]:
    """Reads what `write` wrote, from a file that passed `check`.

    Args:
        path: the file.

    Returns:
        The record, the entries, and an iterator over the arrays, which are memory-mapped.

    Raises:
        ValueError: the file was not written by `write`.
    """
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(min(length, path.stat().st_size)))
    if "sha256" not in header or "record" not in header.get("__metadata__", {}):
        raise ValueError(f"The file must be a checkpoint of `Checkpoints`. Received: {path}.")
    record = json.loads(header.pop("__metadata__")["record"])
    del header["sha256"]
    entries = [Entry(name, tuple(about["shape"]), _DTYPES[about["dtype"]]) for name, about in header.items()]

    def arrays():
        values = np.memmap(path, np.uint8, "r", offset=8 + length)
        for entry, about in zip(entries, header.values(), strict=True):
            first, last = about["data_offsets"]
            yield values[first:last].view(_dtype(entry.dtype)).reshape(entry.shape)

    return record, entries, arrays()
