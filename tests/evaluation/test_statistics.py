"""`wilson_interval`: published values, symmetry, extremes, refusals."""

import pytest

from keras_clip.evaluation import wilson_interval

pytestmark = pytest.mark.backend_free
# (correct, total, confidence): Newcombe (1998), table I, method 3.
PUBLISHED = {
    (81, 263, 0.95): (0.2553, 0.3662),
    (15, 148, 0.95): (0.0624, 0.1605),
    (0, 20, 0.95): (0.0, 0.1611),
    (1, 29, 0.95): (0.0061, 0.1718),
}


@pytest.mark.parametrize("counts", PUBLISHED, ids=str)
def test_published(counts):
    assert wilson_interval(*counts) == pytest.approx(PUBLISHED[counts], abs=5e-5)


def test_symmetric():
    low, high = wilson_interval(3, 10)
    assert wilson_interval(7, 10) == pytest.approx((1 - high, 1 - low))


def test_more_confidence_is_wider():
    assert wilson_interval(5, 10, 0.99)[0] < wilson_interval(5, 10, 0.9)[0]


def test_all_right():
    low, high = wilson_interval(10, 10)
    assert high == 1 and 0.7 < low < 0.75


@pytest.mark.parametrize("arguments", [(1, 0), (-1, 5), (6, 5), (1, 5, 1.0), (1, 5, 0.0)])
def test_refusals(arguments):
    with pytest.raises(ValueError, match="Received"):
        wilson_interval(*arguments)
