"""`ZeroShotClassifier`: the image embedder of a CLIP and the embeddings of its classes."""

import os
import warnings
from collections.abc import Iterable, Sequence

import keras
import numpy as np
from keras import ops

from keras_clip import compat
from keras_clip.data.images import ImagePreprocessor
from keras_clip.encoders.contract import images_shape
from keras_clip.export import export_image_model
from keras_clip.layers.composite import CompositeModel
from keras_clip.layers.pixel_range import ChecksPixelRange
from keras_clip.model import CLIPModel, ImageEmbedder
from keras_clip.optimizers.precision import check_precision
from keras_clip.prompts import validate_class_names, validate_templates
from keras_clip.types import Tensor
from keras_clip.zero_shot.class_embeddings import embed_classes
from keras_clip.zero_shot.labelled_batches import labelled_batches, ranks_of, to_numpy
from keras_clip.zero_shot.progress import progress

# The losses that are computed from probabilities or logits, by the names that `compile` takes.
_CROSS_ENTROPIES = {
    "sparse_categorical_crossentropy": keras.losses.SparseCategoricalCrossentropy,
    "categorical_crossentropy": keras.losses.CategoricalCrossentropy,
}


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
        class_embeddings = to_numpy(class_embeddings)
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
            to_numpy(ops.convert_to_tensor(clip.logit_scale if logit_scale is None else logit_scale))
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
        with progress(None, "Classifying", hidden=not verbose) as bar:
            for images, batch_labels in labelled_batches(x, y, batch_size or 32):
                probabilities = self.predict_on_batch(images)
                labels.append(self._indices(batch_labels, len(probabilities)))
                ranks.append(ranks_of(probabilities, labels[-1]))
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
        labels = to_numpy(labels)
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
