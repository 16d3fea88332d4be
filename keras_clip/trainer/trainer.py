"""A Keras model whose step is that of the global batch, whatever it is divided into.

`fit`, `evaluate` and all callbacks are Keras' own. Three things differ from its steps: gradients are summed over
replicas before they are clipped; a step whose loss or gradient is not finite changes nothing; and a batch may be
encoded in micro-batches.
"""

import keras
from keras import ops

from keras_clip import distribution
from keras_clip.trainer import keras_repairs, microbatches, steps, watching
from keras_clip.types import Tensor


@keras.saving.register_keras_serializable(package="keras_clip")
class Latest(keras.metrics.Metric):
    """The number that was given last, which is the same on all replicas.

    Keras adds the variables of metrics over replicas, so this counts them.
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


class GlobalBatchTrainer(keras.Model):
    """Base of models that embed images and texts; see `CLIPModel`.

    A subclass has `image_embedder`, `text_embedder` and `compute_loss`, and calls `add_step_metrics` when it is made.
    """

    microbatch_size: int | None = None
    # Called with a `watching.BatchRead` after each batch that `fit` reads, if it is set.
    batch_listener = None
    _compiles_embedders = False

    def add_step_metrics(self) -> None:
        """Two more metrics of `fit`: the norm of the last gradient, and how many steps of the epoch were skipped."""
        self.gradient_norm = Latest("gradient_norm")
        self.skipped_steps = Latest("skipped_steps")

    def compile(
        self,
        optimizer: keras.optimizers.Optimizer | str = "rmsprop",
        *,
        microbatch_size: int | None = None,
        jit_compile: bool | str = "auto",
        **options,
    ) -> None:
        """Configures training. The loss is the model's own.

        With `microbatch_size` a step takes the memory of so many pairs, and the time of 4/3 direct steps, for a batch
        of any size. It is the exact step of the whole batch, but for BatchNorm in training mode, which sees the moments
        of each micro-batch and moves its statistics by their mean.

        Args:
            optimizer: see `keras_clip.training.adamw`. Its clipping applies to the gradient of the global batch.
            microbatch_size: int > 0 or None. Pairs that a device encodes at a time; None: its whole part of the batch.
            jit_compile: as of `keras.Model.compile`. Under a `tf.distribute` strategy, where Keras can compile nothing,
                True compiles the encoders.
            options: others of `keras.Model.compile`, such as `run_eagerly`.

        Raises:
            ValueError: a loss, accumulated gradients, or, under a strategy, what Keras cannot do there.
            RuntimeError: processes or devices that would each train alone.
        """
        if microbatch_size is not None and (not isinstance(microbatch_size, int) or microbatch_size < 1):
            raise ValueError(
                f"`microbatch_size` must be a positive integer or None. Received: microbatch_size={microbatch_size!r}. "
                "It counts the pairs that one device encodes at a time."
            )
        optimizer = keras.optimizers.get(optimizer)
        keras_repairs.check_compile_arguments(self, optimizer, options)
        keras_repairs.check_processes()
        keras_repairs.warn_of_separate_moments(self)
        strategy = keras_repairs.strategy_of(self)
        self._compiles_embedders = strategy is not None and jit_compile is True
        super().compile(optimizer, jit_compile=jit_compile if strategy is None else False, **options)
        if strategy is not None:
            keras_repairs.sum_once(self.optimizer)
        self.microbatch_size = microbatch_size
        self._compile_options = {**options, "jit_compile": jit_compile, "microbatch_size": microbatch_size}

    def get_compile_config(self):
        if not self.compiled:
            return {}
        config = {"optimizer": self.optimizer, **self._compile_options}
        return {key: keras.saving.serialize_keras_object(value) for key, value in config.items()}

    def compile_from_config(self, config):
        config = {key: keras.saving.deserialize_keras_object(value) for key, value in config.items()}
        self.compile(**config)
        self.optimizer.build(self.trainable_variables)

    def embed(self, x: dict, training: bool) -> dict:
        """What `call` gives, computed as `compile` says: plainly, in micro-batches, or with compiled encoders.

        Args:
            x: as `call` takes it.
            training: bool.

        Returns:
            What `call` gives. Where it is not computed plainly, with a "penalty": a float32 scalar of what layers gave
            to `add_loss`, which does not show in `losses` then.
        """
        size, rows = self.microbatch_size, x["images"].shape[0]
        if size is not None and rows is not None and rows <= size * distribution.row_shards():
            size = None
        if size is None and not self._compiles_embedders:
            return self(x, training=training)
        options = {"size": size, "training": training, "compiled": self._compiles_embedders}
        images, more = microbatches.embed(self.image_embedder, ops.convert_to_tensor(x["images"]), **options)
        texts, penalty = microbatches.embed(self.text_embedder, ops.convert_to_tensor(x["token_ids"]), **options)
        return {"image_embeddings": images, "text_embeddings": texts, "penalty": penalty + more}

    def make_train_function(self, force=False):
        # Its variables must be there before the step is traced.
        if not self.optimizer.built:
            self._build_optimizer()
        is_new = force or self.train_function is None
        if not force and is_new:
            distribution.share_first([*self.variables, *self.optimizer.variables])
        super().make_train_function(force)
        if is_new:
            self.train_function = watching.watched(self, self.train_function)
        return self.train_function

    def _build_optimizer(self):
        strategy = keras_repairs.strategy_of(self)
        if strategy is None:
            self.optimizer.build(self.trainable_variables)
        else:
            with strategy.scope():
                self.optimizer.build(self.trainable_variables)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Everything is built. Keras would add up the replicas' inputs, which it cannot do over several workers."""

    def train_step(self, *args):
        """A step of `fit`; on JAX of (state, data), elsewhere of data."""
        step = {"tensorflow": steps.train_tensorflow, "jax": steps.train_jax, "torch": steps.train_torch}
        return step[keras.backend.backend()](self, *args)

    def test_step(self, *args):
        """A step of `evaluate`; on JAX of (state, data), elsewhere of data."""
        step = {"tensorflow": steps.test_tensorflow, "jax": steps.test_jax, "torch": steps.test_torch}
        return step[keras.backend.backend()](self, *args)
