"""Weights are filled in place, and loading takes little more memory than the model itself."""

import os
import runpy
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_clip.presets import in_place

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("stored, dtype", [("float16", "float32"), ("float32", "bfloat16"), ("float64", "float32")])
def test_every_row_is_filled_once(stored, dtype, rng, monkeypatch):
    monkeypatch.setattr(in_place, "_PART", 12)
    expected = rng.normal(size=(11, 5)).astype(stored)
    variable, asked = keras.Variable(np.ones((11, 5)), dtype=dtype), []

    def read(first, last):
        asked.append((first, last))
        return expected[first:last]

    in_place.assign_in_place(variable, read)
    assert asked == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 11)]
    assert keras.backend.standardize_dtype(variable.dtype) == dtype
    filled = keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32"))
    wanted = keras.ops.convert_to_numpy(keras.ops.cast(keras.ops.cast(expected, dtype), "float32"))
    np.testing.assert_array_equal(filled, wanted)


@pytest.mark.slow
def test_memory():
    measure = runpy.run_path(str(REPOSITORY / "tools" / "measure_loading.py"))["measure"]
    (row,) = measure("vit_b32", [os.environ["KERAS_BACKEND"]])
    assert row["model"] == 4 * 151_277_313 and row["largest"] == 4 * 49408 * 512
    # Compiled code takes memory too, which is small compared with a model of this size.
    assert 0.9 * row["model"] < row["peak"] <= 1.1 * (row["model"] + row["largest"]) + 2**26
