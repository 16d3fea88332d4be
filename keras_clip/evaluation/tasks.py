"""Evaluation tasks: a dataset with its splits, class names, prompts and options; encoding and held-out splits."""

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
# Fraction of the training split that is held out to select hyperparameters if the task has no validation split.
VALIDATION_SHARE = 0.2
LIMITS = ("counting", "fine_grained", "pixels", "rendered_text")


@dataclasses.dataclass(frozen=True)
class Task:
    """A dataset to evaluate a model on. Only `test` is required; parts whose data are missing are skipped.

    Splits are images, which are encoded once, or `FeatureStore`s. All splits have the same classes in the same order.

    Args:
        test: images on which all scores are measured.
        train: images to train probes and other heads on.
        validation: images to select C, templates and temperature on. None: a fifth of `train`, selected by image ids.
        templates: texts with one `{}` each. The method "zero_shot/one_template" uses the first one.
        names: {class name of the labels: name or names to write into prompts}. None: the class names.
        metric: key of `METRICS`.
        shifts: {name: images of the same classes, or of some of them, from another distribution}.
        captions: {id of an image of `test`: its captions}, for retrieval. `sources.captions_of` reads them.
        class_sets: {name: class names to choose from}, for the class-design probe.
        watched: class names of `class_sets` whose rate of prediction is measured for each group.
        limits: names from `LIMITS`, the limits of the paper that the part "limits" measures on this task: "counting"
            (the classes are numbers of objects), "fine_grained" (requires `coarse`), "pixels" (logistic regression on
            raw pixels as the baseline; requires `train`) and "rendered_text". With `train`, it also measures what
            few-shot probes lose against zero-shot.
        counts: numbers of objects of the classes, for "counting"; empty: read from the class names.
        coarse: {class name: coarse class}, such as the make of a car, for "fine_grained".
        shots: numbers of images per class of the few-shot probes.
        seeds: seeds of the random few-shot subsets.
        published: {method: the paper's score}.
        protocol: conditions of the scores other than split, image size and number of prompts.

    Raises:
        ValueError: an unknown metric or limit, or a limit without its data.
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
    limits: Collection[str] = ()
    counts: Sequence[float] = ()
    coarse: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shots: Sequence[int] = SHOTS
    seeds: Sequence[int] = (0, 1, 2)
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)
    protocol: str = ""

    def __post_init__(self):
        if self.metric not in METRICS:
            raise ValueError(f"Expected one of the metrics {list(METRICS)}. Received: metric={self.metric!r}.")
        if not set(self.limits) <= set(LIMITS) or isinstance(self.limits, str):
            raise ValueError(f"Expected a list of limits from {list(LIMITS)}. Received: limits={self.limits!r}.")
        names = getattr(self.test, "class_names", None) or ()
        if "fine_grained" in self.limits and set(self.coarse) != set(names):
            raise ValueError(
                'The limit "fine_grained" requires the coarse class of each class in `coarse`. Received: '
                f"{len(self.coarse)} names, none for {sorted(set(names) - set(self.coarse))[:5]}."
            )
        if "pixels" in self.limits and self.train is None:
            raise ValueError('The limit "pixels" requires images to train on. Received: train=None.')


@dataclasses.dataclass(frozen=True)
class Splits:
    """The feature stores of a task, by split."""

    test: FeatureStore
    train: FeatureStore | None
    validation: FeatureStore | None
    shifts: Mapping[str, FeatureStore]


def encode(clip: CLIPModel, task: Task, folder: str | os.PathLike | None, batch_size: int = 64) -> Splits:
    """Builds or opens the feature stores of a task, and checks that their classes match.

    Args:
        clip: `CLIPModel`.
        task: `Task`.
        folder: folder of the stores, with a subfolder for each dataset and split. Not needed if all splits are stores.
        batch_size: int. Images per step of the encoder.

    Returns:
        `Splits`.

    Raises:
        ValueError: a store of another model, splits with different classes, or images without a folder for their store.
    """

    def store_of(images: Images | None) -> FeatureStore | None:
        if images is None:
            return None
        if isinstance(images, FeatureStore):
            images.require_model(clip)
            return images
        if folder is None:
            raise ValueError(
                f"Images require a folder for their feature store. Received: folder=None, images of {images.name!r}. "
                "Pass `folder`."
            )
        name = re.sub(r"[^\w.-]+", "_", f"{images.name}-{images.split}")
        return FeatureStore.build(clip, images, Path(folder) / name, batch_size)

    test, train, validation = (store_of(images) for images in (task.test, task.train, task.validation))
    shifts = {name: store_of(images) for name, images in task.shifts.items()}
    for split in filter(None, (train, validation)):
        if split.class_names != test.class_names or split.multi_label != test.multi_label:
            raise ValueError(
                "Expected all splits to have the same classes in the same order. "
                f"Received: {split} with {_class_names(split)}; {test} with {_class_names(test)}. "
                "Pass `class_names` to both."
            )
    for name, shift in shifts.items():
        if test.class_names is None or not set(shift.class_names or [None]) <= set(test.class_names):
            raise ValueError(
                f"Expected the classes of a shift to be classes of the dataset. Received: {name!r} with "
                f"{_class_names(shift)}; {test} with {_class_names(test)}."
            )
    if train is not None and validation is None:
        train, validation = hold_out(train)
    return Splits(test, train, validation, shifts)


def _class_names(store):
    return "no class names" if store.class_names is None else f"{list(store.class_names[:4])} ..."


def hold_out(store: FeatureStore, share: float = VALIDATION_SHARE) -> tuple[FeatureStore, FeatureStore]:
    """Splits a store in two, stratified by class and deterministically by the hash of each image's id.

    Args:
        store: images with one or several classes each.
        share: float in (0, 1). Fraction of each class, rounded down, that is held out. At least one image of each class
            remains.

    Returns:
        The remaining store, and the held-out store.

    Raises:
        ValueError: no class has enough images to hold one out.
    """
    digests = [hashlib.sha256(f"hold out {i}".encode()).digest() for i in store.ids]
    order = np.array(sorted(range(len(store)), key=digests.__getitem__))
    classes = np.zeros(len(store), int) if store.multi_label else store.labels
    held = np.zeros(len(store), bool)
    for label in np.unique(classes):
        members = order[classes[order] == label]
        held[members[: int(share * len(members))]] = True
    if not held.any():
        raise ValueError(
            f"Expected enough images to hold out a fraction of {share:g} of each class for validation. Received: "
            f"{store}, whose classes have fewer than {int(1 / share)} images each. Pass `validation`, or more images."
        )
    return store.take(~held), store.take(held)


def captions_of_tars(shards: str | os.PathLike | Sequence) -> dict[str, list[str]]:
    """Reads the captions of WebDataset tars: each line of `<key>.txt`, or else those of `<key>.json`.

    Args:
        shards: as in `sources.tars`.

    Returns:
        {key: captions}; the keys are the ids that `sources.tars` returns.

    Raises:
        FileNotFoundError: no such shard.
        ValueError: not a complete tar.
    """
    return captions_of(shards)
