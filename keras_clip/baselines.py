"""The baselines of CLIP: two models that predict the words of a caption (Radford et al., 2021, figure 2).

Both train on the same pairs and with the same image encoders as CLIP. They classify zero-shot by predicting the class
with the most likely prompt. `examples/efficiency.py` reproduces the comparison.
"""

import itertools
import os
from collections.abc import Iterable, Sequence

import keras
import numpy as np
from keras import ops

from keras_clip import distribution
from keras_clip.data.images import ImagePreprocessor
from keras_clip.data.tokenizer import CLIPTokenizer
from keras_clip.encoders.contract import features_shape, preprocessor_for
from keras_clip.export import export_pair_model
from keras_clip.layers.composite import CompositeModel
from keras_clip.layers.embeddings import PixelNormalization, TokenEmbedding
from keras_clip.layers.initialisation import normal
from keras_clip.layers.input_shapes import check_images
from keras_clip.layers.transformer import TransformerBlock
from keras_clip.losses import bag_of_words_loss, caption_loss
from keras_clip.prompts import validate_class_names, validate_templates, warn_of_equal_prompts
from keras_clip.step.trainer import Branch, GlobalBatchTrainer
from keras_clip.types import Tensor

# Limits of the logits and of the (image, prompt) pairs that zero-shot scoring holds in memory at a time.
MAX_LOGITS = 2**25
MAX_PAIRS = 4096


def vocabulary_of(token_ids: Iterable[np.ndarray]) -> list[int]:
    """Returns the tokens that occur in a dataset's captions, for the `vocabulary` argument of a predictor.

    Args:
        token_ids: int arrays (B, L), as the tokenizer returns them.

    Returns:
        Sorted token ids, including padding.
    """
    found = set()
    for batch in token_ids:
        found.update(np.unique(ops.convert_to_numpy(batch)).tolist())
    return sorted(found)


class _ImageFeatures(CompositeModel):
    """Normalises the pixels and encodes them: images (B, H, W, 3) to features (B, D)."""

    def __init__(self, encoder, image_preprocessor, **kwargs):
        super().__init__(**kwargs)
        self.encoder = encoder
        self.pixels = PixelNormalization(
            image_preprocessor.mean, image_preprocessor.std, dtype=self.dtype_policy, name="pixels"
        )
        self._sides = image_preprocessor.sides
        images = keras.KerasTensor((None, *self._sides, 3), dtype=self.compute_dtype)
        self.width = features_shape(encoder, images, "image_encoder")[-1]
        self.mark_built()

    def call(self, images, training=False):
        check_images(images, self._sides)
        return self.encoder(self.pixels(images), training=bool(training) and self.encoder.trainable)


class _Scores(CompositeModel):
    """Computes the log-likelihood per word of texts: features (B, D) and token ids (K, L) to (B, K)."""

    def __init__(self, predictor):
        super().__init__(name="scores")
        self.predictor = predictor
        self.mark_built()

    def predict_on_batch(self, x):
        # Without the check that all inputs have one row for each pair: every text is scored for every image.
        return super(CompositeModel, self).predict_on_batch(x)

    def call(self, inputs):
        return -self.predictor.losses_of_all(inputs["features"], inputs["token_ids"])


