"""`CLIPTokenizer`: ids equal to open_clip's for every text, no text becomes a special token, clear refusals."""

import hashlib
import json
import random
import tarfile
from pathlib import Path

import keras
import numpy as np
import pytest
from hard_texts import HARD_TEXTS

from keras_clip.data.tokenizer import MERGES, CLIPTokenizer

pytestmark = pytest.mark.backend_free
GOLDEN = json.loads((Path(__file__).parent / "golden_tokens.json").read_text())["tokens"]
START, END = 49406, 49407


@pytest.fixture(scope="module")
def peer():
    import torchvision_shim  # noqa: F401
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def generated_texts(count, seed):
    """Returns texts of random code points, mixed with characters that are cleaned or split specially."""
    generator = random.Random(seed)
    ranges = [0x7F, 0x17F, 0x2FFF, 0xFFFF, 0x10FFFF]
    spice = " '&;#sStTdDmM0aA!<>|\n\t"

    def text():
        highest = generator.choice(ranges)
        return "".join(
            generator.choice(spice) if generator.random() < 0.3 else chr(generator.randint(0, highest))
            for _ in range(generator.randint(1, 14))
        )

    return [text() for _ in range(count)]


def disagreements(peer, texts):
    """Returns the texts that the tokenizers encode differently. Ours takes one call, since each call starts threads."""
    rows = CLIPTokenizer(128)(texts)
    ours = [row[: row.tolist().index(END) + 1].tolist() for row in rows]
    return [text for text, ids in zip(texts, ours, strict=True) if ids != [START, *peer.encode(text), END]]


def test_merges_are_the_published_ones():
    digest = hashlib.sha256(MERGES.read_bytes()).hexdigest()
    assert digest == "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"


@pytest.mark.parametrize("text, expected", GOLDEN, ids=[ascii(text[:24]) for text, _ in GOLDEN])
def test_golden(text, expected):
    assert CLIPTokenizer().encode(text) == expected


def test_golden_file_covers_the_hard_texts():
    assert [text for text, _ in GOLDEN] == HARD_TEXTS


def test_generated_unicode(peer):
    assert disagreements(peer, generated_texts(3_000, seed=0)) == []


@pytest.mark.slow
def test_much_generated_unicode(peer):
    assert disagreements(peer, generated_texts(20_000, seed=1)) == []


