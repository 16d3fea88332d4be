"""The tokenizer in the graph equals `CLIPTokenizer` for texts that need neither ftfy nor HTML unescaping."""

import html
import random

import ftfy
import numpy as np
import pytest
from hard_texts import HARD_TEXTS

from keras_clip.data import CLIPTokenizer, synthetic

pytestmark = [pytest.mark.backend_free, pytest.mark.slow]

SYLLABLES = "ba cat do él fü ing kr ño ou pre qui st tion un wh ΟΣ İ ß и 日本 x".split()
SEPARATORS = [" ", " ", " ", "  ", "\t", ", ", ". ", "-", "'s ", "\u00a0", "\u3000", "/", "42", "!? ", "'ll "]


@pytest.fixture(scope="module")
def in_graph():
    import tensorflow as tf

    from keras_clip.graph_tokenizer import GraphTokenizer

    tokenizer = GraphTokenizer(CLIPTokenizer(context_length=40))
    return tf.function(tokenizer, input_signature=[tf.TensorSpec([None], tf.string)])


def needs_no_repair(text):
    return ftfy.fix_text(text) == text and html.unescape(text) == text


def generated(count):
    """Returns sentences of invented words, in Latin and other scripts, with many different separators."""
    draw = random.Random(0)
    for _ in range(count):
        words = ("".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(draw.randint(1, 12)))
        words = (word.upper() if draw.random() < 0.1 else word for word in words)
        yield "".join(word + draw.choice(SEPARATORS) for word in words)


def assert_equal(in_graph, texts):
    texts = [text for text in texts if needs_no_repair(text)]
    expected = CLIPTokenizer(context_length=40)(texts, truncate=True)
    for start in range(0, len(texts), 2000):
        part = slice(start, start + 2000)
        np.testing.assert_array_equal(in_graph(texts[part]).numpy(), expected[part])
    return len(texts)


def test_hard_texts(in_graph):
    assert assert_equal(in_graph, [text for text in HARD_TEXTS if "\ud800" not in text]) >= 10


def test_100_000_generated_captions(in_graph):
    assert assert_equal(in_graph, [*synthetic.captions(10_000), *generated(150_000)]) > 100_000


def test_long_words(in_graph):
    """Words may have any length, beside short ones, and the time does not grow with its square."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefgh", k=k)) for k in (63, 64, 65, 500, 20_000)]
    words += ["猫" * 400, "=" * 3000, "\U0001f602" * 2000]
    texts = [*(f"a {word} b" for word in words), " ".join(words), "short"]
    assert assert_equal(in_graph, texts) == len(texts)


def test_bytes_that_are_no_text_become_the_replacement_character(in_graph):
    ids = in_graph([b"good", b"caf\xe9 x"]).numpy()
    np.testing.assert_array_equal(ids, CLIPTokenizer(context_length=40)(["good", "caf\ufffd x"]))


def test_what_it_does_not_do(in_graph):
    """HTML and mojibake stay as they are: a served model must get clean text."""
    token_ids = CLIPTokenizer(context_length=40)(["AT&amp;T", "\u00c3\u00a9t\u00c3\u00a9"])
    assert (in_graph(["AT&amp;T", "\u00c3\u00a9t\u00c3\u00a9"]).numpy() != token_ids).any(axis=1).all()
