"""Zero-shot classifiers, whose weights are the embeddings of class prompts (Radford et al., 2021, section 3.1)."""

import itertools
import math
import os
import reprlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import keras
import numpy as np
from keras import ops

from keras_clip import compat
from keras_clip.data.images import ImagePreprocessor
from keras_clip.encoders.contract import images_shape
from keras_clip.export import export_image_model
from keras_clip.layers.composite import CompositeModel
from keras_clip.layers.pixel_range import ChecksPixelRange
from keras_clip.model import CLIPModel, ImageEmbedder, TextEmbedder
from keras_clip.optimizers.precision import check_precision
from keras_clip.prompts import validate_class_names, validate_templates, warn_of_equal_prompts
from keras_clip.types import Tensor

MAX_WIDTHS = 3
# Each additional width costs a compilation, which must save the computation of this many tokens.
TOKENS_PER_WIDTH = 4096
BATCH_SIZE = 256
# The losses that are computed from probabilities or logits, by the names that `compile` takes.
_CROSS_ENTROPIES = {
    "sparse_categorical_crossentropy": keras.losses.SparseCategoricalCrossentropy,
    "categorical_crossentropy": keras.losses.CategoricalCrossentropy,
}
# Seconds before a progress bar appears.
PROGRESS_DELAY = 5


def _progress(total: int | None, description: str, hidden: bool = False):
    from tqdm import tqdm

    return tqdm(total=total, desc=description, delay=PROGRESS_DELAY, leave=False, disable=hidden)


def _widths(lengths: np.ndarray) -> list[int]:
    """Returns at most three padded widths, ascending, that minimise the computed tokens for texts of these lengths."""
    known, counts = np.unique(lengths, return_counts=True)
    up_to = dict(zip(known.tolist(), counts.cumsum().tolist(), strict=True))
    longest = int(known[-1])

    def cost(widths):
        held = [up_to[width] for width in widths]
        tokens = sum(w * (b - a) for w, a, b in zip(widths, [0, *held[:-1]], held, strict=True))
        return tokens + TOKENS_PER_WIDTH * len(widths)

    shorter = known[:-1].tolist()
    choices = ([*chosen, longest] for count in range(MAX_WIDTHS) for chosen in itertools.combinations(shorter, count))
    return min(choices, key=cost)


def _embed_rows(text_embedder: TextEmbedder, token_ids: np.ndarray) -> np.ndarray:
    """Returns embeddings (B, E) of token ids (B, L), in batches of few shapes and with few padding tokens."""
    lengths = (token_ids == text_embedder.tokenizer.end_token_id).argmax(axis=1) + 1
    embeddings = np.empty((len(token_ids), text_embedder.embed_dim), np.float32)
    shorter = 0
    with _progress(len(token_ids), "Embedding prompts") as bar:
        for width in _widths(lengths):
            rows = np.flatnonzero((lengths > shorter) & (lengths <= width))
            shorter = width
            # All batches of a width have one size, so that it compiles once; the last one is padded with its own rows.
            size = 8 * math.ceil(len(rows) / math.ceil(len(rows) / BATCH_SIZE) / 8)
            for start in range(0, len(rows), size):
                batch = rows[start : start + size]
                filled = token_ids[np.resize(batch, size), :width]
                embeddings[batch] = text_embedder.predict_on_batch(filled)[: len(batch)]
                bar.update(len(batch))
    return embeddings


def unit_length(x: np.ndarray) -> np.ndarray:
    """Returns vectors divided by their length; a zero vector remains zero.

    Args:
        x: floats (..., E).

    Returns:
        Floats (..., E) of unit length.
    """
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


