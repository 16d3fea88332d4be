"""Evaluation during training: zero-shot accuracy and a closed-form linear probe, on a few images in memory."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_clip.evaluation.classifiers.ridge import RidgeProbe
from keras_clip.evaluation.features.encoding import features_and_embeddings
from keras_clip.evaluation.metrics.classification import accuracy
from keras_clip.zero_shot import embed_classes


class EvaluateDuringTraining(keras.callbacks.Callback):
    """Evaluates a `CLIPModel` at regular steps of `fit`: zero-shot accuracy, and the accuracy of a ridge probe.

    The values are added to the logs of the step and of the epoch as "zero_shot_accuracy" and "probe_accuracy", so that
    the progress bar shows them, and `keras.callbacks.CSVLogger` and `keras.callbacks.TensorBoard` write them if they
    follow this callback in the list. `history` holds the values by step. Before the first measurement they are NaN, and
    so they are of a model whose embeddings are not finite.

    Training is not affected: weights, metrics, random states and the compiled step are the same as without the
    callback.

    Args:
        images: uint8 (N, H, W, 3), as `image_preprocessor.to_uint8` returns them.
        labels: class indices (N,).
        class_names: K names; a class with several names is a list of names.
        templates: texts with one `{}` each.
        train_images: uint8 (M, H, W, 3) with `train_labels`, for the probe. None: no probe.
        train_labels: class indices (M,).
        every: int > 0. Number of steps between two measurements.
        batch_size: int. Images per step of the encoder.

    Raises:
        ValueError: labels that do not match images or names, or `every` that is not positive.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: Sequence[int],
        class_names: Sequence[str | Sequence[str]],
        templates: Sequence[str] = ("a photo of a {}.",),
        train_images: np.ndarray | None = None,
        train_labels: Sequence[int] | None = None,
        every: int = 100,
        batch_size: int = 64,
    ):
        super().__init__()
        if every < 1:
            raise ValueError(f"`every` must be positive. Received: every={every}.")
        self.images, self.labels = _checked(images, labels, len(class_names))
        self.train_images, self.train_labels = None, None
        if train_images is not None:
            self.train_images, self.train_labels = _checked(train_images, train_labels, len(class_names))
        self.class_names, self.templates = class_names, templates
        self.every, self.batch_size = every, batch_size
        self.history: list[dict[str, float]] = []
        self._steps_before, self._steps = 0, 0

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Resets the step counter and the history."""
        self._steps_before, self._steps, self.history = 0, 0, []

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Stores the number of steps before the epoch. Arguments as of `keras.callbacks.Callback`."""
        self._steps_before = self._steps

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Evaluates the model if `every` steps have passed. Arguments as of `keras.callbacks.Callback`."""
        before, self._steps = self._steps, self._steps_before + batch + 1
        # With `steps_per_execution`, this may not be called at the exact multiple of `every`.
        if self._steps // self.every > before // self.every:
            self.history.append({"step": self._steps, **self._measure()})
        self._write(logs)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Adds the last measurement to the logs of the epoch. Arguments as of `keras.callbacks.Callback`."""
        self._write(logs)

    def _write(self, logs):
        names = ["zero_shot_accuracy"] + ["probe_accuracy"] * (self.train_images is not None)
        latest = self.history[-1] if self.history else dict.fromkeys(names, np.nan)
        if logs is not None:
            logs.update({name: latest[name] for name in names})

    def _measure(self) -> dict[str, float]:
        # On JAX, access to the property `model` also writes the latest weights to the variables of the model.
        clip = self.model
        encoder = features_and_embeddings(clip.image_embedder)
        features, embeddings = self._encode(encoder, self.images)
        class_embeddings = embed_classes(clip.text_embedder, self.class_names, self.templates)
        measured = {"zero_shot_accuracy": self._accuracy(embeddings @ class_embeddings.T)}
        if self.train_images is not None:
            train_features = self._encode(encoder, self.train_images)[0]
            measured["probe_accuracy"] = np.nan
            if np.isfinite(train_features).all():
                probe = RidgeProbe().fit(train_features, self.train_labels, len(self.class_names))
                measured["probe_accuracy"] = self._accuracy(probe.decision_function(features))
        return measured

    def _accuracy(self, scores: np.ndarray) -> float:
        """The accuracy, or NaN of scores that are not finite: a measurement must not end the training."""
        return accuracy(scores, self.labels) if np.isfinite(scores).all() else np.nan

    def _encode(self, encoder: keras.Model, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns features (N, D) and embeddings (N, E)."""
        # Batches have a constant size, so that the encoder compiles once.
        size, parts = self.batch_size, []
        for start in range(0, len(images), size):
            rows = np.arange(start, min(start + size, len(images)))
            outputs = encoder.predict_on_batch(images[np.resize(rows, size)])
            parts.append([np.asarray(output)[: len(rows)] for output in outputs])
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def _checked(images, labels, num_classes):
    images, labels = np.asarray(images), np.asarray(labels)
    valid = images.dtype == np.uint8 and images.ndim == 4 and labels.shape == (len(images),) and len(labels)
    if not valid or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"Expected images uint8 (N, H, W, 3), and a label in [0, {num_classes}) for each. Received: images "
            f"{images.dtype} {images.shape}, labels {labels.shape}. `image_preprocessor.to_uint8` returns such images."
        )
    return images, labels
