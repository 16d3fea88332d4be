"""`StopOnSkippedSteps` stops after `steps` skipped steps in a row, at most 2 * `steps` later, and not otherwise."""

import keras
import numpy as np
import pytest
from small_clip import build, pairs

import keras_clip


@pytest.fixture(scope="module")
def clip():
    """A model that all tests share: the callback counts from zero in each `fit`, and the weights do not matter."""
    clip = build("convolution")
    clip.compile(keras.optimizers.SGD(0.1))
    return clip


@pytest.fixture
def fit(clip):
    def fit(broken, steps, epochs=1, batches=12):
        """Trains on batches of four pairs; the loss of the batches in `broken` is not finite."""
        data = pairs(4 * batches)
        for number in broken:
            data["images"][4 * number] = np.nan
        stop = keras_clip.training.StopOnSkippedSteps(steps)
        return clip.fit(data, batch_size=4, shuffle=False, epochs=epochs, callbacks=[stop], verbose=0).history

    return fit


def test_skipped_steps_in_a_row_stop(fit):
    # The callback checks before steps 0, 3, 6 and 9; of these blocks, only 6, 7 and 8 are all skipped.
    with pytest.raises(RuntimeError, match="Fewer than 3 steps in a row.*Received: 3 such steps, all since step 6"):
        fit(range(4, 10), 3)


def test_single_ones_do_not_stop(fit):
    history = fit([0, 1, 3, 4, 6, 7, 9, 10], 3, epochs=2)
    assert history["skipped_steps"] == [8, 8]


def test_a_row_over_the_end_of_an_epoch_stops(fit):
    with pytest.raises(RuntimeError, match="Received: 4 such steps, all since step 0"):
        fit(range(3), 4, epochs=3, batches=3)


def test_the_last_steps_of_a_run_stop(fit):
    with pytest.raises(RuntimeError, match="Received: 3 such steps, all since step 0"):
        fit(range(3), 3, batches=3)


@pytest.mark.backend_free
def test_a_number_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="Received: steps=0"):
        keras_clip.training.StopOnSkippedSteps(0)
