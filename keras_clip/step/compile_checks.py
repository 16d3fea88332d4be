"""What `compile` and `fit` refuse: options that would train another objective, be ignored, or fail later."""

import inspect
import warnings
from collections.abc import Callable

import keras

from keras_clip import compat, distribution
from keras_clip.layers.sync_batch_norm import SyncBatchNorm


def check_compile_arguments(model: keras.Model, optimizer, options: dict) -> None:
    """Raises a ValueError for arguments of `compile` that would train another objective, or fail later."""
    if options.get("loss") is not None:
        raise ValueError(
            f"The loss is the model's own. Received: loss={options['loss']!r}. Leave it out; "
            "`CLIPModel(loss='sigmoid')` chooses the other one."
        )
    for metric in keras.tree.flatten([options.get("metrics"), options.get("weighted_metrics")]):
        if metric in ("accuracy", "acc", "crossentropy", "ce"):
            raise ValueError(
                "Metrics compare the image with the text embeddings of a batch, which have no classes. "
                f"Received: metrics with {metric!r}. `fit` and `evaluate` log `image_to_text_accuracy` and "
                "`text_to_image_accuracy` in any case; other metrics are functions of both embeddings."
            )
        _check_metric(metric)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    steps = getattr(inner, "gradient_accumulation_steps", None)
    if steps:
        raise ValueError(
            "Accumulating gradients is another objective for a contrastive loss: each part would be contrasted with "
            f"itself only. Received: optimizer with gradient_accumulation_steps={steps}. Pass `microbatch_size` to "
            "`compile` for an exact step over a large batch in the memory of a small one."
        )
    strategy = distribution.strategy_of(model)
    if strategy is not None:
        if options.get("steps_per_execution", 1) != 1:
            raise ValueError(
                "Keras cannot run several steps at once under a strategy. "
                f"Received: steps_per_execution={options['steps_per_execution']}. Leave it at 1."
            )
        if getattr(inner, "ema_overwrite_frequency", None):
            raise ValueError(
                "Keras cannot overwrite weights by their averages under a strategy. Received: optimizer with "
                f"ema_overwrite_frequency={inner.ema_overwrite_frequency}. Leave it at None: with `use_ema=True` alone "
                "the averages become the weights when `fit` ends."
            )


def _check_metric(metric) -> None:
    """Raises a ValueError for a metric that cannot be called with two arrays of embeddings."""
    function = metric if metric is None or not isinstance(metric, str) else keras.metrics.get(metric)
    is_sparse = isinstance(function, _SPARSE) or function in _SPARSE
    update = getattr(function, "update_state", function)
    if not callable(update):
        return
    try:
        parameters = list(inspect.signature(update).parameters.values())
    except (TypeError, ValueError):  # of a function that has no signature
        parameters = None
    if isinstance(function, type):
        parameters = parameters and parameters[1:]
    if is_sparse or (parameters is not None and not _takes_two(parameters)):
        raise ValueError(
            "A metric must take the image and the text embeddings of the pairs, both (B, E), as `y_true` and `y_pred`. "
            f"Received: metrics with {metric!r}. Pass a metric of two arrays, such as "
            "`keras.metrics.CosineSimilarity()`, or a function of both."
        )


_SPARSE = (
    keras.metrics.SparseCategoricalAccuracy,
    keras.metrics.SparseTopKCategoricalAccuracy,
    keras.metrics.SparseCategoricalCrossentropy,
)


def _takes_two(parameters) -> bool:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters):
        return True
    names = [each.name for each in parameters if each.kind in kinds]
    # `keras.metrics.Mean` and the like take values and their weights.
    return len(names) >= 2 and names[1] != "sample_weight"


