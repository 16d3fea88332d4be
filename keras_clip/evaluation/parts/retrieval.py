"""The part `retrieval` of an evaluation."""

import numpy as np

from keras_clip.evaluation.metrics.retrieval import retrieval_ranks
from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.parts.part import Part

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
    token_ids = tokenizer([text for lines in texts for text in lines], truncate=True)
    embeddings = case.clip.text_embedder.predict(token_ids, batch_size=min(_BATCH, len(token_ids)), verbose=0)
    ranks = retrieval_ranks(case.splits.test.embeddings[rows], embeddings, image_of_text)
    for score in ranks.scores(case.name, case.protocol(f"captions cut to {tokenizer.context_length} tokens")):
        case.results.add(score)


PART = Part("retrieval", "`captions`", lambda _, task: bool(task.captions), run)
