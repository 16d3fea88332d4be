"""The contrastive and the sigmoid loss: values by hand, a dense reference, open_clip's, invariances, refusals."""

import keras
import numpy as np
import pytest
import torch
import torchvision_shim  # noqa: F401  (before open_clip)
from gradients import value_and_gradients
from keras import ops
from open_clip.loss import ClipLoss, SigLipLoss

from keras_clip import losses, tiling

BACKEND = keras.backend.backend()


@pytest.fixture(params=["one tile", "several tiles"])
def tiles(request, monkeypatch):
    """Runs a test with one tile, and with several tiles of which the last is padded."""
    if request.param == "several tiles":
        monkeypatch.setattr(tiling, "TILE_AREA", 1)
        monkeypatch.setattr(tiling, "TILE_ROWS", 3)


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype("float32")


def pair_losses(logits):
    """Returns the contrastive loss of each pair, given all logits; the loss does not normalise its inputs again."""
    logits = np.asarray(logits, "float32")
    return ops.convert_to_numpy(losses.contrastive_loss(logits, np.eye(len(logits), dtype="float32"), 0.0))


def mean_loss(logits):
    return pair_losses(logits).mean()


def logsumexp(x, axis):
    highest = x.max(axis, keepdims=True)
    return (highest + np.log(np.exp(x - highest).sum(axis, keepdims=True))).squeeze(axis)


def dense_contrastive(images, texts, log_scale, weights):
    """Returns the weighted sum of the losses of the pairs and its gradients, in float64 with the whole matrix."""
    images, texts, weights = (np.asarray(x, "float64") for x in (images, texts, weights))
    logits = np.exp(float(log_scale)) * images @ texts.T
    rows, columns = logsumexp(logits, 1), logsumexp(logits, 0)
    pairs = (rows + columns) / 2 - np.diag(logits)
    by_row, by_column = np.exp(logits - rows[:, None]), np.exp(logits - columns)
    g = (weights[:, None] * by_row + weights * by_column) / 2 - np.diag(weights)
    return pairs, _gradients(g, images, texts, logits, log_scale)


def dense_sigmoid(images, texts, log_scale, bias, weights):
    images, texts, weights = (np.asarray(x, "float64") for x in (images, texts, weights))
    logits = np.exp(float(log_scale)) * images @ texts.T
    signs = 2 * np.eye(len(images)) - 1
    pairs = np.logaddexp(0, -signs * (logits + bias)).sum(1)
    g = -weights[:, None] * signs / (1 + np.exp(signs * (logits + bias)))
    return pairs, [*_gradients(g, images, texts, logits, log_scale), g.sum()]


def _gradients(g, images, texts, logits, log_scale):
    return [np.exp(float(log_scale)) * g @ texts, np.exp(float(log_scale)) * g.T @ images, (g * logits).sum()]


def assert_near(actual, expected, tolerance=1e-5):
    assert np.linalg.norm(actual - expected) <= tolerance * np.linalg.norm(expected) + 1e-7


VALUES = {
    "chance": (np.zeros((4, 4)), np.log(4)),
    # Rows give 0.126928 and 1.313262, columns 0.313262 and 0.693147.
    "by hand": ([[2, 0], [1, 0]], 0.611650),
    "all wrong, no underflow": (-500 * np.eye(2), 500.0),
    "all right, no overflow": (500 * np.eye(2), 0.0),
    "no rounding to zero": (40 * np.eye(2), np.exp(-40)),
    "one pair": ([[3.0]], 0.0),
}


@pytest.mark.parametrize("logits, expected", VALUES.values(), ids=VALUES)
def test_value(logits, expected):
    assert mean_loss(logits) == pytest.approx(expected, rel=1e-6, abs=1e-24)


def test_each_pair_has_its_own_loss():
    # Means over the row and the column of a pair: (0.126928 + 0.313262) / 2 and (1.313262 + 0.693147) / 2.
    np.testing.assert_allclose(pair_losses([[2, 0], [1, 0]]), [0.220095, 1.003204], atol=1e-6)


