"""A Keras model with an exact training step of the global batch, however the batch is divided.

`fit`, `evaluate` and all callbacks are Keras' own. The step differs from Keras' in three points: gradients are summed
over replicas before they are clipped; a step whose loss or gradient is not finite changes nothing; and a batch may be
encoded in micro-batches.
"""

import contextlib
import math
import os
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_clip import compat, distribution
from keras_clip.layers.composite import CompositeModel
from keras_clip.optimizers.adam import adamw
from keras_clip.optimizers.precision import check_precision
from keras_clip.step import backend_steps, batch_timing, compile_checks, microbatches
from keras_clip.types import Tensor


@keras.saving.register_keras_serializable(package="keras_clip")
class Latest(keras.metrics.Metric):
    """The last value, which is the same on all replicas.

    Keras sums the variables of metrics over replicas, so the sum is divided by their number.
    """

    def __init__(self, name: str = "latest", **kwargs):
        super().__init__(name=name, **kwargs)
        self.latest = self.add_variable((), "zeros", name="latest")
        self.replicas = self.add_variable((), "zeros", name="replicas")

    def update_state(self, value: Tensor, sample_weight=None):
        self.latest.assign(ops.cast(value, self.dtype))
        self.replicas.assign(1.0)

    def result(self):
        return self.latest / ops.maximum(self.replicas, 1.0)


class Branch(NamedTuple):
    """One input of a `GlobalBatchTrainer`, and the model that embeds it.

    Attributes:
        input_name: str. Key of the input, a tensor (B, ...), in a batch.
        embedder: Keras model of the input that returns float32 embeddings (B, E).
        output_name: str. Key of the embeddings in the output of the trainer's `call`.
        has_tokens: whether the input is token ids (B, L), whose length `Telemetry` counts.
        head: the layer that `embedder` applies last, to the output of its method `features(inputs, training)`. With it,
            micro-batches compute the features of a locked encoder once, not twice.
    """

    input_name: str
    embedder: keras.Model
    output_name: str
    has_tokens: bool = False
    head: keras.layers.Layer | None = None

    def example(self) -> np.ndarray:
        """Embeddings of two rows: zeros, float32 (2, E)."""
        return np.zeros((2, self.embedder.embed_dim), "float32")