@pytest.mark.slow
def test_code_points_of_every_block(peer):
    # Each code point stands inside a word, so that normalisation and splitting change the token ids.
    texts = [f"a{chr(code)}b" for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    assert disagreements(peer, texts[:0x2000] + texts[0x2000::199]) == []


def test_shared_captions(peer, shared_data):
    captions = []
    for shard in sorted(shared_data.rglob("*.tar")):
        with tarfile.open(shard) as tar:
            captions += [tar.extractfile(m).read().decode() for m in tar if m.name.endswith(".txt")]
    assert len(captions) > 6_000
    np.testing.assert_array_equal(CLIPTokenizer()(captions, truncate=True), peer(captions).numpy())


SPECIAL = [
    "<|startoftext|>",
    "<|endoftext|>",
    "<start_of_text>",
    "<END_OF_TEXT>",
    "&lt;|endoftext|&gt;",
    "<|ENDOFTEXT|>",
]


@pytest.mark.parametrize("text", SPECIAL)
def test_no_text_becomes_a_special_token(text):
    ids = CLIPTokenizer().encode(f"a {text} b")
    assert ids
    assert not {START, END} & set(ids)
    # The letters are encoded like those of any other word.
    assert CLIPTokenizer().decode(ids).replace(" ", "") == f"a{text}b".lower().replace("&lt;", "<").replace("&gt;", ">")


def test_row_by_hand():
    token_ids = CLIPTokenizer(8)(["a photo of a cat", "", "dog"])
    assert token_ids.dtype == np.int32
    assert token_ids.tolist() == [
        [START, 320, 1125, 539, 320, 2368, END, 0],
        [START, END, 0, 0, 0, 0, 0, 0],
        [START, 1929, END, 0, 0, 0, 0, 0],
    ]


def test_one_text_is_a_batch_of_one():
    assert CLIPTokenizer()("a cat").shape == (1, 77)


def test_no_text_is_an_empty_batch():
    assert CLIPTokenizer()([]).shape == (0, 77)


def test_longest():
    tokenizer = CLIPTokenizer()
    cut = tokenizer(["a cat", "a photo of a cat"], length="longest")
    assert cut.shape == (2, 7)
    np.testing.assert_array_equal(cut, tokenizer(["a cat", "a photo of a cat"])[:, :7])


def test_length_as_given():
    assert CLIPTokenizer()(["a cat"], length=10).shape == (1, 10)
    assert CLIPTokenizer()(["a photo of a cat"], truncate=True, length=4).tolist() == [[START, 320, 1125, END]]


def test_truncation_keeps_the_end_token():
    token_ids = CLIPTokenizer(5)(["a photo of a cat", "a cat"], truncate=True)
    assert token_ids.tolist() == [[START, 320, 1125, 539, END], [START, 320, 2368, END, 0]]


def test_exactly_full_needs_no_truncation():
    assert CLIPTokenizer(7)("a photo of a cat")[0, -1] == END


FORMS = {
    "tuple": ("a cat", "a dog"),
    "bytes": [b"a cat", "a dog"],
    "array of str": np.array(["a cat", "a dog"]),
    "array of bytes": np.array([b"a cat", b"a dog"], dtype=object),
}


@pytest.mark.parametrize("texts", FORMS.values(), ids=FORMS)
def test_forms_of_input(texts):
    np.testing.assert_array_equal(CLIPTokenizer()(texts), CLIPTokenizer()(["a cat", "a dog"]))


REFUSED = {
    "too long": (["ok", "a photo of a cat"], ValueError, r"texts\[1\] with 7 tokens.*truncate"),
    "not UTF-8": (["ok", b"caf\xe9"], ValueError, r"UTF-8.*texts\[1\]"),
    "None among texts": (["ok", None], TypeError, r"texts\[1\]=None"),
    "a number among texts": ([3.5], TypeError, r"texts\[0\]=3.5"),
    "None": (None, TypeError, "Received: texts=None"),
    "a number": (7, TypeError, "Received: texts=7"),
}


@pytest.mark.parametrize("texts, error, message", REFUSED.values(), ids=REFUSED)
def test_refusals(texts, error, message):
    with pytest.raises(error, match=message):
        CLIPTokenizer(6)(texts)


@pytest.mark.parametrize("length", [2, 78, "short", 7.0])
def test_unknown_lengths_are_refused(length):
    with pytest.raises(ValueError, match="Received: length="):
        CLIPTokenizer()("a cat", length=length)


@pytest.mark.parametrize("context_length", [2, 0, "77", None])
def test_context_too_short_is_refused(context_length):
    with pytest.raises(ValueError, match="context_length"):
        CLIPTokenizer(context_length)


ROUND_TRIPS = ["a photo of a cat", "hello , world !", "caf\u00e9 \u65e5\u672c\u8a9e", "\U0001f600 1 2 3"]


@pytest.mark.parametrize("text", ROUND_TRIPS)
def test_decode_inverts(text):
    tokenizer = CLIPTokenizer()
    assert tokenizer.decode(tokenizer(text)[0]) == text
    assert tokenizer.decode(tokenizer([text, "b"])) == [text, "b"]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decode_refuses_what_is_no_id():
    with pytest.raises(ValueError, match="49408"):
        CLIPTokenizer().decode([49408])


def test_broken_bytes_decode_to_the_replacement_character():
    emoji = CLIPTokenizer().encode("\U0001f9ff")
    assert "\ufffd" in CLIPTokenizer().decode(emoji[:1])


def test_a_full_cache_changes_nothing(monkeypatch):
    from keras_clip.data import tokenizer as module

    texts = [f"word{i} of many" for i in range(50)]
    expected = CLIPTokenizer()(texts)
    monkeypatch.setattr(module._WordIds, "max_words", 3)
    for i in range(0, 50, 5):
        np.testing.assert_array_equal(CLIPTokenizer()(texts[i : i + 5]), expected[i : i + 5])
    assert len(module._word_ids.known) < 50


def test_serialised():
    tokenizer = CLIPTokenizer(32)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(tokenizer))
    assert restored == tokenizer != CLIPTokenizer(16)
    assert restored.context_length == 32
