"""The state of the evaluation of one dataset: its feature stores, its classifiers and its results."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from keras_clip.evaluation import metrics
from keras_clip.evaluation.classifiers.few_shot import FewShotScore, few_shot_scores
from keras_clip.evaluation.classifiers.linear_probe import CSearch, search_C
from keras_clip.evaluation.classifiers.zero_shot import ZeroShotHead, zero_shot_heads, zero_shot_scores
from keras_clip.evaluation.features.store import FeatureStore
from keras_clip.evaluation.results import Results, Score
from keras_clip.evaluation.tasks import Splits, Task
from keras_clip.model import CLIPModel


@dataclass(frozen=True)
class Case:
    """The input of every part of an evaluation. Classifiers are built on first use.

    Args:
        clip: the model.
        task: the task.
        splits: the feature stores of the task.
        results: the `Results` to which scores and tables are added.
        verbose: int. 0 hides progress bars.
    """

    clip: CLIPModel
    task: Task
    splits: Splits
    results: Results
    verbose: int = 0

    @property
    def name(self) -> str:
        """The name of the dataset."""
        return self.splits.test.name

    @cached_property
    def zero_shot_heads(self) -> dict[str, ZeroShotHead]:
        """The zero-shot classifiers by method; templates are selected on the validation split."""
        splits = self.splits
        # The validation split may have the name of the training split that it was held out of; it has no test image.
        return zero_shot_heads(
            self.clip,
            splits.test,
            self.task.templates,
            self.task.names,
            training=splits.validation,
            metric=metrics.METRICS[self.task.metric],
        )

    @cached_property
    def searched(self) -> CSearch:
        """The linear probe on the training images, with the C selected on the validation split."""
        return search_C(
            *self._features_of_both,
            metric=metrics.METRICS[self.task.metric],
            num_classes=self._num_classes,
            refit=False,
            verbose=self.verbose,
        )

    @cached_property
    def probe(self) -> CSearch:
        """The linear probe with the C selected on the validation split, refitted on training and validation images."""
        return self.searched.refitted(*self._features_of_both, self._num_classes)

    @property
    def _features_of_both(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(store.features, store.labels) for store in (self.splits.train, self.splits.validation)]

    @property
    def _num_classes(self) -> int | None:
        return len(self.splits.train.class_names) if self.splits.train.class_names else None

    @cached_property
    def few_shot(self) -> list[FewShotScore]:
        """Linear probes trained on a few and on all images per class, with their scores on the test split."""
        train, validation = self._features_of_both
        return few_shot_scores(
            (*train, self.splits.train.ids),
            validation,
            (self.splits.test.features, self.splits.test.labels),
            shots=(*self.task.shots, None),
            seeds=self.task.seeds,
            metric=metrics.METRICS[self.task.metric],
            num_classes=self._num_classes,
            whole=self.searched,
        )

    def members(self, name: str) -> list[list[int]]:
        """Returns for each class of a shift the indices of the classes of the test split that it covers."""
        index = {name: i for i, name in enumerate(self.splits.test.class_names)}
        classes, pooled = self.splits.shifts[name].class_names, self.task.pooled.get(name)
        groups = [[label] if pooled is None else pooled[label] for label in classes]
        # Classes that were dropped from the test split are in no group.
        return [[index[member] for member in group if member in index] for group in groups]

    def zero_shot(self, store: FeatureStore, method: str = "zero_shot/family") -> np.ndarray:
        """Returns the logits (N, K) of a store by one zero-shot method."""
        return zero_shot_scores(store, self.zero_shot_heads[method].class_embeddings)

    def protocol(self, *more: str) -> str:
        """Returns the protocol of a score on the test split: split, image size and further conditions."""
        test = self.splits.test
        sides = "x".join(map(str, self.clip.image_preprocessor.sides))
        dropped = [
            f"without {row['images']} of {row['of']} images of {row['split']}, whose classes not all splits have"
            for row in self.splits.dropped
        ]
        parts = [self.task.protocol, f"{test.name}/{test.split}", f"{sides} px", *more, *dropped]
        return ", ".join(part for part in parts if part)

    def training(self, subset: str = "", refitted: bool = False) -> tuple[str, str]:
        """Returns the conditions of `protocol` that say how a classifier was trained.

        Args:
            subset: str. The training images it was fitted on, if not all: "4 images per class of".
            refitted: bool. Whether, after the selection of its hyperparameters, it was fitted on both splits.
        """
        train, validation = (f"{store.name}/{store.split}" for store in (self.splits.train, self.splits.validation))
        if self.splits.is_held_out:
            validation += " (held out)"
        fitted = f"{train} and {validation} together" if refitted else f"{subset} {train}".strip()
        return f"trained on {fitted}", f"hyperparameters selected on {validation}"

    def training_of(self, probe: FewShotScore) -> tuple[str, str]:
        """The conditions that say how one of `few_shot` was trained."""
        counts = np.bincount(self.splits.train.labels, minlength=len(self.splits.test.class_names))
        if probe.shots is None:
            subset = "all images of" if counts.min() != counts.max() else f"all {counts[0]} images per class of"
        else:
            fewer = ", all where there are fewer," if counts.min() < probe.shots else ""
            subset = f"{probe.shots} image{'s' * (probe.shots > 1)} per class{fewer} of"
        return self.training(subset)

    @property
    def training_of_probe(self) -> tuple[str, str]:
        """The conditions that say how `probe` was trained."""
        return self.training(refitted=True)

    def add(self, method: str, scores: np.ndarray, protocol: str, **details) -> Score:
        """Adds the task's metric of the scores (N, K) on the test split to the results, and returns it."""
        score = metrics.METRICS[self.task.metric].measure(
            scores,
            self.splits.test.labels,
            self.name,
            method,
            protocol,
            published=self.task.published.get(method),
            details=details,
            examples=self.splits.test.examples,
        )
        self.results.add(score)
        return score
