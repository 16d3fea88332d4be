"""Checks of the options of a `Task`: that they have the right form, and fit its classes and its images."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from keras_clip.evaluation.datasets.labelled_images import LabelledImages
from keras_clip.evaluation.datasets.names import align_names
from keras_clip.evaluation.features.store import FeatureStore
from keras_clip.evaluation.metrics.classification import METRICS

Images = LabelledImages | FeatureStore
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def classes_of(split: Images) -> set[str]:
    """The class names of a split, none if they are unknown."""
    return set(split.class_names or ())


def require_splits(task: Any) -> None:
    """Raises a TypeError unless all splits are images, and the options by name are mappings."""
    for option in ("shifts", "pooled", "captions", "class_sets", "coarse"):
        if not isinstance(getattr(task, option), Mapping):
            raise TypeError(
                f"`{option}` must be a mapping by name. Received: {option} of type "
                f"{type(getattr(task, option)).__name__}."
            )
    splits = {"test": task.test, "train": task.train, "validation": task.validation, **task.shifts}
    for split, images in splits.items():
        if not isinstance(images, Images) and not (images is None and split in ("train", "validation")):
            raise TypeError(
                f"A split must be `LabelledImages`, of `evaluation.sources`, or a `FeatureStore`. Received: {split} of "
                f"type {type(images).__name__}."
            )


def require_numbers(shots: Sequence[int], seeds: Sequence[int]) -> None:
    for name, numbers, least in (("shots", shots, 1), ("seeds", seeds, 0)):
        if isinstance(numbers, int) or not all(isinstance(number, int | np.integer) for number in numbers):
            raise ValueError(f"`{name}` must be a list of integers. Received: {name}={numbers!r}.")
        if any(number < least for number in numbers) or (name == "seeds" and not len(numbers)):
            raise ValueError(f"`{name}` must be integers from {least} on. Received: {name}={numbers!r}.")


def require_class_sets(class_sets: Mapping[str, Sequence[str]], watched: Collection[str]) -> None:
    if isinstance(watched, str):
        raise ValueError(f"`watched` must be a list of class names. Received: watched={watched!r}.")
    for name, classes in class_sets.items():
        if isinstance(classes, str) or not len(classes) or len(set(classes)) < len(classes):
            raise ValueError(
                f"`class_sets` must be lists of class names, each once. Received: {name!r} with {classes!r}."
            )
    known = {name for classes in class_sets.values() for name in classes}
    if unknown := sorted(set(watched) - known):
        raise ValueError(
            f"`watched` must be classes of `class_sets`. Received: {unknown[:5]}, which are in none of the sets "
            f"{list(class_sets)}."
        )


def counts_by_name(
    counts: Mapping[str, float] | Sequence[float], class_names: Sequence[str] | None
) -> Mapping[str, float]:
    """{class name: number}, also of a list in the order of the classes of the test split."""
    if isinstance(counts, Mapping) or not len(counts):
        return dict(counts)
    if class_names is None or len(counts) != len(class_names):
        raise ValueError(
            "`counts` must be {class name: number}, or a number for each class of `test` in their order. Received: "
            f"{len(counts)} numbers for {len(class_names or ())} classes."
        )
    return dict(zip(class_names, counts, strict=True))


def counts_of(counts: Mapping[str, float], class_names: Sequence[str]) -> list[float]:
    """The numbers of objects that classes stand for.

    Args:
        counts: {class name: number}. Empty: the names are numbers, such as "3" or "three".
        class_names: K names.

    Returns:
        K numbers.

    Raises:
        ValueError: a class without a number.
    """
    if not counts:
        try:
            return [_NUMBERS.index(name) if name in _NUMBERS else float(name) for name in class_names]
        except ValueError as error:
            raise ValueError(
                'Expected class names that are numbers, such as "3" or "three", or `Task(counts=...)`. '
                f"Received: {list(class_names)[:10]}."
            ) from error
    _require_all("counts", counts, class_names)
    return [float(counts[name]) for name in class_names]


def _require_all(option: str, given: Mapping[str, Any], class_names: Sequence[str]) -> None:
    if without := [name for name in class_names if name not in given]:
        raise ValueError(
            f"`{option}` must have every class that the task is evaluated on. Received: {len(given)} names, none for "
            f'{sorted(without)[:5]} ({len(without)} of {len(class_names)}). Add them; with missing="keep", the classes '
            "of `train` are among them."
        )


def require_options(task: Any, class_names: Sequence[str]) -> None:
    """Raises a ValueError unless the options of a task fit the classes that it is evaluated on."""
    if "fine_grained" in task.limits:
        if not task.coarse:
            raise ValueError(
                'The limit "fine_grained" requires the coarse class of each class in `coarse`. Received: none.'
            )
        _require_all("coarse", task.coarse, class_names)
    if "counting" in task.limits:
        counts_of(task.counts, class_names)
    if task.names is not None:
        align_names(class_names, task.names)
    for name, classes in task.pooled.items():
        if name not in task.shifts:
            raise ValueError(f"`pooled` must be of shifts, {list(task.shifts)}. Received: pooled of {name!r}.")
        _require_members(name, task.shifts[name], task.test, classes, class_names)
    _require_metric(task, class_names)


def _require_metric(task: Any, class_names: Sequence[str]) -> None:
    """Raises a ValueError if a metric other than accuracy is undefined for the classes of the test images."""
    if task.metric == "accuracy":
        return
    labels = np.asarray(task.test.labels)
    places = {name: place for place, name in enumerate(task.test.class_names)}
    if labels.ndim == 1:
        occurring = set(np.unique(labels).tolist())
    else:
        occurring = set(np.flatnonzero((labels == 1).any(axis=0)).tolist())
    present = [number for number, name in enumerate(class_names) if places.get(name) in occurring]
    # One image of each class that occurs shows whether the metric is defined.
    known = np.array(present) if labels.ndim == 1 else np.eye(len(class_names), dtype=np.int64)[present]
    try:
        METRICS[task.metric](np.zeros((len(known), len(class_names)), np.float32), known)
    except ValueError as error:
        without = [name for number, name in enumerate(class_names) if number not in set(present)]
        cure = (
            'pass `missing="drop"`, or leave these classes out, or choose another metric'
            if without
            else ("choose another metric")
        )
        raise ValueError(
            f"The metric {task.metric!r} must be defined for the test images. Received: {task.test.name}/"
            f"{task.test.split} with {len(class_names)} classes, {len(without)} of them without images {without[:5]}. "
            f"{str(error).split(' Received')[0]} To cure it, {cure}."
        ) from None


def _require_members(
    name: str, shift: Images, test: Images, classes: Mapping[str, Sequence[str]], class_names: Sequence[str]
) -> None:
    """Raises a ValueError unless each class of a shift covers classes of the test split, and each of these once."""
    members = [member for group in classes.values() for member in group]
    unknown = sorted(set(members) - classes_of(test) - set(class_names))
    if set(classes) != classes_of(shift) or unknown or len(set(members)) < len(members) or not all(classes.values()):
        raise ValueError(
            f"`pooled` must give each class of the shift {name!r} classes of {test.name}, none of them twice. "
            f"Received: {len(classes)} classes for the {len(classes_of(shift))} of the shift, {len(members)} "
            f"members, of which {len(members) - len(set(members))} occur again and {unknown[:5]} are unknown."
        )


def require_captions(test: Images, captions: Mapping[str, Sequence[str]]) -> None:
    """Raises a ValueError if images have no captions, or captions no image; broken images are no longer in a store."""
    ids = [str(i) for i in test.ids]
    without = [i for i in ids if not any(text.strip() for text in captions.get(i) or ())]
    known = set(ids)
    foreign = [i for i in captions if i not in known]
    broken = test.skipped.broken if isinstance(test, FeatureStore) else 0
    if without or len(foreign) > broken:
        raise ValueError(
            "Expected captions by the ids of the images, for every image. Received: "
            f"{len(without)} of {len(ids)} images without captions {without[:3]}; captions of {len(foreign)} other "
            f'images {foreign[:3]}. Complete them, or pass `missing="drop"` to measure on the '
            f"{len(ids) - len(without)} images that have captions; the results count the others."
        )
