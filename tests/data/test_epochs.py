"""A pass that begins in the middle of an epoch equals the rest of the uninterrupted pass, with broken samples too."""

import numpy as np
import pytest
from numbered_pairs import COLUMNS, NumberTokenizer, decode_one_colour, numbered, write_shards

import keras_clip

pytestmark = pytest.mark.backend_free
SAMPLES, BATCH = 64, 2
STEPS = SAMPLES // BATCH
# Three of 64 is the largest number of broken samples that is allowed. In each epoch, a second pass replaces them.
BROKEN = (7, 20, 33)


def tars(folder, samples):
    return write_shards(folder, samples), {}


def stream(folder, samples):
    import tensorflow as tf

    columns = {"picture": [image for _, image, _ in samples], "text": [caption for *_, caption in samples]}
    return tf.data.Dataset.from_tensor_slices(columns), {"mapping": COLUMNS}


def half(folder, samples):
    """The second of two parts of 128 samples, so that this part has 64 samples too."""
    return write_shards(folder, samples + [(f"{key}b", image, caption) for key, image, caption in numbered(64)]), {
        "shard": (1, 2)
    }


SOURCES = {"tars": tars, "stream": stream, "one of two parts": half}


@pytest.fixture(params=SOURCES.values(), ids=SOURCES)
def read(request, tmp_path, monkeypatch):
    """Returns a function that makes the same dataset in each call."""
    decode_one_colour(monkeypatch)
    samples = numbered(SAMPLES)
    for number in BROKEN:
        samples[number] = (samples[number][0], b"broken", samples[number][2])
    source, options = request.param(tmp_path, samples)
    options |= {"tokenizer": NumberTokenizer(), "image_preprocessor": keras_clip.data.ImagePreprocessor(16)}
    return lambda: keras_clip.data.image_text_pairs(source, None, BATCH, seed=3, **options)


def batches(dataset):
    """Returns (epoch, step, numbers) of each batch. test_pairs.py shows that epoch and sample determine the crops."""
    return [(int(e), int(s), np.asarray(batch["token_ids"])[:, 1].tolist()) for (e, s), batch in dataset]


def test_every_step_can_be_the_first(read):
    whole = read()
    first, second = batches(whole.numbered), batches(whole.numbered)
    assert [place[:2] for place in second] == [(1, step) for step in range(STEPS)]
    assert first[0][2] != second[0][2]
    resumed, counts = read(), []
    for step in (0, 1, STEPS // 2, STEPS - 2, STEPS - 1):
        broken = whole.epochs.broken_before(1, step)
        counts.append(broken)
        resumed.epochs.start_at(1, step, broken)
        assert batches(resumed.numbered) == second[step:]
        # Broken samples from before the resumption count too, for a run that is interrupted again.
        assert resumed.epochs.broken_before(1, STEPS) == whole.epochs.broken_before(1, STEPS)
    assert counts == sorted(counts) and counts[0] == 0
    # After the last step of the first epoch, a whole epoch follows.
    resumed.epochs.start_at(0, STEPS - 1, whole.epochs.broken_before(0, STEPS - 1))
    again = batches(resumed.numbered.repeat().take(1 + STEPS))
    assert again[1:] == second
    assert len(resumed) == STEPS
