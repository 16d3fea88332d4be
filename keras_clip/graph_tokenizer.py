"""CLIP's tokenizer as TensorFlow operations, for a text encoder that is served with raw strings.

It uses only core operations of TensorFlow, so that a saved graph needs no other package. It equals `CLIPTokenizer` on
every text that needs neither ftfy's repairs nor HTML unescaping, which have no operations. Bytes that are not UTF-8
count as U+FFFD.
"""

import functools

import numpy as np

from keras_clip.data.tokenizer import CLIPTokenizer, byte_alphabet, vocabulary
from keras_clip.types import Tensor

# White space as Python's `str.split` defines it; RE2's \s is only a part of it.
_SPACES = r"[\t-\r\x1c-\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]+"
_WORDS = r"((?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+)"
# Longer words, in bytes, are merged separately from the others.
_LONG = 64
# Words are truncated to this number of bytes per token of the context. No token has more than 32 bytes, so the removed
# bytes lie far behind the last token that is used, and cannot change it.
_BYTES_PER_TOKEN = 64
# The vocabulary: a token for each byte, a token for each byte at the end of a word, a token for each merge by its rank.
_BYTES = 256
_FIRST_MERGE = 2 * _BYTES
# The rank of a pair of tokens that is not merged.
_NO_MERGE = 2**30


class GraphTokenizer:
    """Converts a tensor of strings (B,) to token ids, int32 (B, L), in a graph, with zeros after the end token.

    Texts that are too long are truncated, with the end token in the last place.

    Args:
        tokenizer: the `CLIPTokenizer` to reproduce.

    Attributes:
        tables: the lookup tables that a saved graph must contain.
    """

    def __init__(self, tokenizer: CLIPTokenizer):
        import tensorflow as tf

        self.tokenizer = tokenizer
        pairs = _merged_pairs()
        ranks = np.arange(len(pairs), dtype=np.int32)
        initializer = tf.lookup.KeyValueTensorInitializer(_pair_keys(*pairs.T), ranks)
        self._rank_of_pair = tf.lookup.StaticHashTable(initializer, default_value=_NO_MERGE)
        self.tables = [self._rank_of_pair]

    def __call__(self, texts: Tensor) -> Tensor:
        import tensorflow as tf

        length, count = self.tokenizer.context_length, tf.shape(texts)[:1]
        # Each word has at least one token.
        words = self._words(texts)[:, : length - 2]
        unique, places = tf.unique(words.flat_values)
        ids = tf.gather(self._ids(unique), places)
        # (B, words, ids of a word) to (B, ids).
        ids = tf.RaggedTensor.from_row_splits(ids.flat_values, tf.gather(ids.row_splits, words.row_splits))
        start, end = (
            tf.fill(tf.concat([count, [1]], 0), token)
            for token in (self.tokenizer.start_token_id, self.tokenizer.end_token_id)
        )
        rows = tf.concat([start, ids[:, : length - 2], end], axis=1)
        return rows.to_tensor(shape=(None, length))

    def _words(self, texts):
        import tensorflow as tf

        clean = tf.strings.lower(tf.strings.regex_replace(texts, _SPACES, " "), encoding="utf-8")
        # Words contain no spaces, and nothing but spaces separates them.
        return tf.strings.split(tf.strings.regex_replace(clean, _WORDS, r"\1 "))

    def _ids(self, words):
        """Returns ragged token ids of distinct words.

        Merging takes about as many steps as the longest word has letters, each over all words. So long words, which
        occur in scripts without spaces, are merged separately.
        """
        import tensorflow as tf

        is_long = tf.strings.length(words) > _LONG
        groups = [tf.squeeze(tf.where(mask), 1) for mask in (~is_long, is_long)]
        ids = tf.concat([self._merged(tf.gather(words, group)) for group in groups], axis=0)
        return tf.gather(ids, tf.math.invert_permutation(tf.concat(groups, axis=0)))

    def _merged(self, words):
        """Applies byte-pair encoding: in each word, all pairs of the lowest rank are merged, until no pair is left.

        The tokens of all words are in one vector, with the word number of each token and the rank of the pair that it
        forms with the next token.
        """
        import tensorflow as tf

        letters = tf.strings.bytes_split(tf.strings.substr(words, 0, _BYTES_PER_TOKEN * self.tokenizer.context_length))
        numbers = tf.cast(letters.value_rowids(), tf.int32)
        values = tf.reshape(tf.io.decode_raw(letters.flat_values, tf.uint8), [-1])
        tokens = tf.gather(_token_of_byte(), tf.cast(values, tf.int32))
        is_last = tf.concat([numbers[1:] != numbers[:-1], tf.ones_like(numbers[:1], tf.bool)], axis=0)
        tokens = tf.where(is_last, tokens + _BYTES, tokens)
        tokens, numbers, _ = tf.while_loop(
            lambda tokens, numbers, ranks: tf.reduce_any(ranks < _NO_MERGE),
            self._merge_once,
            (tokens, numbers, self._ranks(tokens, numbers)),
            shape_invariants=(tf.TensorShape([None]),) * 3,
            parallel_iterations=1,
        )
        return tf.RaggedTensor.from_value_rowids(tokens, numbers, nrows=tf.size(words))

    def _merge_once(self, tokens, numbers, ranks):
        import tensorflow as tf

        lowest = tf.gather(tf.math.segment_min(ranks, numbers), numbers)
        is_merged = _without_overlaps((ranks == lowest) & (ranks < _NO_MERGE))
        tokens = tf.where(is_merged, _FIRST_MERGE + ranks, tokens)
        kept = tf.squeeze(tf.where(~_shifted(is_merged)), 1)
        tokens, numbers = tf.gather(tokens, kept), tf.gather(numbers, kept)
        return tokens, numbers, self._ranks(tokens, numbers)

    def _ranks(self, tokens, numbers):
        """Returns the rank of the merge of each token with the next one."""
        import tensorflow as tf

        ranks = self._rank_of_pair.lookup(_pair_keys(tf.cast(tokens[:-1], tf.int64), tf.cast(tokens[1:], tf.int64)))
        ranks = tf.where(numbers[:-1] == numbers[1:], ranks, _NO_MERGE)
        return tf.concat([ranks, tf.fill(tf.shape(tokens[:1]), _NO_MERGE)], axis=0)