INVARIANCES = {
    "images and texts swapped": np.transpose,
    "pairs in another order": lambda x: x[::-1, ::-1],
    "a constant added": lambda x: x + 7.0,
}


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("change", INVARIANCES.values(), ids=INVARIANCES)
def test_invariance(change, size, rng):
    logits = rng.normal(size=(size, size))
    assert mean_loss(change(logits)) == pytest.approx(mean_loss(logits), 1e-5, abs=1e-6)


@pytest.mark.parametrize("size, log_scale", [(1, 0.0), (7, np.log(100)), (32, 3.0)])
def test_contrastive_is_the_dense_one(size, log_scale, tiles, rng):
    images, texts = unit(rng, size, 5), unit(rng, size, 5)
    weights = rng.uniform(0.5, 2, size=size).astype("float32")
    expected, gradients = dense_contrastive(images, texts, log_scale, weights)
    check(losses.contrastive_loss, [images, texts, np.float32(log_scale)], weights, expected, gradients)


@pytest.mark.parametrize("size, bias", [(1, 2.0), (7, -10.0), (32, 2.0)])
def test_sigmoid_is_the_dense_one(size, bias, tiles, rng):
    images, texts = unit(rng, size, 5), unit(rng, size, 5)
    weights = rng.uniform(0.5, 2, size=size).astype("float32")
    expected, gradients = dense_sigmoid(images, texts, np.log(10), bias, weights)
    check(losses.sigmoid_loss, [images, texts, np.float32(np.log(10)), np.float32(bias)], weights, expected, gradients)


def check(function, arrays, weights, expected, gradients):
    pairs = function(*arrays)
    assert keras.backend.standardize_dtype(pairs.dtype) == "float32"
    assert tuple(pairs.shape) == (len(weights),)
    assert_near(ops.convert_to_numpy(pairs), expected)
    weights = ops.convert_to_tensor(weights)
    _, actual = value_and_gradients(lambda *tensors: ops.sum(function(*tensors) * weights), arrays)
    for ours, dense in zip(actual, gradients, strict=True):
        assert_near(ours, dense, 2e-5)


@pytest.mark.parametrize("kind", ["contrastive", "sigmoid"])
def test_equals_open_clip(kind, tiles, rng):
    images, texts = unit(rng, 11, 6), unit(rng, 11, 6)
    scalars = [np.float32(np.log(20))] + [np.float32(-3)] * (kind == "sigmoid")
    ours, peer = (losses.contrastive_loss, ClipLoss()) if kind == "contrastive" else (losses.sigmoid_loss, SigLipLoss())
    value, gradients = value_and_gradients(lambda *x: ops.mean(ours(*x)), [images, texts, *scalars])
    tensors = [torch.tensor(x, requires_grad=True) for x in (images, texts, *scalars)]
    expected = peer(tensors[0], tensors[1], tensors[2].exp(), *tensors[3:])
    expected.backward()
    assert value == pytest.approx(float(expected.detach()), 1e-5)
    for ours, theirs in zip(gradients, tensors, strict=True):
        assert_near(ours, theirs.grad.numpy(), 1e-5)


def test_extremes_have_finite_gradients():
    for sign in (1, -1):
        arrays = [sign * 500 * np.eye(4, dtype="float32"), np.eye(4, dtype="float32"), np.float32(0)]
        for function in (losses.contrastive_loss, lambda *x: losses.sigmoid_loss(*x, -10.0)):
            value, gradients = value_and_gradients(lambda *x, f=function: ops.sum(f(*x)), arrays)
            assert np.isfinite(value)
            assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_one_pair_learns_nothing():
    value, gradients = value_and_gradients(
        lambda *x: ops.sum(losses.contrastive_loss(*x)),
        [np.ones((1, 3), "float32"), np.ones((1, 3), "float32"), np.float32(2)],
    )
    assert value == 0
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_computed_in_float32(dtype, rng):
    images, texts = (ops.cast(unit(rng, 6, 8), dtype) for _ in range(2))
    rounded = [ops.convert_to_numpy(ops.cast(x, "float32")) for x in (images, texts)]
    expected, _ = dense_contrastive(*rounded, np.log(100), np.ones(6))
    pairs = losses.contrastive_loss(images, texts, np.float32(np.log(100)))
    assert keras.backend.standardize_dtype(pairs.dtype) == "float32"
    assert_near(ops.convert_to_numpy(pairs), expected)


