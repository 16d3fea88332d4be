"""The interface of a reader: all that training, evaluation and the tools know about where samples are stored."""

from abc import abstractmethod
from typing import Any, Protocol

import numpy as np

from keras_clip.data.skipped import SkippedSamples

# The captions of one sample, each as the bytes of its text.
Captions = list[bytes]


class Reader(Protocol):
    """Samples, each an image with captions, that can be read by number in any order.

    Derive a class from this one, or write one with the same methods, to read a form of storage that the library does
    not know: `image_text_pairs(source=MyReader(...))` trains on it, `evaluation.sources.from_reader(MyReader(...))`
    evaluates on it. Training calls `__len__`, `read` and `name`. Evaluation also calls `keys` and `metadata`, and
    `captions` where it needs captions without images; a derived class inherits defaults of these three.

    A reader decodes nothing. A missing image is `b""` and a missing caption `[]` or `[b""]`: the pipeline skips such a
    sample, counts it and names it. An exception means that the source as a whole cannot be read, and ends the run.
    The methods are called from several threads at the same time.

    Attributes:
        skipped: `SkippedSamples` or None. Files that the reader passed over, which the pipeline and the images of an
            evaluation report.
    """

    skipped: SkippedSamples | None = None

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples, broken ones included."""

    @abstractmethod
    def read(self, ids: np.ndarray) -> tuple[list[bytes], list[Captions]]:
        """The images, as the bytes of their files, and the captions of the samples with these numbers, int64 (B,)."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Where a person finds the sample: in most forms its file and its key."""

    def captions(self, ids: np.ndarray) -> list[Captions]:
        """The captions of these samples, as `read` returns them."""
        return self.read(ids)[1]

    def keys(self, ids: np.ndarray) -> list[str]:
        """The stable identities of these samples. By default their names."""
        return [self.name(index) for index in ids.tolist()]

    def metadata(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """What is stored beside the image of each of these samples, by name. By default nothing."""
        return [{} for _ in ids]


def is_reader(source: Any) -> bool:
    """Whether an object has the methods that training calls."""
    methods = ("__len__", "read", "name")
    return not isinstance(source, type) and all(callable(getattr(source, method, None)) for method in methods)


def as_captions(captions: Any) -> Captions:
    """Captions as bytes, of a text or of several; what is blank or no text (None, a number) is no caption."""
    if isinstance(captions, np.ndarray):
        captions = captions.tolist()
    if isinstance(captions, (str, bytes)):
        captions = [captions]
    if not isinstance(captions, (list, tuple)):
        return []
    texts = [text for text in captions if isinstance(text, (str, bytes)) and text.strip()]
    return [text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text for text in texts]
