"""Two replicas train as one device does: logged losses, gradients and weights (by SGD, since Adam hides factors)."""

import keras
import numpy as np
import pytest

from keras_clip import distribution

BACKEND = keras.backend.backend()

# A user's functional model, trained on the same batches by one device and by two replicas.
TRAIN = """
import json, os
import keras, numpy as np
from keras_clip import distribution, losses
from keras_clip.layers.contrastive_loss import ContrastiveLoss

def train(kind):
    keras.utils.set_random_seed(1)
    images, texts = keras.Input((6,)), keras.Input((5,))
    embeddings = (keras.layers.UnitNormalization()(keras.layers.Dense(4)(x)) for x in (images, texts))
    model = keras.Model([images, texts], ContrastiveLoss(kind, temperature=0.2)(*embeddings))
    model.compile(keras.optimizers.SGD(0.05), loss=lambda y_true, pair_losses: pair_losses)
    rng = np.random.default_rng(0)
    data = rng.normal(size=(30, 6)).astype("float32"), rng.normal(size=(30, 5)).astype("float32")
    history = model.fit(list(data), np.zeros(30), batch_size=10, epochs=2, shuffle=False, verbose=0).history["loss"]
    logged = history + [model.evaluate(list(data), np.zeros(30), batch_size=10, verbose=0)]
    return logged, [keras.ops.convert_to_numpy(weight).tolist() for weight in model.trainable_variables]

def compare(kind, single, several):
    for one, other in zip([single[0], *single[1]], [several[0], *several[1]], strict=True):
        one, other = np.array(one), np.array(other)
        difference = np.linalg.norm(one - other) / max(np.linalg.norm(one), 1e-3)
        assert difference < 1e-6, (kind, one, other, difference)
    print(kind, "equal")
"""

MIRRORED = """
single = {kind: train(kind) for kind in ("contrastive", "sigmoid")}
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    several = {kind: train(kind) for kind in single}
for kind in single:
    compare(kind, single[kind], several[kind])

def replica():
    index = tf.distribute.get_replica_context().replica_id_in_sync_group
    x = tf.cast(index + 1, tf.float32) * tf.ones((2, 3))
    with tf.GradientTape() as tape:
        tape.watch(x)
        joined = distribution.gather(x)
        loss = tf.reduce_sum(joined * tf.reshape(tf.range(12.0), (4, 3))) * tf.cast(index + 1, tf.float32)
    assert distribution.replica_count() == 2
    return joined, tape.gradient(loss, x)

joined, gradient = strategy.run(tf.function(replica))
for part in strategy.experimental_local_results(joined):
    np.testing.assert_array_equal(part[:, 0], [1, 1, 2, 2])
# Each replica receives its rows of the sum of both replicas' gradients, which have the factors 1 and 2.
for i, part in enumerate(strategy.experimental_local_results(gradient)):
    np.testing.assert_array_equal(part, 3 * np.arange(12.0).reshape(4, 3)[2 * i : 2 * i + 2])
print("gathered")

# Five pairs: three on the first replica and two on the second.
x = np.random.default_rng(1).normal(size=(5, 4)).astype("float32")
y = np.random.default_rng(2).normal(size=(5, 4)).astype("float32")
arguments = {losses.contrastive_pairs: [1.0], losses.sigmoid_pairs: [1.0, -2.0]}
for function, scalars in arguments.items():
    images, texts = (
        strategy.experimental_distribute_values_from_function(
            lambda context, a=a: tf.constant(a[:3] if context.replica_id_in_sync_group == 0 else a[3:])
        )
        for a in (x, y)
    )
    results = strategy.run(tf.function(lambda a, b: tuple(function(a, b, *scalars))), (images, texts))
    for part, whole in zip(results, function(x, y, *scalars), strict=True):
        parts = strategy.experimental_local_results(part)
        assert [len(p) for p in parts] == [3, 2]
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6)
print("unequal")
"""

DATA_PARALLEL = """
single = {kind: train(kind) for kind in ("contrastive", "sigmoid")}
assert len(keras.distribution.list_devices()) == 2
keras.distribution.set_distribution(keras.distribution.DataParallel())
for kind in single:
    compare(kind, single[kind], train(kind))
"""


@pytest.mark.skipif(BACKEND == "torch", reason="backend unable: data parallelism")
def test_two_replicas_train_as_one_device(distributed):
    printed = distributed(TRAIN + (MIRRORED if BACKEND == "tensorflow" else DATA_PARALLEL))
    assert "contrastive equal" in printed and "sigmoid equal" in printed
    assert BACKEND == "jax" or ("gathered" in printed and "unequal" in printed)


def test_alone():
    x = np.ones((2, 3))
    assert distribution.replica_count() == 1
    assert distribution.replica_offset(2) == 0
    assert distribution.gather(x) is x
