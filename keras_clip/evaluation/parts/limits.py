"""The part `limits` of an evaluation: the limits of the paper's sections 6 and 7 on one task."""

import numpy as np

from keras_clip.data.image_files import MAX_PIXELS, open_image
from keras_clip.evaluation import metrics
from keras_clip.evaluation.classifiers.linear_probe import search_C
from keras_clip.evaluation.datasets.labelled_images import LabelledImages
from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.parts.part import Part, ReportTable, has_one_class
from keras_clip.evaluation.studies import limits
from keras_clip.evaluation.task_options import counts_of

_LARGEST = (28, 28)


def run(case: Case) -> None:
    """Adds the measurements of the limits that the task names, and what few-shot probes lose against zero-shot."""
    task, test = case.task, case.splits.test
    table = case.results.tables.setdefault("limits", [])
    scores = case.zero_shot(test)
    found = {
        "counting": lambda: limits.counting(scores, test.labels, counts_of(task.counts, test.class_names)),
        "fine_grained": lambda: limits.fine_grained(scores, test.labels, [task.coarse[n] for n in test.class_names]),
        "pixels": lambda: limits.against_baseline(_against_pixels(case, scores), "logistic regression on pixels"),
        "rendered_text": lambda: _zero_shot_and_probe(case, scores),
    }
    for name in task.limits:
        table.extend({"limit": name, "dataset": case.name, **row} for row in found[name]())
    if case.splits.train is not None:
        rows = limits.few_shot_loss(metrics.correct(scores, test.labels), _few_shot_hits(case))
        case.results.tables.setdefault("few_shot_loss", []).extend({"dataset": case.name, **row} for row in rows)


def _against_pixels(case, scores):
    test = case.splits.test
    measured = {"zero-shot": metrics.correct(scores, test.labels)}
    if case.splits.train is not None:
        measured["linear probe"] = metrics.correct(case.probe.probe.decision_function(test.features), test.labels)
    measured["logistic regression on pixels"] = metrics.correct(_pixel_scores(case), test.labels)
    return measured


def _pixel_scores(case):
    """Returns the scores (N, K) of logistic regression on grey pixels, fitted on the images of the training split."""
    task, splits = case.task, case.splits
    # Without a validation split, its images were held out of the training split.
    validation = task.train if task.validation is None else task.validation
    stores = (splits.train, splits.validation, splits.test)
    train, held_out, test = _pixels(
        [_grey(images, store.ids) for images, store in zip((task.train, validation, task.test), stores, strict=True)]
    )
    found = search_C(
        (train, splits.train.labels),
        (held_out, splits.validation.labels),
        num_classes=len(splits.test.class_names),
        verbose=case.verbose,
    )
    return found.probe.decision_function(test)


def _grey(images, ids):
    """Returns the images with these ids as grey PIL images of at most 28 x 28 pixels, the size of MNIST."""
    if not isinstance(images, LabelledImages):
        raise ValueError(
            'The limit "pixels" requires the images of all splits, since feature stores have no pixels. '
            f"Received: {type(images).__name__}. Pass `LabelledImages`."
        )
    # The stores left out images that cannot be decoded.
    wanted, found = set(ids), {}
    for sample in images:
        if sample.id in wanted:
            grey = open_image(sample.image, sample.id, MAX_PIXELS).convert("L")
            found[sample.id] = grey.resize(_LARGEST) if max(grey.size) > max(_LARGEST) else grey
    return [found[id] for id in ids]


def _pixels(splits):
    """Returns for each split its grey images as pixels in [0, 1], float32 (N, height x width).

    Enlarged images would have nearly dependent pixels, from which a regression gains nothing.
    """
    sizes = {image.size for split in splits for image in split}
    size = sizes.pop() if len(sizes) == 1 else _LARGEST
    return [np.stack([np.asarray(image.resize(size), np.float32).ravel() / 255 for image in split]) for split in splits]


def _zero_shot_and_probe(case, scores):
    test = case.splits.test
    hits = metrics.correct(scores, test.labels)
    measured = {"zero-shot": hits, "most frequent class": test.labels == np.bincount(test.labels).argmax()}
    if case.splits.train is not None:
        measured["linear probe"] = metrics.correct(case.probe.probe.decision_function(test.features), test.labels)
    return limits.against_baseline(measured, "most frequent class")


def _few_shot_hits(case):
    test, hits = case.splits.test, {}
    for probe in case.few_shot:
        if probe.shots is not None:
            hits.setdefault(probe.shots, []).append(metrics.correct(probe.scores, test.labels))
    return hits


PART = Part(
    "limits",
    "`limits`, one class per image",
    lambda splits, task: bool(task.limits) and has_one_class(splits, task),
    run,
    tables=(
        ReportTable(
            "limits",
            "Limits that the paper names",
            "Counting, fine-grained classes, digits against logistic regression on raw pixels (the paper: zero-shot "
            "88 % on MNIST, below that baseline) and rendered text (section 6). Values are fractions of the images, "
            "the mean absolute error is in objects. A difference is from the regression on pixels, or from the most "
            "frequent class. Intervals are 95 %.",
        ),
        ReportTable(
            "few_shot_loss",
            "Few-shot probes against zero-shot",
            "Accuracy of linear probes on a few images per class, as a mean over seeds, and its difference from "
            "zero-shot with a 95 % interval (section 6: a few examples can be worse than none). Lost: the whole "
            "interval is below 0.",
        ),
    ),
)
