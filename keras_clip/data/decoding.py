"""Decodes images by PIL in threads, ahead of an encoder that works on the batch before."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from keras_clip.data.image_files import PixelBudget, default_budget, reason_of
from keras_clip.data.images import ImagePreprocessor

# Batches that are decoded while the encoder works.
_AHEAD = 2

Item, Result = TypeVar("Item"), TypeVar("Result")


class Broken(NamedTuple):
    """An image that cannot be decoded, as `SkippedSamples.add` takes it.

    Args:
        reason: str, by which such images are counted.
        detail: str, what was wrong.
    """

    reason: str
    detail: str


def decoded(
    batches: Iterable[Sequence[Any]], preprocessor: ImagePreprocessor, budget: PixelBudget | None = None
) -> Iterator[list[np.ndarray | Broken]]:
    """Decodes and resizes batches of images, with one thread per core.

    Memory holds the files of three batches, and the pixels that the budget allows.

    Args:
        batches: batches of paths, bytes of files, or uint8 arrays; they are read one by one.
        preprocessor: gives the size of the images.
        budget: bounds the pixels that are decoded at the same time. None: the default of this process.

    Returns:
        Iterator over the batches, with uint8 (H, W, 3) for each image, or `Broken`.
    """
    budget = budget or default_budget()

    def decode(image: Any) -> np.ndarray | Broken:
        if isinstance(image, bytes) and not image:
            return Broken("no image", "")
        try:
            return preprocessor.to_uint8(image, budget)[0]
        except FileNotFoundError:
            return Broken("no image", "")
        except PermissionError as error:
            return Broken("unreadable image", str(error))
        except ValueError as error:
            return Broken(reason_of(error), str(error))

    return in_threads(batches, decode)


def in_threads(batches: Iterable[Sequence[Item]], read: Callable[[Item], Result]) -> Iterator[list[Result]]:
    """Calls a function for each item of batches, with one thread per core, up to three batches ahead.

    Args:
        batches: batches of items; they are read one by one.
        read: function of an item. Its exceptions are raised where the batch would be.

    Returns:
        Iterator over the batches, with the result of each item.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = ThreadPoolExecutor(cores)
    try:
        waiting = []
        for batch in batches:
            waiting.append([threads.submit(read, item) for item in batch])
            if len(waiting) > _AHEAD:
                yield [future.result() for future in waiting.pop(0)]
        for futures in waiting:
            yield [future.result() for future in futures]
    finally:
        # What is left if the caller stops early is not needed.
        threads.shutdown(cancel_futures=True)


def fill_batch(images: Sequence[np.ndarray | Broken], batch_size: int) -> tuple[list[int], np.ndarray | None]:
    """Returns the decoded images of a batch, filled to one shape with its own images, so that an encoder compiles once.

    Args:
        images: decoded images, at most `batch_size`.
        batch_size: int >= 1.

    Returns:
        The places of the images that are not `Broken`, and uint8 (batch_size, H, W, 3), which begins with these; None
        if there are none.
    """
    good = [place for place, image in enumerate(images) if not isinstance(image, Broken)]
    if not good:
        return good, None
    return good, np.stack([images[place] for place in np.resize(good, batch_size)])