def embed_classes(
    text_embedder: TextEmbedder,
    class_names: Sequence[str | Sequence[str]],
    templates: Sequence[str] = ("a photo of a {}.",),
) -> np.ndarray:
    """Returns the weights of a zero-shot head: the mean of each class's prompt embeddings, scaled to unit length.

    The ensemble is formed over embeddings, not over probabilities (Radford et al., 2021, section 3.1.4). Duplicate
    prompts are encoded once, and short prompts at a shorter sequence length. There is a warning of classes whose
    prompts the tokenizer makes equal, since the second of them is never predicted.

    Args:
        text_embedder: the text embedder of a `CLIPModel`: `clip.text_embedder`.
        class_names: K names. A class with several names is a list of them; all prompts of a class have equal weight.
        templates: texts with one `{}` each, which the class name replaces.

    Returns:
        float32 array (K, E) of unit length.

    Raises:
        ValueError: templates without exactly one `{}`, empty or duplicate names, or a prompt that is too long.
    """
    templates = validate_templates(templates)
    class_names = validate_class_names(class_names)
    prompts = [[t.replace("{}", name) for name in names for t in templates] for names in class_names]
    token_ids = tokenize_prompts(text_embedder.tokenizer, list(itertools.chain.from_iterable(prompts)))
    owners = [(t, k, name) for k, names in enumerate(class_names) for name in names for t in templates]
    warn_of_equal_prompts(owners, token_ids)
    token_ids, inverse = np.unique(token_ids, axis=0, return_inverse=True)
    embeddings = _embed_rows(text_embedder, token_ids)
    ends = np.cumsum([len(class_prompts) for class_prompts in prompts])
    means = [embeddings[rows].mean(axis=0) for rows in np.split(inverse.reshape(-1), ends[:-1])]
    return unit_length(np.stack(means))


def tokenize_prompts(tokenizer: Callable, prompts: list[str]) -> np.ndarray:
    """Returns the token ids of prompts, as long as the longest of them.

    Args:
        tokenizer: the tokenizer of a `CLIPModel`.
        prompts: P texts.

    Returns:
        int32 (P, L).

    Raises:
        ValueError: a prompt that is longer than the context of the text encoder.
    """
    try:
        return tokenizer(prompts, length="longest")
    except ValueError as error:
        longest = max(prompts, key=len)
        raise ValueError(
            f"Every prompt must fit the context length of the text encoder: {error} Received: class_names and "
            f"templates whose longest prompt is {longest!r}. Shorten them."
        ) from error