class _CaptionPredictor(GlobalBatchTrainer):
    """Base class of both predictors: image encoder, vocabulary, mean loss of a batch, and zero-shot scores.

    A subclass defines `_logits_of(features, words)` and `_losses_of(logits, words)`, where `words` are ids of its
    vocabulary.
    """

    contrasts_pairs = False

    def __init__(self, image_encoder, tokenizer, vocabulary, image_preprocessor, **kwargs):
        super().__init__(**kwargs)
        self.tokenizer = tokenizer
        self.image_preprocessor = image_preprocessor or preprocessor_for(image_encoder)
        self.image_features = _ImageFeatures(
            image_encoder, self.image_preprocessor, dtype=self.dtype_policy, name="image_features"
        )
        size = tokenizer.vocabulary_size
        self.vocabulary = vocabulary = None if vocabulary is None else tuple(sorted({int(i) for i in vocabulary}))
        if vocabulary is not None and not (vocabulary and 0 <= vocabulary[0] <= vocabulary[-1] < size):
            raise ValueError(
                f"`vocabulary` must be token ids in [0, {size}), at least one, or None. "
                f"Received: {len(vocabulary)} ids, {vocabulary[:3]}... `baselines.vocabulary_of` collects them."
            )
        kept = range(size) if vocabulary is None else sorted({*vocabulary, tokenizer.end_token_id})
        # All tokens outside of the vocabulary share one word, the last.
        self._word_of = np.full(size, len(kept), "int32")
        self._word_of[list(kept)] = np.arange(len(kept))
        self._end_word = int(self._word_of[tokenizer.end_token_id])
        self.num_words = len(kept) + (len(kept) < size)
        self.add_step_metrics()

    def compile(self, optimizer=None, **options):
        """Configures training like `CLIPModel.compile`, but without `microbatch_size`."""
        if options.get("microbatch_size") is not None:
            raise ValueError(
                f"A {type(self).__name__} trains on whole batches. Received: "
                f"microbatch_size={options['microbatch_size']}. Leave it out, and pass smaller batches to `fit`."
            )
        super().compile(optimizer, **options)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The input of the image encoder, whose rows are those of the batch."""
        return (Branch("images", self.image_features, "image_features"),)

    def embed(self, x: dict, training: bool) -> Tensor:
        """The logits that `call` returns, for the training step."""
        return self(x, training=training)

    def build(self, input_shape=None):
        """Does nothing: the constructor builds all parts."""

    image_encoder = property(lambda self: self.image_features.encoder)

    def words_of(self, token_ids: Tensor) -> Tensor:
        """Converts token ids (B, L) to int32 ids of the vocabulary."""
        token_ids = ops.cast(token_ids, "int32")
        return token_ids if self.vocabulary is None else ops.take(ops.convert_to_tensor(self._word_of), token_ids)

    def call(self, inputs, training=False):
        features = self.image_features(inputs["images"], training=training)
        return self._logits_of(features, self.words_of(inputs["token_ids"]))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Returns global_loss / R on each of R replicas: the mean loss per word of the captions, and regularisation.

        The sum over replicas, and of their gradients, is that of the global batch.

        Raises:
            ValueError: `y` or `sample_weight` is given.
        """
        if y is not None or sample_weight is not None:
            raise ValueError(
                'The data must be dicts {"images", "token_ids"} without targets or sample weights. Received: '
                f"y={type(y).__name__}, sample_weight={type(sample_weight).__name__}. The captions are the targets."
            )
        losses, replicas = self._losses_of(y_pred, self.words_of(x["token_ids"])), distribution.replica_count()
        loss = distribution.global_mean(losses)
        for penalty in self.losses:
            loss = loss + ops.sum(ops.cast(penalty, "float32")) / replicas
        return loss

    def export(self, filepath: str | os.PathLike, format: str = "tf_saved_model", dtype: str = "uint8") -> None:
        """Writes the predictor as a graph from "images" and "token_ids", of as many rows, to "logits".

        Args:
            filepath, format, dtype: as of `CLIPModel.export`.

        Raises:
            As `CLIPModel.export`.
        """
        sides, length = self.image_preprocessor.sides, self.tokenizer.context_length
        export_pair_model(self, filepath, format, sides, length, "logits", dtype)

    def losses_of_all(self, features: Tensor, token_ids: Tensor) -> Tensor:
        """Returns the loss of each of K texts for each of B images.

        Args:
            features: float tensor (B, D) of the image encoder.
            token_ids: int tensor (K, L).

        Returns:
            float32 (B, K), nats per word.
        """
        words = self.words_of(token_ids)
        rows, columns = ops.shape(features)[0], ops.shape(words)[0]
        logits = self._logits_of(ops.repeat(features, columns, axis=0), ops.tile(words, (rows, 1)))
        return ops.reshape(self._losses_of(logits, ops.tile(words, (rows, 1))), (rows, columns))

    def zero_shot_scores(
        self,
        images: np.ndarray,
        class_names: Sequence[str | Sequence[str]],
        templates: Sequence[str] = ("a photo of a {}.",),
        batch_size: int = 64,
    ) -> np.ndarray:
        """Returns the mean log-likelihood per word of the prompts of each class, given the image.

        The log-likelihood of a prompt is divided by its number of words, since the sum would favour short prompts (for
        the language model the end token counts as a word). Words that are common to all prompts add the same amount to
        classes with names of equal length.

        Args:
            images: (B, H, W, 3), uint8 or normalised floats.
            class_names: K names. A class with several names is a list of them; all prompts of a class have equal
                weight.
            templates: texts with one `{}` each, which the class name replaces.
            batch_size: int. Images per batch of the encoder.

        Returns:
            float32 array (B, K), nats; the predicted class has the highest score.

        Raises:
            ValueError: templates without exactly one `{}`, empty or duplicate names, or a prompt that is too long.
        """
        templates, class_names = validate_templates(templates), validate_class_names(class_names)
        prompts = [[t.replace("{}", name) for name in names for t in templates] for names in class_names]
        token_ids = self.tokenizer(list(itertools.chain.from_iterable(prompts)), length="longest")
        owners = [(t, k, name) for k, names in enumerate(class_names) for name in names for t in templates]
        warn_of_equal_prompts(owners, token_ids)
        features = self.image_features.predict(images, batch_size=batch_size, verbose=0)
        scores, scorer = np.empty((len(features), len(token_ids)), np.float32), _Scores(self)
        pairs = min(MAX_PAIRS, max(1, MAX_LOGITS // (self.num_words * token_ids.shape[1])))
        columns = min(len(token_ids), pairs)
        rows = pairs // columns
        for row in range(0, len(features), rows):
            for column in range(0, len(token_ids), columns):
                tile = {"features": features[row : row + rows], "token_ids": token_ids[column : column + columns]}
                scores[row : row + rows, column : column + columns] = scorer.predict_on_batch(tile)
        starts = np.cumsum([0, *map(len, prompts[:-1])])
        return np.add.reduceat(scores, starts, axis=1) / np.array([*map(len, prompts)], np.float32)

    def get_config(self):
        return {
            **super().get_config(),
            "image_encoder": keras.saving.serialize_keras_object(self.image_encoder),
            "tokenizer": keras.saving.serialize_keras_object(self.tokenizer),
            "vocabulary": self.vocabulary and list(self.vocabulary),
            "image_preprocessor": keras.saving.serialize_keras_object(self.image_preprocessor),
        }

    @classmethod
    def _from_own_config(cls, config):
        parts = ("image_encoder", "tokenizer", "image_preprocessor")
        return cls(**{**config, **{key: keras.saving.deserialize_keras_object(config[key]) for key in parts}})


@keras.saving.register_keras_serializable(package="keras_clip")
class BagOfWordsPredictor(_CaptionPredictor):
    """Predicts the words of a caption in any order (Joulin et al., 2016; Radford et al., 2021, section 2.3).

    A linear map of the image features feeds one softmax over the vocabulary, whose words are the tokenizer's tokens.
    Train it like a `CLIPModel`: `compile(optimizer)`, then `fit` on the dataset of `data.image_text_pairs`.

    Args:
        image_encoder: Keras model or layer, images (B, H, W, 3) -> features (B, D).
        tokenizer: `CLIPTokenizer` or another tokenizer with its interface.
        vocabulary: token ids that can be predicted, or None: all V. All other tokens share one additional word.
            `vocabulary_of` collects the tokens of a dataset.
        image_preprocessor: `ImagePreprocessor` or None. None: one for the encoder's image size and pixel range.

    Call arguments:
        inputs: dict with "images" (B, H, W, 3), uint8 or normalised floats, and "token_ids" (B, L), which do not affect
            the logits.
        training: bool.

    Returns:
        float32 logits (B, V), where V is `num_words`.

    Raises:
        ValueError: an encoder whose output is not (B, D) or whose image size is unknown, or ids outside of the
            tokenizer's vocabulary.
    """

    def __init__(
        self,
        image_encoder: keras.layers.Layer,
        tokenizer: CLIPTokenizer,
        vocabulary: Sequence[int] | None = None,
        image_preprocessor: ImagePreprocessor | None = None,
        **kwargs,
    ):
        super().__init__(image_encoder, tokenizer, vocabulary, image_preprocessor, **kwargs)
        width = self.image_features.width
        self.output_words = keras.layers.Dense(
            self.num_words, kernel_initializer=normal(width**-0.5), dtype=self.dtype_policy, name="output_words"
        )
        self.output_words.build((None, width))
        self.mark_built()

    def _logits_of(self, features: Tensor, words: Tensor) -> Tensor:
        """Returns logits (B, V) of features (B, D); `words` is not used."""
        return ops.cast(self.output_words(features), "float32")

    def _losses_of(self, logits: Tensor, words: Tensor) -> Tensor:
        """Returns the `losses.bag_of_words_loss` of logits (B, V) and words (B, L)."""
        return bag_of_words_loss(logits, words, self._end_word)

    def compute_output_spec(self, inputs, training=False):
        return keras.KerasTensor((inputs["images"].shape[0], self.num_words), dtype="float32")


@keras.saving.register_keras_serializable(package="keras_clip")
class CaptionLanguageModel(_CaptionPredictor):
    """Predicts a caption autoregressively from the image (Radford et al., 2021, section 2.3).

    Like VirTex (Desai and Johnson, 2020), it combines an image encoder with a transformer decoder. A linear map turns
    the image features into a few prefix embeddings before the text, since an image encoder returns a single vector.
    Train it like a `CLIPModel`: `compile(optimizer)`, then `fit` on the dataset of `data.image_text_pairs`.

    Args:
        image_encoder: Keras model or layer, images (B, H, W, 3) -> features (B, D).
        tokenizer: `CLIPTokenizer` or another tokenizer with its interface; it sets the decoder's context length.
        width: int. Width of the decoder's residual stream.
        num_layers: int. Number of decoder blocks.
        num_heads: int. Divides `width`.
        prefix_length: int. Number of prefix embeddings that represent the image.
        vocabulary: token ids that can be read and predicted, or None: all V. All other tokens share one additional
            word. `vocabulary_of` collects the tokens of a dataset.
        image_preprocessor: `ImagePreprocessor` or None. None: one for the encoder's image size and pixel range.

    Call arguments:
        inputs: dict with "images" (B, H, W, 3), uint8 or normalised floats, and "token_ids" (B, L).
        training: bool.

    Returns:
        float32 logits (B, L, V), where V is `num_words`: row i, computed from the tokens up to i, predicts token i + 1.

    Raises:
        ValueError: an encoder whose output is not (B, D) or whose image size is unknown, ids outside of the tokenizer's
            vocabulary, or texts longer than the context.
    """

    def __init__(
        self,
        image_encoder: keras.layers.Layer,
        tokenizer: CLIPTokenizer,
        width: int = 512,
        num_layers: int = 4,
        num_heads: int = 8,
        prefix_length: int = 4,
        vocabulary: Sequence[int] | None = None,
        image_preprocessor: ImagePreprocessor | None = None,
        **kwargs,
    ):
        super().__init__(image_encoder, tokenizer, vocabulary, image_preprocessor, **kwargs)
        self.width = width
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.prefix_length = prefix_length
        policy = self.dtype_policy

        def dense(units, inputs, name):
            layer = keras.layers.Dense(units, kernel_initializer=normal(inputs**-0.5), dtype=policy, name=name)
            layer.build((None, inputs))
            return layer

        self.prefix = dense(prefix_length * width, self.image_features.width, "prefix")
        self.token_embedding = TokenEmbedding(
            self.num_words, tokenizer.context_length, width, dtype=policy, name="token_embedding"
        )
        self.token_embedding.build()
        self.blocks = [
            TransformerBlock(num_heads, num_layers, causal=True, dtype=policy, name=f"block_{i}")
            for i in range(num_layers)
        ]
        self.norm_final = keras.layers.LayerNormalization(epsilon=1e-5, dtype=policy, name="norm_final")
        for layer in (*self.blocks, self.norm_final):
            layer.build((None, None, width))
        self.output_words = dense(self.num_words, width, "output_words")
        self.mark_built()

    def _logits_of(self, features: Tensor, words: Tensor) -> Tensor:
        """Returns logits (B, L, V) of features (B, D) and words (B, L)."""
        prefix = ops.reshape(self.prefix(features), (-1, self.prefix_length, self.width))
        x = ops.concatenate([prefix, self.token_embedding(words)], axis=1)
        for block in self.blocks:
            x = block(x)
        return ops.cast(self.output_words(self.norm_final(x[:, self.prefix_length :])), "float32")

    def _losses_of(self, logits: Tensor, words: Tensor) -> Tensor:
        """Returns the `losses.caption_loss` of logits (B, L, V) and words (B, L)."""
        return caption_loss(logits, words, self._end_word)

    def compute_output_spec(self, inputs, training=False):
        return keras.KerasTensor((*inputs["token_ids"].shape, self.num_words), dtype="float32")

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "prefix_length": self.prefix_length,
        }
