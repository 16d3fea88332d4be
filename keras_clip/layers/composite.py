"""Layers and models that are made of other layers: locking and saving include the parts.

Keras restores a saved layer from its configuration, which does not include the state of the layers that its constructor
or `build` creates. Here the configuration records which of them are locked, have LoRA updates, or are quantised.
"""

import contextlib
import gc
from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras

from keras_clip import compat
from keras_clip.files import WholeFileMixin
from keras_clip.layers.input_data import check_input_data

_KEY = "parts"


class Composite(compat.BuildHook):
    """Mixin before `keras.layers.Layer` for a layer whose `build` makes other layers.

    With `trainable=False` the layers that it makes are locked too. Its saved form has the state of its parts: see
    `parts_of`.
    """

    _parts = None

    def finish_build(self) -> None:
        """Locks the parts of a locked layer, and restores the state of the parts of a saved layer."""
        if not self.trainable:
            # The flag was given before the parts existed. On TensorFlow an attribute that is False is not set again.
            keras.layers.Layer.trainable.fset(self, False)
        if self._parts is not None:
            restore_parts(self, dict(self._parts))

    def get_build_config(self):
        config, parts = super().get_build_config(), parts_of(self)
        return {**config, _KEY: parts} if config is not None and parts else config

    def build_from_config(self, config):
        self._parts = config.pop(_KEY, None)
        super().build_from_config(config)


