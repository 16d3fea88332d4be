"""CLIP's byte-pair encoding of texts, equal to the reference implementation (Radford et al., 2021, section 2.4)."""

import functools
import gzip
import html
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import keras
import numpy as np

MERGES = Path(__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"

# ASCII text without control characters and HTML entities, of which cleaning changes only spaces and case.
_CLEAN_ASCII = re.compile(r"[\t\n\r\x20-\x25\x27-\x7e]*").fullmatch
_ASCII_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+").findall


def byte_alphabet() -> dict[int, str]:
    """Maps each byte to a printable character as GPT-2 does: to its own character if that is printable."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@functools.cache
def vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """Returns all tokens in the order of their ids, and the merges in the order of their ranks."""
    lines = gzip.decompress(MERGES.read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    symbols = list(byte_alphabet().values())
    tokens = symbols + [symbol + "</w>" for symbol in symbols] + ["".join(merge) for merge in merges] + [START, END]
    return tokens, merges


@functools.cache
def _engine():
    """Returns the native byte-pair encoder of words. It has no special tokens, so that no text is encoded as one."""
    import tokenizers

    tokens, merges = vocabulary()
    ids = {token: i for i, token in enumerate(tokens[:-2])}
    engine = tokenizers.Tokenizer(tokenizers.models.BPE(ids, merges, end_of_word_suffix="</w>"))
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return engine


class _WordIds:
    """Caches the ids of words: captions repeat them, and a lookup is cheaper than a call of the native encoder."""

    max_words = 2**17

    def __init__(self):
        self.known = {}

    def __call__(self, texts: list[list[str]]) -> list[list[int]]:
        if len(self.known) > self.max_words:
            # Another thread may be reading the old dict, which is therefore not cleared.
            self.known = {}
        known = self.known
        new = list(set(itertools.chain.from_iterable(texts)) - known.keys())
        for word, encoding in zip(new, _engine().encode_batch_fast(new), strict=True):
            known[word] = encoding.ids
        return [list(itertools.chain.from_iterable(map(known.__getitem__, words))) for words in texts]


_word_ids = _WordIds()


@functools.cache
def _unicode_words():
    import regex

    # The reference splits at its special tokens first; here they are ordinary text.
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    return regex.compile(pattern, regex.IGNORECASE).findall


def _words(text: str) -> list[str]:
    """Cleans a text and splits it into the words that are encoded by byte pairs."""
    if _CLEAN_ASCII(text):
        return _ASCII_WORDS(text.lower())
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _unicode_words()(" ".join(text.split()).lower())


def _as_text(text, index: int) -> str:
    if isinstance(text, bytes):
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"Texts must be UTF-8. Received: texts[{index}]={text[:40]!r} ({error.reason} at byte "
                f"{error.start}). Decode it with its actual encoding."
            ) from None
    if not isinstance(text, str):
        raise TypeError(
            f"Texts must be str, or bytes in UTF-8. Received: texts[{index}]={text!r} of type {type(text).__name__}."
        )
    return text


def _is_symbolic(texts) -> bool:
    """Whether texts are a tensor of TensorFlow or Keras without values."""
    is_tensorflow = type(texts).__module__.startswith("tensorflow.") and hasattr(texts, "graph")
    return isinstance(texts, keras.KerasTensor) or (is_tensorflow and not hasattr(texts, "numpy"))


def _as_list(texts) -> list:
    if isinstance(texts, str | bytes):
        return [texts]
    if hasattr(texts, "numpy"):
        texts = texts.numpy()
    if isinstance(texts, np.ndarray):
        texts = texts.reshape(-1).tolist()
    if not isinstance(texts, Iterable):
        raise TypeError(
            f"`texts` must be a text or a sequence of texts. Received: texts={texts!r} of type {type(texts).__name__}."
        )
    return list(texts)


@keras.saving.register_keras_serializable(package="keras_clip")
class CLIPTokenizer:
    """Converts texts to token ids, equal to those of OpenAI and open_clip.

    Cleaning repairs the encoding of a text (ftfy), resolves HTML entities, collapses white space and lowers the case.
    The text is then split into words, numbers into digits, and each word is encoded by byte pairs. It differs from the
    reference in one respect: text is never encoded as a special token, so that a caption that contains
    "<|endoftext|>" does not end early.

    Args:
        context_length: int >= 3. Tokens per row, including start and end tokens.

    Call arguments:
        texts: str, or a sequence or array of str (or UTF-8 bytes). Inside of `tf.data` or a `tf.function` a tensor of
            strings, () or (B,): the result is a tensor then, and the tokenizer is called in Python for each batch, so
            that a graph with it cannot be saved (`TextEmbedder.export(strings=True)` can).
        truncate: bool. Whether to truncate texts that are too long, with the end token in the last place. If False,
            they raise an error.
        length: None, "longest" or int. Tokens per row: `context_length`, the longest of these texts, or this number.

    Returns:
        int32 array (B, L): start token, text, end token, zeros.

    Raises:
        ValueError: a text that is too long or not UTF-8, or an unknown `length`.
        TypeError: a value that is not a text.
    """

    vocabulary_size = 49408
    start_token_id = 49406
    end_token_id = 49407

    def __init__(self, context_length: int = 77):
        if not isinstance(context_length, int) or context_length < 3:
            raise ValueError(
                "`context_length` must be an int of at least 3, for start token, text and end token. "
                f"Received: context_length={context_length!r}."
            )
        self.context_length = context_length

    def __call__(
        self, texts: str | bytes | Sequence, truncate: bool = False, length: int | str | None = None
    ) -> np.ndarray:
        if _is_symbolic(texts):
            return self._in_graph(texts, truncate, length)
        rows = self._encode(_as_list(texts))
        longest = max(map(len, rows), default=0) + 2
        limit = self.context_length
        if isinstance(length, int) and 3 <= length <= self.context_length:
            limit = length
        elif length not in (None, "longest"):
            raise ValueError(
                f'`length` must be None, "longest" or an int from 3 to context_length={self.context_length}. '
                f"Received: length={length!r}."
            )
        if longest > limit and not truncate:
            index = next(i for i, row in enumerate(rows) if len(row) + 2 > limit)
            raise ValueError(
                f"A text may have at most {limit} tokens, including start and end. Received: texts[{index}] with "
                f"{len(rows[index]) + 2} tokens. Pass `truncate=True`, or shorten the text."
            )
        token_ids = np.zeros((len(rows), min(longest, limit) if length == "longest" else limit), np.int32)
        counts = np.minimum(np.fromiter(map(len, rows), np.int64, len(rows)), limit - 2)
        columns = np.arange(token_ids.shape[1])[None]
        text_columns = (columns > 0) & (columns <= counts[:, None])
        truncated = itertools.chain.from_iterable(row[: limit - 2] for row in rows)
        token_ids[text_columns] = np.fromiter(truncated, np.int32, counts.sum())
        token_ids[:, 0] = self.start_token_id
        token_ids[np.arange(len(rows)), counts + 1] = self.end_token_id
        return token_ids

    def _in_graph(self, texts, truncate, length):
        """A call whose texts are known when the graph runs."""
        if isinstance(texts, keras.KerasTensor):
            raise TypeError(
                "`texts` must be texts. Received: a symbolic Keras tensor. Tokenize before the model, for instance in "
                "`tf.data.Dataset.map`; `clip.text_embedder.export(path, strings=True)` makes a graph that takes texts."
            )
        import tensorflow as tf

        token_ids = tf.numpy_function(lambda texts: self(texts, truncate, length), [texts], tf.int32)
        rows = texts.shape.num_elements() if texts.shape.rank is not None else None
        width = None if length == "longest" else length or self.context_length
        token_ids.set_shape((rows, width))
        return token_ids

    def _encode(self, texts: list) -> list[list[int]]:
        return _word_ids([_words(_as_text(text, i)) for i, text in enumerate(texts)])

    def encode(self, text: str) -> list[int]:
        """Returns the ids of one text of any length, without start and end tokens."""
        return self._encode([text])[0]

    def decode(self, token_ids: Sequence | np.ndarray) -> str | list[str]:
        """Converts ids to the cleaned text, in lower case and with single spaces between words.

        Args:
            token_ids: ints (L,) or (B, L). Start tokens and tokens after the first end token are ignored.

        Returns:
            str, or a list of B str. Bytes that are not valid UTF-8 become U+FFFD.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        token_ids = np.asarray(token_ids)
        if token_ids.ndim == 2:
            return [self.decode(row) for row in token_ids]
        if token_ids.size and not 0 <= token_ids.min() <= token_ids.max() < self.vocabulary_size:
            raise ValueError(
                f"Token ids must lie in [0, {self.vocabulary_size}). "
                f"Received: ids from {token_ids.min()} to {token_ids.max()}."
            )
        tokens, _ = vocabulary()
        kept = []
        for token_id in token_ids.tolist():
            if token_id == self.end_token_id:
                break
            if token_id != self.start_token_id:
                kept.append(tokens[token_id])
        byte_of = {symbol: byte for byte, symbol in byte_alphabet().items()}
        pieces = "".join(kept).split("</w>")
        return " ".join(bytes(map(byte_of.get, piece)).decode("utf-8", errors="replace") for piece in pieces).strip()

    def __eq__(self, other) -> bool:
        return type(other) is type(self) and other.get_config() == self.get_config()

    def __hash__(self) -> int:
        return hash((type(self), self.context_length))

    def get_config(self) -> dict:
        return {"context_length": self.context_length}

    @classmethod
    def from_config(cls, config: dict) -> "CLIPTokenizer":
        return cls(**config)
