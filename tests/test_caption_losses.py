"""The losses of the caption baselines: values by hand, torch's cross-entropy, padding and end tokens, refusals."""

import keras
import numpy as np
import pytest
import torch
from gradients import value_and_gradients
from keras import ops

from keras_clip import losses

END = 9
LN2, LN3 = np.log(2), np.log(3)


def caption_loss(logits, token_ids):
    return ops.convert_to_numpy(losses.caption_loss(np.asarray(logits, "float32"), np.asarray(token_ids), END))


def bag_loss(logits, token_ids):
    return ops.convert_to_numpy(losses.bag_of_words_loss(np.asarray(logits, "float32"), np.asarray(token_ids), END))


def sure_of(words, size=10, sureness=LN2):
    """Returns logits (1, L, V) whose word of each row has `exp(sureness)` times the probability of any other."""
    logits = np.zeros((1, len(words), size), "float32")
    logits[0, np.arange(len(words)), words] = sureness
    return logits


def test_caption_loss_by_hand():
    # The word has the probability 2 / 11, every other word 1 / 11. The loss does not use the last row.
    token_ids = [[8, 3, END]]
    assert caption_loss(sure_of([3, END, 0]), token_ids)[0] == pytest.approx(np.log(11) - LN2, rel=1e-6)
    assert caption_loss(sure_of([3, 5, 0]), token_ids)[0] == pytest.approx(np.log(11) - LN2 / 2, rel=1e-6)
    # These predictions are shifted by one position, so that all are wrong.
    assert caption_loss(sure_of([8, 3, END]), token_ids)[0] == pytest.approx(np.log(11), rel=1e-6)


@pytest.mark.parametrize("kind", ["caption", "bag"])
def test_tokens_after_the_end_do_not_count(kind, rng):
    token_ids = np.array([[8, 3, 4, END, 0, 0, 0], [8, 0, END, 5, END, 2, 1], [8, END, 0, 0, 0, 0, 0]])
    other = np.array([[8, 3, 4, END, 7, END, 2], [8, 0, END, 0, 0, 0, 0], [8, END, 5, 6, END, 3, 2]])
    if kind == "caption":
        logits = rng.normal(size=(3, 7, 10))
        changed = logits.copy()
        changed[0, 3:] = changed[1, 2:] = changed[2, 1:] = 30.0 * rng.normal(size=10)
        np.testing.assert_array_equal(caption_loss(logits, token_ids), caption_loss(changed, other))
    else:
        logits = rng.normal(size=(3, 10))
        np.testing.assert_array_equal(bag_loss(logits, token_ids), bag_loss(logits, other))


def test_a_token_of_id_zero_counts():
    """Padding is all that follows the end token. The id 0 is an ordinary token ("!")."""
    assert caption_loss(sure_of([0, END, 0]), [[8, 0, END]])[0] == pytest.approx(np.log(11) - LN2, rel=1e-6)
    assert bag_loss(sure_of([0])[0], [[8, 0, END]])[0] == pytest.approx(np.log(11) - LN2, rel=1e-6)


def test_without_an_end_token_all_tokens_count():
    assert caption_loss(sure_of([3, 4, 0]), [[8, 3, 4]])[0] == pytest.approx(np.log(11) - LN2, rel=1e-6)
    assert bag_loss([np.log([1, 1, 1, 3, 1])], [[0, 3, 4]])[0] == pytest.approx(np.log(7) - LN3 / 2, rel=1e-6)


@pytest.mark.parametrize("length", [2, 3, 7])
def test_caption_loss_is_torch_cross_entropy(length, rng):
    logits = rng.normal(size=(5, length, 10)).astype("float32") * 3
    token_ids = rng.integers(0, 9, size=(5, length))
    token_ids[np.arange(5), rng.integers(1, length, size=5)] = END
    actual, gradients = value_and_gradients(
        lambda x: ops.sum(losses.caption_loss(x, token_ids, END)), [ops.convert_to_tensor(logits)]
    )
    expected = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    ends = [row[1:].tolist().index(END) + 1 for row in token_ids]
    total = sum(
        torch.nn.functional.cross_entropy(expected[i, :end], torch.tensor(token_ids[i, 1 : end + 1]))
        for i, end in enumerate(ends)
    )
    total.backward()
    assert float(actual) == pytest.approx(total.item(), rel=1e-6)
    np.testing.assert_allclose(gradients[0], expected.grad.numpy(), atol=1e-6)


def test_bag_of_words_loss_by_hand():
    # The probabilities are 1/8, 2/8, 2/8, 3/8; order and repetitions of the words 1 and 3 do not matter.
    logits = np.log([[1.0, 2.0, 2.0, 3.0] + 6 * [1e-30]])
    expected = -(np.log(2 / 8) + np.log(3 / 8)) / 2
    for token_ids in ([8, 1, 3, END], [8, 3, 1, END], [8, 3, 3, 1, 3, END], [0, 1, 3, END]):
        assert bag_loss(logits, [token_ids])[0] == pytest.approx(expected, rel=1e-6), token_ids
    assert bag_loss(logits, [[8, END, 3, 1]])[0] == 0


def test_bag_of_words_loss_is_cross_entropy_with_soft_targets(rng):
    logits = rng.normal(size=(6, 10)).astype("float32") * 3
    token_ids = rng.integers(0, 9, size=(6, 5))
    token_ids[:, 4] = END
    token_ids[:3, 2] = token_ids[:3, 1]
    targets = np.zeros((6, 10))
    for row, words in zip(targets, token_ids, strict=True):
        row[sorted(set(words[1:4]))] = 1
    targets = torch.tensor(targets / targets.sum(1, keepdims=True))
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits).double(), targets, reduction="none")
    np.testing.assert_allclose(bag_loss(logits, token_ids), expected.numpy(), rtol=1e-6)


def test_float32_of_half_precision(rng):
    logits = ops.cast(ops.convert_to_tensor(rng.normal(size=(2, 3, 10)).astype("float32")), "bfloat16")
    loss = losses.caption_loss(logits, np.array([[8, 1, END]] * 2), END)
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    bag = losses.bag_of_words_loss(logits[:, 0], np.array([[8, 1, END]] * 2), END)
    assert keras.backend.standardize_dtype(bag.dtype) == "float32"


REFUSED = {
    "two axes for a caption": (losses.caption_loss, (2, 10), (2, 3)),
    "other length": (losses.caption_loss, (2, 4, 10), (2, 3)),
    "other batch": (losses.caption_loss, (1, 3, 10), (2, 3)),
    "nothing to predict": (losses.caption_loss, (2, 1, 10), (2, 1)),
    "three axes for a bag": (losses.bag_of_words_loss, (2, 3, 10), (2, 3)),
    "other batch for a bag": (losses.bag_of_words_loss, (3, 10), (2, 3)),
    "one text without a batch": (losses.bag_of_words_loss, (3, 10), (3,)),
}


@pytest.mark.parametrize("loss, logits, token_ids", REFUSED.values(), ids=REFUSED)
def test_refusals(loss, logits, token_ids):
    with pytest.raises(ValueError, match=r"Received: logits.shape=\("):
        loss(np.zeros(logits, "float32"), np.zeros(token_ids, "int32"), END)
