"""CLIP's byte-pair encoding: texts to token ids, equal to the reference's (Radford et al., 2021, section 2.4)."""

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

# Text that the cleaning below cannot change but for spaces and case: no control character, no HTML entity.
_CLEAN_ASCII = re.compile(r"[\t\n\r\x20-\x25\x27-\x7e]*").fullmatch
_ASCII_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+").findall


def byte_alphabet() -> dict[int, str]:
    """A printable character for each byte, as GPT-2 chose them: its own where it has one."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@functools.cache
def vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """All tokens in the order of their ids, and the merges in the order of their rank."""
    lines = gzip.decompress(MERGES.read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    symbols = list(byte_alphabet().values())
    tokens = symbols + [symbol + "</w>" for symbol in symbols] + ["".join(merge) for merge in merges] + [START, END]
    return tokens, merges


@functools.cache
def _engine():
    """The native byte-pair encoder of words. It knows no special tokens, so that no text can become one."""
    import tokenizers

    tokens, merges = vocabulary()
    ids = {token: i for i, token in enumerate(tokens[:-2])}
    engine = tokenizers.Tokenizer(tokenizers.models.BPE(ids, merges, end_of_word_suffix="</w>"))
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return engine


class _WordIds:
    """The ids of words met before: captions repeat them, and a look-up costs less than the way to the native code."""

    largest = 2**17

    def __init__(self):
        self.known = {}

    def __call__(self, texts: list[list[str]]) -> list[list[int]]:
        if len(self.known) > self.largest:
            # A new dict: another thread may be reading the old one.
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

    # The reference splits at its special tokens first; here they are text like any other.
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    return regex.compile(pattern, regex.IGNORECASE).findall


def _words(text: str) -> list[str]:
    """Cleans a text and cuts it into the words that byte-pair encoding works on."""
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
                f"Texts must be UTF-8. Received: texts[{index}]={text[:40]!r}, where {error.reason} at byte "
                f"{error.start}. Decode it with the encoding it was written in."
            ) from None
    if not isinstance(text, str):
        raise TypeError(
            f"Texts must be str, or bytes in UTF-8. Received: texts[{index}]={text!r} of type {type(text).__name__}."
        )
    return text


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
    """Texts to token ids, equal to OpenAI's and open_clip's for every text.

    A text is repaired (ftfy), its HTML entities are resolved, white space collapsed, letters lowered; then it is cut
    into words, numbers into digits, and each word encoded by byte pairs. One difference: text never becomes a special
    token, so a caption that holds "<|endoftext|>" cannot end early.

    Args:
        context_length: int >= 3. Tokens of a row, start and end tokens included.

    Call arguments:
        texts: str, or a sequence or array of str (or UTF-8 bytes).
        truncate: bool. Whether to cut what is too long, the end token staying in the last place. Otherwise it is an
            error.
        length: None, "longest" or int. Tokens of a row: `context_length`, the longest of these texts, or as given.

    Returns:
        int32 array (B, L): start token, text, end token, zeros.

    Raises:
        ValueError: a text that is too long or not UTF-8, or an unknown `length`.
        TypeError: something that is no text.
    """

    vocabulary_size = 49408
    start_token_id = 49406
    end_token_id = 49407

    def __init__(self, context_length: int = 77):
        if not isinstance(context_length, int) or context_length < 3:
            raise ValueError(
                "`context_length` must be an int of 3 or more: start token, text, end token. "
                f"Received: context_length={context_length!r}."
            )
        self.context_length = context_length

    def __call__(
        self, texts: str | bytes | Sequence, truncate: bool = False, length: int | str | None = None
    ) -> np.ndarray:
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
                f"A text may have {limit} tokens, start and end included. Received: texts[{index}] with "
                f"{len(rows[index]) + 2} tokens. Pass `truncate=True` to cut it, or make it shorter."
            )
        token_ids = np.zeros((len(rows), min(longest, limit) if length == "longest" else limit), np.int32)
        counts = np.minimum(np.fromiter(map(len, rows), np.int64, len(rows)), limit - 2)
        columns = np.arange(token_ids.shape[1])[None]
        text_columns = (columns > 0) & (columns <= counts[:, None])
        cut = itertools.chain.from_iterable(row[: limit - 2] for row in rows)
        token_ids[text_columns] = np.fromiter(cut, np.int32, counts.sum())
        token_ids[:, 0] = self.start_token_id
        token_ids[np.arange(len(rows)), counts + 1] = self.end_token_id
        return token_ids

    def _encode(self, texts: list) -> list[list[int]]:
        return _word_ids([_words(_as_text(text, i)) for i, text in enumerate(texts)])

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without start and end tokens, however long it is."""
        return self._encode([text])[0]

    def decode(self, token_ids: Sequence | np.ndarray) -> str | list[str]:
        """Turns ids back into text, as far as cleaning left it: lower case, single spaces between words.

        Args:
            token_ids: ints (L,) or (B, L). What follows the first end token is ignored, start tokens are left out.

        Returns:
            str, or a list of B str. Bytes that are no UTF-8 become U+FFFD.

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
