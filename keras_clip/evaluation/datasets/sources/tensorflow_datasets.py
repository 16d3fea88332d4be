"""Labelled images of tensorflow-datasets, which PIL decodes like those of all other sources."""

import functools
import hashlib
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from keras_clip.data.readers.dataset import TFDSExamples
from keras_clip.evaluation.datasets.labelled_images import PATIENCE, Image, Label, LabelledImages, image_digest
from keras_clip.printable import printable


def tfds(
    builder: str,
    split: str,
    *,
    image: str | Callable[[dict], Image] = "image",
    label: str | Callable[[dict, Any], Label] = "label",
    class_names: Sequence[str] | None = None,
    empty_classes: str = "refuse",
    name: str | None = None,
    data_dir: str | os.PathLike | None = None,
) -> LabelledImages:
    """Reads a split of a dataset of tensorflow-datasets, which is downloaded and prepared if necessary.

    The records are read once for their labels and for the digest of their images, which takes minutes for a million.

    Args:
        builder: name in tensorflow-datasets, with the configuration: "eurosat/rgb".
        split: split as in tensorflow-datasets: "test", "train[:10000]", "train+validation".
        image: the feature that is the image, or a function of an example (images as bytes) that returns one.
        label: the feature that is the class, or a function of an example and of the builder's features that returns
            the class name, or for several classes a dict (see `LabelledImages`). A function needs `class_names`.
        class_names: K names. None: those of the builder.
        empty_classes: what to do with a class without an image: "refuse", "keep" or "drop", as of ImageNet-A, whose
            builder names 1,000 and has 200.
        name: name of the dataset. None: `builder`.
        data_dir: where tensorflow-datasets keeps its files. None: its own default.

    Returns:
        `LabelledImages`; the ids are those of tensorflow-datasets.

    Raises:
        ImportError: tensorflow-datasets is not installed.
        AssertionError: from tensorflow-datasets: files that must be downloaded manually are missing.
        ValueError: see `LabelledImages`.
    """
    from tqdm import tqdm

    examples = TFDSExamples(builder, split, data_dir)
    image_of = image if callable(image) else operator.itemgetter(image)
    if not callable(label):
        feature, key = examples.features[label], label
        class_names = feature.names if class_names is None else class_names
        # The label numbers of a builder refer to its own names.
        label = lambda example, _: feature.int2str(int(example[key]))  # noqa: E731
    elif class_names is None:
        raise ValueError("A function that gives labels needs `class_names`. Received: class_names=None.")
    labels, ids, content = [], [], hashlib.sha256()
    for example in tqdm(examples.read(), desc=printable(f"Reading {name or builder}"), delay=PATIENCE, leave=False):
        labels.append(label(example, examples.features))
        ids.append(examples.key(example, len(ids)))
        content.update(image_digest(image_of(example)))
    images = LabelledImages(
        functools.partial(_read, examples, image_of),
        labels,
        ids,
        class_names,
        name=name or builder,
        split=split,
        empty_classes=empty_classes,
    )
    images._content = content.hexdigest()
    return images


def _read(examples: TFDSExamples, image_of: Callable[[dict], Image], start: int) -> Iterator[Image]:
    return map(image_of, examples.read(start))
