"""Retrieval: ranks by hand and against a plain loop, tiles, ties, several captions of an image, refusals."""

import tracemalloc

import numpy as np
import pytest

from keras_clip.evaluation import RetrievalRanks, blaker_interval, clopper_pearson_interval, retrieval_ranks

pytestmark = pytest.mark.backend_free


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def flickr(rng):
    """Embeddings of 40 images with 1 to 6 captions each, in mixed order; captions are similar to their image."""
    image_of_text = rng.permutation(np.concatenate([np.arange(40), rng.integers(0, 40, 80)]))
    images = unit(rng.normal(size=(40, 8)))
    return images, unit(images[image_of_text] + 0.5 * rng.normal(size=(120, 8))), image_of_text


def slow_ranks(images, texts, image_of_text):
    similarities = images.astype("float32") @ texts.astype("float32").T
    to_text, to_image = [], []
    for i, row in enumerate(similarities):
        best = row[image_of_text == i].max()
        to_text.append(1 + (row[image_of_text != i] >= best).sum())
    for j, column in enumerate(similarities.T):
        right = image_of_text[j]
        to_image.append(1 + (np.delete(column, right) >= column[right]).sum())
    return to_text, to_image


@pytest.mark.parametrize("tile", [1, 150, 1000, 2**24])
def test_ranks_equal_a_plain_loop(flickr, tile):
    ranks = retrieval_ranks(*flickr, tile=tile)
    expected = slow_ranks(*flickr)
    assert ranks.image_to_text.tolist() == expected[0]
    assert ranks.text_to_image.tolist() == expected[1]
    assert max(expected[0]) > 1 and len(set(expected[1])) > 3


def test_by_hand():
    images = np.array([[1.0, 0.0], [0.0, 1.0]])
    texts = np.array([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, 1.0]])
    # Text 1 belongs to image 0 and text 2 to image 1; each is more similar to the other image.
    ranks = retrieval_ranks(images, texts, [0, 0, 1, 1])
    assert ranks.image_to_text.tolist() == [1, 1]
    assert ranks.text_to_image.tolist() == [1, 2, 2, 1]
    assert ranks.recall("image_to_text", 1) == 1.0
    assert (ranks.recall("text_to_image", 1), ranks.recall("text_to_image", 2)) == (0.5, 1.0)
    assert ranks.median_rank("text_to_image") == 1.5
    assert ranks.ties == 0


def test_one_caption_each_is_the_default(rng):
    x = unit(rng.normal(size=(9, 5)))
    ranks = retrieval_ranks(x, x)
    assert ranks.recall("image_to_text", 1) == ranks.recall("text_to_image", 1) == 1.0


def test_equal_embeddings_find_nothing():
    same = np.tile([[1.0, 0.0]], (20, 1))
    ranks = retrieval_ranks(same, same)
    assert set(ranks.image_to_text) == set(ranks.text_to_image) == {20}
    assert ranks.recall("image_to_text", 10) == 0
    assert ranks.ties == 40


def test_captions_of_one_image_do_not_compete():
    # Two equal captions of the correct image are no tie; the caption of the other image is less similar.
    ranks = retrieval_ranks(np.eye(2), np.eye(2)[[0, 0, 1]], [0, 0, 1])
    assert ranks.image_to_text.tolist() == [1, 1]
    assert ranks.ties == 0


