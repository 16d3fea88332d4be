"""A linear probe on the pictures that a person labelled: how well it would label the others, and which it doubts."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_clip.evaluation.classifiers.linear_probe import LinearProbe, search_C
from keras_clip.evaluation.metrics.calibration import negative_log_likelihood, softmax
from keras_clip.evaluation.metrics.intervals import clustered_interval
from keras_clip.search.labels.assigning import Labelling
from keras_clip.search.labels.classes import SavedClass

# Pictures of a class that are needed, parts that are held out one after another, and suggestions.
FEWEST, FOLDS, MOST = 5, 5, 50
# Pictures of this cosine are as good as the same: they are held out together.
_SAME = 0.95
_BLOCK = 2048
# More labelled pictures than these add little to a probe, and take long.
MOST_LABELLED = 5_000


@dataclass(frozen=True)
class Suggestion:
    """A picture that should be looked at.

    Args:
        picture: int, its id.
        class_id: int, the class that the probe predicts, or the only one, which the picture may not belong to.
        probability: float, of this class by the probe.
    """

    picture: int
    class_id: int
    probability: float


@dataclass(frozen=True)
class Probe:
    """A linear probe and its estimated accuracy.

    Args:
        classes: the `SavedClass`es.
        accuracy: float. Fraction of the labelled pictures that probes get right which were trained without them, in 5
            parts. The probe itself is trained on all.
        low: float, lower end of the interval of 95 % of the accuracy, where near-duplicates count as one picture.
        high: float, its upper end.
        pictures: int, number of labelled pictures.
        suggestions: `Suggestion`s, at most 50: pictures without a label by hand of these classes whose class by the
            probe is not that by the text, the surest first.
        uncertain: `Suggestion`s, at most 50: pictures without a label by hand between two classes, the least sure
            first. Labels of these teach the probe the most.
        probe: `LinearProbe` on the features of the index.
    """

    classes: tuple[SavedClass, ...]
    accuracy: float
    low: float
    high: float
    pictures: int
    suggestions: tuple[Suggestion, ...]
    uncertain: tuple[Suggestion, ...]
    probe: LinearProbe


def train_probe(index: Any, labelling: Labelling, class_ids: Sequence[int]) -> Probe:
    """Trains a linear probe on the pictures with labels by hand, and estimates its accuracy.

    With several classes, a picture counts for the class that it belongs to by hand; one that belongs to two of them is
    left out. With one class, the pictures that do not belong to it by hand are the other side.

    Args:
        index: `PictureIndex` of the version of `labelling`.
        labelling: `Labelling`.
        class_ids: ids of classes.

    Returns:
        `Probe`.

    Raises:
        KeyError: no such class.
        ValueError: fewer than 5 different pictures with labels by hand in a class.
    """
    classes = tuple(labelling.classes.get(class_id) for class_id in dict.fromkeys(class_ids))
    if not classes:
        raise ValueError("A probe needs at least one class. Received: none.")
    places, labels, by_hand = _labelled(labelling, classes)
    names = [each.name for each in classes] if len(classes) > 1 else [f"not {classes[0].name}", classes[0].name]
    store = None if len(np.unique(labels)) < len(names) else index.store(labelling.ids[places], labels, names)
    groups = np.arange(len(labels)) if store is None else _groups(store.embeddings, labels)
    counts = [len(np.unique(groups[labels == number])) for number in range(len(names))]
    if min(counts) < FEWEST:
        found = ", ".join(f"{name}: {count}" for name, count in zip(names, counts, strict=True))
        raise ValueError(
            f"A probe needs at least {FEWEST} different pictures labelled by hand for each class; near-duplicates "
            f"count as one. Received: {found}. Label more of them."
        )
    correct = _held_out(store.features, labels, groups, len(names))
    low, high = clustered_interval(correct, groups.tolist())
    fitted = _fitted(store.features, labels, groups, len(names))
    suggestions, uncertain = _suggestions(index, labelling, fitted, classes, by_hand)
    return Probe(classes, float(correct.mean()), float(low), float(high), len(labels), suggestions, uncertain, fitted)


def _labelled(labelling: Labelling, classes: Sequence[SavedClass]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the places (N,) and labels (N,) of labelled pictures, one of each file, and all with a label (M,)."""
    size = len(labelling.ids)
    belongs, by_hand, is_not = np.zeros(size, np.int64), np.zeros(size, bool), np.zeros(size, bool)
    label = np.zeros(size, np.int64)
    for number, each in enumerate(classes):
        places, values = labelling.by_hand(each.id)
        by_hand[places] = True
        label[places[values]] = number
        belongs[places[values]] += 1
        is_not[places[~values]] = True
    if len(classes) == 1:
        label, known = belongs, (belongs == 1) | is_not
    else:
        known = belongs == 1
    places = np.flatnonzero(known)
    # Copies of a file have the same label.
    _, first = np.unique(labelling.sha256[places].astype("S64"), return_index=True)
    places = places[np.sort(first)]
    if len(places) > MOST_LABELLED:
        places = np.sort(np.random.default_rng(0).choice(places, MOST_LABELLED, replace=False))
    return places, label[places], by_hand