class CompositeModel(WholeFileMixin, Composite, compat.CompiledFunctions):
    """A `keras.Model` whose constructor makes and builds all of its parts."""

    def fit(self, x: Any = None, *args, **kwargs) -> keras.callbacks.History:
        """As `keras.Model.fit`, with the errors of `check_input_data`."""
        self._check_data(x)
        return super().fit(x, *args, **kwargs)

    def evaluate(self, x: Any = None, *args, **kwargs) -> dict[str, float] | list[float] | float:
        """As `keras.Model.evaluate`, with the errors of `check_input_data`."""
        self._check_data(x)
        return super().evaluate(x, *args, **kwargs)

    def predict(self, x: Any, *args, **kwargs) -> Any:
        """As `keras.Model.predict`, with the errors of `check_input_data`."""
        self._check_data(x)
        return super().predict(x, *args, **kwargs)

    def train_on_batch(self, x: Any, *args, **kwargs) -> Any:
        """As `keras.Model.train_on_batch`, with the errors of `check_input_data`."""
        self._check_data(x)
        return super().train_on_batch(x, *args, **kwargs)

    def test_on_batch(self, x: Any, *args, **kwargs) -> Any:
        """As `keras.Model.test_on_batch`, with the errors of `check_input_data`."""
        self._check_data(x)
        return super().test_on_batch(x, *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """As `keras.Model.predict_on_batch`, with the errors of `check_input_data`."""
        self._check_data(x)
        return super().predict_on_batch(x)

    def _check_data(self, x):
        check_input_data(x, self._vocabulary)

    @property
    def _vocabulary(self) -> int | None:
        """Number of tokens that the text encoder knows, for a model of token ids."""
        return None

    def quantize(self, mode: str = "int8", **kwargs) -> None:
        """Quantises the linear layers and embeddings to int8 for inference, which takes a quarter of the memory.

        `clip.image_embedder.quantize("int8")` quantises one part alone. A quantised model can be saved and loaded.

        Args:
            mode: "int8".
            kwargs: see `keras.Model.quantize`.
        """
        with one_collection():
            super().quantize(mode, **{"filters": _is_quantizable, **kwargs})

    def get_build_config(self):
        """Returns None, because the constructor builds the model."""
        return None

    def get_config(self):
        config, parts = super().get_config(), parts_of(self)
        return {**config, _KEY: parts} if parts else config

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        parts = config.pop(_KEY, None)
        model = cls._from_own_config(config)
        if parts is not None:
            restore_parts(model, parts)
        return model

    @classmethod
    def _from_own_config(cls, config):
        """Returns the model from the configuration without the state of its parts."""
        return super().from_config(config)


def _is_quantizable(layer):
    return isinstance(layer, keras.layers.Dense | keras.layers.EinsumDense | keras.layers.Embedding)


def parts_of(owner: keras.layers.Layer) -> dict[str, dict[str, Any]]:
    """Returns the state of a layer and the layers inside it that Keras' configurations lack, as JSON data.

    Args:
        owner: a built layer or model.

    Returns:
        Dict of the layers, by their path in `owner`, that differ from what a constructor makes:
            "trainable": False, the flag of that layer alone.
            "locked": names of its own weights that are locked, if these are not all of a layer that is not trainable
                and none of one that is.
            "lora": [rank, alpha] of a layer with LoRA updates.
            "quantization": mode of a quantised layer, such as "int8".
            "quantization_config": its configuration, if it is not that of the mode.
    """
    states = {path: _state_of(layer) for path, layer in _layers_by_path(owner)}
    return {path: state for path, state in states.items() if state}


def restore_parts(owner: keras.layers.Layer, parts: dict[str, dict[str, Any]]) -> None:
    """Gives the layers inside a new layer the state that `parts_of` returned for another one of its kind.

    Args:
        owner: a built layer or model.
        parts: the value that `parts_of` returned.

    Raises:
        ValueError: states of layers that `owner` does not have.
    """
    layers = dict(_layers_by_path(owner))
    if missing := sorted(set(parts) - set(layers)):
        raise ValueError(
            f"The saved state must be of layers that {owner.name!r} has. Received: the state of {missing[0]!r}, and of "
            f"{len(missing) - 1} others that it lacks. Load the file with the version of the library that saved it."
        )
    states = {layer: parts.get(path, {}) for path, layer in layers.items()}
    _quantize(owner, states)
    for layer, state in states.items():
        if "lora" in state:
            rank, alpha = state["lora"]
            if not layer.lora_enabled:
                layer.enable_lora(rank)
            layer.lora_alpha = alpha
    # This follows the creation of all layers and weights, because adding some sets flags of others.
    for layer, state in states.items():
        is_trainable = state.get("trainable", True)
        compat.set_trainable_flag(layer, is_trainable)
        for weight in compat.trainable_by_nature(layer):
            weight.trainable = weight.name not in state["locked"] if "locked" in state else is_trainable


def _layers_by_path(owner) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yields the layer itself as "", and each layer inside once, by a path that does not depend on Keras' numbering."""
    yield "", owner
    seen, stack = set(), [(owner, "")]
    while stack:
        layer, prefix = stack.pop()
        counts = Counter()
        for part in compat.sublayers(layer):
            # Keras numbers the names that it makes itself.
            name = part.name.rstrip("0123456789").rstrip("_") or part.name
            counts[name] += 1
            path = f"{prefix}{name}:{counts[name]}"
            if id(part) not in seen:
                seen.add(id(part))
                yield path, part
                stack.append((part, f"{path}/"))


def _state_of(layer):
    state = {} if layer.trainable else {"trainable": False}
    own = compat.trainable_by_nature(layer)
    locked = [weight.name for weight in own if not weight.trainable]
    if len(locked) != (0 if layer.trainable else len(own)):
        state["locked"] = locked
    if getattr(layer, "lora_enabled", False):
        state["lora"] = [layer.lora_rank, layer.lora_alpha]
    if layer.quantization_mode is not None:
        state["quantization"] = layer.quantization_mode
        config = getattr(layer, "quantization_config", None)
        if config is not None and config.get_config() != type(config)().get_config():
            state["quantization_config"] = keras.saving.serialize_keras_object(config)
    return state


def _quantize(owner, states) -> None:
    quantized = [layer for layer, state in states.items() if state.get("quantization") != layer.quantization_mode]
    if not quantized:
        return
    with one_collection():
        for layer in quantized:
            config = states[layer].get("quantization_config")
            layer.quantize(states[layer]["quantization"], config=keras.saving.deserialize_keras_object(config))
        compat.forget_removed_weights(owner)


@contextlib.contextmanager
def one_collection():
    """Collects garbage once, instead of after every weight that Keras drops, which takes a minute in large programs."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.collect()
