"""The examples of a split of tensorflow-datasets, images undecoded: PIL decodes them, as it does all others."""

import hashlib
import operator
import os
from collections.abc import Callable, Sequence
from typing import Any

from keras_clip.data.readers.dataset import TFDSExamples
from keras_clip.evaluation.datasets.labelled_images import PATIENCE, Image, Label, LabelledImages, image_digest


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
    """A split of a data set of tensorflow-datasets, downloaded and prepared if it is not there yet.

    The records are read once for their labels and for the digest of their images, which takes minutes for a million.

    Args:
        builder: its name there, with its configuration: "eurosat/rgb".
        split: as there: "test", "train[:10000]", "train+validation".
        image: the feature that is the image, or a function of an example (images as bytes) that gives one.
        label: the feature that is the class, or a function of an example and of the builder's features that gives the
            class name, or for several classes a dict (see `LabelledImages`). A function needs `class_names`.
        class_names: K names. None: those of the builder.
        empty_classes: what to do with a class without an image: "refuse", "keep" or "drop", as of ImageNet-A, whose
            builder names 1,000 and has 200.
        name: of the data set. None: `builder`.
        data_dir: where tensorflow-datasets keeps its files. None: its own default.

    Returns:
        `LabelledImages`; the ids are those of tensorflow-datasets.

    Raises:
        ImportError: tensorflow-datasets is not installed.
        AssertionError: of tensorflow-datasets: files that must be downloaded by hand are not there.
        ValueError: see `LabelledImages`.
    """
    from tqdm import tqdm

    examples = TFDSExamples(builder, split, data_dir)
    image_of = image if callable(image) else operator.itemgetter(image)
    if not callable(label):
        feature, key = examples.features[label], label
        class_names = feature.names if class_names is None else class_names
        # A builder's numbers are those of its own names.
        label = lambda example, _: feature.int2str(int(example[key]))  # noqa: E731
    elif class_names is None:
        raise ValueError("A function that gives labels needs `class_names`. Received: class_names=None.")
    labels, ids, content = [], [], hashlib.sha256()
    for example in tqdm(examples.read(), desc=f"Reading {name or builder}", delay=PATIENCE, leave=False):
        labels.append(label(example, examples.features))
        ids.append(examples.key(example, len(ids)))
        content.update(image_digest(image_of(example)))
    images = LabelledImages(
        lambda start: map(image_of, examples.read(start)),
        labels,
        ids,
        class_names,
        name=name or builder,
        split=split,
        empty_classes=empty_classes,
    )
    images._content = content.hexdigest()
    return images
