"""The part `retrieval` of an evaluation."""

import numpy as np

from keras_clip.evaluation.metrics.retrieval import retrieval_ranks
from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.parts.part import Part
from keras_clip.evaluation.results import Examples, digest_of

_BATCH = 256


def run(case: Case) -> None:
    """Adds image-to-text and text-to-image retrieval scores on the images that have captions."""
    captions = case.task.captions
    rows = [row for row, i in enumerate(case.splits.test.ids) if captions.get(str(i))]
    if not rows:
        raise ValueError(
            f"Retrieval requires captions by the ids of the images. Received: captions of {list(captions)[:3]} ..., "
            f"ids {case.splits.test.ids[:3].tolist()} ..."
        )
    texts = [captions[str(case.splits.test.ids[row])] for row in rows]
    image_of_text = np.repeat(np.arange(len(rows)), [len(lines) for lines in texts])
    tokenizer = case.clip.tokenizer
    lines = [text for of_image in texts for text in of_image]
    token_ids = tokenizer(lines, truncate=True)
    embeddings = case.clip.text_embedder.predict(token_ids, batch_size=min(_BATCH, len(token_ids)), verbose=0)
    ranks = retrieval_ranks(case.splits.test.embeddings[rows], embeddings, image_of_text)
    test, conditions, details = case.splits.test, [f"captions cut to {tokenizer.context_length} tokens"], {}
    without, foreign = len(test) - len(rows), len(set(captions) - set(map(str, test.ids)))
    if without or foreign:
        details = {"images_without_captions": without, "captions_without_image": foreign}
        conditions.append(f"without {without} of {len(test)} images, which have no captions")
    pairs = [f"{test.ids[row]} {text}" for row, of_image in zip(rows, texts, strict=True) for text in of_image]
    examples = Examples(digest_of(pairs), test.examples.images)
    for score in ranks.scores(case.name, case.protocol(*conditions), examples=examples, details=details):
        case.results.add(score)


PART = Part("retrieval", "`captions`", lambda _, task: bool(task.captions), run)
