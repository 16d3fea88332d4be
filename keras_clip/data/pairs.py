"""The input of training: reads stored image-caption pairs and makes batches for `fit`, on any backend.

A reader (see `readers`) reads samples by index, in blocks, so that a full shuffle across all shards needs no buffer.
`tf.data` decodes and crops the images in parallel. Only captions and broken samples return to Python, one batch at a
time.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from keras_clip.data.arguments import (
    check_numbers,
    check_shuffle,
    check_size,
    component,
    increasing_lengths,
    region_scale,
)
from keras_clip.data.epochs import make_epochs
from keras_clip.data.epochs.base import parallel_images
from keras_clip.data.image_files import PixelBudget
from keras_clip.data.readers import open_reader
from keras_clip.data.readers.brief import brief
from keras_clip.data.skipped import MAX_BROKEN, STRAY, SkippedSamples

if TYPE_CHECKING:
    import tensorflow as tf


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
    crop: str = "paper",
    crop_scale: tuple[float, float] | None = None,
    shuffle: str = "samples",
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    delimiter: str | None = None,
    max_broken: float = MAX_BROKEN,
    max_pixels_in_flight: int | None = None,
) -> "tf.data.Dataset":
    """Returns batches of image-caption pairs for `model.fit`, `evaluate` and `predict` on every backend.

    The form of the source determines how it is read:
    - `.tar` files (WebDataset): members `<key>.jpg` (png, ...) and `<key>.txt`, or `<key>.json` with a "caption", one
      or a list. A key ends at the first dot of the base name, as in the library webdataset. `mapping` names other
      extensions, or the caption in the `.json`;
    - `.tfrecord` and `.tfrec` files (img2dataset): features `jpg` (png, webp, image, ...) and `txt` (caption, text);
    - `.parquet` files (img2dataset, Hugging Face): columns `jpg` (png, image, path, ...) and `txt` (caption, text);
    - `.csv`, `.tsv` and `.jsonl` files: columns `path` (image, filename, ...) and `caption` (text, title); paths are
      relative to the file;
    - a folder: `<name>.jpg` (png, ...) beside `<name>.txt`, in the folders below it too; links to folders are followed,
      each folder once. `mapping` names other extensions;
    - a `Reader`: a class of your own with `__len__`, `read` and `name`, for any other form of storage;
    - a dataset with `len()` and `[number]` (Hugging Face, with transforms too; TFDS data sources, a list of dicts or
      of tuples), as `mapping` says; images as bytes, paths, PIL images or arrays;
    - a pandas `DataFrame`, with the columns of tables, or as `mapping` says;
    - a `tf.data.Dataset` (TFDS), as `mapping` says, in graph; images as the bytes of a file or uint8 arrays;
    - another object that can be iterated over again and again (a streamed dataset of Hugging Face), as `mapping` says.

    A text is one caption, whatever its lines. Files may be given as a path, a glob or braces (`{00000..00031}.tar`).
    A list of files, folders, datasets or readers is one source, also of several forms. Tars and TFRecords are indexed
    once, by one process while others wait, with a progress bar if there are many. The index is stored beside the file
    as `<file>.index`, of several files as `.keras_clip-*.index` in their folder, or in the user's cache folder. There
    are also copies of compressed files (.gz, .bz2, .xz) and of Parquet files, which support random access. A shard that
    is cut short or damaged raises an error before the first epoch.

    In training, every epoch is one pass over all samples in an order shuffled across all shards (of a stream: within
    1,024 samples), with a random crop and one of several captions; order, crops and captions depend on the seed and the
    number of the epoch, which counts how often the dataset has been iterated. Shards are read at random positions,
    unless `shuffle` is "blocks". Otherwise samples keep their order, with their first caption, resized and
    centre-cropped, and the smaller last batch is included.

    Training can resume in the middle of an epoch: after `epochs.start_at(epoch, step, broken)` the next pass begins at
    that step, with the samples, crops and captions of a run that was never interrupted (`training.Checkpoints` does
    so). Earlier samples are not read again, except those of a stream, which is read and shuffled again up to that
    sample, without decoding, and must return the same elements each time. `numbered` is the same dataset as ((epoch,
    step), batch), for your own augmentation that a resumed run repeats.

    A sample that lacks its image or its caption, or cannot be decoded, is skipped. The attribute `skipped` of the
    dataset (`SkippedSamples`) counts such samples by reason and names them, and a warning summarises each epoch. It
    also counts and names the files of the source that are no part of a pair, about which there is one warning. In
    training, other samples are repeated instead, so that an epoch has as many steps as its length says. Captions
    longer than the context are truncated. Texts are as long as the longest of their batch, rounded up to one of
    `text_lengths`, so that compiled backends compile at most one program for each of these lengths. Memory holds a few
    blocks of 64 encoded images, the decoded images in flight, and a few batches, whatever the size of the data. The
    index of tars and TFRecords, some ten bytes a sample and its key, is mapped from its file; that of a table is in
    memory, as are the paths and captions of a folder.

    Args:
        source: see above.
        model: anything with a `tokenizer` and an `image_preprocessor`, such as a `CLIPModel`.
        batch_size: pairs a batch, B.
        tokenizer: `CLIPTokenizer` or another tokenizer with its interface; None: the model's.
        image_preprocessor: `ImagePreprocessor`; None: the model's.
        mapping: names of the image and the caption column (of tuples their places; of files the first may be None: the
            usual ones), or, for datasets, a function of an element that returns (image, caption or captions). For a
            `tf.data.Dataset` of tuples the function may also take their parts.
        training: whether to shuffle, crop at random and drop the smaller last batch.
        text_lengths: lengths that L may take, increasing; None: 16, 32 and the tokenizer's context length.
        crop: the random crop of training. "paper": the image is resized so that its shorter side fits, and cropped at a
            random place of the longer one (Radford et al., 2021, section 2.4); the pixels are those of PIL.
            "random_resized": a region of random area and aspect ratio is resized to the image size, as open_clip
            does; large JPEGs are decoded at a fraction of their size. A few thousand images need the variety of the
            latter, with a crop_scale such as (0.4, 1).
        crop_scale: lowest and highest fraction of an image's area that a random resized crop keeps; None: (0.9, 1).
        shuffle: the order of training. "samples": any sample may follow any other. "blocks": blocks of 256 consecutive
            samples are shuffled, and the samples within windows of 64 blocks (16,384 samples), so that files are read
            nearly in sequence: for hard disks, network file systems and remote shards. Samples that are stored next to
            one another should then not be alike.
        seed: int >= 0.
        shard: (index, count): one of `count` disjoint parts of each epoch, for as many processes.
        delimiter: the character that separates the columns of tables. None: a tab in `.tsv` files, otherwise a comma, a
            tab, a semicolon or a bar, whichever gives the columns that are needed.
        max_broken: float in [0, 1]. The fraction of the samples that may be broken. Up to five texts without an image,
            such as a README.txt, are no reason for an error unless it is 0.
        max_pixels_in_flight: int. How many pixels are decoded at the same time at most, at up to 16 bytes of memory
            each; an image of more is decoded alone. None: a number that fits the memory of the machine. Images of more
            than the `max_pixels` of the preprocessor are skipped, from their header.

    Returns:
        `tf.data.Dataset` of {"images": uint8 (B, H, W, 3), "token_ids": int32 (B, L)}, to be normalised by the model.
        In training its length is `num_samples // batch_size`, with the attribute `num_samples`; otherwise it is
        unknown, since samples may be broken. It is also unknown for a stream without a length; `num_samples` is then
        None.

    Raises:
        ImportError: TensorFlow is not installed.
        FileNotFoundError, TypeError, ValueError: an invalid source or argument. While iterating: more than `max_broken`
            of the samples, or all of the first 1,000, are broken.
    """
    tf = _require_tensorflow()
    tokenizer = component("tokenizer", tokenizer, model)
    image_preprocessor = component("image_preprocessor", image_preprocessor, model)
    lengths = increasing_lengths(text_lengths, tokenizer)
    scale = region_scale(crop, crop_scale)
    check_shuffle(shuffle)
    check_numbers(batch_size, seed, shard, max_broken)
    with tf.device("/CPU:0"):
        budget = None if max_pixels_in_flight is None else PixelBudget(max_pixels_in_flight)
        decode = _Decoder(image_preprocessor, crop if training else None, scale, budget)
        reader = open_reader(source, mapping, delimiter=delimiter)
        skipped = SkippedSamples(brief(source), max_broken, getattr(reader, "skipped", None), STRAY)
        options = skipped, seed, shard, batch_size, image_preprocessor
        epochs = make_epochs(reader, training, *options, shuffle=shuffle)
        # A mapping that does not fit is an error before the number of samples is one.
        good = epochs.samples(decode)
        check_size(epochs.num_samples, batch_size, training, source)
        epochs.options = {
            "crop": crop,
            "crop_scale": scale and list(scale),
            "preprocessing": getattr(image_preprocessor, "get_config", dict)(),
            "context_length": lengths[-1],
        }
        numbered = _number(good, epochs, training).map(_tokenize_with(tokenizer, lengths))
        if training and epochs.num_samples:
            numbered = _with_length(numbered, epochs.num_samples // batch_size)
        dataset = numbered.map(lambda place, batch: batch).prefetch(2)
    dataset.epochs, dataset.numbered = epochs, numbered
    dataset.skipped, dataset.num_samples = epochs.skipped, epochs.num_samples
    return dataset


def _number(good: "tf.data.Dataset", epochs: Any, training: bool) -> "tf.data.Dataset":
    """Makes batches of (pixels, caption), each with its epoch and step, up to the end of the epoch."""
    good = good.enumerate()
    if training and epochs.num_samples:
        # In the second pass, only as many samples are taken as replace the broken ones.
        good = good.take_while(lambda count, sample: count < epochs.num_samples - sample[0][1] * epochs.batch_size)

    def place(counts, samples):
        places, pixels, captions = samples
        return (places[0, 0], places[0, 1] + counts[0] // epochs.batch_size), pixels, captions

    return good.batch(epochs.batch_size, drop_remainder=training).map(place)


def _with_length(batches: "tf.data.Dataset", length: int) -> "tf.data.Dataset":
    """Sets the length of a dataset. `assert_cardinality` would fail for a pass that begins in the middle of an epoch.

    Concatenated with an endless dataset without elements, its length is infinite, so that `take` sets the length.
    """
    import tensorflow as tf

    def like_batch(_):
        return tf.nest.map_structure(
            lambda spec: tf.zeros([size or 0 for size in spec.shape], spec.dtype), batches.element_spec
        )

    nothing = tf.data.Dataset.range(1).filter(lambda _: False).map(like_batch).repeat()
    return batches.concatenate(nothing).take(length)


class _Decoder:
    """The graph function (image, crop seed, caption) -> uint8 (H, W, 3); it fails if the image or caption is broken."""

    def __init__(
        self,
        preprocessor: Any,
        crop: str | None = None,
        scale: tuple[float, float] | None = None,
        budget: PixelBudget | None = None,
    ):
        import tensorflow as tf

        rule = getattr(preprocessor, "interpolation", "bicubic"), getattr(preprocessor, "resize_mode", "shortest")
        if rule != ("bicubic", "shortest"):
            raise ValueError(
                'Pairs are resized with interpolation "bicubic" and resize_mode "shortest". '
                f"Received: image_preprocessor with {rule[0]!r}, {rule[1]!r}. Pass one with the defaults, or map its "
                "`to_uint8` over a dataset of your own."
            )
        self._centre = {
            "resize_sides": getattr(preprocessor, "resize_sides", preprocessor.sides),
            "crop_rounding": getattr(preprocessor, "crop_rounding", "even"),
        }
        if any(map(int.__lt__, self._centre["resize_sides"], preprocessor.sides)):
            raise ValueError(
                "Pairs are resized to at least the image size, since nothing is added around them. Received: "
                f"image_preprocessor with image_size={preprocessor.image_size}, resize_size="
                f"{preprocessor.resize_size}. Map its `to_uint8` over a dataset of your own."
            )
        self._preprocessor, self._crop, self._scale, self._budget = preprocessor, crop, scale, budget
        self.nothing = tf.zeros((*preprocessor.sides, 3), tf.uint8)

    def __call__(self, image, seed, caption):
        import tensorflow as tf

        # errors="strict" would accept a truncated character at the end.
        utf8 = tf.strings.unicode_transcode(caption, "UTF-8", "UTF-8", errors="replace")
        is_text = (caption == utf8) & (tf.strings.length(tf.strings.strip(caption)) > 0)
        with tf.control_dependencies([tf.raw_ops.Assert(condition=is_text, data=[caption])]):
            return tf.ensure_shape(self._pixels(image, seed), self.nothing.shape)

    def _pixels(self, image, seed):
        import tensorflow as tf

        from keras_clip.data import graph_images

        sides, shortest = self._preprocessor.sides, None
        # In float32 both passes may round otherwise, which can add up to two grey levels where an image grows.
        dtype = "float32" if self._crop == "random_resized" else "float64"
        view_of = functools.partial(graph_images.centered_view_in_graph, **self._centre)
        if self._crop:
            view_of = graph_images.random_crop_view
        if self._crop == "random_resized":
            # The smallest and narrowest crop must still have the pixels wanted.
            shortest = max(sides) / math.sqrt(self._scale[0] * graph_images.CROP_RATIO[0])
            view_of = functools.partial(graph_images.random_resized_view, scale=self._scale)
        if image.dtype != "string":
            return graph_images.take_view_in_graph(
                image, view_of(tf.shape(image, tf.int64)[:2], sides, seed), sides, dtype
            )
        return graph_images.decode_view(
            image,
            seed,
            sides,
            view_of,
            max_pixels=self._preprocessor.max_pixels,
            shortest=shortest,
            budget=self._budget,
            parallel=parallel_images(),
            dtype=dtype,
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

    def to_batch(place, images, captions):
        token_ids = tf.numpy_function(tokenize, (captions,), tf.int32)
        token_ids.set_shape((images.shape[0], lengths[0] if len(lengths) == 1 else None))
        return place, {"images": images, "token_ids": token_ids}

    return to_batch


def _require_tensorflow() -> Any:
    try:
        import tensorflow
    except ImportError as error:
        raise ImportError(
            "image_text_pairs reads with tf.data, on every backend, and TensorFlow is not installed. "
            'pip install "keras_clip[tensorflow]"'
        ) from error
    return tensorflow
