"""CLIP: two encoders, two projection heads, one temperature (Radford et al., 2021, figure 3).

Keras' own `fit` trains the model, through the hook `compute_loss` on every backend. The loss is that of the global
batch.
"""

import os
from functools import cached_property

import keras
import numpy as np
from keras import ops

from keras_clip import compat, distribution
from keras_clip.data.images import ImagePreprocessor
from keras_clip.data.tokenizer import CLIPTokenizer
from keras_clip.encoders.contract import attribute, features_shape, images_shape, preprocessor_for
from keras_clip.export import export_image_model, export_pair_model, export_text_model
from keras_clip.layers.composite import CompositeModel
from keras_clip.layers.contrastive_loss import ContrastiveLoss
from keras_clip.layers.embeddings import PixelNormalization
from keras_clip.layers.inference import Inference
from keras_clip.layers.input_shapes import check_images, check_images_shape, check_vocabulary
from keras_clip.layers.pixel_range import ChecksPixelRange
from keras_clip.layers.projection import ProjectionHead
from keras_clip.losses import caption_groups
from keras_clip.step.trainer import Branch, GlobalBatchTrainer
from keras_clip.types import Tensor

# `encode_text` cuts texts to multiples of this number of tokens.
_LENGTHS = 16


def _check_end_token(tokenizer, encoder) -> None:
    ends = [getattr(part, "end_token_id", None) for part in (tokenizer, encoder)]
    if None not in ends and ends[0] != ends[1]:
        raise ValueError(
            f"The tokenizer must end texts with the token that the encoder looks for, {ends[1]}. Received: a "
            f"{type(tokenizer).__name__} that ends them with {ends[0]}. Pass `tokenizer=` of the encoder's vocabulary, "
            "or leave `vocabulary_size` and `end_token_id` at CLIP's."
        )


class _Embedder(CompositeModel):
    """An encoder and its projection head."""

    @property
    def quantization(self) -> str | None:
        """The mode of the first layer inside that is quantised, such as "int8"; None without one."""
        modes = (layer.quantization_mode for layer in compat.all_layers(self))
        return next((mode for mode in modes if mode is not None), None)

    def features(self, inputs: Tensor, training: bool = False) -> Tensor:
        """Computes the features that the projection head maps to embeddings.

        Args:
            inputs: as `call` takes them.
            training: bool.

        Returns:
            Features (B, D).
        """
        # A locked encoder does not learn and does not drop: its statistics and its patches stay as they are.
        return self.encoder(inputs, training=bool(training) and self.encoder.trainable)

    @property
    def embed_dim(self) -> int:
        return self.projection.embed_dim

    @cached_property
    def _inference(self) -> Inference:
        return Inference(self)

    def build(self, input_shape=None):
        """Does nothing: the constructor builds all parts."""

    def get_config(self):
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "embed_dim": self.embed_dim,
        }

    @classmethod
    def _from_own_config(cls, config):
        config = _deserialized(config)
        # Of files that an earlier version saved.
        mode = config.pop("quantization", None)
        embedder = cls(**config)
        if mode is not None:
            embedder.quantize(mode)
        return embedder


def _deserialized(config):
    return {
        key: keras.saving.deserialize_keras_object(value) if isinstance(value, dict) else value
        for key, value in config.items()
    }


