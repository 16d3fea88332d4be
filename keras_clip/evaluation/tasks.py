"""Evaluation tasks: a dataset with its splits, class names, prompts and options; encoding and held-out splits."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_clip.data.arguments import check_max_broken
from keras_clip.data.skipped import MAX_BROKEN
from keras_clip.evaluation.classifiers.few_shot import SHOTS
from keras_clip.evaluation.datasets.catalogue import SHIFTS, DatasetRecord
from keras_clip.evaluation.datasets.labelled_images import LabelledImages
from keras_clip.evaluation.datasets.sources import captions_of
from keras_clip.evaluation.features.store import FeatureStore
from keras_clip.evaluation.metrics.classification import METRICS
from keras_clip.evaluation.task_options import (
    Images,
    classes_of,
    counts_by_name,
    require_captions,
    require_class_sets,
    require_numbers,
    require_options,
    require_splits,
)
from keras_clip.model import CLIPModel
from keras_clip.prompts import validate_templates

# Fraction of the training split that is held out to select hyperparameters if the task has no validation split.
VALIDATION_SHARE = 0.2
LIMITS = ("counting", "fine_grained", "pixels", "rendered_text")
# Longest name of a folder of a store, in bytes. File systems allow 255, and other files are named after it.
_MOST_BYTES = 150


@dataclasses.dataclass(frozen=True)
class Task:
    """A dataset to evaluate a model on. Only `test` is required; parts whose data are missing are skipped.

    Splits are images, which are encoded once, or `FeatureStore`s. All splits have the same classes in the same order,
    and all images have captions if any has, unless `missing` says otherwise.

    Args:
        test: images on which all scores are measured.
        train: images to train probes and other heads on.
        validation: images to select C, templates and temperature on. None: a fifth of `train`, selected by image ids.
        templates: texts with one `{}` each. The method "zero_shot/one_template" uses the first one.
        names: {class name of the labels: name or names to write into prompts}. None: the class names.
        metric: key of `METRICS`.
        shifts: {name: images of the same classes, or of some of them, from another distribution}.
        pooled: {name of a shift: {class of the shift: classes of `test` that it covers}}, for shifts with coarser
            classes, such as the 30 of ImageNet-Vid. Their score is the largest of the classes covered.
        captions: {id of an image of `test`: its captions}, for retrieval. `sources.captions_of` reads them.
        class_sets: {name: class names to choose from}, for the class-design probe.
        watched: class names of `class_sets` whose rate of prediction is measured for each group.
        limits: names from `LIMITS`, the limits of the paper that the part "limits" measures on this task: "counting"
            (the classes are numbers of objects), "fine_grained" (requires `coarse`), "pixels" (logistic regression on
            raw pixels as the baseline; requires `train`) and "rendered_text". With `train`, it also measures what
            few-shot probes lose against zero-shot.
        counts: {class name: number of objects}, for "counting"; a list has those of the classes of `test` in their
            order. Empty: read from the class names.
        coarse: {class name: coarse class}, such as the make of a car, for "fine_grained".
        shots: numbers of images per class of the few-shot probes.
        seeds: seeds of the random few-shot subsets.
        published: {method: the paper's score}; that on a shift is {"shift/method": score}.
        protocol: conditions of the scores other than split, image size and number of prompts.
        missing: what to do with classes that only some splits have, and with images or captions without the other.
            "error"; "drop": measure on the images of the classes that all splits have, and retrieval on the images with
            captions; the protocol and the table "dropped" of the results count what was left out. "keep": classes of
            `train` of which `test` has no image may be predicted; everything else is as for "error".
        max_broken: float in [0, 1]. The fraction of the images of a split that may be unreadable. They are left out,
            counted and named.

    `names`, `coarse` and `counts` must have all classes that the task is evaluated on, which `missing` decides.

    Raises:
        TypeError: splits that are neither `LabelledImages` nor `FeatureStore`.
        ValueError: an unknown metric, limit or choice of `missing`; options that do not fit the classes, or each other;
            images or captions without the other. Classes that only some splits have are an error of `encode`.
    """

    test: Images
    train: Images | None = None
    validation: Images | None = None
    templates: Sequence[str] = ("a photo of a {}.",)
    names: Mapping[str, str | Sequence[str]] | None = None
    metric: str = "accuracy"
    shifts: Mapping[str, Images] = dataclasses.field(default_factory=dict)
    pooled: Mapping[str, Mapping[str, Sequence[str]]] = dataclasses.field(default_factory=dict)
    captions: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    class_sets: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    watched: Collection[str] = ()
    limits: Collection[str] = ()
    counts: Mapping[str, float] | Sequence[float] = dataclasses.field(default_factory=dict)
    coarse: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shots: Sequence[int] = SHOTS
    seeds: Sequence[int] = (0, 1, 2)
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)
    protocol: str = ""
    missing: str = "error"
    max_broken: float = MAX_BROKEN

    def __post_init__(self):
        require_splits(self)
        if self.metric not in METRICS:
            raise ValueError(f"Expected one of the metrics {list(METRICS)}. Received: metric={self.metric!r}.")
        if isinstance(self.limits, str) or not set(self.limits) <= set(LIMITS):
            raise ValueError(f"Expected a list of limits from {list(LIMITS)}. Received: limits={self.limits!r}.")
        if "pixels" in self.limits and self.train is None:
            raise ValueError('The limit "pixels" requires images to train on. Received: train=None.')
        if self.missing not in ("error", "drop", "keep"):
            raise ValueError(f'`missing` must be "error", "drop" or "keep". Received: missing={self.missing!r}.')
        check_max_broken(self.max_broken)
        validate_templates(self.templates)
        require_numbers(self.shots, self.seeds)
        require_class_sets(self.class_sets, self.watched)
        captions = {i: [texts] if isinstance(texts, str) else texts for i, texts in self.captions.items()}
        object.__setattr__(self, "captions", captions)
        if captions and self.missing != "drop":
            require_captions(self.test, captions)
        object.__setattr__(self, "counts", counts_by_name(self.counts, self.test.class_names))
        try:
            class_names = _common_classes(self) or self.test.class_names
        except ValueError:
            # `encode` raises it: the splits of a task may be replaced before.
            return
        if class_names is not None:
            require_options(self, class_names)

    @classmethod
    def from_record(
        cls,
        record: DatasetRecord,
        shifts: Mapping[str, Images] | Sequence[DatasetRecord] = (),
        model: str | None = None,
        data_dir: str | os.PathLike | None = None,
        **options: Any,
    ) -> "Task":
        """A task of the paper's, with all splits, prompts, the metric and the protocol of its record.

        Args:
            record: of `catalogue.record`.
            shifts: records of shifts, or {name: images}.
            model: a preset, whose scores in the paper the report shows beside those measured; None: no scores.
            data_dir: where tensorflow-datasets keeps its files. None: its default.
            options: other arguments of `Task`.

        Returns:
            A `Task`.

        Raises:
            ValueError: as of `DatasetRecord.images`.
        """
        splits = {
            split: record.images(split, data_dir=data_dir)
            for split in ("test", "train", "validation")
            if split in record.splits
        }
        if not isinstance(shifts, Mapping):
            shifts = {shift.name: shift.images("test", data_dir=data_dir) for shift in shifts}
        found = {} if model is None else dict(record.published_scores(model))
        for name in () if model is None else shifts:
            if name in SHIFTS:
                scores = SHIFTS[name].published_scores(model)
                found |= {f"{name}/{method}": score for method, score in scores.items()}
        # With `missing="keep"`, classes that only the training split has are choices too.
        class_names = list(dict.fromkeys(name for images in splits.values() for name in images.class_names))
        defaults = {
            "templates": record.templates,
            "names": dict(zip(class_names, record.names_per_class(class_names), strict=True)),
            "metric": record.metric,
            "protocol": record.protocol,
            "published": found,
        }
        return cls(**splits, shifts=shifts, **{**defaults, **options})


@dataclasses.dataclass(frozen=True)
class Splits:
    """The feature stores of a task, by split.

    Args:
        test, train, validation, shifts: as of `Task`.
        dropped: what was left out of them, rows of the table "dropped".
        is_held_out: whether `validation` was held out of the training split, whose name it has.
    """

    test: FeatureStore
    train: FeatureStore | None
    validation: FeatureStore | None
    shifts: Mapping[str, FeatureStore]
    dropped: Sequence[Mapping[str, Any]] = ()
    is_held_out: bool = False


def encode(
    clip: CLIPModel,
    task: Task,
    folder: str | os.PathLike | None,
    batch_size: int = 64,
    max_broken: float | None = None,
    full_digest: bool = False,
) -> Splits:
    """Builds or opens the feature stores of a task, and checks that their classes match.

    Args:
        clip: `CLIPModel`.
        task: `Task`.
        folder: folder of the stores, with a subfolder for each dataset and split. Not needed if all splits are stores.
        batch_size: int. Images per step of the encoder.
        max_broken: float in [0, 1]. The fraction of the images of a split that may be unreadable. None: that of the
            task.
        full_digest: bool, as of `FeatureStore.build`.

    Returns:
        `Splits`.

    Raises:
        ValueError: a store of another model, splits with different classes, too many unreadable images, images without
            a folder for their store, or different images of one name and split.
    """
    built: dict[str, LabelledImages] = {}

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
        name = folder_name(images)
        other = built.setdefault(name, images)
        if other is not images and other.digest() != images.digest():
            raise ValueError(
                "Different images must differ in their name or split, by which their stores are found. Received: two "
                f"sets of images, both of {images.name}/{images.split}. Pass another `name` or `split` to one source."
            )
        limit = task.max_broken if max_broken is None else max_broken
        return FeatureStore.build(
            clip, images, Path(folder) / name, batch_size, max_broken=limit, full_digest=full_digest
        )

    class_names = _common_classes(task)
    dropped: list[dict[str, Any]] = []

    def store_of_classes(images: Images | None, part: str, names: Sequence[str] | None) -> FeatureStore | None:
        store = store_of(images)
        if store is None or names is None or store.class_names == tuple(names):
            return store
        kept = store.of_classes(names)
        if left_out := [name for name in store.class_names if name not in names]:
            counts = {"images": len(store) - len(kept), "of": len(store)}
            dropped.append({"dataset": task.test.name, "split": part, "classes": left_out, **counts})
        if not len(kept):
            raise ValueError(
                f"Images of the classes that all splits have must remain. Received: {part} {store}, all of other "
                f"classes than {list(class_names[:5])}. Leave this split out, or pass other images."
            )
        return kept

    test, train, validation = (
        store_of_classes(images, part, class_names)
        for part, images in (("test", task.test), ("train", task.train), ("validation", task.validation))
    )
    shifts = {}
    for name, images in task.shifts.items():
        names = None if class_names is None else _known_classes(images, task.pooled.get(name), class_names)
        shifts[name] = store_of_classes(images, f"shift {name}", names)
    is_held_out = train is not None and validation is None
    if is_held_out:
        train, validation = hold_out(train)
    return Splits(test, train, validation, shifts, dropped, is_held_out)


def folder_name(images: LabelledImages) -> str:
    """The name of the folder of a store.

    Args:
        images: the images of the store.

    Returns:
        "<name>-<split>" in letters, digits, ".", "-" and "_". Where this would not be unique, or is too long for a file
        name, a digest of both names follows.
    """
    plain = f"{images.name}-{images.split}"
    name = re.sub(r"[^\w.-]+", "_", plain)
    if name == plain and "-" not in images.split and len(name.encode()) <= _MOST_BYTES:
        return name
    digest = hashlib.sha256(repr((images.name, images.split)).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{name.encode()[: _MOST_BYTES - 9].decode(errors='ignore')}-{digest}"


def _known_classes(
    shift: Images, pooled: Mapping[str, Sequence[str]] | None, class_names: Collection[str]
) -> list[str]:
    """The classes of a shift that are evaluated: those that are, or cover, one of these classes."""
    covered = {name: [name] for name in shift.class_names} if pooled is None else pooled
    return [name for name in shift.class_names if any(member in class_names for member in covered[name])]


def _common_classes(task: Task) -> tuple[str, ...] | None:
    """The classes to evaluate on, in order; None if all splits have them already.

    Raises:
        ValueError: classes that only some splits have, unless `missing` is "drop" and two common classes remain.
    """
    test, others = task.test, [split for split in (task.train, task.validation) if split is not None]
    unequal = [split for split in others if _kind(split) != _kind(test)]
    foreign = [
        shift
        for name, shift in task.shifts.items()
        if name not in task.pooled
        and (None in (shift.class_names, test.class_names) or not classes_of(shift) <= classes_of(test))
    ]
    if not unequal and not foreign:
        return None
    has_names = None not in [split.class_names for split in (test, *others, *task.shifts.values())]
    if has_names and all(split.multi_label == test.multi_label for split in others):
        common = tuple(name for name in test.class_names if all(name in split.class_names for split in others))
        if task.missing == "drop" and len(common) >= 2:
            return common
        is_subset = others and all(classes_of(test) <= classes_of(split) for split in others)
        if task.missing == "keep" and is_subset and not foreign and len({split.class_names for split in others}) == 1:
            return others[0].class_names
    split = (unequal or foreign)[0]
    what = (
        "all splits to have the same classes in the same order"
        if unequal
        else "the classes of a shift to be classes of the dataset"
    )
    raise ValueError(
        f"Expected {what}. Received: {_describe(split)}; {_describe(test)}. {_difference(split, test)}"
        'Pass the same `class_names` to both, or `missing="drop"` to evaluate on the classes that all splits have, at '
        'least two; the results count the images that are left out. With `missing="keep"`, classes of `train` without '
        "test images remain as choices."
    )


def _kind(split: Images) -> tuple:
    return split.class_names, split.multi_label


def _describe(split: Images) -> str:
    names = "no class names" if split.class_names is None else f"{list(split.class_names[:4])} ..."
    return f"{split.name}/{split.split} with {names}"


def _difference(split: Images, test: Images) -> str:
    """A sentence on the classes that only one of two splits has."""
    parts = [
        f"Only {one.name}/{one.split} has {sorted(only)[:5]} ({len(only)} of {len(classes_of(one))} classes)."
        for one, other in ((split, test), (test, split))
        if (only := classes_of(one) - classes_of(other))
    ]
    return "".join(f"{part} " for part in parts)


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
    return store.view(~held), store.view(held)


def captions_of_tars(shards: str | os.PathLike | Sequence) -> dict[str, list[str]]:
    """Reads the captions of WebDataset tars: the text of `<key>.txt`, or else those of `<key>.json`.

    Args:
        shards: as in `sources.tars`.

    Returns:
        {key: captions}; the keys are the ids that `sources.tars` returns.

    Raises:
        FileNotFoundError: no such shard.
        ValueError: not a complete tar.
    """
    return captions_of(shards)
