"""What is evaluated: a data set with its splits, its names and prompts, and what more is asked of it."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from keras_clip.evaluation.classifiers.few_shot import SHOTS
from keras_clip.evaluation.datasets.labelled_images import LabelledImages
from keras_clip.evaluation.datasets.sources import captions_of
from keras_clip.evaluation.features.store import FeatureStore
from keras_clip.evaluation.metrics.classification import METRICS
from keras_clip.model import CLIPModel

Images = LabelledImages | FeatureStore
# Of the training split, where nothing else is there to choose C and other numbers on.
VALIDATION_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set to evaluate a model on. Only `test` is needed; what is missing is not measured.

    Splits are images, which are encoded once, or `FeatureStore`s. All splits have the same classes in the same order.

    Args:
        test: images that all scores are measured on.
        train: images for probes and other heads.
        validation: images to choose C, templates and temperature on. None: a fifth of `train`, drawn by the ids.
        templates: texts with one `{}` each, the plainest first. The rung "one template" is the first one.
        names: {class name of the labels: name or names to write into prompts}. None: the class names.
        metric: key of `METRICS`.
        shifts: {name: images of the same classes, or of some of them, from elsewhere}.
        captions: {id of an image of `test`: its captions}, for retrieval. `sources.captions_of` reads them.
        class_sets: {name: class names that may be named}, for the class-design probe.
        watched: class names of `class_sets` that are counted, by group.
        shots: images per class of the few-shot probes.
        seeds: of their subsets, each of which is measured.
        published: {method: the paper's score}.
        protocol: what the scores depend on beside split, image size and number of prompts.

    Raises:
        ValueError: an unknown metric.
    """

    test: Images
    train: Images | None = None
    validation: Images | None = None
    templates: Sequence[str] = ("a photo of a {}.",)
    names: Mapping[str, str | Sequence[str]] | None = None
    metric: str = "accuracy"
    shifts: Mapping[str, Images] = dataclasses.field(default_factory=dict)
    captions: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    class_sets: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    watched: Collection[str] = ()
    shots: Sequence[int] = SHOTS
    seeds: Sequence[int] = (0, 1, 2)
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)
    protocol: str = ""

    def __post_init__(self):
        if self.metric not in METRICS:
            raise ValueError(f"Expected a metric of {list(METRICS)}. Received: metric={self.metric!r}.")


@dataclasses.dataclass(frozen=True)
class Splits:
    """The stores of a task."""

    test: FeatureStore
    train: FeatureStore | None
    validation: FeatureStore | None
    shifts: Mapping[str, FeatureStore]


def encode(clip: CLIPModel, task: Task, folder: str | os.PathLike | None, batch_size: int = 64) -> Splits:
    """Makes or opens the stores of a task, and checks that they belong together.

    Args:
        clip: `CLIPModel`.
        task: `Task`.
        folder: where stores are kept, a folder for each data set and split. Not needed where all splits are stores.
        batch_size: int. Images per step of the encoder.

    Returns:
        `Splits`.

    Raises:
        ValueError: a store of another model, splits of different classes, images without a folder for their store.
    """

    def store_of(images: Images | None) -> FeatureStore | None:
        if images is None:
            return None
        if isinstance(images, FeatureStore):
            images.require_model(clip)
            return images
        if folder is None:
            raise ValueError(f"Images want a folder for their store. Received: folder=None, {images.name!r}.")
        name = re.sub(r"[^\w.-]+", "_", f"{images.name}-{images.split}")
        return FeatureStore.build(clip, images, Path(folder) / name, batch_size)

    test, train, validation = (store_of(images) for images in (task.test, task.train, task.validation))
    shifts = {name: store_of(images) for name, images in task.shifts.items()}
    for split in filter(None, (train, validation)):
        if split.class_names != test.class_names or split.multi_label != test.multi_label:
            raise ValueError(
                "All splits must have the same classes in the same order. "
                f"Received: {split} with {_some(split)}; {test} with {_some(test)}. Give both `class_names`."
            )
    for name, shift in shifts.items():
        if test.class_names is None or not set(shift.class_names or [None]) <= set(test.class_names):
            raise ValueError(
                f"A shift must have classes of the data set. Received: {name!r} with {_some(shift)}; {_some(test)}."
            )
    if train is not None and validation is None:
        train, validation = hold_out(train)
    return Splits(test, train, validation, shifts)


def _some(store):
    return "no class names" if store.class_names is None else f"{list(store.class_names[:4])} ..."


def hold_out(store: FeatureStore, share: float = VALIDATION_SHARE) -> tuple[FeatureStore, FeatureStore]:
    """Parts a split in two, the same way in every run: by the digest of each image's id, class by class.

    Args:
        store: images with one class each, or several.
        share: float in (0, 1). Of each class, rounded down, that goes to the second part. At least one stays.

    Returns:
        What is left, and what is held out.

    Raises:
        ValueError: no class has images enough to hold one out.
    """
    digests = [hashlib.sha256(f"hold out {i}".encode()).digest() for i in store.ids]
    order = np.array(sorted(range(len(store)), key=digests.__getitem__))
    classes = np.zeros(len(store), int) if store.multi_label else store.labels
    held = np.zeros(len(store), bool)
    for label in np.unique(classes):
        of_class = order[classes[order] == label]
        held[of_class[: int(share * len(of_class))]] = True
    if not held.any():
        raise ValueError(
            f"A fifth of each class is held out to choose on. Received: {store}, whose classes have fewer than "
            f"{int(1 / share)} images each. Give `validation`, or more images."
        )
    return store.take(~held), store.take(held)


def captions_of_tars(shards: str | os.PathLike | Sequence) -> dict[str, list[str]]:
    """The captions of WebDataset tars: each line of `<key>.txt`, or else those that `<key>.json` names.

    Args:
        shards: as of `sources.tars`.

    Returns:
        {key: captions}, keys as the ids that `sources.tars` gives.

    Raises:
        FileNotFoundError: no such shard.
        ValueError: not a complete tar.
    """
    return captions_of(shards)
