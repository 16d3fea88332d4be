"""CLIP's tokenizer as TensorFlow operations, for a text encoder that is served with raw strings.

Made of tensorflow-text's splitter and KerasHub's byte-pair merging. It equals `CLIPTokenizer` on every text that needs
neither ftfy's repairs nor HTML unescaping, which have no operations. Bytes that are not UTF-8 count as U+FFFD.
"""

import functools

from keras_clip.data.tokenizer import CLIPTokenizer, vocabulary
from keras_clip.types import Tensor

# What Python's `str.split` takes for white space, of which RE2's \s is a small part.
_SPACES = r"[\t-\r\x1c-\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]+"
# Bytes of a word that is merged apart from the others.
_LONG = 64
# Bytes that are kept of a word, for each token of the context. No token has more than 32, so what is cut off lies far
# behind the last that counts and cannot change it.
_BYTES_PER_TOKEN = 64
_WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class GraphTokenizer:
    """Texts to token ids in a graph: tensor of strings (B,) to int32 (B, L), zeros after the end token.

    Texts that are too long are cut, the end token staying in the last place.

    Args:
        tokenizer: the `CLIPTokenizer` to follow.

    Attributes:
        tables: the look-up tables that a saved graph must hold.

    Raises:
        ImportError: keras-hub or tensorflow-text is not installed.
    """

    def __init__(self, tokenizer: CLIPTokenizer):
        self.tokenizer = tokenizer
        self._merger = _merger()
        self.tables = [self._merger.byte2unicode, self._merger.merge_ranks, self._merger.token_to_id_map]

    def __call__(self, texts: Tensor) -> Tensor:
        import tensorflow as tf

        length, count = self.tokenizer.context_length, tf.shape(texts)[:1]
        # Each word has a token at least.
        words = self._words(texts)[:, : length - 2]
        unique, places = tf.unique(words.flat_values)
        ids = tf.gather(self._ids(unique), places)
        # (B, words, ids of a word) to (B, ids).
        ids = tf.RaggedTensor.from_row_splits(ids.flat_values, tf.gather(ids.row_splits, words.row_splits))
        start, end = (
            tf.fill(tf.concat([count, [1]], 0), token)
            for token in (self.tokenizer.start_token_id, self.tokenizer.end_token_id)
        )
        rows = tf.concat([start, tf.cast(ids[:, : length - 2], tf.int32), end], axis=1)
        return rows.to_tensor(shape=(None, length))

    def _words(self, texts):
        import tensorflow as tf
        import tensorflow_text as tf_text

        clean = tf.strings.lower(tf.strings.regex_replace(texts, _SPACES, " "), encoding="utf-8")
        pieces = tf_text.regex_split(clean, _WORDS, _WORDS)
        # What lies between the words is white space.
        return tf.ragged.boolean_mask(pieces, pieces != " ")

    def _ids(self, words):
        """Ragged token ids of different words.

        Merging takes as many steps as a word has letters, each of the size of the longest word times the number of
        words. So long words, as there are in writings without spaces, are merged by themselves.
        """
        import tensorflow as tf

        is_long = tf.strings.length(words) > _LONG
        groups = [tf.squeeze(tf.where(mask), 1) for mask in (~is_long, is_long)]
        ids = tf.concat([self._merged(tf.gather(words, group)) for group in groups], axis=0)
        return tf.gather(ids, tf.math.invert_permutation(tf.concat(groups, axis=0)))

    def _merged(self, words):
        import tensorflow as tf

        words = tf.strings.substr(words, 0, _BYTES_PER_TOKEN * self.tokenizer.context_length)
        symbols = self._merger.byte2unicode.lookup(tf.strings.bytes_split(words))
        spelt = tf.strings.join([tf.strings.reduce_join(symbols, axis=1, separator=" "), "</w>"])
        merged = self._merger._bpe_merge_tf(tf.strings.split(spelt, sep=" "))
        return self._merger.token_to_id_map.lookup(merged)


@functools.cache
def _merger():
    """KerasHub's merging of byte pairs with our table. It has no public way to merge words that are split already."""
    from keras_hub.tokenizers import BytePairTokenizer

    tokens, merges = vocabulary()
    merger = BytePairTokenizer({token: i for i, token in enumerate(tokens)}, [" ".join(merge) for merge in merges])
    merger._maybe_initialized_tf()
    return merger