def test_scale_is_not_bounded_here():
    # The weight has the bound: a bound inside the loss would stop the gradient.
    logits = np.array([[1.0, 0.9], [0.8, 1.0]], "float32")
    scaled = losses.contrastive_loss(logits, np.eye(2, dtype="float32"), np.float32(np.log(200)))
    np.testing.assert_allclose(ops.convert_to_numpy(scaled), pair_losses(200 * logits), rtol=1e-4)


def test_matches(tiles):
    # Image 0 matches its text, image 1 prefers text 0, image 2 has a tie; texts 0 and 2 match their images, text 1 not.
    logits = np.array([[3, 1, 0], [2, 1, 0], [0, 4, 4]], "float32")
    for pairs in (
        losses.contrastive_pairs(logits, np.eye(3, dtype="float32"), 0.0),
        losses.sigmoid_pairs(logits, np.eye(3, dtype="float32"), 0.0, -1.0),
    ):
        np.testing.assert_array_equal(ops.convert_to_numpy(pairs.image_matched), [1, 0, 0])
        np.testing.assert_array_equal(ops.convert_to_numpy(pairs.text_matched), [1, 0, 1])


def test_matches_are_those_of_the_matrix(tiles, rng):
    images, texts = unit(rng, 19, 4), unit(rng, 19, 4)
    texts = (images + 0.7 * texts).astype("float32")
    pairs = losses.contrastive_pairs(images, texts, np.float32(1))
    nearest = (images @ texts.T).argmax(1), (images @ texts.T).argmax(0)
    assert 0 < (nearest[0] == np.arange(19)).sum() < 19
    np.testing.assert_array_equal(ops.convert_to_numpy(pairs.image_matched), nearest[0] == np.arange(19))
    np.testing.assert_array_equal(ops.convert_to_numpy(pairs.text_matched), nearest[1] == np.arange(19))


REFUSALS = {
    "another number of texts": (np.zeros((3, 2)), np.zeros((4, 2)), 0.0),
    "another width": (np.zeros((3, 2)), np.zeros((3, 4)), 0.0),
    "not of rank 2": (np.zeros((3, 2, 1)), np.zeros((3, 2, 1)), 0.0),
    "one of rank 1": (np.zeros((3, 2)), np.zeros(3), 0.0),
    "no pair": (np.zeros((0, 2)), np.zeros((0, 2)), 0.0),
    "a scale for each pair": (np.zeros((3, 2)), np.zeros((3, 2)), np.zeros(3)),
}


@pytest.mark.parametrize("arrays", REFUSALS.values(), ids=REFUSALS)
def test_refusal(arrays):
    with pytest.raises(ValueError, match="Received: "):
        losses.contrastive_loss(*arrays)
    with pytest.raises(ValueError, match="Received: "):
        losses.sigmoid_loss(*arrays, 0.0)
    if not np.ndim(arrays[2]):
        return
    with pytest.raises(ValueError, match="logit_bias"):
        losses.sigmoid_loss(*arrays[:2], 0.0, np.zeros(3))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="backend unable: tf.function")
