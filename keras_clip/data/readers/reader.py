"""The interfaces through which training, evaluation and the tools read samples: by index, or only in order."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from keras_clip.data.skipped import SkippedSamples

if TYPE_CHECKING:
    import tensorflow as tf

# The captions of one sample, each as the bytes of its text.
Captions = list[bytes]


class Reader(Protocol):
    """Samples, each an image with captions, that can be read by index in any order.

    Derive a class from this one, or write one with the same methods, to read a storage form that the library does
    not support: `image_text_pairs(source=MyReader(...))` trains on it, `evaluation.sources.from_reader(MyReader(...))`
    evaluates on it. Training calls `__len__`, `read` and `name`. Evaluation also calls `keys` and `metadata`, and
    `captions` where it needs captions without images; a derived class inherits defaults of these three.

    A reader decodes nothing. A missing image is `b""` and a missing caption `[]` or `[b""]`: the pipeline skips such a
    sample, counts it and names it. An exception means that the source as a whole cannot be read, and ends the run.
    The methods are called from several threads at the same time.

    Attributes:
        skipped: `SkippedSamples` or None. Files that the reader passed over, which the pipeline and the images of an
            evaluation report.
        blocks_ahead: int. How many blocks of 64 samples training reads ahead, each in a thread of its own: some, if
            every read has to wait for an answer.
    """

    skipped: SkippedSamples | None = None
    blocks_ahead: int = 0

    @abstractmethod
    def __len__(self) -> int:
        """Returns the number of samples, including broken ones."""

    @abstractmethod
    def read(self, ids: np.ndarray) -> tuple[list[bytes], list[Captions]]:
        """Returns images, as the bytes of their files, and captions of the samples with these indices, int64 (B,)."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Returns the location of the sample for messages: in most forms, its file and its key."""

    def captions(self, ids: np.ndarray) -> list[Captions]:
        """Returns the captions of these samples, as `read` returns them."""
        return self.read(ids)[1]

    def keys(self, ids: np.ndarray) -> list[str]:
        """Returns the stable identifiers of these samples; by default, their names."""
        return [self.name(index) for index in ids.tolist()]

    def metadata(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """Returns other values that are stored with each of these samples, by name; by default, none."""
        return [{} for _ in ids]

    def image_files(self, ids: np.ndarray) -> tuple[str, list[str]] | None:
        """Returns the files that hold the images of these samples, and a text on which parts of them are the images.

        If none of both changes and no file, then no image does. By default None: only reading the images shows this. A
        class derived from one with this method has to define it anew.
        """
        return None

    def stamp(self, ids: np.ndarray) -> str | None:
        """Returns a digest of the state of these samples that is found without reading them, by times of change.

        By default None: a pool then reads their content to notice changes.
        """
        return None


class Stream(ABC):
    """Samples that can only be iterated over in their own order, again and again.

    Attributes:
        size: int, the number of samples, or None if it is unknown.
        skipped: None: a stream passes nothing over.
    """

    size: int | None
    skipped: None = None

    @abstractmethod
    def part(self, shard: tuple[int, int], training: bool) -> "Stream":
        """Returns every n-th sample; in training, if the size is known, all parts have the same number of samples.

        Args:
            shard: (index, count) of the part.
            training: whether all parts must be equally long.

        Returns:
            The part.
        """

    @abstractmethod
    def pairs(self, parallel: int) -> "tf.data.Dataset":
        """Returns (image, captions) of each sample.

        Args:
            parallel: number of samples that are mapped at a time.

        Returns:
            Dataset of the bytes of a file or uint8 (H, W, 3), and strings (captions,).

        Raises:
            TypeError: the stream returns something else.
            ValueError: it has no such columns.
        """


def is_reader(source: Any) -> bool:
    """Returns whether an object has the methods that training calls."""
    methods = ("__len__", "read", "name")
    return not isinstance(source, type) and all(callable(getattr(source, method, None)) for method in methods)


def as_captions(captions: Any) -> Captions:
    """Returns one or several captions as bytes; blank and non-text values (None, a number) are dropped."""
    if isinstance(captions, np.ndarray):
        captions = captions.tolist()
    if isinstance(captions, (str, bytes)):
        captions = [captions]
    if not isinstance(captions, (list, tuple)):
        return []
    texts = [text for text in captions if isinstance(text, (str, bytes)) and text.strip()]
    return [text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text for text in texts]
