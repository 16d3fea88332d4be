"""Averages of the weights (`use_ema=True`): training goes on after them, and evaluation leaves them as they are."""

import keras
import numpy as np
import pytest
from small_clip import build, pairs

from keras_clip.optimizers.adam import AdamW


@pytest.mark.parametrize("kind", [AdamW, keras.optimizers.SGD], ids=["ours", "of Keras"])
def test_training_goes_on(kind):
    clip, data = build("convolution"), pairs(8)
    clip.compile(kind(1e-3, use_ema=True, ema_momentum=0.5))
    for _ in range(2):
        history = clip.fit(data, batch_size=4, epochs=1, verbose=0).history
        clip.evaluate(data, batch_size=4, verbose=0)
        assert np.isfinite(history["loss"][0]) and history["skipped_steps"] == [0]
        averages = [v for v in clip.optimizer.variables if "average" in v.path]
        assert len(averages) == len(clip.trainable_variables)
        for average, weight in zip(averages, clip.trainable_variables, strict=True):
            np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (average, weight)))
