"""One data set while it is evaluated: its stores, its classifiers, and the results so far."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from keras_clip.evaluation import metrics
from keras_clip.evaluation.classifiers.few_shot import FewShotScore, few_shot_scores
from keras_clip.evaluation.classifiers.linear_probe import CSearch, search_C
from keras_clip.evaluation.classifiers.zero_shot import Rung, ladder, zero_shot_scores
from keras_clip.evaluation.features.store import FeatureStore
from keras_clip.evaluation.results import Results, Score
from keras_clip.evaluation.tasks import Splits, Task
from keras_clip.model import CLIPModel


@dataclass(frozen=True)
class Case:
    """What every part of an evaluation works on. Classifiers are made when first asked for.

    Args:
        clip: the model.
        task: what is asked.
        splits: its stores.
        results: where scores and tables go.
        verbose: int. 0 hides progress.
    """

    clip: CLIPModel
    task: Task
    splits: Splits
    results: Results
    verbose: int = 0

    @property
    def name(self) -> str:
        """Of the data set."""
        return self.splits.test.name

    @cached_property
    def rungs(self) -> dict[str, Rung]:
        """The zero-shot classifiers; templates are selected on the validation split."""
        splits = self.splits
        # What is held out of a training split has its name, and none of the test split's images.
        return ladder(
            self.clip,
            splits.test,
            self.task.templates,
            self.task.names,
            training=splits.validation,
            metric=metrics.METRICS[self.task.metric],
        )

    @cached_property
    def probe(self) -> CSearch:
        """The linear probe with the C that is best on the validation split, then trained on both."""
        train, validation = self.splits.train, self.splits.validation
        return search_C(
            (train.features, train.labels),
            (validation.features, validation.labels),
            metric=metrics.METRICS[self.task.metric],
            num_classes=len(train.class_names) if train.class_names else None,
            verbose=self.verbose,
        )

    @cached_property
    def few_shot(self) -> list[FewShotScore]:
        """Probes on few and on all images per class, scored on the images of `scored`."""
        train, validation = self.splits.train, self.splits.validation
        labels = [self.splits.test.labels, *(self.as_test(shift) for shift in self.splits.shifts.values())]
        return few_shot_scores(
            (train.features, train.labels, train.ids),
            (validation.features, validation.labels),
            (np.concatenate([store.features for store in self.scored]), np.concatenate(labels)),
            shots=(*self.task.shots, None),
            seeds=self.task.seeds,
            metric=metrics.METRICS[self.task.metric],
            num_classes=len(train.class_names) if train.class_names else None,
        )

    @property
    def scored(self) -> list[FeatureStore]:
        """The test split and the shifts, in the order in which few-shot probes score their images."""
        return [self.splits.test, *self.splits.shifts.values()]

    def as_test(self, shift: FeatureStore) -> np.ndarray:
        """The labels (N,) of a shift, as numbers of the test split's classes."""
        return np.array(self.columns(shift))[shift.labels]

    def columns(self, shift: FeatureStore) -> list[int]:
        """Which of the test split's classes each class of a shift is, by its name."""
        return [self.splits.test.class_names.index(name) for name in shift.class_names]

    def zero_shot(self, store: FeatureStore, method: str = "zero_shot/family") -> np.ndarray:
        """Logits (N, K) of a store by a rung of the ladder."""
        return zero_shot_scores(store, self.rungs[method].class_embeddings)

    def protocol(self, *more: str) -> str:
        """What scores on the test split depend on."""
        test = self.splits.test
        sides = "x".join(map(str, self.clip.image_preprocessor.sides))
        parts = [self.task.protocol, f"{test.name}/{test.split}", f"{sides} px", *more]
        return ", ".join(part for part in parts if part)

    def trained_protocol(self, store: FeatureStore) -> str:
        """The protocol of what was trained on a store's features."""
        return self.protocol(f"trained on {store.name}/{store.split}")

    def add(self, method: str, scores: np.ndarray, protocol: str, **details) -> Score:
        """Measures the scores (N, K) of the test split by the task's metric."""
        labels, metric = self.splits.test.labels, metrics.METRICS[self.task.metric]
        low, high = metrics.interval(metric.name, scores, labels)
        score = Score(
            self.name,
            method,
            metric.name,
            metric(scores, labels),
            low,
            high,
            len(labels),
            protocol,
            self.task.published.get(method),
            details,
            metric.unit,
        )
        self.results.add(score, metrics.correct(scores, labels))
        return score
