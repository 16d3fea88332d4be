"""The tiled reductions and their gradients against NumPy, also where the rows are only a part of the pairs."""

import numpy as np
import pytest
from gradients import value_and_gradients
from keras import ops

from keras_clip import tiling

# {case: (rows, columns, column of the first row's positive, rows of a tile, smallest area of a tile)}
SHAPES = {
    "one tile": (4, 4, 0, 1000, 1000),
    "last tiles padded": (5, 5, 0, 2, 4),
    "first rows of more columns": (3, 11, 0, 2, 8),
    "rows from the middle": (3, 11, 4, 2, 8),
    "last row": (1, 7, 6, 1, 2),
    "columns padded only": (4, 5, 1, 2, 4),
    "rows padded only": (5, 8, 3, 3, 12),
    "tile size by embeddings": (4, 10, 2, 4, 1),
    "a row a tile": (3, 5, 1, 1, 1),
}
shapes = pytest.mark.parametrize("b, n, offset, height, area", SHAPES.values(), ids=SHAPES)


@pytest.fixture(autouse=True)
def tiles(request, monkeypatch):
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if "area" in parameters:
        monkeypatch.setattr(tiling, "TILE_AREA", parameters["area"])
        monkeypatch.setattr(tiling, "TILE_ROWS", parameters["height"])


def dense(rows, columns, log_scale, bias, offset):
    """Returns logits in float64, with minus infinity at the positives."""
    logits = np.exp(float(log_scale)) * rows.astype("float64") @ columns.astype("float64").T + bias
    logits[np.arange(len(rows)), offset + np.arange(len(rows))] = -np.inf
    return logits


def check_gradients(primitive, arrays, upstream, g, logits, bias):
    """Compares gradients; `g` is the expected gradient of the logits for the upstream gradient `upstream`."""
    rows, columns, log_scale = arrays[:3]
    scale = np.exp(float(log_scale))
    tensor = ops.convert_to_tensor(upstream)
    _, gradients = value_and_gradients(lambda *x: ops.sum(primitive(*x) * tensor), arrays)
    finite = np.where(np.isinf(logits), 0, logits - bias)
    expected = [scale * g @ columns, scale * g.T @ rows, (g * finite).sum()]
    for ours, theirs in zip(gradients, expected, strict=False):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    if len(arrays) == 5:
        assert gradients[3] == pytest.approx(g.sum(), 1e-4)


@shapes
def test_bidirectional_logsumexp(b, n, offset, height, area, rng):
    arrays = [x.astype("float32") for x in (rng.normal(size=(b, 3)), rng.normal(size=(n, 3)), np.array(0.7))]
    arrays.append(np.array(offset, "float32"))
    logits = dense(*arrays[:3], 0.0, offset)
    result = ops.convert_to_numpy(tiling.bidirectional_logsumexp(*map(ops.convert_to_tensor, arrays)))
    exponentials = np.exp(logits)
    assert result.shape == (2, b + n)
    with np.errstate(divide="ignore"):
        lse = np.log(np.concatenate([exponentials.sum(1), exponentials.sum(0)]))
    highest = np.concatenate([logits.max(1), logits.max(0)])
    empty = np.isinf(highest)
    assert (result[:, empty] <= -1e29).all()
    np.testing.assert_allclose(result[0, ~empty], lse[~empty], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result[1, ~empty], highest[~empty], rtol=1e-5, atol=1e-6)

    upstream = rng.normal(size=(2, b + n)).astype("float32")
    # A row without negatives has no loss.
    upstream[0, empty] = 0
    lse[empty] = 0
    g = upstream[0, :b, None] * np.exp(logits - lse[:b, None]) + upstream[0, b:] * np.exp(logits - lse[b:])
    check_gradients(tiling.bidirectional_logsumexp, arrays, upstream, g, logits, 0.0)


@shapes
def test_sum_of_softplus(b, n, offset, height, area, rng):
    arrays = [x.astype("float32") for x in (rng.normal(size=(b, 3)), rng.normal(size=(n, 3)), np.array(0.7))]
    arrays += [np.array(-0.5, "float32"), np.array(offset, "float32")]
    logits = dense(*arrays[:4], offset)
    result = ops.convert_to_numpy(tiling.sum_of_softplus(*map(ops.convert_to_tensor, arrays)))
    np.testing.assert_allclose(result[0, :b], np.logaddexp(0, logits).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(result[0, b:], 0)
    highest = np.maximum(np.concatenate([logits.max(1), logits.max(0)]), -1e30)
    np.testing.assert_allclose(result[1], highest, rtol=1e-5, atol=1e-6)

    upstream = rng.normal(size=(2, b + n)).astype("float32")
    g = upstream[0, :b, None] / (1 + np.exp(-logits))
    check_gradients(tiling.sum_of_softplus, arrays, upstream, g, logits, -0.5)


@pytest.mark.parametrize("b", [1, 7, 1000, 8192, 100_000])
@pytest.mark.parametrize("n", [1, 255, 257, 8192, 100_003])
def test_tiles_cover_rows_and_columns_with_little_padding(b, n):
    embed_dim = 512
    rows, columns = tiling._grid(b, n, embed_dim)
    for axis, length in ((rows, b), (columns, n)):
        covered = axis.blocks * axis.width
        # Each tile has less than one row or column of padding on average.
        assert 0 <= covered - length < axis.blocks
        assert axis.is_padded == (covered > length)
    # A tile has a bounded area, or at most a quarter of the size of all column embeddings.
    assert rows.width <= 1024
    assert rows.width * columns.width <= max(tiling.TILE_AREA, n * embed_dim // 4)


@pytest.mark.parametrize("n, blocks, width", [(6, 3, 2), (5, 3, 2)])
def test_joining_inverts_cutting(n, blocks, width):
    axis = tiling._Axis(blocks, width, blocks * width != n)
    x = np.arange(1, 2 * n + 1).reshape(n, 2)
    cut = axis.cut(ops.convert_to_tensor(x))
    assert tuple(cut.shape) == (blocks, width, 2)
    np.testing.assert_array_equal(ops.convert_to_numpy(axis.join(cut, n)), x)