@keras.saving.register_keras_serializable(package="keras_clip")
class ZeroShotClassifier(ChecksPixelRange, CompositeModel):
    """Classifies images among classes given by their names, without training on these classes.

    The classifier holds the image embedder of the CLIP and the class embeddings, not the text encoder. It shares the
    image embedder with `clip`, so make a new classifier after further training of `clip`. The class embeddings and the
    temperature are fixed at construction and are not trained with the classifier.

    For fine-tuning pass `activation=None`, so that the loss is computed from logits. A cross-entropy of probabilities
    is cut off at 16.1 (Keras clips them at 1e-7), and on JAX and torch it has no gradient there:

        tuned = ZeroShotClassifier(clip, class_names, activation=None)
        tuned.compile(keras.optimizers.AdamW(1e-5), "sparse_categorical_crossentropy", metrics=["accuracy"])
        tuned.fit(images, labels)
        classifier = ZeroShotClassifier(clip, class_names)  # probabilities of the trained image encoder

    Args:
        clip: `CLIPModel`. If `class_embeddings` and `logit_scale` are given, an `ImageEmbedder` suffices.
        class_names: K names. A class with several names is a list of them, the first of which names the class; all
            prompts of a class have equal weight.
        templates: texts with one `{}` each, which the class name replaces. `keras_clip.prompts` provides some.
        class_embeddings: float (K, E) of unit length, or None. None: computed from the prompts by `embed_classes`.
        logit_scale: float, log(1 / temperature), or None. None: that of `clip`.
        activation: "softmax": the classifier returns probabilities. None: it returns logits.

    Call arguments:
        images: (B, H, W, 3), uint8 or normalised floats; or a dict with these as "images", as `image_text_pairs`
            yields.
        training: bool.

    Returns:
        float32 probabilities (B, K): the softmax of `logits`, also if `clip` was trained with the sigmoid loss; with
        `activation=None` these logits.

    Raises:
        ValueError: templates without exactly one `{}`, empty or duplicate names, a prompt that is too long, a `clip`
            without a text embedder if `class_embeddings` is None, `class_embeddings` of another shape, or an unknown
            activation.
    """

    def __init__(
        self,
        clip: CLIPModel | ImageEmbedder,
        class_names: Sequence[str | Sequence[str]],
        templates: Sequence[str] = ("a photo of a {}.",),
        class_embeddings: Tensor | None = None,
        logit_scale: float | None = None,
        activation: str | None = "softmax",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if activation not in ("softmax", None):
            raise ValueError(f'`activation` must be "softmax" or None. Received: activation={activation!r}.')
        self.activation = activation
        self.templates = validate_templates(templates)
        self.names_per_class = tuple(map(tuple, validate_class_names(class_names)))
        image_embedder = getattr(clip, "image_embedder", clip)
        _check_clip(clip, image_embedder, class_embeddings, logit_scale)
        if class_embeddings is None:
            class_embeddings = embed_classes(clip.text_embedder, class_names, templates)
        class_embeddings = _to_numpy(class_embeddings)
        shape = (len(self.names_per_class), image_embedder.embed_dim)
        if class_embeddings.shape != shape:
            raise ValueError(
                f"`class_embeddings` must be (K, E) = {shape}. Received: class_embeddings.shape="
                f"{class_embeddings.shape}. Compute them by `embed_classes`."
            )
        self.image_embedder = image_embedder
        fixed = {"trainable": False, "dtype": "float32", "autocast": False, "initializer": "zeros"}
        self.class_embeddings = self.add_weight(name="class_embeddings", shape=shape, **fixed)
        self.class_embeddings.assign(class_embeddings)
        self.logit_scale = self.add_weight(name="logit_scale", shape=(), **fixed)
        # A copy: JAX would share one array with `clip`, whose steps free it.
        self.logit_scale.assign(
            _to_numpy(ops.convert_to_tensor(clip.logit_scale if logit_scale is None else logit_scale))
        )
        self.mark_built()

    def build(self, input_shape=None):
        """Does nothing: the constructor builds all parts."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The first name of each class."""
        return tuple(names[0] for names in self.names_per_class)

    @property
    def image_preprocessor(self) -> ImagePreprocessor:
        """The preprocessor that converts image files to `images`."""
        return self.image_embedder.image_preprocessor

    def logits(self, images: Tensor, training: bool = False) -> Tensor:
        """Returns the cosine similarities of images and classes, divided by the temperature.

        Args:
            images: as in a call.
            training: bool.

        Returns:
            float32 (B, K).
        """
        if isinstance(images, dict):
            images = images["images"]
        embeddings = self.image_embedder(images, training=training)
        return ops.exp(self.logit_scale) * ops.matmul(embeddings, ops.transpose(self.class_embeddings))

    def call(self, images, training=False):
        logits = self.logits(images, training)
        return logits if self.activation is None else ops.softmax(logits)

    def compile(
        self, optimizer: keras.optimizers.Optimizer | str = "rmsprop", loss=None, *positional, **options
    ) -> None:
        """Configures training and `evaluate` with the compiled loss, as `keras.Model.compile`.

        A cross-entropy that is given by name is computed from what the classifier returns: from logits with
        `activation=None`, from probabilities otherwise, with a warning.

        Args:
            optimizer: as of `keras.Model.compile`.
            loss: as of `keras.Model.compile`.
            positional: its other arguments in their order.
            options: its other arguments by name.

        Raises:
            ValueError: a cross-entropy from logits of a classifier that returns probabilities, or the reverse.
        """
        optimizer = keras.optimizers.get(optimizer)
        check_precision(optimizer, self.trainable_variables)
        super().compile(optimizer, self._checked_loss(loss), *positional, **options)
        compat.keep_averages_apart(self.optimizer)

    def compile_from_config(self, config: dict) -> None:
        """Compiles a loaded classifier as it was saved; what `compile` warned of then is not repeated.

        Args:
            config: what `get_compile_config` returned.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "A cross-entropy of probabilities", UserWarning)
            self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def _checked_loss(self, loss):
        name = getattr(loss, "__name__", loss)
        from_logits = getattr(loss, "from_logits", None)
        if isinstance(name, str) and name in _CROSS_ENTROPIES:
            loss, from_logits = _CROSS_ENTROPIES[name](from_logits=self.activation is None), self.activation is None
        if from_logits is None or not isinstance(loss, tuple(_CROSS_ENTROPIES.values())):
            return loss
        if from_logits != (self.activation is None):
            raise ValueError(
                f"The loss must be computed from what the classifier returns. Received: a {type(loss).__name__} with "
                f"from_logits={from_logits}, and activation={self.activation!r}. Fine-tune on logits: make the "
                "classifier with `activation=None`, and pass the loss by name or with `from_logits=True`."
            )
        if not from_logits:
            warnings.warn(
                "A cross-entropy of probabilities has no gradient where the classifier is sure of another class. "
                f"Received: loss={type(loss).__name__} and activation={self.activation!r}. To fine-tune, make the "
                "classifier with `activation=None`.",
                stacklevel=3,
            )
        return loss

    def compute_output_spec(self, images, training=False):
        images = images["images"] if isinstance(images, dict) else images
        self.image_embedder.compute_output_spec(images)
        return keras.KerasTensor((images.shape[0], len(self.names_per_class)), dtype="float32")

    def evaluate(
        self,
        x: Tensor | Iterable,
        y: Tensor | Sequence[int] | Sequence[str] | None = None,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        **keras_arguments,
    ) -> dict[str, float]:
        """Measures accuracy on labelled images; `compile` is not needed.

        Args:
            x: images (B, H, W, 3) with labels in `y`, a tuple of both, or a dataset of batches (images, labels).
            y: labels (B,): class indices, or class names (any name of a class).
            batch_size: int. None: 32. Used for arrays only.
            verbose: 0 hides the progress bar, which otherwise appears after five seconds.
            keras_arguments: any other argument of `keras.Model.evaluate`. It selects that method, with the compiled
                loss and metrics, as `fit` does for its `validation_data`.

        Returns:
            Dict of floats: "top_1_accuracy", "top_5_accuracy" (1 for K <= 5) and "mean_per_class_accuracy" (top 1,
            averaged over all classes; NaN, with a warning, if a class has no image).

        Raises:
            ValueError: labels that are not classes, another number of labels than images, or no images.
        """
        if keras_arguments:
            return super().evaluate(x, y, batch_size=batch_size, verbose=verbose, **keras_arguments)
        labels, ranks = [], []
        with _progress(None, "Classifying", hidden=not verbose) as bar:
            for images, batch_labels in _labelled_batches(x, y, batch_size or 32):
                probabilities = self.predict_on_batch(images)
                labels.append(self._indices(batch_labels, len(probabilities)))
                ranks.append(_ranks(probabilities, labels[-1]))
                bar.update(len(probabilities))
        if not labels or not sum(map(len, labels)):
            raise ValueError(f"There must be at least one labelled image. Received: x={x!r}.")
        labels, ranks = np.concatenate(labels), np.concatenate(ranks)
        correct = ranks < 1
        counts = np.bincount(labels, minlength=len(self.class_names))
        if not counts.all():
            empty = [name for name, count in zip(self.class_names, counts, strict=True) if not count]
            warnings.warn(
                "The mean per class is defined if every class has an image. Received: no image of "
                f"{empty[:5]} ({len(empty)} of {len(counts)} classes); it is NaN. Make a classifier of the other "
                "classes to measure it.",
                stacklevel=2,
            )
        # The mean over the classes that occur would be another metric.
        per_class = np.bincount(labels, correct, len(counts)) / np.where(counts, counts, np.nan)
        return {
            "top_1_accuracy": float(correct.mean()),
            "top_5_accuracy": float((ranks < 5).mean()),
            "mean_per_class_accuracy": float(np.mean(per_class)),
        }

    def _indices(self, labels, size: int) -> np.ndarray:
        """Converts labels (B,) to class indices."""
        labels = _to_numpy(labels)
        if labels.shape not in ((size,), (size, 1)):
            raise ValueError(f"There must be one label per image, ({size},). Received: labels.shape={labels.shape}.")
        labels = labels.reshape(-1)
        if labels.dtype.kind in "OSU":
            return self._indices_of_names(labels.tolist())
        if labels.dtype.kind not in "iu" or labels.min(initial=0) < 0 or labels.max(initial=0) >= len(self.class_names):
            raise ValueError(
                f"Labels must be integers in [0, {len(self.class_names)}) or class names. "
                f"Received: labels of dtype {labels.dtype} from {labels.min()} to {labels.max()}."
            )
        return labels.astype("int64")

    def _indices_of_names(self, labels: list) -> np.ndarray:
        index = {name: i for i, names in enumerate(self.names_per_class) for name in names}
        labels = [label.decode("utf-8") if isinstance(label, bytes) else label for label in labels]
        if unknown := sorted({repr(label) for label in labels if label not in index}):
            raise ValueError(
                f"Labels must be class names or class indices. Received: {', '.join(unknown[:5])}, not among the "
                f"{len(self.class_names)} classes: {', '.join(map(repr, self.class_names[:5]))}, ..."
            )
        return np.array([index[label] for label in labels], "int64")

    def export(self, filepath: str | os.PathLike, format: str = "tf_saved_model", dtype: str = "uint8") -> None:
        """Writes the classifier as a graph that maps images to probabilities and runs without Keras.

        The graph has an input "images" (B, H, W, 3) for any B, and an output "probabilities" (B, K), float32, which is
        "logits" with `activation=None`:

            tf.saved_model.load(filepath).serve(images)["probabilities"]
            onnxruntime.InferenceSession(filepath).run(["probabilities"], {"images": images})

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
        shape = images_shape(self.image_embedder.encoder)
        output = "logits" if self.activation is None else "probabilities"
        export_image_model(self, filepath, format, shape[1:-1], output, dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "clip": keras.saving.serialize_keras_object(self.image_embedder),
            "class_names": [list(names) for names in self.names_per_class],
            "templates": list(self.templates),
            "activation": self.activation,
        }

    @classmethod
    def _from_own_config(cls, config):
        image_embedder = keras.saving.deserialize_keras_object(config.pop("clip"))
        # Placeholders: the values are restored from the weights file.
        zeros = np.zeros((len(config["class_names"]), image_embedder.embed_dim), np.float32)
        return cls(image_embedder, class_embeddings=zeros, logit_scale=0.0, **config)


def _check_clip(clip, image_embedder, class_embeddings, logit_scale) -> None:
    if not isinstance(image_embedder, ImageEmbedder):
        raise TypeError(
            "`clip` must be a `CLIPModel`, or an `ImageEmbedder` with `class_embeddings` and `logit_scale`. "
            f"Received: clip={clip!r} of type {type(clip).__name__}."
        )
    missing = [
        name
        for name, value, source in (
            ("class_embeddings", class_embeddings, "text_embedder"),
            ("logit_scale", logit_scale, "logit_scale"),
        )
        if value is None and getattr(clip, source, None) is None
    ]
    if missing:
        raise ValueError(
            f"`clip` must have a text embedder and a temperature. Received: clip={clip.name!r} of type "
            f"{type(clip).__name__}. Load the whole CLIP, or pass {' and '.join(f'`{name}`' for name in missing)}."
        )


def _to_numpy(x) -> np.ndarray:
    return ops.convert_to_numpy(x) if ops.is_tensor(x) else np.asarray(x)


def _pixels(images) -> np.ndarray:
    """Images as an array; an error for paths, and for images that are not of one size."""
    try:
        array = _to_numpy(images)
    except ValueError:  # Of arrays that differ in their shapes.
        array = np.empty(0, object)
    if array.dtype.kind in "OSU":
        raise ValueError(
            "Images must be an array (B, H, W, 3) of uint8 or normalised floats. Received: "
            f"{reprlib.repr(images)}. Pass what `image_preprocessor` returns for files, or images of several sizes."
        )
    return array


def _labelled_batches(x, y, batch_size: int) -> Iterator[tuple]:
    """Yields batches (images, labels)."""
    if y is None and isinstance(x, tuple) and len(x) == 2:
        x, y = x
    if y is not None:
        images, labels = _pixels(x), _to_numpy(y)
        if len(images) != len(labels):
            raise ValueError(
                f"There must be one label per image. Received: {len(images)} images and {len(labels)} labels."
            )
        for start in range(0, len(images), batch_size):
            yield images[start : start + batch_size], labels[start : start + batch_size]
        return
    if isinstance(x, np.ndarray) or ops.is_tensor(x):
        raise ValueError(f"Images require labels. Received: x of shape {tuple(x.shape)}, y=None. Pass `y`.")
    for batch in x:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(
                "A dataset must yield batches (images, labels). "
                f"Received: a batch of type {type(batch).__name__}, in x={x!r}."
            )
        images, labels = batch
        if isinstance(images, dict):
            images = images["images"]
        yield _pixels(images), labels


def _ranks(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the rank of the true class, from 0, (B,). Ties are ranked by class index, and NaN is never correct."""
    true = probabilities[np.arange(len(labels)), labels][:, None]
    before = np.arange(probabilities.shape[1]) < labels[:, None]
    return (~(probabilities <= true) | ((probabilities == true) & before)).sum(axis=1)
