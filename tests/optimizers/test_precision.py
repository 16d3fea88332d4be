"""Weights in half precision are warned of, or refused where they would become NaN."""

import warnings

import keras
import pytest

from keras_clip.optimizers.adam import AdamW
from keras_clip.optimizers.precision import check_precision

pytestmark = pytest.mark.backend_free


def weights(*dtypes):
    return [keras.Variable([1.0, 2.0], dtype=dtype) for dtype in dtypes]


@pytest.mark.parametrize("dtypes", [("bfloat16",), ("float32", "bfloat16"), ("float16",)], ids=str)
@pytest.mark.parametrize("optimizer", [AdamW(1e-5, epsilon=1e-6), keras.optimizers.SGD(1e-5)], ids=["AdamW", "SGD"])
def test_warning_names_the_policy(dtypes, optimizer):
    with pytest.warns(UserWarning, match=f'Received: weights in {dtypes[-1]}.*dtype="mixed_{dtypes[-1]}"'):
        check_precision(optimizer, weights(*dtypes))


@pytest.mark.parametrize(
    "optimizer",
    [keras.optimizers.Adam(epsilon=1e-8), keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(epsilon=2e-8))],
    ids=["Adam", "scaled"],
)
def test_an_epsilon_of_zero_is_refused(optimizer):
    with pytest.raises(ValueError, match="Received: epsilon=[12]e-08 and weights in float16.*mixed_float16"):
        check_precision(optimizer, weights("float16"))


def test_float32_is_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_precision(keras.optimizers.Adam(epsilon=1e-8), weights("float32"))
        check_precision(keras.optimizers.Adam(), [])