@keras.saving.register_keras_serializable(package="keras_clip")
class GlobalBatchTrainer(CompositeModel, compat.FitHooks):
    """Base of models whose loss compares the embeddings of several inputs, such as `CLIPModel`.

    The constructor of a subclass builds its parts, calls `add_step_metrics` and sets `built = True`. The subclass has
    the property `branches` and the method `compute_loss` of `keras.Model`, which returns global_loss / R on each of R
    replicas; `keras_clip.distribution` has the collective operations for it.

    Call arguments:
        inputs: dict of a tensor (B, ...) for each `input_name` of `branches`.
        training: bool.

    Returns:
        Dict of embeddings (B, E) for each `output_name`.
    """

    microbatch_size: int | None = None
    # Whether the loss of a pair depends on the others of its batch, so that a batch of one pair has none.
    contrasts_pairs = True
    # Whether the data may have targets and sample weights beside the inputs.
    takes_targets = False
    # If set, it is called with a `batch_timing.BatchRead` after each batch that `fit` reads.
    batch_listener = None
    _compiles_embedders = False

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The inputs and their embedders. The first input determines the number of rows of a batch."""
        raise NotImplementedError(
            f"A `GlobalBatchTrainer` must declare its inputs. Received: {type(self).__name__} without the property "
            "`branches`. Return a tuple of `keras_clip.step.Branch`."
        )

    def call(self, inputs, training=False):
        return {
            branch.output_name: branch.embedder(inputs[branch.input_name], training=training)
            for branch in self.branches
        }

    def add_step_metrics(self) -> None:
        """Adds two metrics: the norm of the last gradient, and the number of skipped steps of the epoch."""
        self.gradient_norm = Latest("gradient_norm")
        self.skipped_steps = Latest("skipped_steps")

    def compile(
        self,
        optimizer: keras.optimizers.Optimizer | str | None = None,
        *,
        microbatch_size: int | None = None,
        jit_compile: bool | str = "auto",
        **options,
    ) -> None:
        """Configures training. The loss is the model's own.

        With `microbatch_size`, a step over a batch of any size takes the memory of `microbatch_size` pairs, and 4/3 of
        the time. It is the exact step of the whole batch, except for BatchNorm in training mode, which uses the moments
        of each micro-batch and updates its statistics by their mean.

        Args:
            optimizer: see `keras_clip.training.adamw`; None: `adamw(model)` with the paper's defaults. Its clipping
                applies to the gradient of the global batch.
            microbatch_size: int > 0 or None. Pairs that a device encodes at a time; None: its whole part of the batch.
            jit_compile: as of `keras.Model.compile`. Under a `tf.distribute` strategy, where Keras cannot compile the
                step, True compiles the encoders.
            options: other arguments of `keras.Model.compile`, such as `run_eagerly` and `metrics`. A metric, or a
                function, is called with the image and the text embeddings of the pairs, both float32 (B, E) and of unit
                length, as `y_true` and `y_pred`: `keras.metrics.CosineSimilarity()` is the mean similarity of matching
                pairs. On several replicas each sees the pairs of its own.

        Raises:
            ValueError: a loss, accumulated gradients, metrics of classes, or, under a strategy, options that Keras does
                not support there.
            RuntimeError: processes or devices that would each train alone.
        """
        if microbatch_size is not None and (not isinstance(microbatch_size, int) or microbatch_size < 1):
            raise ValueError(
                f"`microbatch_size` must be a positive integer or None. Received: microbatch_size={microbatch_size!r}. "
                "It counts the pairs that one device encodes at a time."
            )
        optimizer = adamw(self) if optimizer is None else keras.optimizers.get(optimizer)
        compile_checks.check_compile_arguments(self, optimizer, options)
        check_precision(optimizer, self.trainable_variables)
        compile_checks.check_processes()
        compile_checks.warn_of_separate_moments(self)
        strategy = distribution.strategy_of(self)
        self._compiles_embedders = strategy is not None and jit_compile is True
        super().compile(optimizer, jit_compile=jit_compile if strategy is None else False, **options)
        if strategy is not None:
            compat.disable_gradient_sum(self.optimizer)
        if options.get("metrics") or options.get("weighted_metrics"):
            with self._scope():
                compared = self._compared({branch.output_name: branch for branch in self.branches})
                compat.build_metrics(self, *(branch.example() for branch in compared))
        compat.keep_averages_apart(self.optimizer)
        self.microbatch_size = microbatch_size
        self._compile_options = {**options, "jit_compile": jit_compile, "microbatch_size": microbatch_size}

    def get_compile_config(self):
        if not self.compiled:
            return {}
        config = {"optimizer": self.optimizer, **self._compile_options}
        config = {key: keras.saving.serialize_keras_object(value) for key, value in config.items()}
        return {**config, "optimized_weights": self._optimized_weights()}

    def _optimized_weights(self):
        """The places among `weights` of those that the optimizer was built for, or None before it was."""
        if not self.optimizer.built:
            return None
        places = {id(weight): place for place, weight in enumerate(self.weights)}
        if any(id(weight) not in places for weight in compat.optimized_weights(self.optimizer)):
            # Some are no longer in the model, which has been quantised since.
            self._match_optimizer()
        return [places[id(weight)] for weight in compat.optimized_weights(self.optimizer)]

    def compile_from_config(self, config):
        config = {key: keras.saving.deserialize_keras_object(value) for key, value in config.items()}
        # Files of an earlier version do not say which weights the optimizer was built for.
        places = config.pop("optimized_weights", "trainable")
        self.compile(**config)
        if places is not None:
            weights = self.weights
            self.optimizer.build(self.trainable_variables if places == "trainable" else [weights[i] for i in places])

    def embed(self, x: dict, training: bool) -> dict:
        """Computes the output of `call`, in micro-batches or with compiled encoders as configured by `compile`.

        Args:
            x: dict of the inputs, as `call` takes it.
            training: bool.

        Returns:
            The dict that `call` returns. In micro-batches, or with compiled encoders, it also has a "penalty": a
            float32 scalar, the sum of the losses that layers added, which are not in `losses` then.
        """
        size, rows = self.microbatch_size, x[self.branches[0].input_name].shape[0]
        if size is not None and rows is not None and rows <= size * distribution.row_shards():
            size = None
        if size is None and not self._compiles_embedders:
            # Each embedder takes a tensor: Keras keeps the dict of a call in a reference cycle on torch.
            return GlobalBatchTrainer.call(self, x, training=training)
        options = {"size": size, "training": training, "compiled": self._compiles_embedders}
        outputs, penalties = {}, []
        for branch in self.branches:
            rows = ops.convert_to_tensor(x[branch.input_name])
            outputs[branch.output_name], penalty = microbatches.embed(
                branch.embedder, rows, head=branch.head, **options
            )
            penalties.append(penalty)
        return {**outputs, "penalty": sum(penalties)}

    def prepare_training(self, is_first):
        # The variables of the optimizer must exist before the step is traced.
        self._match_optimizer()
        if is_first:
            distribution.share_first([*self.variables, *self.optimizer.variables])

    def wrap_train_function(self, function):
        return batch_timing.timed(self, function)

    def _match_optimizer(self):
        """Builds the optimizer for the weights that are trainable now.

        If some have been locked or unlocked since it was built, the others keep their moments; those of weights that
        are unlocked begin at zero.
        """
        weights = self.trainable_variables
        with self._scope():
            if not self.optimizer.built:
                self.optimizer.build(weights)
            elif list(map(id, compat.optimized_weights(self.optimizer))) != list(map(id, weights)):
                compat.rebuild_optimizer(self.optimizer, weights)

    def _scope(self):
        strategy = distribution.strategy_of(self)
        return contextlib.nullcontext() if strategy is None else strategy.scope()

    def export(self, filepath: str | os.PathLike, *args, **options) -> None:
        """Not supported for every trainer: each embedder is a model of its own.

        Raises:
            NotImplementedError: always; `CLIPModel` overrides it.
        """
        names = [branch.embedder.name for branch in self.branches]
        raise NotImplementedError(
            f"Every embedder of a {type(self).__name__} is exported alone. Received: filepath={os.fspath(filepath)!r}. "
            f"Export {names}, such as `model.branches[0].embedder.export(...)`."
        )

    def compute_metrics(self, x: dict, y: None, y_pred: dict, sample_weight: None = None) -> dict:
        """Updates the metrics given to `compile`, which compare the embeddings of both inputs.

        Args:
            x: dict of the inputs; not used.
            y: None.
            y_pred: dict of the embeddings, as `call` returns it.
            sample_weight: None.

        Returns:
            Dict of the values of all metrics.

        Raises:
            ValueError: a model of another number of inputs.
        """
        first, second = self._compared(y_pred)
        return super().compute_metrics(x, first, second)

    def _compared(self, embeddings):
        names = [branch.output_name for branch in self.branches]
        if len(names) != 2:
            raise ValueError(
                "Metrics compare the embeddings of two inputs. "
                f"Received: metrics for a {type(self).__name__}, which embeds {len(names)}. Leave them out of "
                "`compile`; the model may have metrics of its own, which it updates in `compute_loss`."
            )
        return [embeddings[name] for name in names]

    def get_metrics_result(self) -> dict:
        """Dict of the values of all metrics. Without a step that was not skipped, means are NaN."""
        logs = super().get_metrics_result()
        is_counted = backend_steps.loss_metric(self).count > 0
        about_steps = (self.gradient_norm.name, self.skipped_steps.name)
        return {k: v if k in about_steps else ops.where(is_counted, v, float("nan")) for k, v in logs.items()}

    def fit(self, x: Any = None, *args, **options) -> keras.callbacks.History:
        """Trains the model: see `keras.Model.fit`. Warns of batches of one pair.

        Args:
            x: as of `keras.Model.fit`, of dicts as `call` takes them.
            args: as of `keras.Model.fit`.
            options: as of `keras.Model.fit`.

        Returns:
            `keras.callbacks.History`.

        Raises:
            ValueError: `y`, `sample_weight` or `class_weight` was given, unless `takes_targets`.
        """
        compile_checks.check_targets(self, keras.Model.fit, (x, *args), options)
        # A step that is compiled sees the shape of a batch only when it is traced, and on TensorFlow not of arrays.
        batch_size = options.get("batch_size", args[1] if len(args) > 1 else None)
        compile_checks.warn_of_data_of_single_pairs(self, x, batch_size)
        if isinstance(callbacks := options.get("callbacks"), list | tuple):
            options["callbacks"] = [*callbacks, _ForgetsNaN(callbacks)]
        return super().fit(x, *args, **options)

    def evaluate(self, *args, **options) -> dict[str, float] | list[float]:
        """Evaluates the model: see `keras.Model.evaluate`.

        Args:
            args: as of `keras.Model.evaluate`.
            options: as of `keras.Model.evaluate`.

        Returns:
            As `keras.Model.evaluate`.

        Raises:
            ValueError: `y` or `sample_weight` was given, unless `takes_targets`.
        """
        compile_checks.check_targets(self, keras.Model.evaluate, args, options)
        return super().evaluate(*args, **options)

    def train_step(self, *args):
        """Runs a step of `fit`; the arguments are (state, data) on JAX, and data on other backends."""
        compile_checks.warn_of_step_of_single_pair(self, args[-1])
        return backend_steps.TRAIN[keras.backend.backend()](self, *args)

    def test_step(self, *args):
        """Runs a step of `evaluate`; the arguments are (state, data) on JAX, and data on other backends."""
        return backend_steps.TEST[keras.backend.backend()](self, *args)


class _ForgetsNaN(keras.callbacks.Callback):
    """Lets the callbacks of a best value forget one that is NaN.

    `ModelCheckpoint`, `EarlyStopping` and `ReduceLROnPlateau` take the first value for the best. The loss of an epoch
    in which every step was skipped is NaN, and no later value would be better.
    """

    def __init__(self, callbacks):
        super().__init__()
        self._callbacks = callbacks

    def on_epoch_end(self, epoch, logs=None):
        for callback in self._callbacks:
            best = getattr(callback, "best", None)
            if isinstance(best, float) and math.isnan(best):
                callback.best = None