def _shifted(mask):
    """Returns the mask shifted by one position to the right."""
    import tensorflow as tf

    return tf.concat([tf.zeros_like(mask[:1]), mask[:-1]], axis=0)


def _without_overlaps(mask):
    """Selects every second position of each run of true positions, because the pairs in "aaaa" overlap."""
    import tensorflow as tf

    before = _shifted(mask)

    def every_second():
        starts = mask & ~before
        start = tf.gather(tf.where(starts)[:, 0], tf.maximum(tf.cumsum(tf.cast(starts, tf.int32)) - 1, 0))
        return mask & ((tf.range(tf.size(mask, tf.int64)) - start) % 2 == 0)

    return tf.cond(tf.reduce_any(mask & before), every_second, lambda: mask)


def _pair_keys(left, right):
    """Returns one int64 for each pair of ids, in NumPy or TensorFlow."""
    return left * 2**16 + right


@functools.cache
def _merged_pairs():
    """Returns the ids of the two tokens of each merge, by rank: int64 (merges, 2)."""
    tokens, merges = vocabulary()
    ids = {token: i for i, token in enumerate(tokens)}
    return np.array([[ids[part] for part in merge] for merge in merges], np.int64)


@functools.cache
def _token_of_byte():
    """Returns the id of each byte inside a word, int32 (256,)."""
    tokens = np.zeros(_BYTES, np.int32)
    tokens[list(byte_alphabet())] = np.arange(_BYTES)
    return tokens
