"""The input of training: image-caption pairs from where they are stored to batches for `fit`, on any backend.

Samples are read by number, in blocks, from an index, which makes a full shuffle of all shards free; they are decoded
and cropped in parallel by `tf.data`; only captions and broken samples come back to Python, a batch at a time.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from keras_clip.data.epochs import IndexedEpochs, StreamedEpochs
from keras_clip.data.readers import require_columns
from keras_clip.data.sources import open_source, require_mapping

if TYPE_CHECKING:
    import tensorflow as tf

_BLOCK = 64
_STREAM_BUFFER = 1024


def image_text_pairs(
    source: Any,
    model: Any = None,
    batch_size: int = 256,
    *,
    tokenizer: Callable | None = None,
    image_preprocessor: Any = None,
    mapping: tuple[str, str] | Callable | None = None,
    training: bool = True,
    text_lengths: Sequence[int] | None = None,
    crop_scale: tuple[float, float] = (0.9, 1.0),
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> "tf.data.Dataset":
    """Batches of image-caption pairs for `model.fit`, `evaluate` and `predict` on every backend.

    Sources, told apart by their form:
    - `.tar` files (WebDataset): members `<key>.jpg` (jpeg, png, webp, gif, bmp) and `<key>.txt`, or `<key>.json` with
      a "caption", one or a list;
    - `.tfrecord` files (img2dataset): features `jpg` (png, webp, image, ...) and `txt` (caption, text), or as `mapping`
      names them;
    - `.csv` and `.tsv` files: columns `path` (image, filename, ...) and `caption` (text, title), or as `mapping` names
      them; paths are relative to the file;
    - a folder: `<name>.jpg` (png, ...) beside `<name>.txt`, folders below it too;
    - a dataset with `len()` and `[number]` (Hugging Face, TFDS data sources, a list of dicts), as `mapping` says;
    - a `tf.data.Dataset` (TFDS), as `mapping` says, in graph; images as the bytes of a file or uint8 arrays.

    Files may be given as a path, a glob, braces (`{00000..00031}.tar`) or a list. Each is indexed once, with a progress
    bar if there are many; the index is kept beside the file as `<file>.index.npz`, or in the user's cache folder. A
    shard that is cut short or damaged raises before any epoch.

    In training, every epoch is one pass over all samples in an order shuffled across all shards (of a stream: within
    1,024 samples), with a random resized crop and one of several captions; order, crops and captions follow from the
    seed and the number of the epoch, which counts how often the dataset has been iterated. Shards are read at random
    places: keep them on a local disk. Otherwise samples come in their order, with their first caption, resized and
    centre-cropped, the smaller last batch included.

    A sample that lacks its image or its caption, or cannot be decoded, is left out alone. The attribute `skipped` of
    the dataset (`SkippedSamples`) counts them by reason and names them, and a warning sums up each epoch. In training
    others are taken twice in their stead, so that an epoch has as many steps as promised. Captions longer than the
    context are cut. Texts are as long as the longest of their batch, rounded up to one of
    `text_lengths`, so that compiled backends compile at most so many programs. Memory holds a few blocks of 64 encoded
    images, two decoded images per core, and a few batches, whatever the size of the data; of each sample 40 bytes and
    its key (tables and folders: its path and caption).

    Args:
        source: see above.
        model: anything with a `tokenizer` and an `image_preprocessor`, such as a `CLIPModel`.
        batch_size: pairs a batch, B.
        tokenizer: `CLIPTokenizer` or the like; None: the model's.
        image_preprocessor: `ImagePreprocessor`; None: the model's.
        mapping: names of the image and the caption column, or, for datasets, a function of an element that returns
            (image, caption or captions).
        training: whether to shuffle, crop at random and drop the smaller last batch.
        text_lengths: lengths that L may take, increasing; None: 16, 32 and the tokenizer's context length.
        crop_scale: lowest and highest share of an image's area that a training crop keeps. The paper's is the default;
            a few thousand images want more variety, such as (0.4, 1).
        seed: int >= 0.
        shard: (index, count): one of `count` disjoint parts of each epoch, for as many processes.

    Returns:
        `tf.data.Dataset` of {"images": uint8 (B, H, W, 3), "token_ids": int32 (B, L)}, to be normalised by the model.
        In training its length is `num_samples // batch_size`, with the attribute `num_samples`; otherwise it is
        unknown, since samples may turn out broken. So it is of a stream of unknown length: `num_samples` is None.

    Raises:
        ImportError: TensorFlow is not installed.
        FileNotFoundError, TypeError, ValueError: the source or an argument is not as above. While iterating: more than
            5 % of the samples, or all of the first 1,000, are broken.
    """
    tf = _require_tensorflow()
    tokenizer = _component("tokenizer", tokenizer, model)
    image_preprocessor = _component("image_preprocessor", image_preprocessor, model)
    lengths = _lengths(text_lengths, tokenizer)
    _check_numbers(batch_size, seed, shard, crop_scale)
    with tf.device("/CPU:0"):
        decode = _Decoder(image_preprocessor, crop_scale if training else None)
        if isinstance(source, tf.data.Dataset):
            source = _part(source, shard, training)
            epochs = StreamedEpochs(source, seed, image_preprocessor)
            good = _stream(epochs, source, require_mapping(mapping), decode, training)
        else:
            epochs = IndexedEpochs(open_source(source, mapping), source, seed, training, shard, image_preprocessor)
            good = _indexed(epochs, decode, training)
        _check_size(epochs.num_samples, batch_size, training, source)
        if training and epochs.num_samples:
            good = good.take(epochs.num_samples)
        dataset = good.batch(batch_size, drop_remainder=training).map(_tokenize_with(tokenizer, lengths))
        if training and epochs.num_samples:
            dataset = dataset.apply(tf.data.experimental.assert_cardinality(epochs.num_samples // batch_size))
        dataset = dataset.prefetch(2)
    dataset.skipped = epochs.skipped
    dataset.num_samples = epochs.num_samples
    return dataset


def _indexed(epochs: IndexedEpochs, decode: Callable, training: bool) -> "tf.data.Dataset":
    """(pixels, caption) of the good samples of a source that is read by number.

    What cannot be decoded is dropped by `ignore_errors`. A gap in the positions that come through tells which it was,
    and only then Python looks for the reason. Every block ends with a mark, so that gaps show soon.
    """
    import tensorflow as tf

    def starts(epoch):
        once = tf.data.Dataset.range(0, epochs.num_samples, _BLOCK)
        numbers = once.concatenate(tf.data.Dataset.from_tensors(tf.constant(-1, tf.int64)))
        # What is broken is made up for from the beginning.
        numbers = numbers.concatenate(once.map(lambda start: start + epochs.num_samples)) if training else numbers
        return tf.data.Dataset.zip((tf.data.Dataset.from_tensors(epoch).repeat(), numbers))

    def read(epoch, start):
        dtypes = (tf.int64, tf.int64, tf.bool, tf.int64, tf.string, tf.string)
        columns = tf.numpy_function(lambda *place: epochs.read(*map(int, place), _BLOCK), (epoch, start), dtypes)
        for column, shape in zip(columns, ([None], [None], [None], [None, 2], [None], [None]), strict=True):
            column.set_shape(shape)
        return tuple(columns)

    def attempt(epoch, position, is_mark, seed, image, caption):
        pixels = tf.cond(is_mark, lambda: decode.nothing, lambda: decode(image, seed, caption))
        return epoch, position, is_mark, pixels, caption

    def compare(expected, sample):
        epoch, position, is_mark, pixels, caption = sample
        is_told = (position > expected) | (is_mark & (position == epochs.num_samples))
        place = (epoch, expected, position)
        told = tf.cond(is_told, lambda: _scalar(epochs.missed, place, tf.bool), lambda: False)
        return position + tf.cast(~is_mark, tf.int64), (pixels, caption, told | ~is_mark)

    begin = tf.data.Dataset.from_tensors(0).map(lambda _: _scalar(epochs.begin, (), tf.int64))
    # Two blocks at a time: enough to hide a disk's latency behind the decoding.
    samples = begin.flat_map(starts).map(read, num_parallel_calls=2, deterministic=True).unbatch()
    tried = samples.map(attempt, num_parallel_calls=_parallel_images(), deterministic=True).ignore_errors()
    compared = tried.scan(tf.constant(0, tf.int64), compare)
    return compared.filter(lambda pixels, caption, is_good: is_good).map(lambda pixels, caption, _: (pixels, caption))


def _part(stream: "tf.data.Dataset", shard: tuple[int, int], training: bool) -> "tf.data.Dataset":
    """Every n-th element; in training, if that is known, equally many in all parts, as of an indexed source."""
    index, count = shard
    size = int(stream.cardinality())
    part = stream.shard(count, index) if count > 1 else stream
    return part.take(size // count) if training and count > 1 and size >= 0 else part


def _stream(
    epochs: StreamedEpochs, source: "tf.data.Dataset", mapping: Any, decode: Callable, training: bool
) -> "tf.data.Dataset":
    """(pixels, caption) of the good samples of a stream, which is mapped in graph.

    Errors of the stream itself must come through, so each sample is tried alone.
    """
    import tensorflow as tf

    def to_pair(element):
        if not callable(mapping):
            require_columns(mapping, element)
        image, captions = mapping(element) if callable(mapping) else (element[mapping[0]], element[mapping[1]])
        image, captions = tf.convert_to_tensor(image), tf.reshape(tf.convert_to_tensor(captions), [-1])
        if image.dtype not in (tf.string, tf.uint8) or captions.dtype != tf.string:
            raise TypeError(
                "The mapping must give the image as a file's bytes or uint8 (H, W, 3), and the caption as a string. "
                f"Received: image of {image.dtype.name}, caption of {captions.dtype.name}."
            )
        if image.dtype == tf.uint8 and image.shape[-1] == 1:
            image = tf.image.grayscale_to_rgb(image)
        return image, captions

    def number(epoch, position, pair):
        image, captions = pair
        seed = tf.stack([epochs.stream_seed(epoch), position])
        count = tf.size(captions)
        choice = tf.random.stateless_uniform((), seed, 0, tf.maximum(count, 1), tf.int32) if training else 0
        caption = tf.cond(count > 0, lambda: captions[choice], lambda: tf.constant(b""))
        return epoch, position, False, seed, image, caption

    pairs = source.map(to_pair, num_parallel_calls=_parallel_images(), deterministic=True)
    is_array = pairs.element_spec[0].dtype == tf.uint8
    no_image = tf.zeros((0, 0, 3), tf.uint8) if is_array else tf.constant(b"")

    def pass_over(epoch):
        # Of this graph alone. A global seed of the user's would change the order, and of 0 break a seed in graph.
        tf.compat.v1.set_random_seed(1)
        shuffled = pairs.shuffle(_STREAM_BUFFER, seed=epochs.stream_seed(epoch)) if training else pairs
        samples = shuffled.enumerate().map(lambda position, pair: number(epoch, position, pair))
        end = (epoch, tf.constant(-1, tf.int64), True, tf.zeros(2, tf.int64), no_image, tf.constant(b""))
        once = samples.concatenate(tf.data.Dataset.from_tensors(end))
        # As for indexed sources.
        return once.concatenate(samples) if training and epochs.num_samples else once

    failure = tf.data.Dataset.from_tensors((decode.nothing, False))

    def attempt(epoch, position, is_end, seed, image, caption):
        # What graphs have for `try`: a dataset of one element, or of none if that fails, then the failure.
        trial = tf.data.Dataset.from_tensors((image, seed, caption)).map(lambda *sample: (decode(*sample), True))
        pixels, is_good = trial.ignore_errors().concatenate(failure).take(1).get_single_element()
        return pixels, is_good, epoch, is_end, image, caption

    def is_good(position, sample):
        _, good, epoch, is_end, image, caption = sample

        def tell():
            return tf.cond(
                is_end,
                lambda: _scalar(epochs.end, (epoch, position), tf.bool),
                lambda: _scalar(epochs.skip, (epoch, position, image, caption), tf.bool),
            )

        return tf.cond(good, lambda: True, tell)

    begin = tf.data.Dataset.from_tensors(0).map(lambda _: _scalar(epochs.begin, (), tf.int64))
    tried = begin.flat_map(pass_over).map(attempt, num_parallel_calls=_parallel_images(), deterministic=True)
    return tried.enumerate().filter(is_good).map(lambda _, sample: (sample[0], sample[-1]))


class _Decoder:
    """The graph function (image, crop seed, caption) -> uint8 (H, W, 3); fails if either half is broken."""

    def __init__(self, preprocessor: Any, crop_scale: tuple[float, float] | None):
        import tensorflow as tf

        rule = getattr(preprocessor, "interpolation", "bicubic"), getattr(preprocessor, "resize_mode", "shortest")
        if rule != ("bicubic", "shortest"):
            raise ValueError(
                'Pairs are resized with interpolation "bicubic" and resize_mode "shortest". '
                f"Received: image_preprocessor with {rule[0]!r}, {rule[1]!r}. Pass one with the defaults, or map its "
                "`to_uint8` over a data set of your own."
            )
        self._preprocessor, self._crop_scale = preprocessor, crop_scale
        size = preprocessor.image_size
        self.nothing = tf.zeros((*((size, size) if isinstance(size, int) else size), 3), tf.uint8)

    def __call__(self, image, seed, caption):
        import tensorflow as tf

        # errors="strict" would let a character pass that the end cuts short.
        utf8 = tf.strings.unicode_transcode(caption, "UTF-8", "UTF-8", errors="replace")
        is_text = (caption == utf8) & (tf.strings.length(tf.strings.strip(caption)) > 0)
        with tf.control_dependencies([tf.raw_ops.Assert(condition=is_text, data=[caption])]):
            return tf.ensure_shape(self._pixels(image, seed), self.nothing.shape)

    def _pixels(self, image, seed):
        from keras_clip.data.graph_images import CROP_RATIO, decode_image, random_resized_crop, resize_and_center_crop

        size, max_pixels = self._preprocessor.image_size, self._preprocessor.max_pixels
        shortest = None
        if self._crop_scale:
            # The smallest and narrowest crop must still have the pixels wanted.
            shortest = max(self.nothing.shape) / math.sqrt(self._crop_scale[0] * CROP_RATIO[0])
        if image.dtype == "string":
            image = decode_image(image, max_pixels, shortest)
        return (
            random_resized_crop(image, size, seed, self._crop_scale)
            if shortest
            else resize_and_center_crop(image, size)
        )


def _tokenize_with(tokenizer: Callable, lengths: tuple[int, ...]) -> Callable:
    import numpy as np
    import tensorflow as tf

    def tokenize(captions):
        texts = [caption.decode() for caption in captions.tolist()]
        token_ids = np.asarray(tokenizer(texts, truncate=True, length="longest"))
        width = next((length for length in lengths if length >= token_ids.shape[1]), None)
        if width is None:
            return np.asarray(tokenizer(texts, truncate=True, length=lengths[-1]), np.int32)
        return np.pad(token_ids, ((0, 0), (0, width - token_ids.shape[1]))).astype(np.int32)

    def to_batch(images, captions):
        token_ids = tf.numpy_function(tokenize, (captions,), tf.int32)
        token_ids.set_shape((images.shape[0], lengths[0] if len(lengths) == 1 else None))
        return {"images": images, "token_ids": token_ids}

    return to_batch


def _scalar(function: Callable, inputs: Sequence, dtype: Any) -> Any:
    import tensorflow as tf

    output = tf.numpy_function(function, inputs, dtype)
    output.set_shape(())
    return output


def _parallel_images() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Results keep their order: with one image per core, a large one would keep the cores of the small ones waiting.
    return 2 * cores


def _require_tensorflow() -> Any:
    try:
        import tensorflow
    except ImportError as error:
        raise ImportError(
            "image_text_pairs reads with tf.data, on every backend, and TensorFlow is not installed. "
            'pip install "keras_clip[tensorflow]"'
        ) from error
    return tensorflow


def _component(name: str, given: Any, model: Any) -> Any:
    component = given if given is not None else getattr(model, name, None)
    if component is None:
        raise ValueError(
            f"Pairs need a {name}. Received: {name}=None, model={model!r}. Pass {name}=, or a model that has one."
        )
    return component


def _lengths(lengths: Sequence[int] | None, tokenizer: Any) -> tuple[int, ...]:
    context = getattr(tokenizer, "context_length", None)
    if not callable(tokenizer) or not context:
        raise TypeError(
            "tokenizer must be callable and have a context_length, like CLIPTokenizer. "
            f"Received: tokenizer={tokenizer!r}."
        )
    if lengths is None:
        return (*(length for length in (16, 32) if length < context), context)
    lengths = tuple(lengths)
    if not lengths or lengths[0] < 3 or lengths[-1] > context or list(lengths) != sorted(set(lengths)):
        raise ValueError(
            f"text_lengths must increase from at least 3 to at most the context length {context}. "
            f"Received: text_lengths={lengths}."
        )
    return lengths


def _check_numbers(batch_size: int, seed: int, shard: tuple[int, int], crop_scale: tuple[float, float]) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1. Received: batch_size={batch_size}.")
    if seed < 0:
        raise ValueError(f"seed must not be negative. Received: seed={seed}.")
    low, high = crop_scale
    if not 0 < low <= high <= 1:
        raise ValueError(
            f"crop_scale must be (low, high) with 0 < low <= high <= 1. Received: crop_scale={crop_scale}."
        )
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard must be (index, count) with 0 <= index < count. Received: shard={shard}.")


def _check_size(num_samples: int, batch_size: int, training: bool, source: Any) -> None:
    if num_samples is not None and num_samples < (batch_size if training else 1):
        raise ValueError(
            f"There must be at least one batch of samples. Received: batch_size={batch_size}, source={source!r} with "
            f"{num_samples} samples. Pass a smaller batch_size."
        )
