"""Stores many byte strings in two arrays."""

from collections.abc import Iterable

import numpy as np


class ByteStrings:
    """A sequence of byte strings in two arrays. It takes 8 bytes per string beside its content, and needs no pickle.

    Args:
        blob: uint8 array, the concatenation of all strings.
        ends: int64 array, the end of each string in `blob`.
    """

    def __init__(self, blob: np.ndarray, ends: np.ndarray):
        self.blob, self.ends = blob, ends

    @classmethod
    def pack(cls, strings: Iterable[bytes]) -> "ByteStrings":
        strings = list(strings)
        return cls(np.frombuffer(b"".join(strings), np.uint8), np.cumsum([len(s) for s in strings], dtype=np.int64))

    @classmethod
    def concatenate(cls, parts: list["ByteStrings"]) -> "ByteStrings":
        offsets = np.cumsum([0] + [len(part.blob) for part in parts])
        ends = [part.ends + offset for part, offset in zip(parts, offsets, strict=False)]
        return cls(np.concatenate([part.blob for part in parts]), np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        return self.blob[self.ends[index - 1] if index else 0 : self.ends[index]].tobytes()