@keras.saving.register_keras_serializable(package="keras_clip")
class ImageEmbedder(ChecksPixelRange, _Embedder):
    """The image tower of a CLIP: it maps pixels to unit-length embeddings.

    Args:
        encoder: Keras model or layer, images (B, H, W, 3) -> features (B, D). A Keras model may take more axes before
            the pixels, such as video frames (B, T, H, W, 3). If it has a true attribute `projection_bias`, as the
            published ResNets do, the head gets a bias.
        embed_dim: int. E.
        image_preprocessor: `ImagePreprocessor` or None. None: one for the encoder's image size and pixel range.

    Call arguments:
        images: (B, H, W, 3), or (B, ..., H, W, 3) as the encoder takes them. uint8 is normalised here, by the
            preprocessor's mean and std; floats are assumed to be normalised.
        training: bool.

    Returns:
        float32 embeddings (B, E) of unit length.

    Raises:
        ValueError: the encoder does not return (B, D), or its image size is unknown; images of another size.
    """

    def __init__(
        self, encoder: keras.layers.Layer, embed_dim: int, image_preprocessor: ImagePreprocessor | None = None, **kwargs
    ):
        super().__init__(**kwargs)
        self.encoder = encoder
        shape = images_shape(encoder)
        self._sides = shape[-3:-1]
        self.image_preprocessor = image_preprocessor or preprocessor_for(encoder)
        self.pixels = PixelNormalization(
            self.image_preprocessor.mean, self.image_preprocessor.std, dtype=self.dtype_policy, name="pixels"
        )
        self.projection = ProjectionHead(
            embed_dim,
            use_bias=bool(getattr(encoder, "projection_bias", False)),
            dtype=self.dtype_policy,
            name="image_projection",
        )
        images = keras.KerasTensor(shape, dtype=self.compute_dtype)
        self.projection.build(features_shape(encoder, images, "image_encoder"))
        self.mark_built()

    def call(self, images, training=False):
        return self.projection(self.features(images, training))

    def features(self, images: Tensor, training: bool = False) -> Tensor:
        """Computes the features that the projection head maps to embeddings.

        Args:
            images: as `call` takes them.
            training: bool.

        Returns:
            Features (B, D).
        """
        check_images(images, self._sides, rank=None)
        return super().features(self.pixels(images), training)

    def encode_image(self, images: Tensor) -> Tensor:
        """Embeds images (B, H, W, 3), uint8 or normalised floats; returns float32 (B, E) of unit length.

        TensorFlow and JAX compile the encoder at the first call.
        """
        check_images(images, self._sides, rank=None)
        self._check_first(images)
        return self._inference(images)

    def export(self, filepath: str | os.PathLike, format: str = "tf_saved_model", dtype: str = "uint8") -> None:
        """Writes the image tower as a graph from "images" to "image_embeddings" (B, E) that runs without Keras.

        TensorFlow must be installed on every backend. An existing file or folder at `filepath` is overwritten.

        Args:
            filepath: folder of a SavedModel, or file of an ONNX or LiteRT graph.
            format: "tf_saved_model" (computes in this model's dtype policy), "onnx" or "litert" (always in float32).
            dtype: input dtype of the graph: "uint8" for the pixels of `image_preprocessor.to_uint8`, "float32" for the
                normalised images of `image_preprocessor`.

        Raises:
            ValueError: an unknown format or dtype.
            ImportError: TensorFlow or the ONNX converter is not installed.
            RuntimeError: on JAX and torch, the TensorFlow process that exports the graph failed.
        """
        export_image_model(self, filepath, format, images_shape(self.encoder)[1:-1], "image_embeddings", dtype)

    def compute_output_spec(self, images, training=False):
        check_images_shape(images.shape, self._sides, rank=None)
        return keras.KerasTensor((images.shape[0], self.embed_dim), dtype="float32")

    def get_config(self):
        preprocessor = keras.saving.serialize_keras_object(self.image_preprocessor)
        return {**super().get_config(), "image_preprocessor": preprocessor}


