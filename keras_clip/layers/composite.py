"""Layers and models that are made of other layers: what is locked and saved holds for the parts as for the whole.

Keras makes a saved layer again from its configuration, which leaves out the layers that its constructor or `build`
makes: which of them are locked, have LoRA updates, or are quantised. Here the configuration says so.
"""

import contextlib
import gc
from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras

from keras_clip import compat
from keras_clip.files import WholeFileMixin

_KEY = "parts"


class Composite(compat.BuildHook):
    """Mixin before `keras.layers.Layer` for a layer whose `build` makes other layers.

    Locked with `trainable=False` it locks what it makes. Its saved form has the state of its parts: see `parts_of`.
    """

    _parts = None

    def finish_build(self) -> None:
        """Locks the parts of a locked layer, and gives the parts of a saved one their state."""
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

    def quantize(self, mode: str = "int8", **kwargs) -> None:
        """Makes the linear layers and embeddings compute in int8: a quarter of the memory, for inference.

        A part alone: `clip.image_embedder.quantize("int8")`. A quantised model is saved and loaded as it is.

        Args:
            mode: "int8".
            kwargs: as of `keras.Model.quantize`.
        """
        with one_collection():
            super().quantize(mode, **{"filters": _is_quantizable, **kwargs})

    def get_build_config(self):
        """None: the constructor builds the model."""
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
        """The model of what its own `get_config` returned."""
        return super().from_config(config)


def _is_quantizable(layer):
    return isinstance(layer, keras.layers.Dense | keras.layers.EinsumDense | keras.layers.Embedding)


def parts_of(owner: keras.layers.Layer) -> dict[str, dict[str, Any]]:
    """What the configurations of Keras do not say of a layer and the layers inside it, as JSON data.

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
        parts: as `parts_of` returns them.

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
    # After all layers and weights exist: to add some sets flags of others.
    for layer, state in states.items():
        is_trainable = state.get("trainable", True)
        compat.set_trainable_flag(layer, is_trainable)
        for weight in compat.trainable_by_nature(layer):
            weight.trainable = weight.name not in state["locked"] if "locked" in state else is_trainable


def _layers_by_path(owner) -> Iterator[tuple[str, keras.layers.Layer]]:
    """The layer itself, as "", and each layer inside once, by names that do not depend on what was made before."""
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
    """Keras collects garbage after every weight that it drops, a minute in a large program. Here it does so once."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.collect()
