"""The part `errors` of an evaluation."""

import base64
import io

import numpy as np

from keras_clip.evaluation import metrics
from keras_clip.evaluation.datasets.labelled_images import LabelledImages
from keras_clip.evaluation.metrics.calibration import softmax
from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.parts.part import ONE_CLASS, Part, ReportTable, has_one_class

_ERRORS_SHOWN = 12
_THUMBNAIL = 96
# A larger confusion matrix is not readable.
_MOST_CLASSES_SHOWN = 100


def run(case: Case) -> None:
    """Adds the confusion matrix of the zero-shot classifier, and its misclassified images of highest confidence."""
    test = case.splits.test
    probabilities = softmax(case.zero_shot(test))
    predicted = probabilities.argmax(axis=1)
    names = [str(name) for name in test.class_names]
    if len(names) <= _MOST_CLASSES_SHOWN:
        counts = np.zeros((len(names), len(names)), int)
        np.add.at(counts, (test.labels, predicted), 1)
        case.results.info.setdefault("class_names", {})[case.name] = names
        case.results.tables[f"confusion/{case.name}"] = [
            {"true": names[row], "predicted": names[column], "images": int(counts[row, column])}
            for row, column in np.argwhere(counts)
        ]
    confidence = probabilities.max(axis=1)
    wrong = np.flatnonzero(~metrics.correct(probabilities, test.labels))
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:_ERRORS_SHOWN]
    case.results.tables[f"errors/{case.name}"] = [
        {
            "id": str(test.ids[row]),
            "true": names[test.labels[row]],
            "predicted": names[predicted[row]],
            "confidence": float(confidence[row]),
            "thumbnail": _thumbnail(case, str(test.ids[row])),
        }
        for row in worst
    ]


def _thumbnail(case: Case, identity: str) -> str | None:
    """Returns the preprocessed image as a small base64 PNG, or None if the task has features but no images."""
    from PIL import Image

    images = case.task.test
    if not isinstance(images, LabelledImages):
        return None
    image = next(images.read(images.ids.index(identity)))
    preprocessed = Image.fromarray(np.asarray(case.clip.image_preprocessor.to_uint8([image]))[0])
    preprocessed.thumbnail((_THUMBNAIL, _THUMBNAIL))
    data = io.BytesIO()
    preprocessed.save(data, "png")
    return base64.b64encode(data.getvalue()).decode()


PART = Part(
    "errors",
    ONE_CLASS,
    has_one_class,
    run,
    tables=(
        ReportTable("confusion/", "Confusion matrices"),
        ReportTable("errors/", "Most confident errors"),
    ),
)
