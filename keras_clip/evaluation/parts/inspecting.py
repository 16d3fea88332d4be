"""The parts of an evaluation that look at what the scores do not say: retrieval, class design, errors."""

import base64
import io

import numpy as np

from keras_clip.evaluation import metrics
from keras_clip.evaluation.classifiers.zero_shot import PromptTable
from keras_clip.evaluation.datasets.labelled_images import LabelledImages
from keras_clip.evaluation.metrics.calibration import softmax
from keras_clip.evaluation.metrics.retrieval import retrieval_ranks
from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.studies import class_design as design

_ERRORS_SHOWN = 12
_THUMBNAIL = 96
# A confusion matrix of more cannot be read.
_MOST_CLASSES_SHOWN = 100
_BATCH = 256


def retrieval(case: Case) -> None:
    """Finds captions for images and images for captions, of the images that have any."""
    captions = case.task.captions
    rows = [row for row, i in enumerate(case.splits.test.ids) if captions.get(str(i))]
    if not rows:
        raise ValueError(
            f"Retrieval wants captions by the ids of the images. Received: captions of {list(captions)[:3]} ..., "
            f"ids {case.splits.test.ids[:3].tolist()} ..."
        )
    texts = [captions[str(case.splits.test.ids[row])] for row in rows]
    image_of_text = np.repeat(np.arange(len(rows)), [len(of_image) for of_image in texts])
    tokenizer = case.clip.tokenizer
    token_ids = tokenizer([text for of_image in texts for text in of_image], truncate=True)
    embeddings = case.clip.text_embedder.predict(token_ids, batch_size=min(_BATCH, len(token_ids)), verbose=0)
    ranks = retrieval_ranks(case.splits.test.embeddings[rows], embeddings, image_of_text)
    for score in ranks.scores(case.name, case.protocol(f"captions cut to {tokenizer.context_length} tokens")):
        case.results.add(score)


def class_design(case: Case) -> None:
    """How often each group gets a watched label under class sets that differ."""
    sets = case.task.class_sets
    names = list(dict.fromkeys(name for of_set in sets.values() for name in of_set))
    table = PromptTable(case.clip, [[name] for name in names], tuple(case.task.templates))
    test = case.splits.test
    scores = test.embeddings @ table.class_embeddings(case.task.templates).T
    rows = design.class_design_rates(scores, names, sets, test.groups, case.task.watched)
    case.results.tables[f"class_design/{case.name}"] = rows


def errors(case: Case) -> None:
    """The confusion matrix, and the images that zero-shot named wrongly with most confidence."""
    test = case.splits.test
    probabilities = softmax(case.zero_shot(test))
    named = probabilities.argmax(axis=1)
    names = [str(name) for name in test.class_names]
    if len(names) <= _MOST_CLASSES_SHOWN:
        counts = np.zeros((len(names), len(names)), int)
        np.add.at(counts, (test.labels, named), 1)
        case.results.info.setdefault("class_names", {})[case.name] = names
        case.results.tables[f"confusion/{case.name}"] = [
            {"class": names[row], "named": names[column], "images": int(counts[row, column])}
            for row, column in np.argwhere(counts)
        ]
    confidence = probabilities.max(axis=1)
    wrong = np.flatnonzero(~metrics.correct(probabilities, test.labels))
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:_ERRORS_SHOWN]
    case.results.tables[f"errors/{case.name}"] = [
        {
            "id": str(test.ids[row]),
            "class": names[test.labels[row]],
            "named": names[named[row]],
            "confidence": float(confidence[row]),
            "thumbnail": _thumbnail(case, str(test.ids[row])),
        }
        for row in worst
    ]


def _thumbnail(case: Case, identity: str) -> str | None:
    """The image as the model sees it, small, as base64 PNG; None of a store whose images are not at hand."""
    from PIL import Image

    images = case.task.test
    if not isinstance(images, LabelledImages):
        return None
    image = next(images.read(images.ids.index(identity)))
    seen = Image.fromarray(np.asarray(case.clip.image_preprocessor.to_uint8([image]))[0])
    seen.thumbnail((_THUMBNAIL, _THUMBNAIL))
    data = io.BytesIO()
    seen.save(data, "png")
    return base64.b64encode(data.getvalue()).decode()