@keras.saving.register_keras_serializable(package="keras_clip")
class TextEmbedder(_Embedder):
    """The text tower of a CLIP: it maps token ids to unit-length embeddings.

    Args:
        encoder: Keras model or layer, token ids (B, L) -> features (B, D).
        embed_dim: int. E.
        tokenizer: `CLIPTokenizer` or None. None: one for the encoder's context length.

    Call arguments:
        token_ids: int tensor (B, L), as the tokenizer returns them; L may be that of the longest text of the batch.
        training: bool.

    Returns:
        float32 embeddings (B, E) of unit length.

    Raises:
        ValueError: the encoder does not return (B, D), its context length is unknown, or its end token is not that of
            the tokenizer; token ids outside of the vocabulary, where they can be read.
    """

    def __init__(self, encoder: keras.layers.Layer, embed_dim: int, tokenizer: CLIPTokenizer | None = None, **kwargs):
        super().__init__(**kwargs)
        self.encoder = encoder
        length = attribute(encoder, "context_length", slice(1, 2))
        self.tokenizer = CLIPTokenizer(length) if tokenizer is None else tokenizer
        _check_end_token(self.tokenizer, encoder)
        self.projection = ProjectionHead(embed_dim, dtype=self.dtype_policy, name="text_projection")
        token_ids = keras.KerasTensor((None, length), dtype="int32")
        self.projection.build(features_shape(encoder, token_ids, "text_encoder"))
        self.mark_built()

    def call(self, token_ids, training=False):
        return self.projection(self.features(token_ids, training))

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """Embeds token ids (B, L); returns float32 (B, E) of unit length.

        TensorFlow and JAX compile the encoder at the first call. Texts are cut to the longest of the batch, which
        changes their embeddings by rounding errors only.
        """
        if self._vocabulary is not None:
            check_vocabulary(token_ids, self._vocabulary)
        return self._inference(self._cut(token_ids))

    @property
    def _vocabulary(self):
        return getattr(self.encoder, "vocabulary_size", None)

    def _cut(self, token_ids):
        """Token ids without most of the padding that all texts have, if the encoder pools at an end token."""
        end = getattr(self.encoder, "end_token_id", None)
        if end is None or not isinstance(token_ids, np.ndarray) or token_ids.ndim != 2 or not token_ids.size:
            return token_ids
        is_end = token_ids == end
        longest = int(is_end.argmax(axis=1).max()) + 1 if is_end.any(axis=1).all() else token_ids.shape[1]
        # Multiples, since each length is compiled by itself.
        return token_ids[:, : -(-longest // _LENGTHS) * _LENGTHS]

    def export(self, filepath: str | os.PathLike, format: str = "tf_saved_model", strings: bool = False) -> None:
        """Writes the text tower as a graph from "token_ids" to "text_embeddings" (B, E) that runs without Keras.

        TensorFlow must be installed on every backend. An existing file or folder at `filepath` is overwritten.

        With `strings` the graph contains the tokenizer and takes "texts", a tensor of strings (B,). Its token ids are
        those of `CLIPTokenizer` for every text that needs neither ftfy's repairs nor HTML unescaping; texts that are
        too long are truncated.

        Args:
            filepath: folder of a SavedModel, or file of an ONNX or LiteRT graph.
            format: "tf_saved_model" (computes in this model's dtype policy), "onnx" or "litert" (always in float32).
                The graph takes int32 (B, context_length), as the tokenizer returns them.
            strings: whether the graph takes texts instead; "tf_saved_model" only.

        Raises:
            ValueError: an unknown format.
            ImportError: TensorFlow or the ONNX converter is not installed.
            RuntimeError: on JAX and torch, the TensorFlow process that exports the graph failed.
        """
        export_text_model(self, filepath, format, self.tokenizer.context_length, strings)

    def compute_output_spec(self, token_ids, training=False):
        return keras.KerasTensor((token_ids.shape[0], self.embed_dim), dtype="float32")

    def get_config(self):
        return {**super().get_config(), "tokenizer": keras.saving.serialize_keras_object(self.tokenizer)}


def _loss_layer(loss, temperature, policy) -> keras.layers.Layer:
    if isinstance(loss, str):
        return ContrastiveLoss(kind=loss, temperature=temperature, dtype=policy, name="contrast")
    if not isinstance(loss, keras.layers.Layer) or not callable(getattr(loss, "loss_and_matches", None)):
        raise ValueError(
            "`loss` must be 'contrastive', 'sigmoid', or a layer with a method `loss_and_matches(image_embeddings, "
            f"text_embeddings)` that returns `losses.PairLosses`. Received: loss={loss!r}."
        )
    if temperature is not None:
        raise ValueError(
            f"A loss layer owns its temperature. Received: temperature={temperature}, loss={loss.name!r}. Pass the "
            "temperature to the layer."
        )
    return loss


def _loss_config(layer) -> dict:
    if type(layer) is ContrastiveLoss and layer.bias is None and not layer.groups_captions:
        return {"loss": layer.kind, "temperature": layer.temperature}
    return {"loss": keras.saving.serialize_keras_object(layer), "temperature": None}


@keras.saving.register_keras_serializable(package="keras_clip")
class CLIPModel(ChecksPixelRange, GlobalBatchTrainer):
    """Two encoders that are trained so that an image and its caption have similar embeddings.

    Any Keras model that returns features (B, D) is an encoder. The weights exist after construction. To train, call
    `compile(optimizer)`: the loss is the symmetric cross-entropy over all pairs of the global batch (Radford et al.,
    2021, figure 3), computed without storing all similarities at once. Set `trainable = False` on an encoder to lock it
    (LiT), including its BatchNorm statistics.

    Args:
        image_encoder: Keras model or layer, images (B, H, W, 3) -> features (B, D).
        text_encoder: Keras model or layer, token ids (B, L) -> features (B, D); the two D may differ.
        embed_dim: int. E, the dimension of the shared space.
        tokenizer: `CLIPTokenizer` or None. None: one for the text encoder's context length.
        image_preprocessor: `ImagePreprocessor` or None. None: one for the image encoder's size and pixel range.
        loss: "contrastive", "sigmoid" (SigLIP; Zhai et al., 2023), or a layer with a method `loss_and_matches` like
            that of `layers.ContrastiveLoss`. Such a layer owns its temperature; its class must be registered with
            Keras for the model to be saved.
        temperature: float > 0 or None. Initial value of the learned divisor of the similarities. None: 0.07, or 0.1 for
            the sigmoid loss.

    Call arguments:
        inputs: dict with "images" (B, H, W, 3), uint8 or normalised floats, and "token_ids" (B, L).
        training: bool.

    Returns:
        Dict with "image_embeddings" and "text_embeddings", float32 (B, E), unit length.

    Raises:
        ValueError: an encoder that does not return (B, D), or whose image size or context length is unknown.
    """

    def __init__(
        self,
        image_encoder: keras.layers.Layer,
        text_encoder: keras.layers.Layer,
        embed_dim: int,
        tokenizer: CLIPTokenizer | None = None,
        image_preprocessor: ImagePreprocessor | None = None,
        loss: str | keras.layers.Layer = "contrastive",
        temperature: float | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.image_embedder = ImageEmbedder(
            image_encoder, embed_dim, image_preprocessor, dtype=policy, name="image_embedder"
        )
        self.text_embedder = TextEmbedder(text_encoder, embed_dim, tokenizer, dtype=policy, name="text_embedder")
        self.contrast = _loss_layer(loss, temperature, policy)
        if not self.contrast.built:
            self.contrast.build((None, embed_dim), (None, embed_dim))
        self.image_to_text_accuracy = keras.metrics.Mean(name="image_to_text_accuracy")
        self.text_to_image_accuracy = keras.metrics.Mean(name="text_to_image_accuracy")
        self.mean_logit_scale = keras.metrics.Mean(name="logit_scale")
        self.add_step_metrics()
        self.mark_built()

    def build(self, input_shape=None):
        """Does nothing: the constructor builds all parts."""

    image_encoder = property(lambda self: self.image_embedder.encoder)
    text_encoder = property(lambda self: self.text_embedder.encoder)
    image_projection = property(lambda self: self.image_embedder.projection)
    text_projection = property(lambda self: self.text_embedder.projection)
    image_preprocessor = property(lambda self: self.image_embedder.image_preprocessor)
    tokenizer = property(lambda self: self.text_embedder.tokenizer)
    embed_dim = property(lambda self: self.image_embedder.embed_dim)
    logit_scale = property(
        lambda self: getattr(self.contrast, "logit_scale", None),
        doc="Scalar weight: log(1 / temperature). None if the loss has no such attribute.",
    )
    logit_bias = property(
        lambda self: getattr(self.contrast, "logit_bias", None), doc="Scalar weight of the sigmoid loss, else None."
    )

    @property
    def _vocabulary(self):
        return self.text_embedder._vocabulary

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The inputs of the model and the towers that embed them, for the training step."""
        return (
            Branch("images", self.image_embedder, "image_embeddings", head=self.image_projection),
            Branch("token_ids", self.text_embedder, "text_embeddings", has_tokens=True, head=self.text_projection),
        )

    def encode_image(self, images: Tensor) -> Tensor:
        """Embeds images (B, H, W, 3), uint8 or normalised floats; returns float32 (B, E) of unit length."""
        return self.image_embedder.encode_image(images)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """Embeds token ids (B, L); returns float32 (B, E) of unit length."""
        return self.text_embedder.encode_text(token_ids)

    def export(self, filepath: str | os.PathLike, format: str = "tf_saved_model", dtype: str = "uint8") -> None:
        """Writes both halves as one file that runs without Keras.

        The graph maps "images" and "token_ids", each of any number of rows, to "image_embeddings" and
        "text_embeddings". `clip.image_embedder.export` and `clip.text_embedder.export` write one half; the graph of
        texts can have the tokenizer in it.

        Args:
            filepath: folder of a SavedModel, or file of an ONNX or LiteRT graph.
            format: "tf_saved_model" (computes in this model's dtype policy), "onnx" or "litert" (always in float32).
            dtype: dtype of the images, as of `ImageEmbedder.export`.

        Raises:
            As `ImageEmbedder.export`.
        """
        sides = images_shape(self.image_encoder)[1:-1]
        export_pair_model(self, filepath, format, sides, self.tokenizer.context_length, dtype=dtype)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Returns global_loss / R on each of R replicas, so that the sum over replicas is the loss of the global batch.

        Its gradient is that of the terms of this replica's pairs, so that the sum of gradients over replicas is the
        gradient of the global loss. It also updates the metrics: the accuracies of retrieving the text of an image and
        the image of a text within the batch, and the mean logit scale. There are no targets, and sample weights have no
        meaning in a contrastive batch.

        Raises:
            ValueError: `y` or `sample_weight` is given.
        """
        if y is not None or sample_weight is not None:
            raise ValueError(
                'The data must be dicts {"images", "token_ids"} without targets or sample weights. Received: '
                f"y={type(y).__name__}, sample_weight={type(sample_weight).__name__}. The captions are the targets."
            )
        more = {"groups": caption_groups(x["token_ids"])} if getattr(self.contrast, "groups_captions", False) else {}
        pairs = self.contrast.loss_and_matches(y_pred["image_embeddings"], y_pred["text_embeddings"], **more)
        self.image_to_text_accuracy.update_state(distribution.gather(pairs.image_matched))
        self.text_to_image_accuracy.update_state(distribution.gather(pairs.text_matched))
        if self.logit_scale is not None:
            self.mean_logit_scale.update_state(self.logit_scale)
        loss, replicas = distribution.global_mean(pairs.loss), distribution.replica_count()
        for penalty in [*self.losses, y_pred.get("penalty", 0.0)]:
            loss = loss + ops.sum(ops.cast(penalty, "float32")) / replicas
        return loss

    def get_config(self):
        image, text = self.image_embedder, self.text_embedder
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "image_encoder": serialize(image.encoder),
            "text_encoder": serialize(text.encoder),
            "embed_dim": self.embed_dim,
            "tokenizer": serialize(text.tokenizer),
            "image_preprocessor": serialize(image.image_preprocessor),
            **_loss_config(self.contrast),
        }

    @classmethod
    def _from_own_config(cls, config):
        config = _deserialized(config)
        # Of files that an earlier version saved.
        modes = config.pop("quantization", (None, None))
        clip = cls(**config)
        for tower, mode in zip((clip.image_embedder, clip.text_embedder), modes, strict=True):
            if mode is not None:
                tower.quantize(mode)
        return clip