def check_targets(model: keras.Model, method: Callable, args: tuple, options: dict) -> None:
    """Raises a ValueError if a call has targets or weights that the model does not take.

    Keras itself drops sample weights that come without targets.

    Args:
        model: `GlobalBatchTrainer`.
        method: the method of `keras.Model`.
        args: positional arguments, without `self`.
        options: keyword arguments.
    """
    given = {**dict(zip(list(inspect.signature(method).parameters)[1:], args, strict=False)), **options}
    unknown = [name for name in ("y", "sample_weight", "class_weight") if given.get(name) is not None]
    if unknown and not model.takes_targets:
        inputs = ", ".join(f'"{branch.input_name}"' for branch in model.branches)
        raise ValueError(
            f"The data must be dicts of the inputs, such as {inputs}, without targets or sample weights: the targets "
            f"are among the inputs. Received: {', '.join(unknown)}. To weight samples, repeat them in the data, or "
            "give the model a loss of your own."
        )


def warn_of_separate_moments(model: keras.Model) -> None:
    """Warns of BatchNorm layers whose moments are those of each replica alone, so that the step is not exact."""
    if keras.backend.backend() == "jax" or distribution.replicas_and_devices(model)[0] == 1:
        return
    separate = [
        layer.name
        for layer in compat.all_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
        and layer.trainable
        and not (isinstance(layer, SyncBatchNorm) or getattr(layer, "synchronized", False))
    ]
    if separate:
        warnings.warn(
            f"BatchNorm should use the moments of the global batch. Received: {len(separate)} layers, such as "
            f"{separate[0]!r}, that use those of each replica alone. Use `keras_clip.layers.SyncBatchNorm`, or lock "
            "the encoder with `trainable = False`.",
            stacklevel=3,
        )


def warn_of_data_of_single_pairs(model: keras.Model, x, batch_size: int | None) -> None:
    """Warns of data of `fit` with batches of one pair: arrays, also of a last batch of one; a `tf.data.Dataset`."""
    if not model.contrasts_pairs or distribution.replica_count() > 1:
        # Several replicas: processes of torch, which read their own parts of a batch.
        return
    name, size = model.branches[0].input_name, batch_size or 32
    if isinstance(x, dict) and len(shape := getattr(x.get(name), "shape", ())) > 0:
        _warn_of_single_pair(1 if size == 1 or shape[0] % size == 1 else None)
    spec = getattr(x, "element_spec", None)
    spec = spec[0] if isinstance(spec, tuple) else spec
    if isinstance(spec, dict):
        _warn_of_single_pair(_rows(spec.get(name)))


def warn_of_step_of_single_pair(model: keras.Model, data) -> None:
    """Warns of a global batch of one pair, as far as its shape is known when the step is traced."""
    x = keras.utils.unpack_x_y_sample_weight(data)[0]
    pairs = _rows(x.get(model.branches[0].input_name)) if isinstance(x, dict) else None
    if model.contrasts_pairs:
        _warn_of_single_pair(pairs and pairs * distribution.replica_count())


def _rows(x) -> int | None:
    """The number of rows of a tensor, or None if it is not known."""
    try:
        return x.shape[0]
    except (AttributeError, IndexError, TypeError):
        return None


def _warn_of_single_pair(pairs: int | None) -> None:
    if pairs == 1:
        warnings.warn(
            "A pair is contrasted with the others of its batch. Received: a batch of one pair, which has no others: a "
            "contrastive loss of 0, an accuracy of 1 and no gradient. Use a larger `batch_size`, or leave an "
            "incomplete last batch out.",
            stacklevel=3,
        )


def check_processes() -> None:
    """Raises a RuntimeError if several processes or devices would each train a model of their own."""
    backend, layout = keras.backend.backend(), keras.distribution.distribution()
    if backend == "torch" and layout is not None:
        raise RuntimeError(
            "`keras.distribution` does nothing on torch: each process would train alone. Received: "
            f"distribution={type(layout).__name__}. Call `keras.distribution.set_distribution(None)`, start the "
            "processes with `torchrun` and call `torch.distributed.init_process_group` in each."
        )
    if backend == "jax" and layout is None:
        import jax

        if jax.process_count() > 1:
            raise RuntimeError(
                "Without a distribution each process would train alone. Received: "
                f"{jax.process_count()} processes. Call "
                "`keras.distribution.set_distribution(keras.distribution.DataParallel())` before the model is built."
            )