def _groups(embeddings: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns a number for each picture (N,), equal for near-duplicates of a class, which count as one."""
    group = np.full(len(embeddings), -1)
    for start in range(0, len(embeddings), _BLOCK):
        near = embeddings[start : start + _BLOCK] @ embeddings.T >= _SAME
        for row, is_near in enumerate(near, start):
            if group[row] < 0:
                group[is_near & (labels == labels[row]) & (group < 0)] = row
                group[row] = row
    return group


def _folds(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Returns the part of each picture, (N,): parts of equal size in each class, near-duplicates in one part."""
    generator = np.random.default_rng(seed)
    class_of = dict(zip(groups.tolist(), labels.tolist(), strict=True))
    of_group = {}
    for each in np.unique(labels):
        members = generator.permutation([group for group, label in class_of.items() if label == each])
        of_group.update(zip(members.tolist(), itertools.cycle(range(folds)), strict=False))
    return np.array([of_group[group] for group in groups.tolist()], np.int64)


def _held_out(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns whether each picture is right by a probe that was trained without it, bool (N,)."""
    parts, correct = _folds(labels, groups, FOLDS, 0), np.zeros(len(labels), bool)
    for part in range(FOLDS):
        held = parts == part
        fitted = _fitted(features[~held], labels[~held], groups[~held], num_classes)
        correct[held] = fitted.predict(features[held]) == labels[held]
    return correct


def _fitted(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, num_classes: int) -> LinearProbe:
    """Fits a probe; its C is chosen on a part of these pictures."""
    held = _folds(labels, groups, FOLDS, 1) == 0
    if len(np.unique(labels[~held])) < num_classes or not held.any():
        return LinearProbe().fit(features, labels, num_classes)
    train, validation = (features[~held], labels[~held]), (features[held], labels[held])
    return search_C(train, validation, _likelihood, num_classes, verbose=0).probe


def _likelihood(scores: np.ndarray, labels: np.ndarray) -> float:
    # The accuracy of a few pictures is the same for many C, and the smallest of these knows the larger class only.
    return -negative_log_likelihood(scores, labels)


def _suggestions(index, labelling, fitted, classes, by_hand):
    rows, places = np.asarray(index.rows), np.flatnonzero(~by_hand)
    best = np.zeros(len(places), np.int64)
    probability, margin = np.zeros(len(places)), np.zeros(len(places))
    for start in range(0, len(places), _BLOCK):
        block = slice(start, start + _BLOCK)
        probabilities = softmax(fitted.decision_function(index.features[rows[places[block]]]))
        best[block] = probabilities.argmax(axis=1)
        ordered = np.sort(probabilities, axis=1)
        probability[block], margin[block] = ordered[:, -1], ordered[:, -1] - ordered[:, -2]
    current = _current(labelling, classes)[places]
    ids = labelling.ids[places]

    def suggestion(place):
        if len(classes) > 1:
            return Suggestion(int(ids[place]), classes[best[place]].id, float(probability[place]))
        belongs = probability[place] if best[place] else 1 - probability[place]
        return Suggestion(int(ids[place]), classes[0].id, float(belongs))

    differs = np.flatnonzero(best != current)
    surest = differs[np.lexsort([ids[differs], -probability[differs]])][:MOST]
    least = np.lexsort([ids, margin])[:MOST]
    return tuple(map(suggestion, surest)), tuple(map(suggestion, least))


def _current(labelling: Labelling, classes: Sequence[SavedClass]) -> np.ndarray:
    """Returns the class by the text of each picture (M,): of one class 1 or 0, else that of the largest cosine."""
    scores = np.stack([labelling.scores(each.id) for each in classes], axis=1)
    if len(classes) == 1:
        return (scores[:, 0] >= classes[0].threshold).astype(np.int64)
    return scores.argmax(axis=1)