@pytest.mark.parametrize("how", ["unknown batch", "compiled by XLA"])
def test_in_a_tensorflow_graph(how, tiles, rng):
    import tensorflow as tf

    def step(images, texts, log_scale):
        with tf.GradientTape() as tape:
            tape.watch([images, texts, log_scale])
            both = (
                losses.contrastive_loss(images, texts, log_scale),
                losses.sigmoid_loss(images, texts, log_scale, -2.0),
            )
            total = tf.reduce_sum(both[0]) + tf.reduce_sum(both[1])
        return both, tape.gradient(total, [images, texts, log_scale])

    batch = tf.TensorSpec([None, 4])
    graph = (
        tf.function(step, input_signature=[batch, batch, tf.TensorSpec([])])
        if how == "unknown batch"
        else tf.function(step, jit_compile=True)
    )
    for size in (7, 1, 10) if how == "unknown batch" else (7,):
        images, texts = unit(rng, size, 4), unit(rng, size, 4)
        both, gradients = graph(tf.constant(images), tf.constant(texts), tf.constant(1.0))
        first, first_gradients = dense_contrastive(images, texts, 1.0, np.ones(size))
        second, second_gradients = dense_sigmoid(images, texts, 1.0, -2.0, np.ones(size))
        assert_near(both[0].numpy(), first)
        assert_near(both[1].numpy(), second)
        for actual, *parts in zip(gradients, first_gradients, second_gradients[:3], strict=True):
            assert_near(actual.numpy(), sum(parts), 2e-5)


@pytest.mark.skipif(BACKEND != "jax", reason="backend unable: jax.jit")
def test_second_call_does_not_compile_again(rng):
    import jax

    events = []
    arrays = [jax.numpy.array(x) for x in (unit(rng, 9, 4), unit(rng, 9, 4), np.float32(1))]
    gradients = jax.grad(lambda *x: losses.contrastive_loss(*x).mean(), argnums=(0, 1, 2))
    others = [2 * x for x in arrays]
    larger = [jax.numpy.concatenate([x, x]) if x.ndim else x for x in arrays]
    gradients(*arrays)
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: events.append(name))
    try:
        gradients(*others)
        assert not [name for name in events if "backend_compile" in name]
        gradients(*larger)
        assert [name for name in events if "backend_compile" in name]
    finally:
        jax.monitoring.clear_event_listeners()


def largest_tensor(size, width):
    """Returns the size of the largest tensor in the computation of loss and gradient; on JAX, of all temporaries."""
    images = texts = np.full((size, width), 0.1, "float32")

    def total(images, texts):
        return ops.sum(losses.contrastive_loss(images, texts, 1.0) + losses.sigmoid_loss(images, texts, 1.0, 0.0))

    if BACKEND == "jax":
        import jax

        compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(images, texts).compile()
        return compiled.memory_analysis().temp_size_in_bytes // 4
    if BACKEND == "torch":
        return _largest_in_torch(lambda: value_and_gradients(total, [images, texts]))
    import tensorflow as tf

    def gradients(images, texts):
        with tf.GradientTape() as tape:
            tape.watch([images, texts])
            loss = total(images, texts)
        return tape.gradient(loss, [images, texts])

    graph = tf.function(gradients).get_concrete_function(tf.constant(images), tf.constant(texts)).graph
    graphs = [graph, *(f.graph for f in graph._functions.values() if hasattr(f, "graph"))]
    assert len(graphs) > 1
    return max(
        output.shape.num_elements() or 0
        for graph in graphs
        for operation in graph.get_operations()
        for output in operation.outputs
        if output.shape.is_fully_defined()
    )


def _largest_in_torch(function):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            result = operation(*args, **(kwargs or {}))
            for x in result if isinstance(result, tuple | list) else [result]:
                self.seen = max(self.seen, x.numel() if isinstance(x, torch.Tensor) else 0)
            return result

    with Largest() as mode:
        function()
    return mode.seen


def test_memory_is_linear():
    size, width = 8192, 16
    measured = largest_tensor(size, width)
    # About one tile of each loss, far below the 67 million elements of the matrix; JAX counts both losses' temporaries.
    assert tiling.TILE_AREA / 2 <= measured <= (4 if BACKEND == "jax" else 1) * tiling.TILE_AREA
