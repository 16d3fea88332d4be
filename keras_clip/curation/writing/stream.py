"""Stores a stream of pairs as tars, which can be read by index."""

import io
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from keras_clip.curation.writing.folder import ShardFolder
from keras_clip.curation.writing.formats import EXTENSIONS, StoredSample, check_limit, tar_shard
from keras_clip.data.image_files import MAX_PIXELS, open_header
from keras_clip.data.readers import open_reader
from keras_clip.data.readers.brief import brief
from keras_clip.data.readers.reader import Stream

_PARALLEL = 2


def write_stream(
    stream: Any,
    folder: str | os.PathLike,
    *,
    mapping: Any = None,
    max_samples: int = 10_000,
    max_bytes: int = 2**30,
    progress: bool = True,
) -> Counter:
    """Stores the pairs of a stream as tars in its order, so that they can be a `Pool`.

    Args:
        stream: a `tf.data.Dataset`, or another object that can be iterated over, as `image_text_pairs` takes it.
        folder: folder of the tars `00000.tar` and so on and of manifest.json; new or empty, or of an earlier call,
            whose shards are replaced.
        mapping: see `image_text_pairs`. Arrays are stored as PNG, files unchanged.
        max_samples: int >= 1. Samples of a tar.
        max_bytes: int >= 1. Bytes of the images of a tar, unless one has more.
        progress: bool. Whether to show a progress bar.

    Returns:
        `Counter` of "shards", "samples", "pairs" and "bytes". Samples without an image or caption are stored too.

    Raises:
        ImportError: TensorFlow, which iterates over streams, is not installed.
        TypeError: a source that is read by index, which can be a pool itself.
        ValueError: no mapping; a stream without elements; a folder with other files.
    """
    from tqdm import tqdm

    reader = open_reader(stream, mapping)
    if not isinstance(reader, Stream):
        raise TypeError(f"Expected a stream. Received: {brief(stream)}, which `Pool.open` reads itself.")
    for name, value in (("max_samples", max_samples), ("max_bytes", max_bytes)):
        check_limit(name, value)
    shards = ShardFolder(folder)
    shards.begin()
    entries: dict[str, Any] = {}
    samples = tqdm(_samples(reader), desc="stream", unit="pair", disable=not progress, delay=1)
    for number, block in enumerate(_blocks(samples, max_samples, max_bytes)):
        name = f"{number:05d}.tar"
        shards.begin([name])
        with tar_shard(shards.path / name) as shard:
            for row, sample in enumerate(block):
                shard.add(f"{number:05d}{row:0{len(str(max_samples - 1))}d}", sample)
        entries[name] = shard.entry()
    if not entries:
        raise ValueError(f"A source must hold samples. Received: {brief(stream)} with none.")
    return shards.finish(entries)


def _blocks(samples: Iterator[StoredSample], max_samples: int, max_bytes: int) -> Iterator[Iterator[StoredSample]]:
    """Divides samples into the contents of shards, each to be read to its end before the next."""
    samples = iter(samples)
    following = next(samples, None)

    def block():
        nonlocal following
        count = size = 0
        while following is not None and count < max_samples:
            if count and size + len(following.image) > max_bytes:
                break
            count, size = count + 1, size + len(following.image)
            yield following
            following = next(samples, None)

    while following is not None:
        yield block()


def _samples(stream: Stream) -> Iterator[StoredSample]:
    for image, captions in stream.pairs(_PARALLEL).as_numpy_iterator():
        image = image if isinstance(image, bytes) else _as_png(image)
        texts = [caption for caption in captions.tolist() if caption.strip()]
        yield StoredSample(image, _extension(image), texts, {})


def _as_png(array: Any) -> bytes:
    from PIL import Image

    if not array.size:
        return b""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def _extension(image: bytes) -> str:
    """The usual extension of an image file; that of a JPEG for one that cannot be opened, so that it is counted."""
    try:
        return EXTENSIONS.get(open_header(image, "image", MAX_PIXELS).format, "jpg")
    except ValueError:
        return "jpg"