def test_memory_is_bounded(rng):
    images, texts = unit(rng.normal(size=(1000, 4))), unit(rng.normal(size=(5000, 4)))
    tracemalloc.start()
    retrieval_ranks(images, texts, np.arange(5000) % 1000, tile=50_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6  # all similarities are 20 MB


def ranks_of(image_to_text, text_to_image, image_of_text):
    return RetrievalRanks(np.array(image_to_text), np.array(text_to_image), np.array(image_of_text), 0)


def test_interval_counts_images_and_not_captions(rng):
    # 100 images, whose 5 captions are all found or all missed: the interval is as wide as that of 100 texts.
    found = rng.random(100) < 0.6
    ranks = ranks_of(np.where(found, 1, 99), np.repeat(np.where(found, 1, 99), 5), np.repeat(np.arange(100), 5))
    low, high = ranks.recall_interval("text_to_image", 1)
    expected = blaker_interval(int(found.sum()), 100)
    assert (high - low) == pytest.approx(expected[1] - expected[0], rel=0.1)
    assert ranks.recall_interval("image_to_text", 1) == expected


@pytest.mark.parametrize(
    "call",
    [
        lambda ranks, **options: ranks.recall_interval("image_to_text", 1, **options),
        lambda ranks, **options: ranks.median_rank_interval("image_to_text", **options),
        lambda ranks, **options: ranks.scores("flowers", "test", seed=options["seed"]),
    ],
    ids=["recall", "median", "scores"],
)
def test_options_of_the_former_bootstrap_say_that_they_have_no_effect(call, rng):
    ranks = ranks_of(rng.geometric(0.2, 40), rng.geometric(0.2, 40), np.arange(40))
    with pytest.warns(DeprecationWarning, match="no effect.*seed=1"):
        found = call(ranks, resamples=3000, seed=1)
    assert found == call(ranks, **{"seed": None})


def test_interval_where_all_are_found():
    ranks = ranks_of([1] * 30, [1] * 60, np.arange(60) % 30)
    # As sure as 30 images, or less: their captions say nothing about how far they depend on each other.
    low, high = ranks.recall_interval("text_to_image", 1)
    assert clopper_pearson_interval(30, 30)[0] - 0.02 < low < clopper_pearson_interval(30, 30)[0] and high == 1
    assert ranks_of([9] * 30, [9] * 30, np.arange(30)).recall_interval("image_to_text", 5) == blaker_interval(0, 30)


def test_interval_of_the_median_rank(rng):
    ranks = ranks_of(rng.geometric(0.2, 400), rng.geometric(0.2, 400), np.arange(400))
    low, high = ranks.median_rank_interval("image_to_text")
    assert low <= ranks.median_rank("image_to_text") <= high < low + 3
    # Of four values, the bounds are the extremes.
    ranks = ranks_of([1, 2, 3, 10], [1, 2, 3, 10], np.arange(4))
    assert ranks.median_rank_interval("image_to_text", confidence=0.999) == (1, 10)
    # Of two, the median lies between them.
    ranks = ranks_of([10, 1], [10, 1], [0, 1])
    assert ranks.median_rank_interval("image_to_text", confidence=0.01) == (1, 10)


def test_scores(flickr):
    ranks = retrieval_ranks(*flickr)
    scores = {(score.method, score.metric): score for score in ranks.scores("Flickr30k", "test, 5 captions")}
    assert len(scores) == 8
    score = scores["retrieval/text_to_image", "recall_at_5"]
    assert score.value == ranks.recall("text_to_image", 5) and score.n == 120
    assert score.low < score.value < score.high
    assert scores["retrieval/image_to_text", "recall_at_1"].n == 40
    assert scores["retrieval/image_to_text", "median_rank"].value == ranks.median_rank("image_to_text")
    assert score.details == {"images": 40, "texts": 120, "ties": 0}


X = np.eye(3)
BAD_INPUT = {
    "other width": (X, np.eye(4), None, r"\(3, 3\), \(4, 4\)"),
    "NaN": (X * np.nan, X, None, "NaN"),
    "NaN in texts": (X, X * np.nan, None, "NaN"),
    "no text": (X, np.zeros((0, 3)), None, r"\(0, 3\)"),
    "too few owners": (X, X, [0, 1], r"shape \(2,\)"),
    "owners are floats": (X, X, [0.0, 1.0, 2.0], "float64"),
    "no such image": (X, X, [0, 1, 3], "1 texts without an image, 1 images without a text"),
    "owner below 0": (X, X, [0, 1, -1], "1 texts without an image"),
    "fewer texts": (X, X[:2], None, r"1 images without a text, the first of them \[2\]"),
}


@pytest.mark.parametrize("images, texts, owners, message", BAD_INPUT.values(), ids=BAD_INPUT)
def test_refusals(images, texts, owners, message):
    with pytest.raises(ValueError, match=message):
        retrieval_ranks(images, texts, owners)


def test_unknown_direction():
    with pytest.raises(ValueError, match="direction='sideways'"):
        retrieval_ranks(X, X).recall("sideways", 1)
