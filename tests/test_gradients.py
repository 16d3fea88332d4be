"""The gradient functions of `gradients.py`, with values by hand."""

import keras
import numpy as np
from gradients import loss_and_gradients, value_and_gradients
from keras import ops

X = np.array([1.0, 2.0], "float32")
Y = np.array([3.0, -1.0], "float32")


def test_arrays():
    value, gradients = value_and_gradients(lambda x, y, z: ops.sum(x * x * y), [X, Y, np.ones((2, 2), "float32")])
    assert value == -1
    np.testing.assert_array_equal(gradients[0], [6, -4])
    np.testing.assert_array_equal(gradients[1], [1, 4])
    np.testing.assert_array_equal(gradients[2], np.zeros((2, 2)))


def test_variables():
    x, unused = keras.Variable(X), keras.Variable(Y)
    loss, gradients = loss_and_gradients(lambda y: ops.sum(x * x * y), [x, unused], ops.convert_to_tensor(Y))
    assert loss == -1
    np.testing.assert_array_equal(gradients[0], [6, -4])
    np.testing.assert_array_equal(gradients[1], [0, 0])


def test_gradients_of_an_embedding_are_dense():
    layer = keras.layers.Embedding(4, 2)
    layer.build()
    _, (gradient,) = loss_and_gradients(lambda ids: ops.sum(layer(ids)), layer.trainable_variables, np.array([1, 1, 3]))
    np.testing.assert_array_equal(gradient, [[0, 0], [2, 2], [0, 0], [1, 1]])
